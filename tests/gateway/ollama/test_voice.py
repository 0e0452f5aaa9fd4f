"""An answer as Ollama tells it: compared with what one said, and read by its client's own types where it is there."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from llm_routerd.gateway.door import Ask
from llm_routerd.gateway.doors.ollama.request import read_chat, read_generate
from llm_routerd.gateway.doors.ollama.voice import fault_body
from llm_routerd.gateway.fault import Fault
from tests.gateway.asking import CALLS, CATALOGUE, TOLD, result
from tests.gateway.ollama.recordings import answered

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llm_routerd.gateway.door import Voice

AWKWARD = 'Größe: "10"\r\n\u2028\x85\N{PILE OF POO}\x00'
HEAD = {"model": "gemma", "created_at": "2023-11-14T22:13:20Z"}
ENDING = {
    "done": True,
    "done_reason": "stop",
    "total_duration": 1_255_000_000,
    "prompt_eval_count": 31,
    "prompt_eval_duration": 902_000_000,
    "eval_count": 9,
    "eval_duration": 349_000_000,
}
CALLED = [
    {
        "id": "call_1",
        "function": {
            "index": 0,
            "name": "weather",
            "arguments": {"city": "Köln\u2028", "n": 123456789012345678901234567890},
        },
    },
    {"id": "call_2", "function": {"index": 1, "name": "time", "arguments": {}}},
]


def chat() -> Voice:
    """Of a chat."""
    found = read_chat({"model": "gemma", "messages": [{"role": "user", "content": "Hello"}]}, CATALOGUE)
    assert isinstance(found, Ask)
    return found.voice(TOLD)


def generation() -> Voice:
    """Of a generation."""
    found = read_generate({"model": "gemma", "prompt": "Hello"}, CATALOGUE)
    assert isinstance(found, Ask)
    return found.voice(TOLD)


def lines(pieces: Iterable[bytes]) -> list[dict[str, Any]]:
    """One JSON object a line, and nothing beside."""
    whole = b"".join(pieces)
    assert whole.endswith(b"\n")
    return [json.loads(line) for line in whole.decode().splitlines()]  # as clients do, by whatever ends a line


def streamed(says: Voice) -> list[bytes]:
    """A model that thinks, speaks and calls."""
    return [
        says.begin(),
        says.reasoning("Hm."),
        says.text("Hel"),
        says.ping(),
        says.text(AWKWARD),
        says.end(result("Hel" + AWKWARD, finish_reason="tool_calls", tool_calls=CALLS)),
    ]


def test_a_chat() -> None:
    """Whole; the model's own times are not known."""
    whole = json.loads(chat().whole(result(AWKWARD, finish_reason="tool_calls", tool_calls=CALLS)))
    assert whole == {**HEAD, "message": {"role": "assistant", "content": AWKWARD, "tool_calls": CALLED}, **ENDING}


def test_a_generation() -> None:
    """Whole."""
    assert json.loads(generation().whole(result(AWKWARD))) == {**HEAD, "response": AWKWARD, **ENDING}


def test_a_streamed_chat() -> None:
    """A line for each piece."""
    assert lines(streamed(chat())) == [
        {**HEAD, "message": {"role": "assistant", "content": "", "thinking": "Hm."}, "done": False},
        {**HEAD, "message": {"role": "assistant", "content": "Hel"}, "done": False},
        {**HEAD, "message": {"role": "assistant", "content": AWKWARD}, "done": False},
        {**HEAD, "message": {"role": "assistant", "content": "", "tool_calls": CALLED}, "done": False},
        {**HEAD, "message": {"role": "assistant", "content": ""}, **ENDING},
    ]
    assert streamed(chat()) == streamed(chat())


def test_a_streamed_generation() -> None:
    """As a chat, without the message around it."""
    says = generation()
    assert lines([says.reasoning("Hm."), says.text("Hel"), says.end(result("Hel", finish_reason="length"))]) == [
        {**HEAD, "response": "", "thinking": "Hm.", "done": False},
        {**HEAD, "response": "Hel", "done": False},
        {**HEAD, "response": "", **ENDING, "done_reason": "length"},
    ]


def test_what_is_not_known_is_left_out() -> None:
    """When the first token came, and how long it waited."""
    told = json.loads(chat().whole(result("a", ttft_ms=None, queue_ms=None)))
    assert told["total_duration"] == 1_251_000_000
    assert told.keys().isdisjoint({"prompt_eval_duration", "eval_duration", "load_duration"})


@pytest.mark.parametrize("name", ["api-chat", "api-chat-stream", "api-generate"])
def test_it_has_what_a_real_answer_has(name: str) -> None:
    """Property by property, of the same type, but for what only the server of a model can know."""
    says = generation() if name == "api-generate" else chat()
    real = answered(name)
    ours = (
        lines([says.text("a"), says.end(result("a"))])
        if name == "api-chat-stream"
        else [json.loads(says.whole(result("a")))]
    )
    for own, theirs in ((ours[0], real[0]), (ours[-1], real[-1])):
        unknown = {"load_duration", "context"}
        assert own.keys() == theirs.keys() - unknown
        assert {key: type(own[key]) for key in own} == {key: type(theirs[key]) for key in own}
        assert own.get("message", {}).keys() == theirs.get("message", {}).keys()


def test_a_stream_that_breaks() -> None:
    """It ends with a line of its own, which is an error's body too."""
    fault = Fault(status=503, code="superseded", message="gone", request_id="r-1")
    assert lines([chat().broken(fault)]) == [{"error": "gone"}]
    assert json.loads(fault_body(fault)) == {"error": "gone"}
    assert answered("api-chat-no-model")[0].keys() == {"error"}


def test_the_clients_own_types_read_it() -> None:
    """Strictly, but for numbers of more than 64 bits."""
    ollama = pytest.importorskip("ollama")
    for line in lines(streamed(chat())):
        read = ollama.ChatResponse.model_validate(line)
        assert read.done is line["done"]
    assert read.eval_count == 9
    read = ollama.GenerateResponse.model_validate_json(generation().whole(result(AWKWARD)))
    assert (read.response, read.done_reason) == (AWKWARD, "stop")
