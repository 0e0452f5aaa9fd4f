"""Whether a server has cut a prompt that was too long for its model, and answered what was left.

Ollama drops the front of such a prompt (the system prompt, the tools, the task), answers 200 and counts after the cut,
unless it is asked not to.  Versions that cannot be asked are found out by their count of the prompt's tokens, in two
ways.

Of any server: the count is far below what the prompt's length allows (`looks_cut`).  That finds what lost well more
than half; a cut of less is within what texts differ in.

Of an Ollama whose window is known (`may_be_cut`): it leaves out messages from the front, but for system prompts, until
what is left fits, and cuts a last message that does not fit to the window, in its oldest versions to somewhat more than
half of it.  So a prompt was cut if one of these cuts explains its count.  Tokens are guessed from the text
(`routing.prompt_size`), and what may be cut counts as cut: an answer to half a task is worse than one more deployment
asked.  A prompt that surely fits is never taken for cut, and the window that is asked for is such that it does, as long
as the model has one (`running.windows`); one that fills all of it always is: there would be no room for an answer
either.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from msgspec.structs import replace

from llm_routerd.protocol.call import BackendError
from llm_routerd.protocol.codes import AttemptCode
from llm_routerd.routing.prompt_size import most_tokens, size_of, texts_of
from llm_routerd.routing.text_tokens import without_runs

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from llm_routerd.protocol.call import Call, Finish
    from llm_routerd.routing.prompt_size import PromptSize

HowCut: TypeAlias = Literal["whole", "messages", "cut"]
"""Nothing was left out; messages may have been, from the front; the prompt was cut, or that cannot be told apart."""

# No text of any length is that short in tokens: 3 to 5 characters make one, in most languages fewer.
_MOST_CHARS_PER_TOKEN = 6
# No model has a window this small, so that a shorter prompt was not cut, however it was counted.
_FEWEST_CHARS = 2_000
# The first that surely takes `truncate` and `shift`.  Some after it count without what they had cached.
_TAKES_TRUNCATE = (0, 13)
_CUTS_TO_THE_WINDOW = (0, 4)
_VERSION = re.compile(r"(\d{1,4})\.(\d{1,4})")
# Of one prompt the parts are alike: so far apart may their tokens for the same guess be.
_OFF = 1.5
# Of fewer tokens nothing follows for the rest: a template is too great a part of them.
_TELLING = 1_000
# As many tokens below the window as Ollama may leave free where it cuts.
_NEAR = 16


def looks_cut(messages: Iterable[dict[str, Any]], prompt_tokens: int) -> bool:
    """Whether the messages hold more text than that many tokens can.

    Messages of the assistant do not count: templates leave thinking out of them.  A count of 0 says nothing: it is what
    old versions tell of a prompt that they had cached.
    """
    bound = prompt_tokens * _MOST_CHARS_PER_TOKEN + _FEWEST_CHARS
    texts = [text for message in messages if message.get("role") != "assistant" for text in texts_of(message)]
    if prompt_tokens == 0 or sum(map(len, texts)) <= bound:
        return False
    return sum(len(without_runs(text)) for text in texts) > bound


async def reject_cut(call: Call, finish: Finish) -> None:
    """Object to an answer to a prompt that a server has cut, told by the coarse count alone.

    For servers that an operator named: a provider's own do not cut.  Coroutine for `exchange`.

    Raises:
        BackendError: the prompt was cut, and nobody asked for that (`truncate`).
    """
    usage = finish.usage
    if usage is None or call.params.get("truncate"):
        return
    if looks_cut(call.messages, usage.prompt_tokens + (usage.cached_tokens or 0)):  # some count these apart
        raise cut()


def cut() -> BackendError:
    """The error of an answer to half a prompt."""
    return BackendError(AttemptCode.CONTEXT_WINDOW, "the prompt was cut: fewer tokens were read than it has")


def takes_truncate(version: Any) -> bool:
    """Whether an Ollama of this version does not cut where it is asked not to."""
    found = _VERSION.match(version) if isinstance(version, str) else None
    return found is not None and (int(found[1]), int(found[2])) >= _TAKES_TRUNCATE


def may_exceed(call: Call, window: int) -> bool:
    """Whether the prompt may be longer than a window of so many tokens; cheap, and for longer texts often True."""
    return most_tokens(call.messages, call.tools, schema=call.schema) > window


def cuts_in_halves(version: Any) -> bool:
    """Whether an Ollama of this version cuts a message by halves of its window, or may; the next ones cut to it."""
    found = _VERSION.match(version) if isinstance(version, str) else None
    return found is None or (int(found[1]), int(found[2])) < _CUTS_TO_THE_WINDOW


def may_be_cut(call: Call, prompt_tokens: int, windows: Collection[int], *, in_halves: bool = True) -> bool:
    """Whether an Ollama may have left out some of the prompt; see `how_cut`."""
    return how_cut(call, prompt_tokens, windows, in_halves=in_halves) != "whole"


def how_cut(call: Call, prompt_tokens: int, windows: Collection[int], *, in_halves: bool = True) -> HowCut:
    """What an Ollama that counted so many tokens may have left out, where its window is one of these.

    Without a count (0) only the prompt's length tells.  `in_halves`: see `cuts_in_halves`.
    """
    possible = [window for window in windows if prompt_tokens <= window]
    if not possible:
        return "whole"
    size = size_of(call.messages, call.tools, schema=call.schema, may_call=call.may_call or not call.tools)
    whole = size.whole
    factors = call.token_factors(whole.kind)
    if whole.scaled(factors).high <= min(possible):
        return "whole"
    size = size.scaled(factors)
    found = {_how_cut(size, prompt_tokens, window, in_halves=in_halves) for window in possible}
    return "cut" if "cut" in found else "messages" if "messages" in found else "whole"


def without_first(call: Call) -> Call | None:
    """The call without the message that is left out first; None: none is, since it has no other but the last.

    What has lost that message already has as many tokens without it, and what has not, fewer.
    """
    messages = call.messages
    at = next((at for at, each in enumerate(messages[:-1]) if each.get("role") not in {"system", "developer"}), None)
    return None if at is None else replace(call, messages=messages[:at] + messages[at + 1 :])


def was_whole(counted: int, rest: Call, counted_of_rest: int) -> bool:
    """Whether a prompt of so many tokens was read with its first message.

    Args:
        counted: tokens of the prompt.
        rest: the call without its first message, which was sent after it.
        counted_of_rest: its tokens.  Fewer than it can have are none of it: what was cached is not counted by some.
    """
    least = size_of(rest.messages, rest.tools, schema=rest.schema, may_call=rest.may_call or not rest.tools).whole.low
    return least <= counted_of_rest < counted


def _how_cut(size: PromptSize, counted: int, window: int, *, in_halves: bool) -> HowCut:
    whole = size.whole
    if whole.high <= window:
        return "whole"
    if counted >= window - _NEAR or whole.low > window:
        return "cut"
    if in_halves and counted >= window // 2 and counted + window // 2 <= whole.high:
        return "cut"
    low, likely, high = whole.low, whole.likely, whole.high  # of what is left
    for dropped in size.messages[:-1]:
        low, likely, high = low - dropped.low, likely - dropped.likely, high - dropped.high
        of_dropped = dropped.high
        if likely > _TELLING:
            of_dropped = min(counted * _OFF * dropped.likely / likely, of_dropped)
        if low / _OFF <= counted <= high and counted + of_dropped > window:
            return "messages"
    return "whole"
