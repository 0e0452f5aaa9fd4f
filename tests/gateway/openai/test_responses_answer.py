"""Responses and their events as OpenAI's client reads them, and what is told again has the same numbers."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec.structs import replace

from llm_routerd.gateway.doors.openai.responses_answer import ResponsesVoice, carried, shape_carried, shape_of
from tests.gateway.openai.asking import CALLS, FAULT, TOLD, answer, events

HOSTILE_TEXT = 'quote " backslash \\ newline \n null \x00 separators \u2028\u2029\x85 emoji 🦊 ""'
BODY = {"model": "gpt-4o", "metadata": {"row": "1"}, "instructions": "Be brief.", "temperature": 0.5}
TEXT_EVENTS = [
    "response.output_item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.delta",
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
]
THOUGHT_EVENTS = [
    "response.output_item.added",
    "response.content_part.added",
    "response.reasoning_text.delta",
    "response.reasoning_text.delta",
    "response.reasoning_text.done",
    "response.content_part.done",
    "response.output_item.done",
]
CALL_EVENTS = [
    "response.output_item.added",
    "response.function_call_arguments.delta",
    "response.function_call_arguments.done",
    "response.output_item.done",
]
BEGINNING, ENDING = ["response.created", "response.in_progress"], ["response.completed"]


def voice(after: int = -1) -> ResponsesVoice:
    """Of the request that tests tell of."""
    return ResponsesVoice(TOLD, shape=shape_of(BODY), after=after)


def pieces(speaking: ResponsesVoice, *, text: str = "Hello", thought: str = "", **named: Any) -> list[bytes]:
    """What is sent for a whole answer, call by call; text and thought come in two pieces each."""
    return [
        speaking.begin(),
        *(speaking.reasoning(each) for each in (thought[:1], thought[1:]) if each),
        *(speaking.text(each) for each in (text[:2], text[2:]) if each),
        speaking.end(answer(text, **named)),
    ]


def told(**named: Any) -> list[Any]:
    """The events of a whole stream; each is named twice, and they are numbered."""
    found = events(b"".join(pieces(voice(), **named)))
    assert all(name == data["type"] for name, data in found)
    assert [data["sequence_number"] for _, data in found] == list(range(len(found)))
    return [data for _, data in found]


def kinds(found: list[Any]) -> list[str]:
    """What kinds of events they are."""
    return [each["type"] for each in found]


def test_stream_of_text() -> None:
    """All the events, in their order; the item is the same one in all of them."""
    found = told()
    assert kinds(found) == BEGINNING + TEXT_EVENTS + ENDING
    assert "".join(each["delta"] for each in found if "delta" in each) == "Hello"
    item = found[-2]["item"]
    assert item == {
        "id": "msg_r1",
        "type": "message",
        "status": "completed",
        "role": "assistant",
        "content": [{"type": "output_text", "text": "Hello", "annotations": [], "logprobs": []}],
    }
    assert found[-1]["response"]["output"] == [item]
    assert found[0]["response"]["output"] == []
    assert {each["item_id"] for each in found if "item_id" in each} == {"msg_r1"}
    assert {each["output_index"] for each in found if "output_index" in each} == {0}


def test_stream_of_thinking_text_and_calls() -> None:
    """Each is an item of its own, one after the other."""
    found = told(thought="Hm.", tool_calls=CALLS, finish_reason="tool_calls")
    assert kinds(found) == BEGINNING + THOUGHT_EVENTS + TEXT_EVENTS + CALL_EVENTS * 2 + ENDING
    done = [each for each in found if each["type"] == "response.output_item.done"]
    assert [each["output_index"] for each in done] == [0, 1, 2, 3]
    assert [each["item"]["id"] for each in done] == ["rs_r1", "msg_r1", "fc_r1_0", "fc_r1_1"]
    assert found[-1]["response"]["output"] == [each["item"] for each in done]
    assert done[2]["item"]["arguments"] == CALLS[0].arguments
    assert done[0]["item"]["content"] == [{"type": "reasoning_text", "text": "Hm."}]


def test_stream_of_calls_alone() -> None:
    """There is no empty text before them."""
    assert kinds(told(text="", tool_calls=CALLS[:1])) == BEGINNING + CALL_EVENTS + ENDING


def test_stream_of_nothing() -> None:
    """An empty answer has an empty text."""
    found = told(text="")
    assert kinds(found) == [each for each in BEGINNING + TEXT_EVENTS + ENDING if not each.endswith("text.delta")]


def test_answer_that_ended_at_its_limit() -> None:
    """It is incomplete, and says why."""
    last = told(finish_reason="length")[-1]
    assert last["type"] == "response.incomplete"
    assert last["response"]["status"] == last["response"]["output"][0]["status"] == "incomplete"
    assert last["response"]["incomplete_details"] == {"reason": "max_output_tokens"}


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        (FAULT, "failed", "server_error"),
        (replace(FAULT, status=400), "failed", "invalid_prompt"),
        (replace(FAULT, status=429), "failed", "rate_limit_exceeded"),
        (replace(FAULT, status=409, code="cancelled"), "cancelled", None),
    ],
    ids=str,
)
def test_broken_stream(fault: Any, status: str, code: str | None) -> None:
    """The last event says that there is no answer, and why."""
    speaking = voice()
    speaking.begin()
    ((name, data),) = events(speaking.broken(fault))
    assert (name, data["sequence_number"], data["response"]["status"]) == ("response.failed", 2, status)
    assert (data["response"]["error"] or {}).get("code") == code
    assert json.loads(voice().failed(fault)) == data["response"]


@pytest.mark.parametrize("after", range(-1, 26))
def test_told_again_it_goes_on_after_the_last_that_is_known(after: int) -> None:
    """The same bytes, without those of the events up to that number."""
    named: dict[str, Any] = {"thought": "Hm.", "tool_calls": CALLS}
    whole = b"".join(pieces(voice(), **named))
    wanted = [block + b"\n\n" for block in whole.split(b"\n\n") if block]
    assert b"".join(pieces(voice(after), **named)) == b"".join(wanted[after + 1 :])


def test_text_stays_what_it_is() -> None:
    """To the byte; and an event is two lines."""
    speaking = voice()
    speaking.text("x")
    sent = speaking.text(HOSTILE_TEXT)
    assert sent.count(b"\n") == 3
    ((_, data),) = events(sent)
    assert data == {
        "type": "response.output_text.delta",
        "item_id": "msg_r1",
        "output_index": 0,
        "content_index": 0,
        "delta": HOSTILE_TEXT,
        "logprobs": [],
        "sequence_number": 3,
    }


def test_ping_is_no_event() -> None:
    """It keeps a connection open, and has no number."""
    speaking = voice()
    assert events(speaking.ping()) == []
    assert events(speaking.begin())[0][1]["sequence_number"] == 0


def test_whole_answer() -> None:
    """What the body asked for is told again."""
    found = json.loads(voice().whole(answer("Hello", tool_calls=CALLS)))
    assert found["status"] == "completed"
    assert [each["type"] for each in found["output"]] == ["message", "function_call", "function_call"]
    assert {name: found[name] for name in BODY} == BODY
    assert found["usage"] == {
        "input_tokens": 7,
        "input_tokens_details": {"cached_tokens": 2, "cache_write_tokens": 0},
        "output_tokens": 3,
        "output_tokens_details": {"reasoning_tokens": 1},
        "total_tokens": 10,
    }


def test_what_is_carried_is_told_when_the_body_is_gone() -> None:
    """The model's name and the client's own metadata; whatever else stands there is no harm."""
    assert shape_carried({**carried(BODY), "row": 1}) == shape_of({"model": "gpt-4o", "metadata": {"row": "1"}})
    assert shape_carried(None) == shape_carried({"openai": 5}) == shape_of({})


@pytest.mark.parametrize("reason", ["stop", "tool_calls", "length"])
def test_official_types_take_it(reason: str) -> None:
    """OpenAI's own client validates every object, in strict mode."""
    types = pytest.importorskip("openai.types.responses")
    adapter = pytest.importorskip("pydantic").TypeAdapter(types.ResponseStreamEvent)
    calls = CALLS if reason == "tool_calls" else ()
    for each in told(thought="Hm.", tool_calls=calls, finish_reason=reason):
        adapter.validate_json(json.dumps(each), strict=True)
    found = types.Response.model_validate_json(voice().whole(answer("Hello", finish_reason=reason)), strict=True)
    assert found.output_text == "Hello"
    types.Response.model_validate_json(voice().unfinished("queued"), strict=True)
    types.Response.model_validate_json(voice().failed(FAULT), strict=True)
