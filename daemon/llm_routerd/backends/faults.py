"""From everything that can go wrong with a call to a model to a `BackendError`.

Reasons are made of fixed words, the HTTP status and the error's type or code, never of the server's message:
upstream errors quote prompts and keys.  A few messages are recognised and said in our own words.
"""

from __future__ import annotations

import errno
import re
import socket
import time
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import aiohttp
import orjson

from llm_routerd.backends.known_messages import UNKNOWN_MODEL, Known, known_message
from llm_routerd.backends.optional_fields import refused_field
from llm_routerd.backends.toolcalls import ToolCallError
from llm_routerd.descriptors import is_out_of_files
from llm_routerd.protocol.call import BackendError
from llm_routerd.protocol.codes import AttemptCode, Lack

if TYPE_CHECKING:
    from collections.abc import Mapping

_MAX_REASON = 200
_MAX_MESSAGE = 4096  # as much of a message is looked at
# A type or code as providers spell them.  Without digits, so that no key gets through.
_LABEL = re.compile(r"[A-Za-z][A-Za-z_]{2,47}")
_CONTEXT_WINDOW = re.compile(
    r"context.(?:length|window|size)|exceed_context|prompt is too long|maximum context|input is too long"
    r"|too many (?:input )?tokens|exceeds? the (?:available|maximum|model).{0,40}(?:context|tokens)",
    re.IGNORECASE,
)
# Out of money is answered with 429 too, and no waiting helps.
_NO_QUOTA = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_error"})
# OpenRouter's moderation answers with 403, and would look like a wrong key.
_FLAGGED = re.compile(
    r"(?:input|prompt|content|request) (?:was|is|has been) flagged|requires moderation", re.IGNORECASE
)
_REFUSED = frozenset({HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY})
_CONTENT_POLICY = frozenset({"content_filter", "content_policy_violation", "content_policy"})
_CODE_OF_STATUS = {
    401: AttemptCode.AUTH,
    403: AttemptCode.AUTH,
    404: AttemptCode.NOT_FOUND,
    408: AttemptCode.TIMEOUT,
    429: AttemptCode.RATE_LIMITED,
}
# In the middle of a stream there is no status; the error's type stands for the one it would have had.
_STATUS_OF_LABEL = {
    "invalid_request_error": 400,
    "exceed_context_size_error": 400,
    "context_length_exceeded": 400,
    "authentication_error": 401,
    "invalid_api_key": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "model_not_found": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "insufficient_quota": 429,
    "timeout_error": 504,
    "overloaded_error": 529,
}
# In this order: the first that fits.
_BEFORE_ANSWER: tuple[tuple[type[Exception], AttemptCode, str, bool], ...] = (
    (aiohttp.ClientSSLError, AttemptCode.CONNECT, "the TLS handshake failed", False),
    (aiohttp.ClientConnectorDNSError, AttemptCode.CONNECT, "the host name does not resolve", True),
    (aiohttp.ClientConnectorError, AttemptCode.CONNECT, "the connection was refused or found no route", True),
    (TimeoutError, AttemptCode.TIMEOUT, "no answer in time", True),
    (ValueError, AttemptCode.CONNECT, "the address or a header cannot be used", False),
    (aiohttp.ServerDisconnectedError, AttemptCode.UPSTREAM, "disconnected before it answered", True),
    (OSError, AttemptCode.UPSTREAM, "disconnected before it answered", True),
)
_SHORTAGES = {
    errno.EMFILE: "no more files can be opened in this process",
    errno.ENFILE: "no more files can be opened on this machine",
    errno.ENOMEM: "no memory is left",
    errno.ENOBUFS: "no memory is left for sockets",
    errno.EADDRNOTAVAIL: "no local port is left, or no such network",
}
_LOOK_UPS = {
    socket.EAI_MEMORY: "no memory is left",
    socket.EAI_SYSTEM: "no name can be looked up: the system has no room for it",
    socket.EAI_AGAIN: "no name can be looked up: no DNS resolver answers",
}
# Of one address and not of every call: the same number stands for a network that this machine does not have.
_OF_ROUTE = frozenset({errno.EADDRNOTAVAIL, socket.EAI_SYSTEM, socket.EAI_AGAIN})
# What aiohttp raises for a call; ValueError for headers and host names that cannot be sent.
CALL_ERRORS = (aiohttp.ClientError, OSError, ValueError)
# What Python raises when JSON has not the shape that the code reads it with; `ToolCallError` is among them.
SHAPE_ERRORS = (AttributeError, IndexError, KeyError, TypeError, ValueError)


def fault_of_status(status: int, headers: Mapping[str, str], body: bytes) -> BackendError:
    """The fault that an HTTP answer other than 200 stands for; `body` may be cut, empty or HTML."""
    if status < HTTPStatus.BAD_REQUEST:  # a redirect is not followed: it could carry the prompt anywhere
        return BackendError(AttemptCode.UPSTREAM, f"status {status} instead of an answer", status=status)
    fault = _fault(f"status {status}", status, error_object(body), retry_after_seconds(headers))
    fault.refused_field = refused_field(status, body)
    return fault


def fault_of_error_object(error: Any) -> BackendError:
    """The fault that an error in the middle of a stream stands for; `error` is what its `error` key has."""
    error = _unnested(error)
    _, labels = _message_and_labels(error)
    status = next((_STATUS_OF_LABEL[label] for label in labels if label in _STATUS_OF_LABEL), None)
    if status is None and isinstance(error, dict):
        status = error.get("code")
    if not isinstance(status, int) or status < HTTPStatus.BAD_REQUEST:
        status = HTTPStatus.INTERNAL_SERVER_ERROR
    return _fault("an error in the stream", int(status), error, None)


def _fault(opening: str, status: int, error: Any, retry_after: float | None) -> BackendError:
    message, labels = _message_and_labels(error)
    if not _CONTENT_POLICY.isdisjoint(labels) or (status == HTTPStatus.FORBIDDEN and _FLAGGED.search(message)):
        return BackendError(AttemptCode.REFUSAL, "refused by the provider's content policy", status=status)
    code = _CODE_OF_STATUS.get(status, AttemptCode.UPSTREAM)
    # Of any status: Ollama, and some proxies, pass it on as a 500.
    if code is AttemptCode.UPSTREAM and any(_CONTEXT_WINDOW.search(text) for text in (*labels, message)):
        code = AttemptCode.CONTEXT_WINDOW
    known = known_message(message)
    # LiteLLM's proxy answers 400 to a model that it does not know, llama.cpp's router likewise.
    if code is AttemptCode.UPSTREAM and status in _REFUSED and (known is UNKNOWN_MODEL or "model_not_found" in labels):
        code = AttemptCode.NOT_FOUND
    if known is not None and known.is_callers and code in {AttemptCode.UPSTREAM, AttemptCode.NOT_FOUND}:
        return BackendError(AttemptCode.UPSTREAM, _reason(opening, labels, known), status=status)
    may_pass = code.traits.may_pass and (code is not AttemptCode.UPSTREAM or status >= HTTPStatus.INTERNAL_SERVER_ERROR)
    return BackendError(
        code,
        _reason(opening, labels, known),
        retryable=may_pass and _NO_QUOTA.isdisjoint(labels),
        retry_after_seconds=retry_after,
        status=status,
    )


def fault_before_answer(exception: Exception, connect_seconds: float) -> BackendError:
    """The fault behind what aiohttp raised before the answer's status was there."""
    if (shortage := own_shortage(exception)) is not None:
        return shortage
    if isinstance(exception, aiohttp.ConnectionTimeoutError):
        return BackendError(AttemptCode.CONNECT, f"no connection within {connect_seconds:g} s", retryable=True)
    for kind, code, reason, retryable in _BEFORE_ANSWER:
        if isinstance(exception, kind):
            return BackendError(code, reason, retryable=retryable)
    return BackendError(AttemptCode.UPSTREAM, "the answer is not HTTP", retryable=True)


def own_shortage(exception: BaseException) -> BackendError | None:
    """The fault behind an exception that says what this machine or process lacks; None: it says nothing of the kind.

    It is no verdict on the server, which has not been asked: code `internal`, and to be tried again.
    """
    if isinstance(exception, MemoryError):
        return _shortage("no memory is left")
    if isinstance(exception, aiohttp.ClientConnectorDNSError):
        exception = exception.os_error
    if not isinstance(exception, OSError):
        return None
    number = exception.errno or 0
    if not isinstance(exception, socket.gaierror):
        reason = _SHORTAGES.get(number)
    elif is_out_of_files():  # the C library says this or that then
        return _shortage(_SHORTAGES[errno.EMFILE])
    else:
        reason = _LOOK_UPS.get(number)
    return None if reason is None else _shortage(reason, Lack.ROUTE if number in _OF_ROUTE else Lack.RESOURCES)


def no_look_up(seconds: float) -> BackendError:
    """The fault that no DNS resolver has said anything of a host name, be it that there is none."""
    return _shortage(f"no DNS resolver answered within {seconds:g} s", Lack.ROUTE)


def _shortage(reason: str, lack: Lack = Lack.RESOURCES) -> BackendError:
    return BackendError(AttemptCode.INTERNAL, f"our own shortage: {reason}", retryable=True, lack=lack)


def truncated(reason: str = "the stream ended before its terminal event") -> BackendError:
    """The stream ended, or broke, before its protocol's terminal event, or this does not say that it is whole."""
    return BackendError(AttemptCode.TRUNCATED, reason, retryable=True)


def malformed(what: str) -> BackendError:
    """The server sent something that the protocol does not have; `what` is a fixed phrase."""
    return BackendError(AttemptCode.UPSTREAM, what, retryable=True)


def fault_of_shape(error: Exception) -> BackendError:
    """The fault behind one of `SHAPE_ERRORS`.  Invalid UTF-8 and lone surrogates are no JSON to orjson."""
    if isinstance(error, orjson.JSONDecodeError):
        return malformed("a piece of the stream is not JSON")
    if isinstance(error, ToolCallError):
        return malformed(str(error))
    return malformed("a piece of the stream is not of this protocol")


def unsupported(what: str) -> BackendError:
    """The request holds something that this backend cannot pass on; `what` is a fixed phrase."""
    return BackendError(AttemptCode.UPSTREAM, what)


def error_object(body: bytes) -> Any:
    """The `error` of an error answer, an object or a string, unwrapped where it is JSON in a string."""
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    if isinstance(answer, list) and answer:  # Gemini's OpenAI endpoint wraps the object in a list
        answer = answer[0]
    if not isinstance(answer, dict):
        return None
    # FastAPI says `detail`, some servers put `message` and `type` at the top.
    return _unnested(answer.get("error") or answer.get("detail") or answer)


def retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """What `retry-after-ms` or `Retry-After` (seconds, or an HTTP date) ask for; None if nothing."""
    try:
        if (ms := headers.get("retry-after-ms")) is not None:
            return _bounded(float(ms) / 1000)
        if (value := headers.get("Retry-After")) is None:
            return None
        try:
            return _bounded(float(value))
        except ValueError:
            return _bounded(parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _bounded(seconds: float) -> float | None:
    """None for what is no time to wait; nobody waits longer than a day."""
    return min(max(seconds, 0.0), 86_400.0) if seconds == seconds else None  # noqa: PLR0124 - NaN


def _unnested(error: Any) -> Any:
    """Ollama passes its runner's error on as JSON within the string, at the top or as `message`."""
    text = error.get("message") if isinstance(error, dict) else error
    if isinstance(text, str) and text.lstrip().startswith("{"):
        try:
            inner = orjson.loads(text)
        except (orjson.JSONDecodeError, UnicodeEncodeError):
            return error
        if isinstance(inner, dict) and inner.get("error"):
            return inner["error"]
    return error


def _message_and_labels(error: Any) -> tuple[str, tuple[str, ...]]:
    """An error's message, for recognising only, and what of its `type` and `code` is safe to repeat."""
    if isinstance(error, str):
        return error[:_MAX_MESSAGE], ()
    if not isinstance(error, dict):
        return "", ()
    message = error.get("message")
    values = (error.get("type"), error.get("code"), error.get("status"))
    labels = [value for value in values if isinstance(value, str) and _LABEL.fullmatch(value)]
    return message[:_MAX_MESSAGE] if isinstance(message, str) else "", tuple(dict.fromkeys(labels))


def _reason(opening: str, labels: tuple[str, ...], known: Known | None) -> str:
    details = [*labels, *([] if known is None else [known.phrase])]
    return (f"{opening} ({', '.join(details)})" if details else opening)[:_MAX_REASON]
