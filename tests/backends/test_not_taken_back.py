"""Half answers that pass as whole, and servers without end."""

from __future__ import annotations

import time
from typing import Any

import orjson
import pytest

from llm_routerd.backends.anthropic.answer import AnthropicAnswer
from llm_routerd.backends.ollama.answer import OllamaAnswer
from llm_routerd.backends.openai.answer import OpenAIAnswer
from llm_routerd.protocol.call import BackendError, Finish
from tests.backends.forms import DONE, chunk, events, lines

CALL = {"index": 0, "id": "c", "function": {"name": "f", "arguments": "{}"}}


def reason_of(answer: Any, stream: bytes) -> str:
    """The reason to finish that is read from a stream."""
    read = answer.feed(stream)
    finish = read if isinstance(read, Finish) else answer.end()
    return str(finish.finish_reason)


def test_calls_in_another_choice_that_was_cut_are_not_whole() -> None:
    """The first choice is whole, the one that has the calls is not."""
    choices = [
        {"index": 0, "delta": {"content": "Let me see."}, "finish_reason": "stop"},
        {"index": 1, "delta": {"tool_calls": [CALL]}, "finish_reason": "length"},
    ]
    assert reason_of(OpenAIAnswer(), events({"choices": choices}, DONE)) == "length"


def test_calls_in_another_choice_of_a_document_that_was_cut_are_not_whole() -> None:
    """As in a stream."""
    choices = [
        {"message": {"content": "Let me see."}, "finish_reason": "stop"},
        {"message": {"tool_calls": [CALL]}, "finish_reason": "length"},
    ]
    assert reason_of(OpenAIAnswer(), orjson.dumps({"choices": choices})) == "length"


@pytest.mark.parametrize("bad", ["network_error", "length"])
def test_bad_reason_is_not_taken_back(bad: str) -> None:
    """A proxy that closes what broke with a `stop` of its own."""
    stream = events(chunk(bad, content="half"), chunk("stop"), DONE)
    assert reason_of(OpenAIAnswer(), stream) in {"truncated", "length"}
    stream = events(
        {"type": "content_block_delta", "delta": {"text": "half"}},
        {"type": "message_delta", "delta": {"stop_reason": bad}},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}},
        {"type": "message_stop"},
    )
    assert reason_of(AnthropicAnswer(), stream) in {"truncated", "length"}


def test_error_beside_done_is_an_error() -> None:
    """Ollama's `error` counts, also in the line that says `done`."""
    stream = lines({"message": {"content": "half"}, "done": False}, {"done": True, "error": "unexpected EOF"})
    with pytest.raises(BackendError):
        OllamaAnswer().feed(stream)


def test_refusal_without_end_is_read_in_linear_time() -> None:
    """Six megabytes of it in less than two seconds."""
    answer = OpenAIAnswer()
    piece = events(chunk(refusal="x" * 1000)) * 60
    start = time.process_time()
    for _ in range(100):
        answer.feed(piece)
    assert time.process_time() - start < 2.0


def test_usage_of_unknown_names_is_not_kept() -> None:
    """Memory stays bounded."""
    answer = AnthropicAnswer()
    for n in range(1000):
        answer.feed(events({"type": "message_delta", "delta": {}, "usage": {f"k{n}": 1}}))
    assert len(answer._usage) < 10
