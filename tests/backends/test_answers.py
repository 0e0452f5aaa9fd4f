"""The parsers on what servers are known to send beside the common case, without a server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
import pytest

from llm_routerd.backends.anthropic.answer import AnthropicAnswer
from llm_routerd.backends.ollama.answer import OllamaAnswer
from llm_routerd.backends.openai.answer import OpenAIAnswer
from llm_routerd.protocol.call import BackendError, Delta, Finish
from llm_routerd.protocol.codes import AttemptCode
from llm_routerd.protocol.outcome import ToolCall, Usage

if TYPE_CHECKING:
    from llm_routerd.backends.wire.exchange import Answer

DONE = b"data: [DONE]\n\n"


def _events(*events: Any) -> bytes:
    return b"".join(b"data: " + orjson.dumps(event) + b"\n\n" for event in events)


def _chunk(finish_reason: str | None = None, **delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]}


def _lines(*events: Any) -> bytes:
    return b"".join(orjson.dumps(event) + b"\n" for event in events)


def _read(answer: Answer, *reads: bytes) -> tuple[list[Delta], Finish]:
    """All deltas and the finish."""
    deltas: list[Delta] = []
    for data in reads:
        read = answer.feed(data)
        if isinstance(read, Finish):
            return deltas, read
        deltas += [read] if read is not None else []
    return deltas, answer.end()


def _code_of(answer: Answer, *reads: bytes) -> AttemptCode:
    with pytest.raises(BackendError) as raised:
        _read(answer, *reads)
    return raised.value.code


@pytest.mark.parametrize(
    "reads",
    [
        (),
        (b": ping\n\n",),
        (DONE,),
        (_events(_chunk(content="a")), DONE),
        (_events(_chunk("", content="a")),),
        (_events(_chunk(content="a")) + b'data: {"choices":[{"fin',),
        (b'{"choices":[{"message":{"content":"a"},"finish_reason":null}]}',),
        (b'{"choices":[{"message":{"content":"a"',),
    ],
)
def test_openai_answer_without_finish_reason_is_cut(reads: tuple[bytes, ...]) -> None:
    """Also with `[DONE]`, which proxies add to whatever they got."""
    assert _code_of(OpenAIAnswer(), *reads) is AttemptCode.TRUNCATED


@pytest.mark.parametrize(
    "data",
    [
        b"data: {}}\n\n",
        _events([]),
        _events({"choices": 7}),
        _events({"choices": [7]}),
        _events({"choices": [{"delta": 7}]}),
        _events(_chunk(content=7)),
        _events(_chunk(content=["a"], refusal=7), _chunk("stop")),
        _events(_chunk(tool_calls=[7])),
        _events(_chunk(tool_calls=[{"index": 0, "function": {"arguments": "{}"}}]), _chunk("stop")) + DONE,
        _events({"choices": [{"finish_reason": ["stop"]}]}),
        _events({"choices": [{"finish_reason": {"a": 1}}]}) + DONE,
        _events(_chunk(tool_calls=[{"index": 0, "function": {"arguments": "{}"}}]), _chunk("stop")),
        _events(_chunk("stop"))[:-2] + b"\ndata: }\n\n",
    ],
)
def test_openai_events_of_another_form_are_malformed(data: bytes) -> None:
    """Nothing that a server sends raises anything else."""
    assert _code_of(OpenAIAnswer(), data) is AttemptCode.UPSTREAM


def test_openai_usage_may_come_after_the_finish_reason() -> None:
    """In a chunk of its own, before `[DONE]` or before an end without it; cached and reasoning tokens with it."""
    usage = {
        "prompt_tokens": 9,
        "completion_tokens": 4,
        "prompt_tokens_details": {"cached_tokens": 8},
        "completion_tokens_details": {"reasoning_tokens": 3},
    }
    expected = Usage(prompt_tokens=9, completion_tokens=4, cached_tokens=8, reasoning_tokens=3)
    stream = _events(_chunk(content="a"), _chunk("stop"), {"choices": [], "usage": usage})
    for reads in ((stream, DONE), (stream,), (stream + DONE,), (stream[:-1],)):
        _, finish = _read(OpenAIAnswer(), *reads)
        assert (finish.finish_reason, finish.usage) == ("stop", expected)
    _, finish = _read(OpenAIAnswer(), _events(_chunk("stop")))
    assert finish.usage is None


@pytest.mark.parametrize("usage", [7, [], {"prompt_tokens": "many"}, {"prompt_tokens_details": 7, "prompt_tokens": -1}])
def test_bad_counts_are_passed_over(usage: Any) -> None:
    """A good answer is not lost for them."""
    none = Usage()
    _, finish = _read(OpenAIAnswer(), _events({**_chunk("stop"), "usage": usage}))
    assert finish.usage in {None, none}
    _, finish = _read(OllamaAnswer(), _lines({"done": True, "eval_count": "many", "prompt_eval_count": None}))
    assert finish.usage == none
    _, finish = _read(
        AnthropicAnswer(), _events({"type": "message_delta", "delta": {}, "usage": usage}) + _end("end_turn")
    )
    assert finish.usage in {None, none}


def test_openai_text_of_one_read_is_one_delta() -> None:
    """And that of the last read is in the finish."""
    deltas, finish = _read(
        OpenAIAnswer(),
        _events(_chunk(role="assistant", content="")),
        _events(_chunk(content="a"), _chunk(content="b"), _chunk(reasoning="r", content="c")),
        _events(_chunk(content="d"), _chunk("length")) + DONE,
    )
    assert deltas == [Delta("abc", "r")]
    assert (finish.text, finish.finish_reason) == ("d", "length")


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_openai_reasoning_is_apart_from_the_text(name: str) -> None:
    """Under either of its names; a server that sends both says it once."""
    deltas, _ = _read(OpenAIAnswer(), _events(_chunk(**{name: "hm", "content": None})), _events(_chunk("stop")))
    assert deltas == [Delta("", "hm")]
    deltas, _ = _read(OpenAIAnswer(), _events(_chunk(reasoning="hm", reasoning_content="hm")), _events(_chunk("stop")))
    assert deltas == [Delta("", "hm")]


def test_openai_refusal_is_told_apart_from_text() -> None:
    """It is joined from its pieces, and shows no text."""
    deltas, finish = _read(
        OpenAIAnswer(), _events(_chunk(refusal="I "), _chunk(refusal="won't."), _chunk("stop")), DONE
    )
    assert deltas == [Delta()]
    assert (finish.refusal, finish.finish_reason) == ("I won't.", "stop")
    _, finish = _read(OpenAIAnswer(), _events(_chunk("content_filter")), DONE)
    assert (finish.refusal, finish.finish_reason) == (None, "content_filter")


def test_openai_tool_calls_show_progress() -> None:
    """While arguments come, empty deltas say that the model is at work; some servers finish them with `stop`."""
    head = {"index": 0, "id": "a", "function": {"name": "f", "arguments": ""}}
    tail = {"index": 0, "function": {"arguments": '{"x":1}'}}
    deltas, finish = _read(
        OpenAIAnswer(),
        _events(_chunk(tool_calls=[head])),
        _events(_chunk(tool_calls=[tail])),
        _events(_chunk("stop")),
        DONE,
    )
    assert deltas == [Delta(), Delta()]
    assert finish.tool_calls == (ToolCall.of(id="a", name="f", arguments='{"x":1}'),)
    assert finish.finish_reason == "tool_calls"


def test_openai_answer_that_is_not_streamed_is_accepted() -> None:
    """Some servers ignore `stream`."""
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    message = {"role": "assistant", "content": "b", "reasoning_content": "r", "tool_calls": [call]}
    document = {"choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]}
    body = b"\n " + orjson.dumps(document, option=orjson.OPT_INDENT_2)
    _, finish = _read(OpenAIAnswer(), body[:9], body[9:])
    assert (finish.text, finish.reasoning, finish.tool_calls[0].name) == ("b", "r", "f")
    assert _code_of(OpenAIAnswer(), b'{"error":{"type":"rate_limit_error"}}') is AttemptCode.RATE_LIMITED


def _block(index: int, kind: str, **more: Any) -> dict[str, Any]:
    return {"type": "content_block_start", "index": index, "content_block": {"type": kind, **more}}


def _piece(index: int, **delta: Any) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": index, "delta": delta}


def _end(stop_reason: str | None, **usage: int) -> bytes:
    delta = {"type": "message_delta", "delta": {"stop_reason": stop_reason}, "usage": usage}
    return _events(delta, {"type": "message_stop"})


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", AttemptCode.TRUNCATED),
        (_events({"type": "ping"}), AttemptCode.TRUNCATED),
        (_events({"type": "message_delta", "delta": {"stop_reason": "end_turn"}}), AttemptCode.TRUNCATED),
        (_events({"type": "error", "error": {"type": "overloaded_error"}}), AttemptCode.UPSTREAM),
        (_events({"type": "error", "error": {"type": "rate_limit_error"}}), AttemptCode.RATE_LIMITED),
        (_events({"type": "error"}), AttemptCode.UPSTREAM),
        (_events(7), AttemptCode.TRUNCATED),
        (_events({"type": "content_block_delta"}), AttemptCode.UPSTREAM),
        (_events(_piece(0, text=7)), AttemptCode.UPSTREAM),
        (_events(_piece(0, partial_json="{}")) + _end("tool_use"), AttemptCode.UPSTREAM),
        (_events(_block(0, "tool_use")), AttemptCode.UPSTREAM),
        (b'{"type":"message","content":[{"type":"text","text":"a"}]}', AttemptCode.UPSTREAM),
    ],
)
def test_anthropic_answer_that_is_cut_or_malformed_is_none(data: bytes, code: AttemptCode) -> None:
    """Whatever is missing or wrong; a stop reason alone is no end."""
    assert _code_of(AnthropicAnswer(), data) is code


def test_anthropic_blocks_are_told_apart() -> None:
    """Thinking, text and two tools, with events and blocks that are not known in between."""
    deltas, finish = _read(
        AnthropicAnswer(),
        _events({"type": "message_start", "message": {"usage": {"input_tokens": 5, "output_tokens": 1}}}),
        _events({"type": "ping"}, {"type": "brand_new"}, _block(0, "thinking", thinking="")),
        _events(_piece(0, type="thinking_delta", thinking="hm"), _piece(0, type="signature_delta", signature="x")),
        _events(
            _block(1, "text", text=""), _piece(1, type="text_delta", text="a"), _piece(1, type="text_delta", text="b")
        ),
        _events(_block(2, "tool_use", id="t1", name="f", input={}), _piece(2, partial_json="")),
        _events(
            _piece(2, partial_json='{"x"'), _piece(2, partial_json=":1}"), {"type": "content_block_stop", "index": 2}
        ),
        _events(_block(3, "tool_use", id="t2", name="g", input={"y": 2}), _block(4, "brand_new")),
        _end("tool_use", output_tokens=9),
    )
    assert deltas == [Delta("", "hm"), Delta("ab", ""), Delta(), Delta()]
    assert finish.tool_calls == (
        ToolCall.of(id="t1", name="f", arguments='{"x":1}'),
        ToolCall.of(id="t2", name="g", arguments='{"y":2}'),
    )
    assert finish.finish_reason == "tool_calls"
    assert finish.usage == Usage(prompt_tokens=5, completion_tokens=9)


def test_anthropic_usage_counts_the_cache_as_prompt() -> None:
    """What came from the cache and what went into it are not in `input_tokens`."""
    usage = {"input_tokens": 5, "cache_read_input_tokens": 100, "cache_creation_input_tokens": 20, "output_tokens": 1}
    start = _events({"type": "message_start", "message": {"usage": usage}})
    _, finish = _read(AnthropicAnswer(), start, _end("end_turn", output_tokens=7))
    assert finish.usage == Usage(prompt_tokens=125, completion_tokens=7, cached_tokens=100)


@pytest.mark.parametrize(
    ("stop_reason", "finish_reason", "refusal"),
    [
        ("end_turn", "stop", None),
        ("stop_sequence", "stop", None),
        ("max_tokens", "length", None),
        ("model_context_window_exceeded", "context_window", None),
        ("refusal", "refusal", ""),
    ],
)
def test_anthropic_stop_reasons(stop_reason: str | None, finish_reason: str, refusal: str | None) -> None:
    """Each has its finish reason; a refusal is a structured one."""
    _, finish = _read(AnthropicAnswer(), _end(stop_reason))
    assert (finish.finish_reason, finish.refusal) == (finish_reason, refusal)


def test_anthropic_answer_that_is_not_streamed_is_accepted() -> None:
    """As from a server that ignores `stream`."""
    blocks = [
        {"type": "thinking", "thinking": "hm"},
        {"type": "text", "text": "a"},
        {"type": "tool_use", "id": "t", "name": "f", "input": {"x": 1}},
    ]
    document = {"type": "message", "content": blocks, "stop_reason": "tool_use", "usage": {"input_tokens": 1}}
    _, finish = _read(AnthropicAnswer(), orjson.dumps(document))
    assert (finish.text, finish.reasoning) == ("a", "hm")
    assert finish.tool_calls == (ToolCall.of(id="t", name="f", arguments='{"x":1}'),)


def _message(**message: Any) -> dict[str, Any]:
    return {"message": {"role": "assistant", **message}, "done": False}


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", AttemptCode.TRUNCATED),
        (b"\n\n", AttemptCode.TRUNCATED),
        (_lines(_message(content="a")), AttemptCode.TRUNCATED),
        (b'{"message":{"content":"a"},"done":true', AttemptCode.TRUNCATED),
        (b"[]\n", AttemptCode.UPSTREAM),
        (b"7\n", AttemptCode.TRUNCATED),
        (_lines({"message": 7}), AttemptCode.UPSTREAM),
        (_lines(_message(content=7)), AttemptCode.UPSTREAM),
        (_lines(_message(tool_calls=[7])), AttemptCode.UPSTREAM),
        (_lines(_message(tool_calls=[{"function": {}}]), {"done": True}), AttemptCode.UPSTREAM),
        (_lines({"error": "model runner has unexpectedly stopped"}), AttemptCode.UPSTREAM),
        (_lines(*[_message(tool_calls=[{"function": {"name": "f"}}])] * 129), AttemptCode.UPSTREAM),
    ],
)
def test_ollama_answer_that_is_cut_or_malformed_is_none(data: bytes, code: AttemptCode) -> None:
    """Whatever is missing or wrong."""
    assert _code_of(OllamaAnswer(), data) is code


def test_ollama_thinking_and_tools_are_told_apart() -> None:
    """Calls come whole, with or without ids, over several lines; their arguments become JSON text."""
    call = {"function": {"name": "f", "arguments": {"x": "ü"}}}
    deltas, finish = _read(
        OllamaAnswer(),
        _lines(_message(content="", thinking="h"), _message(content="", thinking="m")),
        _lines(_message(content="a")),
        _lines(_message(content="", tool_calls=[call])),
        _lines(_message(content="", tool_calls=[{**call, "id": "given"}]), {"done": True, "done_reason": "stop"}),
    )
    assert deltas == [Delta("", "hm"), Delta("a"), Delta()]
    assert finish.tool_calls == (
        ToolCall.of(id="call_0", name="f", arguments='{"x":"ü"}'),
        ToolCall.of(id="given", name="f", arguments='{"x":"ü"}'),
    )
    assert (finish.finish_reason, finish.usage) == ("tool_calls", None)
