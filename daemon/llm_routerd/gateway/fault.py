"""Why there is no answer, before any door has given it its own shape: a status of HTTP, our word for it, a sentence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from msgspec import Struct

from llm_routerd.protocol.codes import AttemptCode, ErrorCode
from llm_routerd.protocol.events import Cancelled, Failed

if TYPE_CHECKING:
    from llm_routerd.protocol.reading import SeenEnd

BUSY_RETRY_SECONDS: Final = 2

# Of a request that has ended.  503 and not 500: clients try again.
STATUSES: Final[dict[str, int]] = {
    ErrorCode.INVALID_REQUEST: 400,
    ErrorCode.REQUEST_TOO_LARGE: 413,
    ErrorCode.UNKNOWN_MODEL: 404,
    ErrorCode.INVALID_SCHEMA: 400,
    ErrorCode.CHAIN_EXHAUSTED: 503,
    ErrorCode.LOCAL_EXHAUSTED: 503,
    ErrorCode.DEADLINE_EXCEEDED: 504,
    ErrorCode.BUDGET_EXCEEDED: 429,
    ErrorCode.POISONED: 500,
    ErrorCode.INTERNAL: 500,
    # 4xx: clients that repeat by themselves would have tools act again.
    ErrorCode.UNKNOWN_TOOL: 404,
    ErrorCode.TOOL_NOT_ALLOWED: 403,
    ErrorCode.CONFIRMATION_EXPIRED: 403,
    ErrorCode.TURNS_EXHAUSTED: 422,
}
_CANCELLED = 409
_UNAVAILABLE = 503
CONTEXT_EXCEEDED = "context_length_exceeded"


class Fault(Struct, frozen=True, kw_only=True):
    """Why there is no answer.

    Attributes:
        status: of HTTP, 400 to 599.
        code: our word for it: an `ErrorCode`, `context_length_exceeded`, `cancelled`, `unauthorized`, `forbidden`,
            `not_found`, `method_not_allowed`, `unsupported`, `too_many_requests`, `unavailable`, `superseded`,
            `refusal`, `no_worker`.
        message: one line for a person; holds no prompt, no answer and no key.
        param: which property of the body is meant; "": none.
        request_id: of the request on the streams; "": there is none.
        retry_after_seconds: when to come again; None: that is not known.
        is_lasting: who asks the same again gets the same: clients are told not to repeat it by themselves.
    """

    status: int
    code: str
    message: str
    param: str = ""
    request_id: str = ""
    retry_after_seconds: int | None = None
    is_lasting: bool = False


class RefusedError(Exception):
    """A body is no request, or its sender may not send it; `fault` says why."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.message)
        self.fault = fault


def refused(param: str, told: str, *, code: str = ErrorCode.INVALID_REQUEST) -> RefusedError:
    """A property of the body is not as it has to be; `told` goes on from its name: `messages: expected an array`."""
    return RefusedError(Fault(status=400, code=code, message=f"{param}: {told}", param=param))


def unsupported(param: str) -> RefusedError:
    """A property that would change the answer, and that nothing here can honour."""
    return refused(param, "this is not supported here, and would change the answer; leave it out", code="unsupported")


def fault_of(end: SeenEnd, request_id: str) -> Fault:
    """Of a request that ended without an answer."""
    match end:
        case Failed(code=code, message=message, attempts=attempts):
            asked = [each.code for each in attempts if each.code is not None and each.code.traits.is_asked]
            if asked and all(each is AttemptCode.CONTEXT_WINDOW for each in asked):
                told = "the prompt is too long for the context window of every model that was asked"
                return Fault(status=400, code=CONTEXT_EXCEEDED, message=told, request_id=request_id)
            status = STATUSES.get(code, 500)
            # Nobody can be asked at all, for want of keys; or all refuse.
            is_lasting = status == _UNAVAILABLE and all(each.code is AttemptCode.REFUSAL for each in attempts)
            retry = BUSY_RETRY_SECONDS if status in {429, _UNAVAILABLE} and not is_lasting else None
            return Fault(
                status=status,
                code=code,
                message=message,
                request_id=request_id,
                retry_after_seconds=retry,
                is_lasting=is_lasting,
            )
        case Cancelled():
            return Fault(
                status=_CANCELLED, code="cancelled", message="the request was cancelled", request_id=request_id
            )
        case _:
            return Fault(
                status=500,
                code=ErrorCode.INTERNAL,
                message="the request ended with an event that is not of this version of the protocol",
                request_id=request_id,
            )
