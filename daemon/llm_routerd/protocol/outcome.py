"""What can come of an attempt and of a request: the codes, the usage, the record that is kept of each attempt."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any

from msgspec import Struct, field

if TYPE_CHECKING:
    from collections.abc import Iterable


class AttemptCode(StrEnum):
    """Why an attempt was rejected (protocol: "codes of a rejected attempt")."""

    TIMEOUT = "timeout"
    FIRST_TOKEN_TIMEOUT = "first_token_timeout"  # noqa: S105 - a code, not a secret
    IDLE_TIMEOUT = "idle_timeout"
    CONNECT = "connect"
    AUTH = "auth"
    RATE_LIMITED = "rate_limited"
    BUSY = "busy"  # no place came free within `queue_timeout`; nobody was called
    NOT_FOUND = "not_found"
    CONTEXT_WINDOW = "context_window"
    UPSTREAM = "upstream"
    TRUNCATED = "truncated"
    LENGTH = "length"
    REFUSAL = "refusal"
    INVALID_JSON = "invalid_json"
    SCHEMA_VIOLATION = "schema_violation"
    NO_TOOL_CALL = "no_tool_call"
    COOLDOWN = "cooldown"
    INTERNAL = "internal"
    CANCELLED = "cancelled"


class ErrorCode(StrEnum):
    """Why a request ended without an answer (protocol: "error codes of a final `error`")."""

    INVALID_REQUEST = "invalid_request"
    REQUEST_TOO_LARGE = "request_too_large"
    UNKNOWN_MODEL = "unknown_model"
    INVALID_SCHEMA = "invalid_schema"
    CHAIN_EXHAUSTED = "chain_exhausted"
    LOCAL_EXHAUSTED = "local_exhausted"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    BUDGET_EXCEEDED = "budget_exceeded"
    POISONED = "poisoned"
    INTERNAL = "internal"


class Lack(StrEnum):
    """What llm-routerd itself lacked for a call, so that nobody was asked.

    RESOURCES: files or memory, which every call needs.  ROUTE: a way to this address (an answer of any DNS resolver, a
    local port), which a call to another address may do without.
    """

    RESOURCES = "resources"
    ROUTE = "route"


class Outcome(StrEnum):
    """How an attempt ended.  INVALID: an answer came, and it was not the JSON that was asked for."""

    SUCCESS = "success"
    REJECTED = "rejected"
    INVALID = "invalid"


_INVALID_CODES = frozenset({AttemptCode.INVALID_JSON, AttemptCode.SCHEMA_VIOLATION})


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
        return Outcome.INVALID if self.code in _INVALID_CODES else Outcome.REJECTED


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
