"""An error as OpenAI tells it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from llm_routerd.gateway.line import json_line
from llm_routerd.protocol.codes import ErrorCode

if TYPE_CHECKING:
    from llm_routerd.gateway.fault import Fault

_TYPES: Final = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_FIRST_OF_SERVER: Final = 500
# Words of ours for which programs know another.
_CODES: Final[dict[str, str]] = {
    ErrorCode.UNKNOWN_MODEL: "model_not_found",
    "unauthorized": "invalid_api_key",
    "unsupported": "unsupported_parameter",
    "too_many_requests": "rate_limit_exceeded",
}


def error_of(fault: Fault) -> dict[str, Any]:
    """What stands in `error`; with the request's id, where there is one."""
    kind = "server_error" if fault.status >= _FIRST_OF_SERVER else "invalid_request_error"
    told = {
        "message": fault.message,
        "type": _TYPES.get(fault.status, kind),
        "param": fault.param or None,
        "code": _CODES.get(fault.code, fault.code),
    }
    return {**told, "request_id": fault.request_id} if fault.request_id else told


def fault_body(fault: Fault) -> bytes:
    """The body of a reply that is an error; in a stream, the data of its last event."""
    return json_line({"error": error_of(fault)})
