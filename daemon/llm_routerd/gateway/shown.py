"""A token that was shown cannot be taken back over most protocols: what may be told of an answer, and when.

Rules:
- An answer that is held (a schema) is told when it is whole; any other as it comes.
- Of an attempt that is discarded after text of it went out, nothing more is told, and no other's text is put behind
  it: unless a later attempt has reproduced, byte for byte, what was shown.  Then it goes on from there.
- Of a run with tools a turn's text is final when its `turn` stands, and the next turn goes on behind it, after an empty
  line: what stands is then the texts of all turns, the answer last.  Within a turn the rules are those above.
- Where the answer is held nothing is told of the turns before it: it is to be nothing but JSON, or whole.
- Whatever was told is the beginning of what stands, or there is a `Superseded`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from llm_routerd.protocol.events import AttemptStarted, Reasoning, Result, Token, TurnEnded
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
    """The request is over; `rest` is what has not been told yet.

    Of an answer behind turns that were told `raw_text` has these before it: it is what has been told, and `rest`.
    """

    end: SeenEnd
    rest: str = ""


NOTHING = More()
_OTHER = -1
_BETWEEN = "\n\n"  # the texts of two turns


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
        self._turns = ""  # what has been told of the turns that stand
        self._stands = 0  # the attempt of the last of them
        self._owner = 0  # whose text is shown of this turn; 0: none is
        self._shown: list[str] = []
        self._again = 0  # how many characters of it another attempt has said again; _OTHER: it says something else

    @property
    def has_shown(self) -> bool:
        """Whether any text is out."""
        return bool(self._owner or self._turns)

    @property
    def text(self) -> str:
        """What has been shown of this turn."""
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
            case Reasoning(text=text) if self._shows_reasoning and not self._is_held and not self.has_shown:
                return More(reasoning=text)
            case TurnEnded() if not self._is_held:
                return self._turn(event)
            case _:
                pass
        return NOTHING

    def _token(self, attempt: int, text: str) -> More | Superseded:
        if attempt <= self._stands:
            return NOTHING
        if self._owner in {0, attempt}:
            more = text if self._owner else self._behind_turns(text)
            self._owner = attempt
            self._shown.append(text)
            return More(more)
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

    def _behind_turns(self, text: str) -> str:
        """The beginning of a turn, as it is put behind those before."""
        return f"{_BETWEEN}{text}" if text and self._turns else text

    def _turn(self, event: TurnEnded) -> More | Superseded:
        """Its text stands: the next one is told behind it."""
        said = event.message.get("content")
        rest = self._rest_of(said if isinstance(said, str) else "")
        if rest is None:
            return Superseded()
        shown = self.text
        more = rest if shown else self._behind_turns(rest)
        self._turns += self._behind_turns(shown + rest)
        self._stands, self._owner, self._shown, self._again = event.attempt, 0, [], 0
        return More(more)

    def _rest_of(self, text: str) -> str | None:
        """What of a text that stands has not been told; None: something else has."""
        shown = self.text
        if text.startswith(shown):
            return text.removeprefix(shown)
        return "" if shown.rstrip() == text.rstrip() else None

    def _end(self, end: SeenEnd) -> Ended | Superseded:
        if not isinstance(end, Result):
            return Ended(end)
        rest = self._rest_of(end.raw_text)
        if rest is None:
            return Superseded()
        if not self._turns:
            return Ended(end, rest)
        whole = replace(end, raw_text=self._turns + self._behind_turns(end.raw_text))
        return Ended(whole, rest if self.text else self._behind_turns(rest))
