"""Whatever a server sends, a parser answers with deltas and a finish of the right types, or with a `BackendError`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_routerd.backends.anthropic.answer import AnthropicAnswer
from llm_routerd.backends.faults import fault_of_status
from llm_routerd.backends.ollama.answer import OllamaAnswer
from llm_routerd.backends.openai.answer import OpenAIAnswer
from llm_routerd.protocol.call import BackendError, Finish

if TYPE_CHECKING:
    from collections.abc import Callable

    from llm_routerd.backends.wire.exchange import Answer

FINISH_REASONS = {
    "stop",
    "length",
    "tool_calls",
    "content_filter",
    "refusal",
    "context_window",
    "truncated",
    "not_generated",
}
SCALARS = st.none() | st.booleans() | st.integers(-5, 600) | st.text(max_size=5) | st.floats(allow_nan=False)
KEYS = st.sampled_from(
    [
        "choices",
        "delta",
        "message",
        "content",
        "text",
        "thinking",
        "reasoning",
        "tool_calls",
        "function",
        "name",
        "arguments",
        "id",
        "index",
        "type",
        "usage",
        "finish_reason",
        "stop_reason",
        "done",
        "done_reason",
        "eval_count",
        "prompt_tokens",
        "prompt_tokens_details",
        "cached_tokens",
        "error",
        "code",
        "refusal",
        "content_block",
        "partial_json",
        "input",
        "output_tokens",
    ]
)
TYPES = st.sampled_from(
    [
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_start",
        "message_delta",
        "message_stop",
        "error",
        "text",
        "tool_use",
        "thinking",
        "overloaded_error",
        "stop",
        "length",
    ]
)
JSON = st.recursive(
    SCALARS | TYPES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)
CHUNKS = st.fixed_dictionaries(
    {"choices": st.lists(st.fixed_dictionaries({"delta": JSON}, optional={"finish_reason": JSON}), max_size=2)},
    optional={"usage": JSON},
)
LINES = st.fixed_dictionaries({}, optional={"message": JSON, "done": st.booleans(), "eval_count": JSON, "error": JSON})
BLOCKS = st.fixed_dictionaries(
    {"type": TYPES},
    optional={"index": JSON, "delta": JSON, "content_block": JSON, "message": JSON, "usage": JSON, "error": JSON},
)
EVENTS = st.lists(JSON | CHUNKS | LINES | BLOCKS, max_size=4)
ANSWERS: list[tuple[Callable[[], Answer], bytes, bytes]] = [
    (OllamaAnswer, b"", b"\n"),
    (OpenAIAnswer, b"data: ", b"\n\n"),
    (AnthropicAnswer, b"data: ", b"\n\n"),
]


def _end_of(answer: Answer, reads: list[bytes]) -> Finish | BackendError:
    try:
        for data in reads:
            read = answer.feed(data)
            if isinstance(read, Finish):
                return read
            assert read is None or isinstance(read.text + read.reasoning, str)
        return answer.end()
    except BackendError as error:
        return error


def _survives(answer: Answer, reads: list[bytes]) -> None:
    end = _end_of(answer, reads)
    if isinstance(end, BackendError):
        assert 0 < len(end.reason) <= 200
        return
    assert end.finish_reason in FINISH_REASONS
    assert isinstance(end.text + end.reasoning + (end.refusal or ""), str)
    for call in end.tool_calls:
        assert isinstance(call.id + call.name + call.arguments, str)
    assert end.usage is None or end.usage.total_tokens >= 0


@pytest.mark.parametrize(("make", "before", "after"), ANSWERS)
@given(events=EVENTS, documents=st.lists(JSON, max_size=1))
def test_any_events_are_survived(
    make: Callable[[], Answer], before: bytes, after: bytes, events: list[Any], documents: list[Any]
) -> None:
    """In the protocol's framing, and as a document in place of it."""
    _survives(make(), [before + orjson.dumps(event) + after for event in events])
    for document in documents:
        _survives(make(), [orjson.dumps(document)])


@pytest.mark.parametrize(("make", "before", "after"), ANSWERS)
@given(reads=st.lists(st.binary(max_size=40), max_size=4))
def test_any_bytes_are_survived(make: Callable[[], Answer], before: bytes, after: bytes, reads: list[bytes]) -> None:
    """With and without the protocol's framing."""
    _survives(make(), reads)
    _survives(make(), [before + data + after for data in reads])


@given(status=st.integers(200, 999), error=JSON, headers=st.dictionaries(st.just("Retry-After"), st.text(max_size=8)))
def test_any_error_answer_is_survived(status: int, error: Any, headers: dict[str, str]) -> None:
    """Its reason stays short and free of what the server said."""
    for body in (orjson.dumps(error), orjson.dumps({"error": error})):
        fault = fault_of_status(status, headers, body)
        assert fault.reason.startswith(f"status {status}") or "content policy" in fault.reason
        assert len(fault.reason) <= 200
