"""From what litellm raises to a `BackendError`.

litellm gives every error a status, and makes one up (500, mostly) for what never had one: a bug of its own, a piece of
the stream that it cannot read, a key that is missing.  What a server has really sent is told by httpx's exception among
the causes, and by nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from llm_routerd.backends import faults
from llm_routerd.protocol.call import BackendError
from llm_routerd.protocol.codes import AttemptCode

if TYPE_CHECKING:
    from collections.abc import Sequence

_NO_CONNECTION = frozenset({"ConnectError", "ConnectTimeout", "ClientConnectorError", "ConnectionTimeoutError"})
_BROKEN_CONNECTION = frozenset({"ReadError", "RemoteProtocolError", "ClientPayloadError", "ServerDisconnectedError"})
_NO_TIME = frozenset({"ReadTimeout", "WriteTimeout", "PoolTimeout"})
_ITS_VERDICTS = (
    ({"ContextWindowExceededError"}, AttemptCode.CONTEXT_WINDOW, "the prompt is too long for the model"),
    ({"ContentPolicyViolationError"}, AttemptCode.REFUSAL, "refused by the provider's content policy"),
    (_NO_CONNECTION, AttemptCode.CONNECT, "no connection"),
)
_BEFORE_ANSWER = (
    (_BROKEN_CONNECTION, AttemptCode.UPSTREAM, "disconnected before it answered"),
    (_NO_TIME, AttemptCode.TIMEOUT, "no answer in time"),
)
# It says so before it asks anybody.
_ITS_REFUSALS = frozenset({"BadRequestError", "UnsupportedParamsError", "NotFoundError"})
_MOST_CAUSES = 20


def fault_of(error: Exception, *, begun: bool) -> BackendError:
    """The fault behind an exception of litellm, whose message is not used: it may hold prompt and key.

    `begun`: the stream had begun.
    """
    causes = _causes(error)
    kinds = {kind.__name__ for cause in causes for kind in type(cause).__mro__}
    shortage = next((found for found in map(faults.own_shortage, causes) if found is not None), None)
    if shortage is not None and not begun:
        return shortage
    for named, code, reason in _ITS_VERDICTS:
        if not kinds.isdisjoint(named):
            return BackendError(code, reason, retryable=code.traits.may_pass)
    response = next((vars(cause).get("response") for cause in causes if _is(cause, "HTTPStatusError", "httpx")), None)
    if response is not None:
        return faults.fault_of_status(response.status_code, response.headers, _body(response, error))
    if begun and not kinds.isdisjoint(_BROKEN_CONNECTION):
        return faults.truncated()
    for named, code, reason in _BEFORE_ANSWER:
        if not kinds.isdisjoint(named):
            return BackendError(code, reason, retryable=True)
    return _without_a_status(causes, kinds, begun=begun)


def _without_a_status(causes: Sequence[BaseException], kinds: set[str], *, begun: bool) -> BackendError:
    """The fault behind what no server's status tells of."""
    if "JSONDecodeError" in kinds:
        return faults.malformed("a piece of the answer is not JSON")
    if begun and (told := next(filter(_is_told, causes), None)) is not None:
        body = getattr(told, "body", None)
        return faults.fault_of_error_object(body if isinstance(body, dict) else {"message": _message(told)})
    name = type(causes[-1]).__name__
    if "AuthenticationError" in kinds:
        return BackendError(AttemptCode.AUTH, f"litellm has no key that it could send ({name})")
    is_refusal = not begun and not kinds.isdisjoint(_ITS_REFUSALS)
    reason = f"litellm takes no such request ({name})" if is_refusal else f"an error inside litellm ({name})"
    return BackendError(AttemptCode.UPSTREAM, reason, retryable=not is_refusal)


def _causes(error: BaseException) -> list[BaseException]:
    """An exception, what it came of, and so on to the root: bounded, each once."""
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and len(causes) < _MOST_CAUSES and not any(cause is each for each in causes):
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    return causes


def _is(error: BaseException, name: str, package: str) -> bool:
    """Whether it is of a class by that name: to import it would mean to import litellm."""
    return any(kind.__name__ == name and kind.__module__.partition(".")[0] == package for kind in type(error).__mro__)


def _is_told(error: BaseException) -> bool:
    """Whether a provider has sent an error in its stream: the SDK's own class, or the one litellm makes of it."""
    kind = type(error)
    is_sdks = (kind.__name__, kind.__module__.partition(".")[0]) == ("APIError", "openai")
    return is_sdks or _is(error, "BaseLLMException", "litellm")


def _body(response: Any, error: Exception) -> bytes:
    """What the server has sent; where that has not been read, what litellm quotes of it."""
    try:
        content: bytes = response.content
    except RuntimeError:  # httpx: it has not been read
        content = b""
    if content.lstrip().startswith((b"{", b"[")):
        return content
    message = _message(error)
    details = {"message": message, "type": "insufficient_quota" if "insufficient_quota" in message else None}
    return orjson.dumps({"error": details}, default=str)


def _message(error: BaseException) -> str:
    """To recognise, and not to repeat."""
    return str(error).encode(errors="replace").decode()
