"""Two laws, over good streams that were damaged at random: events lost, doubled, exchanged, moved, reasons renamed.

A result is only what the server called whole, and is byte for byte what it sent.  A stream that the server called
whole, in any of the forms of `test_forms.py`, is never rejected.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from llm_routerd.backends.anthropic.answer import AnthropicAnswer
from llm_routerd.backends.ollama.answer import OllamaAnswer
from llm_routerd.backends.openai.answer import OpenAIAnswer
from tests.backends.forms import judge_of, read
from tests.backends.test_forms import NOT_WHOLE, WHOLE
from tests.support.calling import PROTOCOLS

if TYPE_CHECKING:
    from collections.abc import Callable

    from llm_routerd.backends.wire.exchange import Answer

ANSWERS: dict[str, Callable[[], Answer]] = {
    "openai": OpenAIAnswer,
    "anthropic": AnthropicAnswer,
    "ollama": OllamaAnswer,
}
Kind = Literal["text", "reasoning", "call", "reason", "end", "nothing"]


@dataclass(frozen=True)
class Event:
    """One event of a stream, and what it says: for `reason` a word or None, for `call` a number."""

    kind: Kind
    said: Any
    wire: bytes


@dataclass
class Told:
    """What a stream says, read without any of the code that is tested."""

    text: str = ""
    reasoning: str = ""
    calls: list[int] = field(default_factory=list)
    reason: str | None = None
    is_whole: bool = False


def told_by(protocol: str, events: list[Event]) -> Told:
    """The reading that the protocol's own text gives."""
    told = Told()
    for event in events:
        match event.kind:
            case "text":
                told.text += event.said
            case "reasoning":
                told.reasoning += event.said
            case "call":
                told.calls.append(event.said)
            case "reason" if event.said is not None:
                told.reason = event.said
        if event.kind == "end" or (protocol == "ollama" and event.kind == "reason"):
            told.is_whole = told.reason in WHOLE or told.reason == "tool_calls"
            return told
    # OpenAI's `[DONE]` may be missing where a reason and a clean end are there.
    told.is_whole = protocol == "openai" and (told.reason in WHOLE or told.reason == "tool_calls")
    return told


# The events, in the forms that servers have for them.


def _sse(event: Any) -> bytes:
    return b"data: " + (event if isinstance(event, bytes) else orjson.dumps(event)) + b"\n\n"


def _openai_chunk(draw: st.DrawFn, delta: dict[str, Any], reason: str | None = None) -> bytes:
    empty = draw(st.sampled_from([None, "null", "None", ""]))
    choice = {"index": 0, "delta": delta, "finish_reason": empty if reason is None else reason}
    return _sse({"choices": [choice], **draw(st.sampled_from([{}, {"usage": None}, {"x_groq": {"id": "r"}}]))})


def _openai(draw: st.DrawFn, kind: Kind, said: Any) -> bytes:
    match kind:
        case "text":
            parts = [{"type": "text", "text": said}]
            return _openai_chunk(draw, draw(st.sampled_from([{"content": said}, {"content": parts}])))
        case "reasoning":
            thinking = [{"type": "thinking", "thinking": [{"type": "text", "text": said}]}]
            return _openai_chunk(
                draw,
                draw(
                    st.sampled_from(
                        [{"reasoning_content": said}, {"content": None, "reasoning": said}, {"content": thinking}]
                    )
                ),
            )
        case "call":
            function = {"name": "f", "arguments": f'{{"n":{said}}}'}
            return _openai_chunk(draw, {"tool_calls": [{"index": said, "id": f"c{said}", "function": function}]})
        case "reason":
            return _openai_chunk(draw, draw(st.sampled_from([{}, {"content": ""}, {"content": None}])), said)
        case "end":
            return _sse(b"[DONE]")
        case _:
            role = _openai_chunk(draw, {"role": "assistant", "content": ""})
            usage = _sse({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}})
            return draw(st.sampled_from([role, usage, *_SSE_NOTHING]))


_SSE_NOTHING = [b": ping\n\n", b"data:\n\n", b"data: null\n\n", b"data: : PROCESSING\n\n", b"event: x\n\n", b"\r\n\r\n"]


def _anthropic(draw: st.DrawFn, kind: Kind, said: Any) -> bytes:
    match kind:
        case "text":
            delta = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": said}}
            start = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": said}}
            return _sse(draw(st.sampled_from([delta, start])))
        case "reasoning":
            return _sse({"type": "content_block_delta", "index": 0, "delta": {"thinking": said}})
        case "call":
            block = {"type": "tool_use", "id": f"c{said}", "name": "f", "input": {}}
            delta = {"type": "input_json_delta", "partial_json": f'{{"n":{said}}}'}
            index = said + 1
            return _sse({"type": "content_block_start", "index": index, "content_block": block}) + _sse(
                {"type": "content_block_delta", "index": index, "delta": delta}
            )
        case "reason":
            return _sse({"type": "message_delta", "delta": {"stop_reason": said}, "usage": {"output_tokens": 1}})
        case "end":
            return _sse({"type": "message_stop"})
        case _:
            kinds = [{"type": "ping"}, {"type": "message_start", "message": {}}, {"type": "content_block_stop"}]
            return draw(st.sampled_from([*map(_sse, kinds), *_SSE_NOTHING]))


def _ollama(draw: st.DrawFn, kind: Kind, said: Any) -> bytes:
    end = draw(st.sampled_from([b"\n", b"\r\n"]))
    message: dict[str, Any] = {"role": "assistant", "content": ""}
    match kind:
        case "text":
            message["content"] = said
        case "reasoning":
            message["thinking"] = said
        case "call":
            message["tool_calls"] = [{"function": {"name": "f", "arguments": {"n": said}}}]
        case "reason":
            return orjson.dumps({"message": message, "done": True, "done_reason": said}) + end
        case "end":  # Ollama has none but its reason
            return end
        case _:
            return draw(st.sampled_from([b"\n", b"null\n", b": PROCESSING\n", b'{"done":false}\n']))
    return orjson.dumps({"message": message, "done": False}) + end


_MAKERS = {"openai": _openai, "anthropic": _anthropic, "ollama": _ollama}


@st.composite
def streams(draw: st.DrawFn, protocol: str, texts: st.SearchStrategy[list[str]], *, calls: int) -> list[Event]:
    """A good stream: thinking, text, calls, a reason, an end, and nothings between them."""
    kinds: list[tuple[Kind, Any]] = [("reasoning", piece) for piece in draw(st.lists(PIECES, max_size=2))]
    kinds += [("text", piece) for piece in draw(texts)]
    kinds += [("call", number) for number in range(draw(st.integers(0, calls)))]
    kinds.append(("reason", draw(st.sampled_from(WHOLE))))
    if protocol != "ollama":
        kinds.append(("end", None))
    events = []
    for kind, said in kinds:
        if draw(st.integers(0, 3)) == 0:
            events.append(_event(draw, protocol, "nothing", None))
        events.append(_event(draw, protocol, kind, said))
    return events


def _event(draw: st.DrawFn, protocol: str, kind: Kind, said: Any) -> Event:
    return Event(kind, said, _MAKERS[protocol](draw, kind, said))


@st.composite
def damaged(draw: st.DrawFn, protocol: str, events: list[Event]) -> list[Event]:
    """Events lost, doubled, exchanged, moved; reasons renamed or taken back; the rest cut off."""
    events = list(events)
    for damage in draw(st.lists(st.sampled_from(["lose", "double", "exchange", "move", "rename", "cut"]), max_size=4)):
        if not events:
            break
        at, other = (draw(st.integers(0, len(events) - 1)) for _ in range(2))
        match damage:
            case "lose":
                del events[at]
            case "double":
                events.insert(other, events[at])
            case "exchange":
                events[at], events[other] = events[other], events[at]
            case "move":
                events.insert(other, events.pop(at))
            case "cut":
                del events[at:]
            case _:
                word = draw(st.sampled_from([*NOT_WHOLE, *WHOLE, "something_new"]))
                events = [
                    _event(draw, protocol, "reason", word) if event.kind == "reason" else event for event in events
                ]
    return events


@st.composite
def reads_of(draw: st.DrawFn, events: list[Event]) -> list[bytes]:
    """The bytes, divided anywhere: within events, lines and characters."""
    body = b"".join(event.wire for event in events)
    cuts = sorted({0, len(body), *draw(st.lists(st.integers(0, len(body)), max_size=6))})
    return [body[a:b] for a, b in pairwise(cuts)]


PIECES = st.text(alphabet='ab .,"\\\n\t{}[]é😀\u2028', min_size=1, max_size=6)
TEXTS = st.lists(PIECES, max_size=4)


@st.composite
def json_texts(draw: st.DrawFn) -> list[str]:
    """A JSON value, written somehow, in pieces."""
    leaves = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | PIECES
    value = draw(
        st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(PIECES, inner, max_size=3))
    )
    text = json.dumps(value, ensure_ascii=draw(st.booleans()), indent=draw(st.sampled_from([None, 2])))
    cuts = sorted({0, len(text), *draw(st.lists(st.integers(0, len(text)), max_size=3))})
    return [text[a:b] for a, b in pairwise(cuts)]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@given(data=st.data())
def test_text_that_was_called_whole_is_the_result_and_no_other(protocol: str, data: st.DataObject) -> None:
    """Both laws, without tools."""
    events = data.draw(damaged(protocol, data.draw(streams(protocol, TEXTS, calls=0))))
    told = told_by(protocol, events)
    verdict = read(ANSWERS[protocol](), data.draw(reads_of(events)), judge_of())
    if not told.is_whole or not told.text.strip():
        assert verdict.answer is None, told
        return
    assert verdict.answer is not None, (told, verdict)
    assert (verdict.answer.raw_text, verdict.reasoning) == (told.text, told.reasoning)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@given(data=st.data())
def test_json_that_was_called_whole_is_the_result_and_no_other(protocol: str, data: st.DataObject) -> None:
    """Both laws, for answers to a schema that takes every value; what was damaged may still be JSON."""
    events = data.draw(damaged(protocol, data.draw(streams(protocol, json_texts(), calls=0))))
    told = told_by(protocol, events)
    verdict = read(ANSWERS[protocol](), data.draw(reads_of(events)), judge_of(schema=True))
    try:
        value = json.loads(told.text)
        is_json = orjson.loads(told.text) == value
    except ValueError:
        is_json = False
    if not told.is_whole or not is_json:
        assert verdict.answer is None, told
        return
    assert verdict.answer is not None, (told, verdict)
    assert verdict.answer.raw_text == told.text
    assert orjson.dumps(verdict.answer.content) == orjson.dumps(value)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@given(data=st.data())
def test_calls_that_were_called_whole_are_the_result_and_no_others(protocol: str, data: st.DataObject) -> None:
    """Both laws; a call that comes twice is the server's mistake, of which nothing is promised but its own arguments."""
    events = data.draw(damaged(protocol, data.draw(streams(protocol, TEXTS, calls=3))))
    told = told_by(protocol, events)
    verdict = read(ANSWERS[protocol](), data.draw(reads_of(events)), judge_of(tools=("f",)))
    if not told.is_whole or not (told.calls or told.text.strip()):
        assert verdict.answer is None, told
        return
    if len(set(told.calls)) != len(told.calls):
        calls = () if verdict.answer is None else verdict.answer.tool_calls
        assert {orjson.loads(call.arguments)["n"] for call in calls} <= set(told.calls)
        return
    assert verdict.answer is not None, (told, verdict)
    assert [orjson.loads(call.arguments) for call in verdict.answer.tool_calls] == [{"n": n} for n in told.calls]
    assert (verdict.answer.raw_text, verdict.reasoning) == (told.text, told.reasoning)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@given(data=st.data())
def test_good_stream_is_never_rejected(protocol: str, data: st.DataObject) -> None:
    """The second law alone, so that the search spends its time on whole streams."""
    texts = st.lists(PIECES, min_size=1, max_size=4).filter(lambda pieces: bool("".join(pieces).strip()))
    events = data.draw(streams(protocol, texts, calls=2))
    told = told_by(protocol, events)
    verdict = read(ANSWERS[protocol](), data.draw(reads_of(events)), judge_of(tools=("f",)))
    assert verdict.answer is not None, (told, verdict)
    assert replace(verdict.answer, tool_calls=()).raw_text == told.text
