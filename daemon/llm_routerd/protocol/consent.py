"""A person's word to a tool call: what stands in the consent stream of a request, and whether a word counts for a call.

A word is given to what was shown: it names the hash of the arguments, so that nobody agrees to others than those seen.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict

import orjson
from msgspec import Struct

from llm_routerd.protocol.codes import ErrorCode
from llm_routerd.protocol.events import (
    ArgsSha256,
    CallConfirmed,
    CallDenied,
    CallId,
    Cancelled,
    Failed,
    Result,
    ToolCalled,
    ToolReturned,
)
from llm_routerd.protocol.wire import said

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llm_routerd.protocol.reading import SeenEvent

_EXPIRED = "the time in which this call could be confirmed is over"
_NOT_WANTED_ANY_MORE = "this call waits for nobody's word any more"
_OTHER_ARGUMENTS = "the call has other arguments than those that this word is for"


class ConsentFields(TypedDict, total=False):
    """A person's word to a tool call, an entry of the stream `P:consent:<id>`, each property a field.

    As in every stream entry the values are texts; that of `args` is JSON, and described here as what it holds. It
    agrees, with `confirm`, or refuses, with `deny`. The event `confirmed` or `denied` tells that it counts: a word that
    is late, the second one, or for other arguments than those of the call is passed over.
    """

    confirm: Annotated[CallId, said("The call that may be made.")]
    deny: Annotated[CallId, said("The call that may not be made.")]
    args_sha256: Annotated[
        ArgsSha256, said("With `confirm`: that of the `tool_call`, the word is for the arguments that were shown.")
    ]
    by: Annotated[str, said("Who says it; 200 bytes of it are kept.")]
    args: Annotated[
        dict[str, Any],
        said("With `confirm`: the arguments that the tool is called with instead. They satisfy its `parameters`."),
    ]
    always: Annotated[
        Literal["1", "true"],
        said("With `confirm`: further calls of this tool wait for nobody, for the rest of the run."),
    ]
    reason: Annotated[str, said("Of a denial, for the model; of a consent, for the record. 2000 bytes of it are kept.")]


class Word(Struct, frozen=True, kw_only=True):
    """What a person says to a call.

    Attributes:
        agrees: whether the tool may be called.
        args_sha256: of the arguments as they were shown, from the event `tool_call`; "": not given.
        args: other arguments, for which the call may be made.
        always: this tool may be called for the rest of the run.
        reason: of a denial, for the model; of a consent, for the record.
    """

    agrees: bool
    args_sha256: str = ""
    args: dict[str, Any] | None = None
    always: bool = False
    reason: str = ""

    def fields(self, call_id: str, by: str) -> dict[str, str | bytes]:
        """The fields of the entry in the consent stream; `by` is who says it."""
        if not self.agrees:
            return {"deny": call_id, "by": by, "reason": self.reason}
        told: dict[str, str | bytes] = {"confirm": call_id, "args_sha256": self.args_sha256, "by": by}
        if self.args is not None:
            told["args"] = orjson.dumps(self.args)
        if self.reason:
            told["reason"] = self.reason
        return told | ({"always": "1"} if self.always else {})


class WhyNot(StrEnum):
    """Why a word does not count."""

    NOT_FOUND = "not_found"
    NOT_WANTED = "not_wanted"
    CONFIRMED = "confirmed"
    DENIED = "denied"
    ENDED = "ended"
    EXPIRED = "confirmation_expired"
    OTHER_ARGUMENTS = "other_arguments"


class Discounted(Struct, frozen=True):
    """A word that does not count: why, and one line for a person."""

    why: WhyNot
    message: str


class _Call(Struct):
    made: ToolCalled
    word: CallConfirmed | CallDenied | None = None
    has_returned: bool = False

    @property
    def waits(self) -> bool:
        return self.made.confirm and self.word is None and not self.has_returned


class Calls:
    """The tool calls of one request, and what people have said to them: give it the events in order."""

    def __init__(self) -> None:
        self._calls: dict[str, _Call] = {}
        self._end: SeenEvent | None = None

    def see(self, events: Iterable[SeenEvent]) -> None:
        """The events that follow."""
        for event in events:
            if event.is_final:
                self._end = event
            match event:
                case ToolCalled():
                    self._calls[event.call_id] = _Call(made=event)
                case CallConfirmed() | CallDenied() if event.call_id in self._calls:
                    self._calls[event.call_id].word = event
                case ToolReturned() if event.call_id in self._calls:
                    self._calls[event.call_id].has_returned = True
                case _:
                    pass

    def get(self, call_id: str) -> ToolCalled | None:
        """The call of this id."""
        call = self._calls.get(call_id)
        return None if call is None else call.made

    def word(self, call_id: str) -> CallConfirmed | CallDenied | None:
        """What stands as a person's word to it."""
        call = self._calls.get(call_id)
        return None if call is None else call.word

    def waiting(self) -> tuple[ToolCalled, ...]:
        """Those that wait for a person, the oldest first."""
        if self._end is not None:
            return ()
        return tuple(call.made for call in self._calls.values() if call.waits)

    def why_none(self) -> Discounted:
        """Why none waits, where none does: what has become of the last that waited, how the request has ended."""
        asked = [call.made for call in self._calls.values() if call.made.confirm]
        ended = () if self._end is None else (_over(self._end),)
        if not asked:
            why, message = ended[0] if ended else (WhyNot.NOT_WANTED, "no tool call of the request waits for a person")
            return Discounted(why, message)
        last = asked[-1]
        told = self.why_not(last.call_id, Word(agrees=True), 0) or Discounted(WhyNot.NOT_WANTED, _NOT_WANTED_ANY_MORE)
        more = "".join(f"; {message}" for _, message in ended if message != told.message)
        return Discounted(told.why, f"{last.name} ({last.call_id}): {told.message}{more}")

    def why_not(self, call_id: str, word: Word, now_ms: int) -> Discounted | None:
        """Why a word does not count, when it is `now_ms` (Unix time by the Redis server's clock); None: it does."""
        call = self._calls.get(call_id)
        if call is None:
            return Discounted(WhyNot.NOT_FOUND, "the request has made no tool call with this id")
        made, said = call.made, call.word
        checks = (
            (not made.confirm, WhyNot.NOT_WANTED, "this call waits for nobody's word"),
            (said is not None, *_already(said)),
            (self._end is not None, *_over(self._end)),
            (call.has_returned, WhyNot.NOT_WANTED, _NOT_WANTED_ANY_MORE),
            (made.expires_at_ms is not None and made.expires_at_ms <= now_ms, WhyNot.EXPIRED, _EXPIRED),
            (word.args_sha256 not in {"", made.args_sha256}, WhyNot.OTHER_ARGUMENTS, _OTHER_ARGUMENTS),
        )
        return next((Discounted(why, message) for holds, why, message in checks if holds), None)


def _over(end: SeenEvent | None) -> tuple[WhyNot, str]:
    match end:
        case Failed(code=ErrorCode.CONFIRMATION_EXPIRED):
            return WhyNot.EXPIRED, f"{_EXPIRED}, and its request has ended with that"
        case Failed(code=code):
            return WhyNot.ENDED, f"the request has ended: {code}"
        case Cancelled():
            return WhyNot.ENDED, "the request has ended: it was cancelled"
        case Result():
            return WhyNot.ENDED, "the request has ended: it was answered"
        case _:
            return WhyNot.ENDED, "the request has ended"


def _already(said: CallConfirmed | CallDenied | None) -> tuple[WhyNot, str]:
    why = WhyNot.CONFIRMED if isinstance(said, CallConfirmed) else WhyNot.DENIED
    by = f" by {said.by}" if said is not None and said.by else ""
    return why, f"this call has been {why} already{by}"
