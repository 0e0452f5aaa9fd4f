"""Every code of the protocol: why an attempt was rejected, why a request ended without an answer."""

from __future__ import annotations

from enum import StrEnum


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
