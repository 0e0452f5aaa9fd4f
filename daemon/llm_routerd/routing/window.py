"""Whether a prompt fits into a model's window, and how large a window to ask for.

A server that cannot hold a prompt refuses it, or cuts it and answers what is left; either takes a place, and a local
one perhaps a load of the model.  So what surely does not fit, by the fewest tokens that it may have, is not sent at
all; and the window that is asked for holds the most that it may have.

Ollama loads a model anew for another `num_ctx`, which takes as long as loading it.  So windows are asked for in few
steps, and never for a smaller one than the model has, as long as somebody wants that one: see `running.model_window`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llm_routerd.protocol.call import Window
    from llm_routerd.routing.text_tokens import Tokens

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
        needs: the smallest window that surely holds prompt and answer, of those that are asked for; None: any does, or
            that is not known.
    """

    num_ctx: int | None = None
    too_long: str | None = None
    needs: int | None = None


FITS: Final = Fit()


class Limits(Struct, frozen=True, kw_only=True):
    """What bounds the windows of a deployment.

    Attributes:
        window: what the server tells; None: nothing.
        bound: the most that is asked for, and that the operator has set or the memory allows; 0: none.
        fixed: what the configuration asks for with every call; None: nothing.
        cuts: the operator wants a prompt that is too long to be cut.
    """

    window: Window | None
    bound: int = 0
    fixed: int | None = None
    cuts: bool = False

    @property
    def is_asked_for(self) -> bool:
        """Whether a call says how large a window it wants."""
        return self.window is not None and self.window.is_asked_for and self.fixed is None

    @property
    def told(self) -> int | None:
        """What the model was made for, or its server takes; less than any model has is no window."""
        return _credible(None if self.window is None else self.window.most)

    @property
    def now(self) -> int | None:
        """The window that it has as it is loaded, or would be."""
        now = _credible(None if self.window is None else self.window.now)
        return None if now is None else min(now, self.told or now, STEPS[-1])

    @property
    def most(self) -> int | None:
        """Tokens of prompt and answer together that there may be; None: nobody knows."""
        bounds = [each for each in (self.told, self.bound, self.fixed) if each]
        if self.is_asked_for and self.told is not None and not self.bound:
            bounds.append(self._unasked)
        return min(bounds) if bounds else None

    @property
    def largest(self) -> int:
        """The largest window that is asked for."""
        return min(self.most or self._unasked, STEPS[-1])

    @property
    def _unasked(self) -> int:
        return max(MOST_UNASKED, self.now or 0)


def num_ctx_of(params: Mapping[str, Any]) -> int | None:
    """The window that parameters of a call ask for, as Ollama spells it; None: they do not."""
    options = params.get("options")
    for asked in (params.get("num_ctx"), options.get("num_ctx") if isinstance(options, dict) else None):
        if isinstance(asked, int) and not isinstance(asked, bool) and asked > 0:
            return asked
    return None


def room_for(max_tokens: int | None) -> int:
    """Tokens that are kept for the answer."""
    return min(max_tokens or _ROOM, _MOST_ROOM)


def step_for(tokens: float) -> int | None:
    """The smallest step that holds so many; None: what every model takes does."""
    return None if tokens <= LEAST_WINDOW else next((step for step in STEPS if step >= tokens), STEPS[-1])


def fit(tokens: Tokens, limits: Limits, *, max_tokens: int | None, asked: int | None) -> Fit:
    """How a prompt fits.

    Args:
        tokens: of the prompt.
        limits: of the model.
        max_tokens: of the answer, where the request says it.
        asked: the window that the model is kept loaded with; None: as its server likes.
    """
    most = limits.most
    if most is not None and not limits.cuts:
        room = min(max_tokens or 0, most // _SHARE_OF_ANSWER)
        if tokens.low + room > most:
            answer = f" and {room} for the answer" if room else ""
            return Fit(too_long=f"a prompt of about {tokens.likely:.0f} tokens{answer} does not fit its {most}")
    if not limits.is_asked_for:
        return FITS
    wanted = tokens.high + room_for(max_tokens)
    step = step_for(wanted)
    if asked is None and step is None:
        return FITS
    now = max(asked or 0, limits.now or LEAST_WINDOW)
    needs = None if step is None else min(step, max(limits.largest, LEAST_WINDOW))
    return Fit(num_ctx=now if wanted <= now or needs is None else max(now, needs), needs=needs)


def _credible(told: int | None) -> int | None:
    return told if told is not None and told >= LEAST_WINDOW else None
