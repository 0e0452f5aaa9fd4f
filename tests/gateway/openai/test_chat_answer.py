"""Chat completions as OpenAI's client reads them, chunk for chunk."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llm_routerd.gateway.doors.openai.chat_answer import ChatVoice
from tests.gateway.openai.asking import CALLS, FAULT, TOLD, answer, events

HOSTILE_TEXT = 'quote " backslash \\ newline \n null \x00 separators \u2028\u2029\x85 emoji 🦊 "" data: [DONE]'
HEAD = {"id": "chatcmpl-r1", "object": "chat.completion.chunk", "created": 1_700_000_000, "model": "gpt-4o"}
USAGE = {
    "prompt_tokens": 7,
    "completion_tokens": 3,
    "total_tokens": 10,
    "prompt_tokens_details": {"cached_tokens": 2},
    "completion_tokens_details": {"reasoning_tokens": 1},
}


def voice(*, tells_usage: bool = False, model: str = "gpt-4o") -> ChatVoice:
    """Of the request that tests tell of."""
    return ChatVoice(TOLD, model=model, tells_usage=tells_usage)


def chunk(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    """One chunk of a stream without usage."""
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return {**HEAD, "choices": [choice]}


def told_by(speaking: ChatVoice, *, text: str = "Hello", **named: Any) -> list[Any]:
    """The data of a whole stream's events; the text comes in two pieces."""
    pieces = [text[:2], text[2:]] if text else []
    stream = speaking.begin() + b"".join(map(speaking.text, pieces)) + speaking.end(answer(text, **named))
    assert all(name == "" for name, _ in events(stream))
    return [data for _, data in events(stream)]


def test_stream_of_text() -> None:
    """The role first, then the text, then why it ended, then the end."""
    assert told_by(voice()) == [
        chunk({"role": "assistant", "content": "", "refusal": None}),
        chunk({"content": "He"}),
        chunk({"content": "llo"}),
        {**chunk({}, "stop"), "system_fingerprint": "ollama/tiny"},
        "[DONE]",
    ]


def test_stream_with_usage() -> None:
    """Every chunk says that there is none yet; the one before the end has it, and no choices."""
    *chunks, last, done = told_by(voice(tells_usage=True))
    assert all(each["usage"] is None and each["choices"] for each in chunks)
    assert last == {**HEAD, "choices": [], "usage": USAGE, "system_fingerprint": "ollama/tiny"}
    assert done == "[DONE]"


def test_stream_of_calls() -> None:
    """They come at the end, each whole."""
    told = told_by(voice(), text="", tool_calls=CALLS, finish_reason="tool_calls")
    assert told[1:-1] == [
        chunk(
            {
                "tool_calls": [
                    {
                        "index": number,
                        "id": call.id,
                        "type": "function",
                        "function": {"name": call.name, "arguments": call.arguments},
                    }
                ]
            }
        )
        for number, call in enumerate(CALLS)
    ] + [{**chunk({}, "tool_calls"), "system_fingerprint": "ollama/tiny"}]


def test_stream_of_thinking() -> None:
    """It is told apart from the text."""
    assert [data for _, data in events(voice().reasoning("Hm."))] == [chunk({"reasoning_content": "Hm."})]


def test_broken_stream() -> None:
    """An error as OpenAI tells it, and no end."""
    error = {"message": FAULT.message, "type": "server_error", "param": None, "code": FAULT.code, "request_id": "r1"}
    assert events(voice().broken(FAULT)) == [("", {"error": error})]


def test_ping_is_no_event() -> None:
    """It keeps a connection open, and nobody sees it."""
    assert voice().ping()
    assert events(voice().ping()) == []


@pytest.mark.parametrize("model", ["gpt-4o", '""', 'a "quoted" name', "日本"])
def test_text_stays_what_it_is(model: str) -> None:
    """To the byte, whatever is in it and around it; and an event is one line."""
    told = voice(model=model).text(HOSTILE_TEXT)
    assert told.count(b"\n") == 2
    ((_, data),) = events(told)
    assert data["model"] == model
    assert data["choices"][0]["delta"] == {"content": HOSTILE_TEXT}
    assert data.keys() == HEAD.keys() | {"choices"}


def test_whole_answer() -> None:
    """As one object."""
    told = json.loads(voice().whole(answer("Hello")))
    assert told == {
        **HEAD,
        "object": "chat.completion",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": USAGE,
        "system_fingerprint": "ollama/tiny",
    }


@pytest.mark.parametrize(("text", "calls", "content"), [("", CALLS, None), ("Wait.", CALLS, "Wait."), ("", (), "")])
def test_content_is_null_only_beside_calls(text: str, calls: Any, content: str | None) -> None:
    """An answer of calls alone has no text, which is not the same as an empty one."""
    message = json.loads(voice().whole(answer(text, tool_calls=calls)))["choices"][0]["message"]
    assert message["content"] == content
    assert len(message.get("tool_calls", ())) == len(calls)


@pytest.mark.parametrize("reason", ["stop", "tool_calls", "length"])
def test_official_types_take_it(reason: str) -> None:
    """OpenAI's own client validates every object, in strict mode."""
    types = pytest.importorskip("openai.types.chat")
    calls = CALLS if reason == "tool_calls" else ()
    told = voice().whole(answer("Hello", tool_calls=calls, finish_reason=reason))
    found = types.ChatCompletion.model_validate_json(told, strict=True)
    assert found.choices[0].finish_reason == reason
    assert found.usage.completion_tokens_details.reasoning_tokens == 1
    chunks = told_by(voice(tells_usage=True), tool_calls=calls, finish_reason=reason)[:-1]
    read = [types.ChatCompletionChunk.model_validate_json(json.dumps(each), strict=True) for each in chunks]
    assert "".join(each.choices[0].delta.content or "" for each in read if each.choices) == "Hello"
    assert read[-1].usage is not None
