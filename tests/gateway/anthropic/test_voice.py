"""An answer as Anthropic tells it, read by that company's own types where they are installed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from llm_routerd.gateway.doors.anthropic.request import read
from llm_routerd.gateway.doors.anthropic.voice import fault_body
from llm_routerd.gateway.fault import Fault, fault_of
from llm_routerd.protocol.codes import AttemptCode, ErrorCode
from llm_routerd.protocol.events import Failed
from llm_routerd.protocol.outcome import AttemptSummary, Outcome, Usage
from tests.gateway.anthropic.bodies import SMALL
from tests.gateway.asking import CALLS, CATALOGUE, TOLD, result

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llm_routerd.gateway.door import Voice

USAGE = {
    "input_tokens": 11,
    "cache_creation_input_tokens": 0,
    "cache_read_input_tokens": 20,
    "output_tokens": 9,
    "output_tokens_details": {"thinking_tokens": 4},
}
AWKWARD = 'Größe: "10"\r\n\u2028\x85\N{PILE OF POO}</script>'


def voice() -> Voice:
    """Of the small request."""
    return read(SMALL, CATALOGUE).voice(TOLD)


def events(pieces: Iterable[bytes]) -> list[dict[str, Any]]:
    """The data of server-sent events whose names are the same as within."""
    found = []
    for block in b"".join(pieces).decode().removesuffix("\n\n").split("\n\n"):
        name, data = block.splitlines()  # as clients do, by whatever ends a line
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def whole(*, text: str = "Hello", **more: Any) -> dict[str, Any]:
    """The message."""
    told: dict[str, Any] = json.loads(voice().whole(result(text, **more)))
    return told


def test_a_message() -> None:
    """Whole; tokens that were cached are counted apart."""
    assert whole(text=AWKWARD) == {
        "id": "msg_r-1",
        "type": "message",
        "role": "assistant",
        "model": "default",
        "content": [{"type": "text", "text": AWKWARD}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": USAGE,
    }


@pytest.mark.parametrize(
    ("reason", "told"),
    [("stop", "end_turn"), ("length", "max_tokens"), ("tool_calls", "tool_use"), ("content_filter", "refusal")],
)
def test_why_it_ended(reason: str, told: str) -> None:
    """In Anthropic's words, streamed or not."""
    assert whole(finish_reason=reason)["stop_reason"] == told
    assert events([voice().end(result("", finish_reason=reason))])[0]["delta"]["stop_reason"] == told


def test_calls_of_tools() -> None:
    """Their arguments are told as they are, numbers of any length included."""
    content = whole(text="", finish_reason="tool_calls", tool_calls=CALLS)["content"]
    assert content == [
        {
            "type": "tool_use",
            "id": "call_1",
            "name": "weather",
            "input": {"city": "Köln\u2028", "n": 123456789012345678901234567890},
        },
        {"type": "tool_use", "id": "call_2", "name": "time", "input": {}},
    ]
    assert whole(text="")["content"] == [{"type": "text", "text": ""}]


def test_usage_that_is_not_known_in_full() -> None:
    """What was not told is not made up."""
    told = whole(usage=Usage(prompt_tokens=3, completion_tokens=2))["usage"]
    assert told == {
        "input_tokens": 3,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "output_tokens": 2,
    }


def streamed(says: Voice) -> list[bytes]:
    """A model that thinks, speaks and calls."""
    return [
        says.begin(),
        says.reasoning("Hm"),
        says.reasoning("m."),
        says.text("Hel"),
        says.ping(),
        says.text(AWKWARD),
        says.end(result("Hel" + AWKWARD, finish_reason="tool_calls", tool_calls=CALLS)),
    ]


def test_a_stream() -> None:
    """Blocks one after the other, each begun and ended."""
    start, *rest = events(streamed(voice()))
    assert start["message"]["usage"]["input_tokens"] == 2  # an estimate: "Hello"
    assert (start["message"]["content"], start["message"]["stop_reason"]) == ([], None)
    assert rest == [
        {
            "type": "content_block_start",
            "index": 0,
            "content_block": {"type": "thinking", "thinking": "", "signature": ""},
        },
        {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "Hm"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "m."}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta", "signature": ""}},
        {"type": "content_block_stop", "index": 0},
        {"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "Hel"}},
        {"type": "ping"},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": AWKWARD}},
        {"type": "content_block_stop", "index": 1},
        {
            "type": "content_block_start",
            "index": 2,
            "content_block": {"type": "tool_use", "id": "call_1", "name": "weather", "input": {}},
        },
        {
            "type": "content_block_delta",
            "index": 2,
            "delta": {"type": "input_json_delta", "partial_json": CALLS[0].arguments},
        },
        {"type": "content_block_stop", "index": 2},
        {
            "type": "content_block_start",
            "index": 3,
            "content_block": {"type": "tool_use", "id": "call_2", "name": "time", "input": {}},
        },
        {"type": "content_block_delta", "index": 3, "delta": {"type": "input_json_delta", "partial_json": "{}"}},
        {"type": "content_block_stop", "index": 3},
        {"type": "message_delta", "delta": {"stop_reason": "tool_use", "stop_sequence": None}, "usage": USAGE},
        {"type": "message_stop"},
    ]


def test_the_same_events_are_told_in_the_same_bytes() -> None:
    """So that whoever comes back finds what he had."""
    assert streamed(voice()) == streamed(voice())


def test_a_stream_that_breaks() -> None:
    """It ends with an error in the stream; where a provider refuses, with the message's own word for that."""
    fault = Fault(status=503, code="superseded", message="gone", request_id="r-1")
    assert events([voice().broken(fault)]) == [
        {"type": "error", "error": {"type": "overloaded_error", "message": "gone"}, "request_id": "r-1"}
    ]
    says = voice()
    ended = events([says.begin(), says.text("I"), says.broken(Fault(status=403, code="refusal", message="no"))])
    assert [each["type"] for each in ended[3:]] == ["content_block_stop", "message_delta", "message_stop"]
    assert ended[4]["delta"] == {"stop_reason": "refusal", "stop_sequence": None}


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (405, "invalid_request_error"),
        (409, "conflict_error"),
        (413, "request_too_large"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (503, "overloaded_error"),
        (504, "timeout_error"),
    ],
)
def test_an_error_has_the_type_of_its_status(status: int, kind: str) -> None:
    """As the API has them."""
    told = json.loads(fault_body(Fault(status=status, code="c", message="m")))
    assert told == {"type": "error", "error": {"type": kind, "message": "m"}, "request_id": None}


def test_an_agent_recognises_a_prompt_that_is_too_long() -> None:
    """Claude Code looks for these words in an error of status 400, and then shortens the conversation."""
    attempt = AttemptSummary(
        model="m", deployment="d", outcome=Outcome.REJECTED, code=AttemptCode.CONTEXT_WINDOW, reason="r", latency_ms=1
    )
    fault = fault_of(Failed(request_id="r", code=ErrorCode.CHAIN_EXHAUSTED, message="all", attempts=(attempt,)), "r")
    assert fault.status == 400
    assert "prompt is too long" in json.loads(fault_body(fault))["error"]["message"].lower()


def test_anthropics_own_types_read_it() -> None:
    """Message and events, strictly; and its own reader puts a stream together to the same message."""
    types = pytest.importorskip("anthropic.types")
    streaming = pytest.importorskip("anthropic.lib.streaming._messages")
    import pydantic  # noqa: PLC0415 - comes with the above

    message = types.Message.model_validate(whole(finish_reason="tool_calls", tool_calls=CALLS))
    reader = pydantic.TypeAdapter(types.RawMessageStreamEvent)
    snapshot, buffers = None, dict[int, bytes]()
    for event in events(streamed(voice())):
        if event["type"] != "ping":
            snapshot = streaming.accumulate_event(
                event=reader.validate_python(event), current_snapshot=snapshot, json_bufs=buffers
            )
    assert snapshot is not None
    assert snapshot.usage.model_dump() == message.usage.model_dump()
    assert [block.type for block in snapshot.content] == ["thinking", "text", "tool_use", "tool_use"]
    assert snapshot.content[1].text == "Hel" + AWKWARD
    assert snapshot.content[2].input["city"] == "Köln\u2028"
    assert (snapshot.stop_reason, snapshot.id) == (message.stop_reason, message.id)
