"""A token that was shown cannot be taken back over most protocols: what may be told of an answer, and when.

Rules:
- An answer that is held (a schema) is told when it is whole; any other as it comes.
- Of an attempt that is discarded after text of it went out, nothing more is told, and no other's text is put behind
  it: unless a later attempt has reproduced, byte for byte, what was shown.  Then it goes on from there.
- Whatever was told is the beginning of the answer that stands, or there is a `Superseded`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from llm_routerd.protocol.events import AttemptStarted, Reasoning, Result, Token
from llm_routerd.protocol.wire import encode

if TYPE_CHECKING:
    from llm_routerd.protocol.reading import SeenEnd, SeenEvent


class More(Struct, frozen=True):
    """Text to be told now; both may be empty."""

    text: str = ""
    reasoning: str = ""


class Superseded(Struct, frozen=True):
    """What was shown is not the beginning of the answer: nothing more can be told."""


class Ended(Struct, frozen=True):
    """The request is over; `rest` is what of its answer has not been told yet."""

    end: SeenEnd
    rest: str = ""


NOTHING = More()
_OTHER = -1


def unfenced(result: Result) -> Result:
    """The same answer, whose text, where it is to be JSON, is nothing else: models like to put a fence around it."""
    if isinstance(result.content, str) or not result.raw_text.lstrip().startswith("`"):
        return result
    return replace(result, raw_text=encode(result.content).decode())


class Shown:
    """What has been shown of one request: give it the events in order."""

    def __init__(self, *, is_held: bool, shows_reasoning: bool) -> None:
        self._is_held = is_held
        self._shows_reasoning = shows_reasoning
        self._attempt = 0  # the last that was seen
        self._owner = 0  # whose text is shown; 0: none is
        self._shown: list[str] = []
        self._again = 0  # how many characters of it another attempt has said again; _OTHER: it says something else

    @property
    def has_shown(self) -> bool:
        """Whether any text of the answer is out."""
        return bool(self._owner)

    @property
    def text(self) -> str:
        """What has been shown."""
        if len(self._shown) > 1:  # put together once, and not for each token that says it again
            self._shown = ["".join(self._shown)]
        return "".join(self._shown)

    def see(self, event: SeenEvent) -> More | Superseded | Ended:
        """What follows from the next event."""
        if event.is_final:
            return self._end(event)  # type: ignore[arg-type]  # which is what a final event is
        match event:
            case AttemptStarted():
                self._attempt, self._again = event.attempt, 0
            case Token(text=text) if not self._is_held:
                return self._token(event.attempt, text)
            case Reasoning(text=text) if self._shows_reasoning and not self._is_held and not self._owner:
                return More(reasoning=text)
            case _:
                pass
        return NOTHING

    def _token(self, attempt: int, text: str) -> More | Superseded:
        if self._owner in {0, attempt}:
            self._owner = attempt
            self._shown.append(text)
            return More(text)
        if attempt < self._owner:  # a late word of an attempt that has been given up
            return NOTHING
        shown = self.text
        if self._again != _OTHER and shown.startswith(text, self._again):
            self._again += len(text)
            return NOTHING
        if self._again == _OTHER or not text.startswith(missing := shown[self._again :]):
            self._again = _OTHER
            return Superseded()
        rest = text.removeprefix(missing)
        self._owner, self._again = attempt, 0
        self._shown.append(rest)
        return More(rest)

    def _end(self, end: SeenEnd) -> Ended | Superseded:
        if not isinstance(end, Result):
            return Ended(end)
        shown, answer = self.text, end.raw_text
        if answer.startswith(shown):
            return Ended(end, answer.removeprefix(shown))
        return Superseded() if shown.rstrip() != answer.rstrip() else Ended(end)
