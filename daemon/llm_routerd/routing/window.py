"""Whether a prompt fits into a model's window, and how large a window to ask for.

A server that cannot hold a prompt refuses it, or cuts it and answers what is left; either takes a place, and a local
one perhaps a load of the model.  So what surely does not fit, by the fewest tokens that it may have, is not sent at
all; and the window that is asked for holds the most that it may have.

Ollama loads a model anew for another `num_ctx`, which takes as long as loading it.  So windows are asked for in few
steps, and what was asked for is asked for again as long as larger prompts keep coming.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llm_routerd.protocol.call import Window
    from llm_routerd.routing.prompt_size import Tokens

LEAST_WINDOW: Final = 2_048
"""Tokens that every model takes, where nothing else is known: the default of older Ollamas."""
STEPS: Final = (4_096, 8_192, 16_384, 32_768, 65_536, 131_072, 262_144)
MOST_UNASKED: Final = 32_768
"""Tokens that are asked for where the operator has set no bound: the memory for more is that of another model."""
_ROOM: Final = 1_024  # tokens for an answer of which nothing is said
_MOST_ROOM: Final = 4_096
# Many clients send `max_tokens` by rote, Anthropic's always: for more of it than this no prompt is passed over.
_SHARE_OF_ANSWER: Final = 8


class Fit(Struct, frozen=True, kw_only=True):
    """How a prompt fits.

    Attributes:
        num_ctx: the window to ask for; None: none, or the one that the configuration asks for.
        too_long: why it does not fit at all, in one line; None: it may.
    """

    num_ctx: int | None = None
    too_long: str | None = None


FITS: Final = Fit()


def num_ctx_of(params: Mapping[str, Any]) -> int | None:
    """The window that parameters of a call ask for, as Ollama spells it; None: they do not."""
    options = params.get("options")
    for asked in (params.get("num_ctx"), options.get("num_ctx") if isinstance(options, dict) else None):
        if isinstance(asked, int) and not isinstance(asked, bool) and asked > 0:
            return asked
    return None


def fit(
    tokens: Tokens, window: Window | None, *, bound: int, fixed: int | None, max_tokens: int | None, asked: int | None
) -> Fit:
    """How a prompt fits.

    Args:
        tokens: of the prompt.
        window: what the server tells; None: nothing.
        bound: `context` of the configuration; 0: none.
        fixed: what the configuration asks for with every call; None: nothing.
        max_tokens: of the answer, where the request says it.
        asked: for how much the model was loaded last; None: for as much as its server likes.
    """
    most = _most(window, bound, fixed)
    if most is not None:
        room = min(max_tokens or 0, most // _SHARE_OF_ANSWER)
        if tokens.low + room > most:
            answer = f" and {room} for the answer" if room else ""
            return Fit(too_long=f"a prompt of about {tokens.likely:.0f} tokens{answer} does not fit its {most}")
    if window is None or not window.is_asked_for or fixed is not None or most is None:
        return FITS
    wanted = tokens.high + min(max_tokens or _ROOM, _MOST_ROOM)
    if asked is None and wanted <= LEAST_WINDOW:
        return FITS
    now = asked or window.now or LEAST_WINDOW
    if wanted <= now:
        return Fit(num_ctx=now)
    return Fit(num_ctx=max(now, min(most, next((step for step in STEPS if step >= wanted), most))))


def _most(window: Window | None, bound: int, fixed: int | None) -> int | None:
    """Tokens of prompt and answer together that there may be; None: nobody knows."""
    told = None if window is None else window.most
    if window is not None and window.is_asked_for and fixed is None:
        bound = bound or max(MOST_UNASKED, window.now or 0)
    bounds = [each for each in (told, bound, fixed) if each]
    return min(bounds) if bounds else None
