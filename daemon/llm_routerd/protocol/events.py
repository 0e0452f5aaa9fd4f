"""What happens to a request, as values: the events of the protocol.

The same events are written to `P:events:<id>` by the daemon and yielded by the library.
IDs are explicit, `<attempt>-<seq>`; the final event always has `FINAL_ID`, the largest first part that survives
a JavaScript number.  Redis refuses an ID that is not larger than the last one, and that is what makes
"exactly one final event" true.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from msgspec import Struct

from llm_routerd.protocol.numbers import writable

if TYPE_CHECKING:
    from llm_routerd.protocol.codes import ErrorCode
    from llm_routerd.protocol.outcome import Answer, AttemptRecord, Rejection, Usage

FINAL_PART = 2**53 - 1
FINAL_ID = f"{FINAL_PART}-0"


class AttemptStarted(Struct, frozen=True, kw_only=True):
    """One call to one deployment begins; whatever an earlier attempt showed is superseded.

    `begin.lua` adds `entry` and `lane`, the stream entry that the request came from, to a request's first attempt and
    to the first for another entry that takes its place.
    """

    type: ClassVar[str] = "attempt"

    deployment: str
    model: str
    delivery: int = 1
    consumer: str = ""

    def to_wire(self) -> dict[str, Any]:
        """The event's `data`."""
        return {
            "deployment": self.deployment,
            "model": self.model,
            "delivery": self.delivery,
            "consumer": self.consumer,
        }


class Token(Struct, frozen=True):
    """Text of the answer, one or more model tokens."""

    type: ClassVar[str] = "token"

    text: str

    def to_wire(self) -> dict[str, Any]:
        """The event's `data`."""
        return {"text": self.text}


class Reasoning(Struct, frozen=True):
    """Text of a thinking model, never part of the answer."""

    type: ClassVar[str] = "reasoning"

    text: str

    def to_wire(self) -> dict[str, Any]:
        """The event's `data`."""
        return {"text": self.text}


class AttemptRejected(Struct, frozen=True, kw_only=True):
    """The attempt is no answer: whoever showed its tokens drops them."""

    type: ClassVar[str] = "rejected"

    deployment: str
    model: str
    rejection: Rejection
    latency_ms: int

    def to_wire(self) -> dict[str, Any]:
        """The event's `data`."""
        return {
            "deployment": self.deployment,
            "model": self.model,
            "outcome": self.rejection.outcome.value,
            "code": self.rejection.code.value,
            "reason": self.rejection.reason,
            "latency_ms": self.latency_ms,
        }


class Result(Struct, frozen=True, kw_only=True):
    """The answer.  Times are in milliseconds; `usage` is the answering call's, `cost_usd` that of all attempts.

    `cost_usd` None: it is not known.  `cost_estimated`: a part of it is an estimate.
    `attempt`: whose text this is; text of any other is to be dropped.
    """

    type: ClassVar[Literal["result"]] = "result"

    id: str
    answer: Answer
    model_used: str
    deployment: str
    attempts: tuple[AttemptRecord, ...]
    usage: Usage
    cost_usd: float | None
    latency_ms: int
    ttft_ms: int | None
    queue_ms: int | None
    tenant_id: str | None
    context: str | None
    metadata: Any
    cost_estimated: bool = False
    attempt: int = 1

    def to_wire(self) -> dict[str, Any]:
        """The event's `data`."""
        wire = {
            "id": self.id,
            "content": self.answer.content,
            "raw_text": self.answer.raw_text,
            "model_used": self.model_used,
            "deployment": self.deployment,
            "finish_reason": self.answer.finish_reason,
            "tool_calls": [call.to_wire() for call in self.answer.tool_calls],
            "usage": self.usage.to_wire(),
            "cost_usd": self.cost_usd,
            "latency_ms": self.latency_ms,
            "ttft_ms": self.ttft_ms,
            "queue_ms": self.queue_ms,
            "attempts": [record.to_wire() for record in self.attempts],
            "attempt": self.attempt,
            "tenant_id": self.tenant_id,
            "context": self.context,
            "metadata": writable(self.metadata),
        }
        if self.cost_estimated:
            wire["cost_estimated"] = True
        return wire


class Failed(Struct, frozen=True, kw_only=True):
    """There is no answer: the protocol's final `error`."""

    type: ClassVar[Literal["error"]] = "error"

    id: str
    code: ErrorCode
    message: str
    attempts: tuple[AttemptRecord, ...] = ()
    metadata: Any = None

    def to_wire(self) -> dict[str, Any]:
        """The event's `data`."""
        return {
            "id": self.id,
            "code": self.code.value,
            "message": self.message,
            "attempts": [record.to_wire() for record in self.attempts],
            "metadata": writable(self.metadata),
        }


ProgressEvent = AttemptStarted | Token | Reasoning | AttemptRejected
FinalEvent = Result | Failed
Event = ProgressEvent | FinalEvent
