"""The mapping of errors, where a table says more than a server."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import orjson
import pytest

from llm_routerd.backends.faults import fault_of_error_object, fault_of_status, retry_after_seconds
from llm_routerd.protocol.codes import AttemptCode as Code

SECRET = "sk-made-up-0123456789 and the whole prompt"


def _body(**error: Any) -> bytes:
    return orjson.dumps({"error": error})


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"\xff",
        b"[]",
        b"[1]",
        b"7",
        b"null",
        b'{"error":null}',
        b'{"error":[]}',
        b'{"error":{"message":7,"type":[],"code":{}}}',
        b'{"error":"{\\"error\\":"}',
        b'{"error":"{}"}',
        b'{"detail":[{"msg":"x"}]}',
    ],
)
@pytest.mark.parametrize("status", [400, 418, 500, 599])
def test_any_body_of_an_error_is_survived(status: int, body: bytes) -> None:
    """Whatever it holds, the status alone is enough."""
    fault = fault_of_status(status, {}, body)
    assert (fault.code, fault.retryable, fault.status) == (Code.UPSTREAM, status >= 500, status)


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500])
def test_reason_never_repeats_what_the_server_said(status: int) -> None:
    """Messages may quote the prompt and the key; so may types and codes that look like no type or code."""
    bodies = [
        _body(message=SECRET, type=SECRET, code=SECRET),
        _body(message=SECRET, type="sk-0123456789", code="x" * 100),
        orjson.dumps({"error": SECRET}),
        orjson.dumps({"detail": SECRET, "message": SECRET}),
        SECRET.encode(),
    ]
    for body in bodies:
        fault = fault_of_status(status, {}, body)
        assert fault.reason == f"status {status}"


@pytest.mark.parametrize(
    ("status", "error", "code"),
    [
        (400, {"message": "This model's maximum context length is 8192 tokens", "code": None}, Code.CONTEXT_WINDOW),
        (400, {"message": "x", "code": "context_length_exceeded"}, Code.CONTEXT_WINDOW),
        (400, {"message": "prompt is too long: 210000 tokens > 200000 maximum"}, Code.CONTEXT_WINDOW),
        (413, {"message": "input is too long for requested model"}, Code.CONTEXT_WINDOW),
        (500, {"message": "the request exceeds the available context size"}, Code.CONTEXT_WINDOW),
        (400, {"message": "no", "code": "content_filter"}, Code.REFUSAL),
        (402, {"message": "no", "type": "billing_error"}, Code.UPSTREAM),
        (413, {"message": "too large", "type": "request_too_large"}, Code.UPSTREAM),
    ],
)
def test_kinds_of_bad_requests_are_told_apart(status: int, error: dict[str, Any], code: Code) -> None:
    """None of them is worth asking again."""
    fault = fault_of_status(status, {}, _body(**error))
    assert (fault.code, fault.retryable) == (code, False)


def test_used_up_quota_is_no_reason_to_wait() -> None:
    """OpenAI answers it with 429 too, and waiting brings no money."""
    assert not fault_of_status(429, {"Retry-After": "1"}, _body(type="insufficient_quota")).retryable
    assert fault_of_status(429, {"Retry-After": "1"}, _body(type="rate_limit_error")).retryable


@pytest.mark.parametrize(
    ("error", "code", "retryable"),
    [
        ({"type": "overloaded_error", "message": "Overloaded"}, Code.UPSTREAM, True),
        ({"type": "rate_limit_error", "message": ""}, Code.RATE_LIMITED, True),
        ({"type": "authentication_error"}, Code.AUTH, False),
        ({"code": 429, "message": "x"}, Code.RATE_LIMITED, True),
        ({"code": 99999999999, "message": "x"}, Code.UPSTREAM, True),
        ("something broke", Code.UPSTREAM, True),
        ('{"error":{"type":"exceed_context_size_error"}}', Code.CONTEXT_WINDOW, False),
        (None, Code.UPSTREAM, True),
        (True, Code.UPSTREAM, True),
    ],
)
def test_error_in_the_stream_is_what_its_status_would_have_been(error: Any, code: Code, retryable: bool) -> None:
    """In the middle of a stream there is no status; type or code say which it would have been."""
    fault = fault_of_error_object(error)
    assert (fault.code, fault.retryable) == (code, retryable)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": "0.5"}, 0.5),
        ({"Retry-After": "-3"}, 0.0),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "nan"}, None),
        ({"Retry-After": "1e300"}, 86_400.0),
        ({"Retry-After": ""}, None),
        ({"retry-after-ms": "1500", "Retry-After": "7"}, 1.5),
        ({"retry-after-ms": "x"}, None),
        ({"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT"}, 0.0),
    ],
)
def test_retry_after_is_read_in_all_its_forms(headers: dict[str, str], seconds: float | None) -> None:
    """Seconds, milliseconds, dates that have passed, and nonsense."""
    assert retry_after_seconds(headers) == seconds


def test_retry_after_as_a_date_is_the_time_until_then() -> None:
    """By the clock on the wall."""
    then = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    seconds = retry_after_seconds({"Retry-After": then})
    assert seconds is not None
    assert 55 < seconds <= 60


_JINJA = (
    "\n------------\nWhile executing CallExpression at line 47, column 32 in source:\n...== 0) %}\n"
    "Error: Jinja Exception: Conversation roles must alternate user/assistant/user/assistant/..."
)


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (500, _JINJA),  # llama.cpp 19851, picoclaw 207
        (500, orjson.dumps({"error": {"code": 500, "message": _JINJA, "type": "server_error"}}).decode()),  # Ollama
        (400, "Conversation roles must alternate user/assistant/user/assistant/..."),
        (500, "invalid operation: Conversation roles must alternate user/assistant (in chat_template:1)"),
        (500, "System role not supported"),  # Gemma
        (500, "No user query found in messages."),  # Qwen
        (500, "Jinja Exception: System message must be at the beginning."),
        (500, 'template: :3:5: executing "" at <.Messages>: nil pointer'),  # Ollama's own templates
        (500, "registry.ollama.ai/library/gemma:2b does not support tools"),
        (500, "Failed to parse grammar"),  # llama.cpp: this caller's schema
        (404, "No endpoints found that support image input"),  # OpenRouter
    ],
)
def test_what_only_the_callers_request_brings_about_is_no_fault_of_the_deployment(status: int, message: str) -> None:
    """Not to be tried again, and no failure in `core.health`; also within the stream."""
    fault = fault_of_status(status, {}, _body(message=message))
    assert (fault.code, fault.retryable) == (Code.UPSTREAM, False)
    in_stream = fault_of_error_object(message)
    assert (in_stream.code, in_stream.retryable) == (Code.UPSTREAM, False)


def test_input_that_was_flagged_is_refused() -> None:
    """OpenRouter answers with 403, which is no wrong key."""
    body = _body(message="Your chosen model requires moderation and your input was flagged", code=403)
    assert fault_of_status(403, {}, body).code is Code.REFUSAL
    assert fault_of_status(403, {}, _body(message="Forbidden")).code is Code.AUTH


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (
            400,
            {
                "message": "/chat/completions: Invalid model name passed in model=nope. Call `/v1/models` to view them",
                "type": "invalid_request_error",
                "param": "model",
                "code": "400",
            },
        ),
        (400, {"message": "400: {'error': '/chat/completions: Invalid model name passed in model=nope. Call"}),
        (400, {"message": "The model `nope` does not exist", "code": "model_not_found"}),
        (400, "model 'nope' not found"),
        (422, {"message": "Unknown model: nope"}),
        (404, {"message": "The model `nope` does not exist"}),
    ],
)
def test_unknown_model_is_not_found_whatever_the_status(status: int, error: Any) -> None:
    """LiteLLM's proxy and llama.cpp's router answer 400; the operator is told what to mend."""
    fault = fault_of_status(status, {}, orjson.dumps({"error": error}))
    assert (fault.code, fault.retryable) == (Code.NOT_FOUND, False)
    assert "the model is not known" in fault.reason or "model_not_found" in fault.reason
    assert "nope" not in fault.reason


@pytest.mark.parametrize(
    "message",
    [
        "Invalid value for 'content': 'model x does not exist' is too long",
        "messages[0]: unknown field, in: the model x was not found",
    ],
)
def test_prompt_that_speaks_of_models_takes_no_deployment_away(message: str) -> None:
    """What quotes a prompt is no word about the model."""
    assert fault_of_status(400, {}, _body(message=message)).code is Code.UPSTREAM
