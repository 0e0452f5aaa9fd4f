"""What happens to a request, as values: the events of the protocol.

The same events are written to `P:events:<id>` by the daemon, read from there by the client, and yielded by the library.
IDs are explicit, `<attempt>-<seq>`; the final event always has `FINAL_ID`, the largest first part that survives
a JavaScript number.  Redis refuses an ID that is not larger than the last one, and that is what makes
"exactly one final event" true.

A further event is a class here and a word in one of the unions at the end: its schema and its reader follow from that.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Struct, field

from llm_routerd.protocol.codes import AttemptCode, ErrorCode
from llm_routerd.protocol.keys import Lane
from llm_routerd.protocol.outcome import Answer, AttemptSummary, Outcome, ToolCall, Usage
from llm_routerd.protocol.request import RequestError
from llm_routerd.protocol.wire import (
    ID_PATTERN,
    STREAM_ID_PATTERN,
    AsGiven,
    DeploymentName,
    ModelName,
    QueueMs,
    RequestId,
    encode,
    said,
)

FINAL_PART = 2**53 - 1
FINAL_ID = f"{FINAL_PART}-0"
# Greater than every event but the final one: a read from here sees that one alone, at the same cost always.
BEFORE_FINAL_ID = f"{FINAL_PART - 1}-{2**64 - 1}"

Attempts = Annotated[tuple[AttemptSummary, ...], said("Every attempt in order, passed-over deployments included.")]
Metadata = Annotated[dict[str, Any] | None, said("As the request gave it; null where it gave none.")]


class StreamEvent(Struct, frozen=True, dict=True):
    """What every event tells beside its own fields: its place in an events stream, and what was written there."""

    ends: ClassVar[bool] = False  # whether it is a request's last

    @property
    def type(self) -> str:
        """As in the entry's field `type`."""
        raise NotImplementedError

    @property
    def stream_id(self) -> str:
        """Its ID in the events stream, which `Client.follow` goes on from; "" where it was not read from one."""
        return str(self.__dict__.get("stream_id", ""))

    @property
    def id(self) -> str:
        """`stream_id`; of an event that was not read from a stream the request's id, if it tells one."""
        return self.stream_id or str(getattr(self, "request_id", ""))

    @property
    def raw(self) -> bytes | str:
        """The JSON text of its `data`, as it was written."""
        text: bytes | str | None = self.__dict__.get("raw")
        return encode(self) if text is None else text

    @property
    def data(self) -> dict[str, Any]:
        """Its `data` as it was written, unknown properties included; empty where that is no JSON object."""
        if "data" not in self.__dict__:
            try:
                data = msgspec.json.decode(self.raw)
            except (msgspec.MsgspecError, ValueError, RecursionError):
                data = None
            self.__dict__["data"] = data if isinstance(data, dict) else {}
        found: dict[str, Any] = self.__dict__["data"]
        return found

    @property
    def is_final(self) -> bool:
        """Whether it is the request's last event."""
        return self.stream_id == FINAL_ID if self.stream_id else self.ends

    @property
    def attempt(self) -> int:
        """The attempt that it belongs to; 0: untold, or none yet.  Of an end without an answer the largest number."""
        return int(self.stream_id.partition("-")[0] or 0)

    @property
    def answer_attempt(self) -> int | None:
        """The attempt whose text a `result` is: whoever has shown another's drops it.  None: it is none, or untold."""
        attempt = self.data.get("attempt") if self.type == "result" else None
        return attempt if isinstance(attempt, int) else None


class AttemptStarted(StreamEvent, frozen=True, kw_only=True, omit_defaults=True):
    """A call to one deployment begins; what an earlier attempt showed is superseded.  ID `n-0`."""

    type: ClassVar[Literal["attempt"]] = "attempt"

    deployment: DeploymentName
    model: ModelName
    delivery: Annotated[
        int, said("How often Redis has handed the request to a worker, this time included.", minimum=1)
    ] = field(default_factory=lambda: 1)
    consumer: Annotated[str, said("The worker.")] = field(default_factory=str)
    # These two are added by `begin.lua`.
    entry: Annotated[
        str | None,
        said(
            "On the first attempt, and on the first for another entry of the same id: the request's ID in its requests "
            "stream.",
            pattern=STREAM_ID_PATTERN,
        ),
    ] = None
    lane: Annotated[Lane | None, said("Where `entry` is given: the requests stream that it came from.")] = None


class Queued(StreamEvent, frozen=True, kw_only=True, omit_defaults=True):
    """The request waits for a slot of a local box, or for its model there: until another event follows.

    Only where the request streams, at most once a second, and only when something has changed: in between the estimate
    counts down by itself.  ID `n-k`, behind attempt `n`; `0-k` before the first.
    """

    type: ClassVar[Literal["queued"]] = "queued"

    position: Annotated[int, said("How many calls go before it there; 0: it is next.", minimum=0)]
    reason: Annotated[str, said("One line, for people: `loading qwen3:32b on attic`.", minLength=1)]
    estimated_wait_ms: Annotated[
        int | None, said("From `at_ms` until it begins, as estimated; absent: nobody knows.", minimum=0)
    ] = None
    box: Annotated[str | None, said("Where it will begin, as things are.", minLength=1)] = None
    deployment: Annotated[str | None, said("Which will be asked there.", minLength=1)] = None
    model: Annotated[str | None, said("The deployment's model, `provider/model`.", minLength=1)] = None
    at_ms: Annotated[
        int | None,
        said("When that was so; Unix time in milliseconds by the Redis server's clock.", minimum=0),
    ] = None  # added by `queued.lua`

    @property
    def summary(self) -> str:
        """For people: `2 before you on attic, about 20 s`."""
        if self.estimated_wait_ms is None:
            return self.reason
        seconds = max(1, round(self.estimated_wait_ms / 1000))
        about = f"{seconds} s" if seconds < _LONG_SECONDS else f"{round(seconds / 60)} min"
        return f"{self.reason}, about {about}"


_LONG_SECONDS = 100  # from which on minutes are told


class Token(StreamEvent, frozen=True):
    """Text of the answer: one or more model tokens, in order.  ID `n-k`."""

    type: ClassVar[Literal["token"]] = "token"

    text: Annotated[str, said("Never empty.", minLength=1)]


class Reasoning(StreamEvent, frozen=True):
    """Text of a thinking model, never part of the answer.  ID `n-k`."""

    type: ClassVar[Literal["reasoning"]] = "reasoning"

    text: Annotated[str, said("Never empty.", minLength=1)]


class AttemptRejected(StreamEvent, frozen=True, kw_only=True):
    """The attempt is no answer.  Whoever showed its tokens drops them.  ID `n-k`."""

    type: ClassVar[Literal["rejected"]] = "rejected"

    deployment: DeploymentName
    model: ModelName
    outcome: Annotated[
        Outcome,
        said(
            "`invalid`: an answer came, and it was not the JSON that was asked for.",
            enum=[Outcome.REJECTED.value, Outcome.INVALID.value],
        ),
    ]
    code: Annotated[AttemptCode, said("Why.")]
    reason: Annotated[str, said("One line; holds no prompt, no answer and no key.")]
    latency_ms: Annotated[int, said("From the attempt's start to its end.", minimum=0)]


CallId = Annotated[
    str, said("Of one call among those of all requests; a tool that is asked twice under one has acted.", minLength=1)
]
ToolName = Annotated[str, said("As it is registered.", minLength=1)]
TurnNumber = Annotated[int, said("Of the run's calls to a model that stand, from 1 on.", minimum=1)]
ArgsSha256 = Annotated[
    str,
    said("SHA-256 of the arguments, in hexadecimal: whoever agrees to them names it.", pattern="^[0-9a-f]{64}$"),
]
_Arguments = Annotated[Any, said("The JSON object; where the model wrote none, its text, and the call is not made.")]
_DeadlineMs = Annotated[
    int | None,
    said("Where the call was put on its tool's stream: until when the tool's answer is waited for.", minimum=0),
]
_Entry = Annotated[
    str | None,
    said("Where the call was put on its tool's stream: its ID there.", pattern=STREAM_ID_PATTERN),
]


class ToolCalled(StreamEvent, frozen=True, kw_only=True, omit_defaults=True):
    """The model calls a tool of its run.  ID `n-k`.

    With `entry` the tool has been told; with `confirm` a person is to agree first; with neither a `tool_result` says
    why the call is not made.
    """

    type: ClassVar[Literal["tool_call"]] = "tool_call"

    call_id: CallId
    name: ToolName
    arguments: _Arguments
    turn: TurnNumber
    args_sha256: ArgsSha256
    confirm: Annotated[bool, said("A person must agree first.", const=True)] = False
    expires_at_ms: Annotated[
        int | None,
        said(
            "Where `confirm` is: until when somebody may agree; Unix time in milliseconds by the Redis server's clock.",
            minimum=0,
        ),
    ] = None
    deadline_ms: _DeadlineMs = None
    entry: _Entry = None  # added by `dispatch.lua`


class CallConfirmed(StreamEvent, frozen=True, kw_only=True, omit_defaults=True):
    """A person has agreed to a tool call, which was put on its tool's stream with that.  ID `n-k`."""

    type: ClassVar[Literal["confirmed"]] = "confirmed"

    call_id: CallId
    by: Annotated[str, said("Who.")] = field(default_factory=str)
    reason: Annotated[str, said("Free text; may be empty.")] = field(default_factory=str)
    arguments: Annotated[
        dict[str, Any] | None, said("Where the person changed them: those that the call is made with.")
    ] = None
    always: Annotated[bool, said("Further calls of this tool in this run wait for nobody.", const=True)] = False
    deadline_ms: _DeadlineMs = None
    entry: _Entry = None  # added by `observe.lua`


class CallDenied(StreamEvent, frozen=True, kw_only=True, omit_defaults=True):
    """A person will not have a tool call, which is not made; the model is told.  ID `n-k`."""

    type: ClassVar[Literal["denied"]] = "denied"

    call_id: CallId
    by: Annotated[str, said("Who.")] = field(default_factory=str)
    reason: Annotated[str, said("Free text, which the model is told; may be empty.")] = field(default_factory=str)


class ToolReturned(StreamEvent, frozen=True, kw_only=True, omit_defaults=True):
    """What came of a tool call, as the model is told.  ID `n-k`."""

    type: ClassVar[Literal["tool_result"]] = "tool_result"

    call_id: CallId
    name: ToolName
    result: Annotated[
        Any, said("The JSON that the tool answered, else its text, cut where it is too long; absent: null, or `error`.")
    ] = None
    error: Annotated[str | None, said("What went wrong; there is no result.")] = None
    latency_ms: Annotated[int, said("Since the call was put on its tool's stream.", minimum=0)] = field(
        default_factory=int
    )


class TurnEnded(StreamEvent, frozen=True, kw_only=True, omit_defaults=True):
    """A model's turn of a run that goes on: its text and its calls, which stand before this, are final.  ID `n-k`."""

    type: ClassVar[Literal["turn"]] = "turn"

    turn: TurnNumber
    message: Annotated[dict[str, Any], said("The assistant message, in OpenAI's form, as the next turn will see it.")]
    deployment: DeploymentName
    model: ModelName
    latency_ms: Annotated[int, said("Of the attempt that it was.", minimum=0)]
    usage: Annotated[Usage, said("Of the attempt that it was.")]
    cost_usd: Annotated[
        float | None, said("Of the turn's attempts together; null where one has a price that is not known.", minimum=0)
    ]
    cost_estimated: Annotated[bool, said("There where a part of `cost_usd` is an estimate.", const=True)] = False
    started_ms: Annotated[
        int, said("When the request was picked up; Unix time in milliseconds by the Redis server's clock.", minimum=0)
    ] = field(default_factory=int)
    deadline_ms: Annotated[
        int | None,
        said(
            "Until when the run's answer is wanted, by the Redis server's clock; absent: whenever it comes.", minimum=0
        ),
    ] = None


class Result(StreamEvent, frozen=True, kw_only=True, omit_defaults=True):
    """The answer: a final event.  ID `9007199254740991-0`."""

    type: ClassVar[Literal["result"]] = "result"
    ends: ClassVar[bool] = True

    request_id: RequestId = field(name="id")
    content: Annotated[Any, said("The parsed JSON where the request gave a schema, else the text.")]
    raw_text: Annotated[str, said("The answer as text, without the model's thinking.")]
    model_used: ModelName
    deployment: DeploymentName
    finish_reason: Annotated[
        str, said("Why the model ended: `stop`, `tool_calls`, or `length` where the request accepts that.")
    ]
    tool_calls: Annotated[
        tuple[ToolCall, ...], said("The functions that the model wants called; acted on only from here.")
    ]
    usage: Annotated[Usage, said("Of the call that answered; of a run with tools, of all its turns together.")]
    cost_usd: Annotated[
        float | None,
        said("Of all attempts together; 0 for local ones, null where one has a price that is not known.", minimum=0),
    ]
    latency_ms: Annotated[int, said("From pick-up to this event.", minimum=0)]
    ttft_ms: Annotated[
        int | None, said("From pick-up to the answer's first token; null where it is not known.", minimum=0)
    ]
    queue_ms: QueueMs
    attempts: Attempts
    attempt: Annotated[
        int,
        said(
            "The attempt whose text is the answer, the first part of its events' IDs. Whoever shows another attempt's "
            "text drops it.",
            minimum=1,
        ),
    ] = field(default_factory=int)
    tenant_id: AsGiven
    context: AsGiven
    metadata: Metadata
    cost_estimated: Annotated[
        bool,
        said(
            "There where a part of `cost_usd` is an estimate: a call was ended early, timed out, or its backend did "
            "not count.",
            const=True,
        ),
    ] = False
    turns: Annotated[
        int | None, said("Of a run with tools: how many calls to a model it took, this answer included.", minimum=1)
    ] = None

    @property
    def answer(self) -> Answer:
        """What the model said, as one value."""
        return Answer(
            content=self.content,
            raw_text=self.raw_text,
            finish_reason=self.finish_reason,
            tool_calls=self.tool_calls,
            usage=self.usage,
        )

    @property
    def answer_attempt(self) -> int | None:
        """The attempt whose text it is; None: untold, as by a daemon of before."""
        return self.attempt or None


class Failed(StreamEvent, frozen=True, kw_only=True):
    """There is no answer: a final event.  ID `9007199254740991-0`."""

    type: ClassVar[Literal["error"]] = "error"
    ends: ClassVar[bool] = True

    request_id: Annotated[
        str, said("The request's id; its entry ID where no valid id could be read.", pattern=ID_PATTERN)
    ] = field(name="id")
    code: Annotated[ErrorCode, said("Why.")]
    message: Annotated[str, said("For a person: for a malformed request the JSON path and what was expected.")]
    attempts: Attempts = ()
    metadata: Metadata = None

    @classmethod
    def of(cls, error: RequestError, *, instead: str = "") -> Failed:
        """The end of what is no request; `instead`: its id, where it has none of its own."""
        return cls(request_id=error.id or instead, code=error.code, message=error.message, metadata=error.metadata)


class Cancelled(StreamEvent, frozen=True, kw_only=True):
    """Somebody cancelled the request: a final event, which anyone who may write the events stream adds.

    ID `9007199254740991-0`.
    """

    type: ClassVar[Literal["cancelled"]] = "cancelled"
    ends: ClassVar[bool] = True

    request_id: RequestId = field(name="id", default="")
    reason: Annotated[str, said("Free text.")] = ""


AttemptEvent = Token | Reasoning | AttemptRejected  # what a sink is given while an attempt runs
ProgressEvent = AttemptStarted | AttemptEvent
RunEvent = ToolCalled | CallConfirmed | CallDenied | ToolReturned | TurnEnded  # what a run with tools is replayed from
FinalEvent = Result | Failed
Event = ProgressEvent | Queued | FinalEvent
StandingEvent = Event | RunEvent | Cancelled  # what may stand in an events stream
