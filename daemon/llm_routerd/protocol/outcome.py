"""What can come of an attempt: the verdict, the usage, the record that is kept, the answer."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from msgspec import Struct, field
from msgspec.structs import force_setattr

from llm_routerd.protocol.codes import AttemptCode, Lack
from llm_routerd.protocol.wire import DeploymentName, ModelName, said

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llm_routerd.protocol.codes import Fault


class Outcome(StrEnum):
    """How an attempt ended.  INVALID: an answer came, and it was not the JSON that was asked for."""

    SUCCESS = "success"
    REJECTED = "rejected"
    INVALID = "invalid"


class Rejection(Struct, frozen=True, kw_only=True):
    """The verdict on an attempt that is no answer.

    Attributes:
        code: why.
        reason: one line; holds no prompt, no answer and no key.
        retryable: whether the same deployment may be asked again within this request.
        retry_after_seconds: how long the deployment asked to be left alone.
        early: the attempt was ended before its model had finished.
        lack: what of our own was missing, if that is why.
    """

    code: AttemptCode
    reason: str
    retryable: bool = False
    retry_after_seconds: float | None = None
    early: bool = False
    lack: Lack | None = None

    @property
    def outcome(self) -> Outcome:
        """`INVALID` for an answer that is not the JSON that was asked for, else `REJECTED`."""
        return Outcome.INVALID if self.code.traits.is_invalid else Outcome.REJECTED

    @property
    def fault(self) -> Fault:
        """Whose it is, and so what the attempt shows of its deployment."""
        return self.code.blames(retryable=self.retryable)


class Usage(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Tokens as the backend counted them."""

    prompt_tokens: Annotated[int, said("Of the request, cached ones included.", minimum=0)] = field(default_factory=int)
    completion_tokens: Annotated[int, said("Of the answer, reasoning included.", minimum=0)] = field(
        default_factory=int
    )
    total_tokens: Annotated[int, said("Both together.", minimum=0)] = field(default_factory=int)
    cached_tokens: Annotated[
        int | None, said("Of the prompt, those that the provider had cached; only where it told.", minimum=0)
    ] = None
    reasoning_tokens: Annotated[
        int | None, said("Of the completion, those of thinking; only where the backend told.", minimum=0)
    ] = None
    estimated: Annotated[
        bool,
        said("The backend did not count all of it: the rest was estimated from the length of the texts.", const=True),
    ] = False

    def __post_init__(self) -> None:  # the sum, whatever is given
        force_setattr(self, "total_tokens", self.prompt_tokens + self.completion_tokens)

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
            cached_tokens=_add_optional(self.cached_tokens, other.cached_tokens),
            reasoning_tokens=_add_optional(self.reasoning_tokens, other.reasoning_tokens),
            estimated=self.estimated or other.estimated,
        )


def _add_optional(a: int | None, b: int | None) -> int | None:
    return None if a is None and b is None else (a or 0) + (b or 0)


class AttemptSummary(Struct, frozen=True, kw_only=True):
    """What became of one deployment's turn.

    A deployment that was passed over because it cools down has a line too (`code` = `cooldown`, no latency).
    """

    definition: ClassVar[str] = "attempt"  # its name in the schemas

    model: ModelName
    deployment: DeploymentName
    outcome: Annotated[Outcome, said("`invalid`: an answer came, and it was not the JSON that was asked for.")]
    code: Annotated[AttemptCode | None, said("Why it was rejected; null for a success.")]
    reason: Annotated[str | None, said("One line; holds no prompt, no answer and no key.")]
    latency_ms: Annotated[int, said("From its start to its end.", minimum=0)]


class AttemptRecord(Struct, frozen=True, kw_only=True):
    """What is kept of an attempt: what its summary tells, and what it took.

    Attributes:
        cost_usd: None where the call has a price that is not known.
        attempt: its number in the request's events stream; 0: no call was begun.
        ended: when it was over, by the clock of whoever keeps the records, in seconds.
        prompt_sha256: see `AuditEntry`; None where none is wanted.
    """

    deployment: str
    model: str
    outcome: Outcome
    code: AttemptCode | None = None
    reason: str | None = None
    latency_ms: int = 0
    ttft_ms: int | None = None
    usage: Usage | None = None
    cost_usd: float | None = 0.0
    early: bool = False
    attempt: int = 0
    ended: float = 0.0
    prompt_sha256: str | None = None

    @property
    def was_asked(self) -> bool:
        """Whether the deployment was called at all; it had no place free or cooled down where not."""
        return self.code is None or self.code.traits.is_asked

    @property
    def is_estimated_cost(self) -> bool:
        """Whether it costs something, and how much is an estimate."""
        return bool(self.cost_usd) and self.usage is not None and self.usage.estimated


def told(records: Iterable[AttemptRecord], *, is_quotable: bool = True) -> tuple[AttemptSummary, ...]:
    """The `attempts` of a final event; not `is_quotable`: of a metrics event.

    Why an answer is not the JSON that was asked for may quote it: there, the code stands in its place.
    """
    return tuple(
        [
            AttemptSummary(
                model=record.model,
                deployment=record.deployment,
                outcome=record.outcome,
                code=record.code,
                reason=record.reason if is_quotable or record.outcome is not Outcome.INVALID else record.code,
                latency_ms=record.latency_ms,
            )
            for record in records
        ]
    )


def total_cost(records: Iterable[AttemptRecord]) -> float | None:
    """What several attempts cost together; None as soon as one has a price that is not known."""
    total = 0.0
    for record in records:
        if record.cost_usd is None:
            return None
        total += record.cost_usd
    return total


class CalledFunction(Struct, frozen=True, kw_only=True):
    """What to call."""

    name: Annotated[str, said("As offered in `tools`.")]
    arguments: Annotated[str, said("A JSON object as text.")]


class ToolCall(Struct, frozen=True, kw_only=True):
    """A function call of the model, in OpenAI's form."""

    id: Annotated[str, said("Unique within the answer.")]
    type: Annotated[Literal["function"], said("Always `function`.")] = "function"
    function: Annotated[CalledFunction, said("What to call.")]

    @classmethod
    def of(cls, *, id: str, name: str, arguments: str) -> ToolCall:  # noqa: A002 - OpenAI's word
        """The call of a function; `arguments` is the JSON text."""
        return cls(id=id, function=CalledFunction(name=name, arguments=arguments))

    @property
    def name(self) -> str:
        """Of the function."""
        return self.function.name

    @property
    def arguments(self) -> str:
        """The JSON text."""
        return self.function.arguments


class Answer(Struct, frozen=True, kw_only=True):
    """An accepted answer: `content` is parsed JSON where a schema was given, else `raw_text` itself."""

    content: Any
    raw_text: str
    finish_reason: str
    tool_calls: tuple[ToolCall, ...] = ()
    usage: Usage = field(default_factory=Usage)
