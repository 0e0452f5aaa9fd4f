"""What can come of an attempt: the verdict, the usage, the record that is kept, the answer."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any

from msgspec import Struct, field

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llm_routerd.protocol.codes import AttemptCode, Fault, Lack


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


class Usage(Struct, frozen=True, kw_only=True):
    """Tokens of one call as its backend counted them; the optional ones only where it told.

    `estimated`: the backend did not tell (all of) it, and the rest was counted from characters.
    `prompt_tokens` includes `cached_tokens`, `completion_tokens` includes `reasoning_tokens` (OpenAI's sense).
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None
    estimated: bool = False

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
            cached_tokens=_add_optional(self.cached_tokens, other.cached_tokens),
            reasoning_tokens=_add_optional(self.reasoning_tokens, other.reasoning_tokens),
            estimated=self.estimated or other.estimated,
        )

    def to_wire(self) -> dict[str, int | bool]:
        """The `usage` object of a result."""
        wire: dict[str, int | bool] = {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.total_tokens,
        }
        if self.cached_tokens is not None:
            wire["cached_tokens"] = self.cached_tokens
        if self.reasoning_tokens is not None:
            wire["reasoning_tokens"] = self.reasoning_tokens
        if self.estimated:
            wire["estimated"] = True
        return wire


def _add_optional(a: int | None, b: int | None) -> int | None:
    return None if a is None and b is None else (a or 0) + (b or 0)


class AttemptRecord(Struct, frozen=True, kw_only=True):
    """One line of a request's `attempts`: what became of one deployment's turn.

    A deployment that was passed over because it cools down has a line too (`code` = `cooldown`, no latency).
    `cost_usd` is None where the call has a price that is not known.
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

    @property
    def was_asked(self) -> bool:
        """Whether the deployment was called at all; it had no place free or cooled down where not."""
        return self.code is None or self.code.traits.is_asked

    @property
    def is_estimated_cost(self) -> bool:
        """Whether it costs something, and how much is an estimate."""
        return bool(self.cost_usd) and self.usage is not None and self.usage.estimated

    def to_wire(self) -> dict[str, Any]:
        """The object in `attempts` of a final event and of a metrics event."""
        return {
            "model": self.model,
            "deployment": self.deployment,
            "outcome": self.outcome.value,
            "code": None if self.code is None else self.code.value,
            "reason": self.reason,
            "latency_ms": self.latency_ms,
        }


def total_cost(records: Iterable[AttemptRecord]) -> float | None:
    """What several attempts cost together; None as soon as one has a price that is not known."""
    total = 0.0
    for record in records:
        if record.cost_usd is None:
            return None
        total += record.cost_usd
    return total


class ToolCall(Struct, frozen=True, kw_only=True):
    """A function call of the model; `arguments` is the JSON text, as OpenAI has it."""

    id: str
    name: str
    arguments: str

    def to_wire(self) -> dict[str, Any]:
        """The OpenAI form."""
        return {
            "id": self.id,
            "type": "function",
            "function": {"name": self.name, "arguments": self.arguments},
        }


class Answer(Struct, frozen=True, kw_only=True):
    """An accepted answer: `content` is parsed JSON where a schema was given, else `raw_text` itself."""

    content: Any
    raw_text: str
    finish_reason: str
    tool_calls: tuple[ToolCall, ...] = ()
    usage: Usage = field(default_factory=Usage)
