"""Every code of the protocol, each a row with all that follows from it: why an attempt, or a request, has no answer.

Whoever treats codes differently reads a trait here and lists none: to add a code is to add its row.
"""

from __future__ import annotations

from enum import Enum, StrEnum, auto
from typing import Any, Literal

from msgspec import Struct


class Fault(Enum):
    """Whose fault it is that an attempt came to nothing, and so what it shows of its deployment.

    DEPLOYMENT: its own, a failure.  PERHAPS_CALLER: a failure that the caller's messages may have caused.
    CALL: a server with which nothing is wrong will not have this call, which shows nothing.  ANSWER: the deployment
    works, and what it said is not acceptable.  OURS: a fault of llm-routerd, which shows nothing.  NOBODY: an error of
    none, which shows nothing.
    """

    DEPLOYMENT = auto()
    PERHAPS_CALLER = auto()
    CALL = auto()
    ANSWER = auto()
    OURS = auto()
    NOBODY = auto()


class Traits(Struct, frozen=True, kw_only=True):
    """All that follows from the code of a rejected attempt.

    Attributes:
        fault: whose it is.
        lasting_fault: whose it is where it is not retryable; None: the same one's.
        may_pass: by itself, so that the same deployment may be asked again.
        trips_after: so many failures in a row, the last being this, trip the breaker, if not fewer do; None: as many
            as it was made for.
        samples_ttft: the attempt's time counts as one to first token.
        bound: the deployment's option that bounded the attempt, so that a request's own deadline may look like it.
        is_invalid: an answer came, and it was not the JSON that was asked for.
        is_asked: the deployment was asked at all.
        is_free_unread: no server charges for a call that ends so before any text.
    """

    fault: Fault
    lasting_fault: Fault | None = None
    may_pass: bool = False
    trips_after: int | None = None
    samples_ttft: bool = False
    bound: Literal["timeout", "connect_timeout"] | None = None
    is_invalid: bool = False
    is_asked: bool = True
    is_free_unread: bool = False


class _Row(str):
    """A code as it is written, with what else its row holds, for `__init__` of the enum to keep beside it."""

    __slots__ = ("description", "traits")

    description: str
    traits: Traits


def _attempt(text: str, description: str, traits: Traits) -> str:
    row = _Row(text)
    row.description, row.traits = description, traits
    return row


def _error(text: str, description: str) -> str:
    row = _Row(text)
    row.description = description
    return row


class AttemptCode(StrEnum):
    """Why an attempt was rejected (protocol: "codes of a rejected attempt").

    Attributes:
        description: one line, for whoever reads documentation.
        traits: what follows from it.
    """

    description: str
    traits: Traits

    def __init__(self, row: Any) -> None:
        self.description, self.traits = row.description, row.traits

    TIMEOUT = _attempt(
        "timeout",
        "no whole answer in time",
        Traits(fault=Fault.PERHAPS_CALLER, may_pass=True, samples_ttft=True, bound="timeout"),
    )
    FIRST_TOKEN_TIMEOUT = _attempt(
        "first_token_timeout",
        "no token in time",
        Traits(fault=Fault.PERHAPS_CALLER, may_pass=True, samples_ttft=True, bound="timeout"),
    )
    IDLE_TIMEOUT = _attempt(
        "idle_timeout", "no further token in time", Traits(fault=Fault.PERHAPS_CALLER, may_pass=True, samples_ttft=True)
    )
    CONNECT = _attempt(
        "connect",
        "no connection to the server",
        Traits(fault=Fault.DEPLOYMENT, may_pass=True, trips_after=2, bound="connect_timeout", is_free_unread=True),
    )
    AUTH = _attempt(
        "auth", "the server does not accept the key", Traits(fault=Fault.DEPLOYMENT, trips_after=1, is_free_unread=True)
    )
    RATE_LIMITED = _attempt(
        "rate_limited",
        "the server has had too many calls, or has no quota left",
        Traits(fault=Fault.DEPLOYMENT, may_pass=True, is_free_unread=True),
    )
    BUSY = _attempt(
        "busy",
        "no place among the deployment's calls came free within `queue_timeout`; it was not asked",
        Traits(fault=Fault.NOBODY, is_asked=False),
    )
    NOT_FOUND = _attempt(
        "not_found",
        "the server does not know the model",
        Traits(fault=Fault.DEPLOYMENT, trips_after=1, is_free_unread=True),
    )
    CONTEXT_WINDOW = _attempt(
        "context_window", "prompt or answer is too long for the model", Traits(fault=Fault.ANSWER, is_free_unread=True)
    )
    UPSTREAM = _attempt(
        "upstream",
        "the server failed, or takes no such call",
        Traits(fault=Fault.PERHAPS_CALLER, lasting_fault=Fault.CALL, may_pass=True, is_free_unread=True),
    )
    TRUNCATED = _attempt(
        "truncated", "the stream ended without its terminal event", Traits(fault=Fault.PERHAPS_CALLER, may_pass=True)
    )
    LENGTH = _attempt(
        "length", "the answer was cut off at the limit of tokens, or had no end", Traits(fault=Fault.ANSWER)
    )
    REFUSAL = _attempt("refusal", "the answer refuses", Traits(fault=Fault.ANSWER))
    INVALID_JSON = _attempt(
        "invalid_json", "the answer is not JSON, and was to be", Traits(fault=Fault.ANSWER, is_invalid=True)
    )
    SCHEMA_VIOLATION = _attempt(
        "schema_violation",
        "the answer does not satisfy the request's schema",
        Traits(fault=Fault.ANSWER, is_invalid=True),
    )
    NO_TOOL_CALL = _attempt(
        "no_tool_call", "`tool_choice` demands a call, and the model made none", Traits(fault=Fault.ANSWER)
    )
    COOLDOWN = _attempt(
        "cooldown",
        "the deployment cools down, or its model is not loaded yet; it was not asked",
        Traits(fault=Fault.NOBODY, is_asked=False),
    )
    INTERNAL = _attempt(
        "internal", "a fault or a shortage of llm-routerd", Traits(fault=Fault.OURS, is_free_unread=True)
    )
    PREEMPTED = _attempt(
        "preempted",
        "the call was cut for one of the high lane, and is begun again later",
        Traits(fault=Fault.NOBODY),
    )
    CANCELLED = _attempt("cancelled", "the request was cancelled meanwhile", Traits(fault=Fault.NOBODY))

    def blames(self, *, retryable: bool) -> Fault:
        """Whose fault an attempt was that ended so."""
        lasting = None if retryable else self.traits.lasting_fault
        return lasting or self.traits.fault


class ErrorCode(StrEnum):
    """Why a request ended without an answer (protocol: "error codes of a final `error`").

    Attributes:
        description: one line, for whoever reads documentation.
    """

    description: str

    def __init__(self, row: Any) -> None:
        self.description = row.description

    INVALID_REQUEST = _error("invalid_request", "the request is malformed; the message names the JSON path")
    REQUEST_TOO_LARGE = _error("request_too_large", "the request has more than `max_request_bytes`")
    UNKNOWN_MODEL = _error("unknown_model", "no chain and no deployment has the name that the request gives")
    INVALID_SCHEMA = _error("invalid_schema", "the schema of the request is not a JSON Schema, or not safe to keep")
    CHAIN_EXHAUSTED = _error(
        "chain_exhausted", "every deployment was asked or passed over, and none gave an acceptable answer"
    )
    LOCAL_EXHAUSTED = _error("local_exhausted", "the same of the local ones, of a request that may not leave them")
    DEADLINE_EXCEEDED = _error("deadline_exceeded", "the request's deadline came first")
    BUDGET_EXCEEDED = _error("budget_exceeded", "reserved")
    TURNS_EXHAUSTED = _error(
        "turns_exhausted", "in the last turn of a run, which offers no tool, no model gave an acceptable answer"
    )
    CONFIRMATION_EXPIRED = _error("confirmation_expired", "nobody confirmed or denied a tool call in time")
    UNKNOWN_TOOL = _error("unknown_tool", "no tool is registered under a name that `agent.tools` gives")
    TOOL_NOT_ALLOWED = _error("tool_not_allowed", "the operator lets this tenant use no such tool")
    POISONED = _error("poisoned", "it was delivered too often: its workers died")
    INTERNAL = _error("internal", "a fault of llm-routerd")


class Lack(StrEnum):
    """What llm-routerd itself lacked for a call, so that nobody was asked.

    RESOURCES: files or memory, which every call needs.  ROUTE: a way to this address (an answer of any DNS resolver, a
    local port), which a call to another address may do without.
    """

    RESOURCES = "resources"
    ROUTE = "route"
