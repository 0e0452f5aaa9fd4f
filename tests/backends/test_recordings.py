"""The parsers on what a real Ollama and a real llama.cpp server sent, byte for byte."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson
import pytest

from llm_routerd.backends.anthropic.answer import AnthropicAnswer
from llm_routerd.backends.ollama.answer import OllamaAnswer
from llm_routerd.backends.openai.answer import OpenAIAnswer
from llm_routerd.protocol.call import BackendError, Finish
from llm_routerd.protocol.codes import AttemptCode
from llm_routerd.protocol.outcome import Usage
from tests.backends.recordings import LLAMA_SERVER, OLLAMA, ReplayServer, recording
from tests.support.calling import ask, backend_for, tell

if TYPE_CHECKING:
    from collections.abc import Callable

    from llm_routerd.backends.wire.exchange import Answer

# Protocol, server, recording: the text, the finish reason, prompt, completion and cached tokens.
ANSWERS = [
    ("ollama", OLLAMA, "api-chat-stream", "j~i 6y", "length", (25, 6, None)),
    ("ollama", OLLAMA, "api-chat", '/0fx k uf"1# 6 xrkw2', "length", (25, 20, None)),
    ("ollama", OLLAMA, "api-chat-schema", '{"a": "q6zxw eiu]vQw2] v!zGm","n": 1 }', "stop", (25, 42, None)),
    ("ollama", OLLAMA, "api-chat-tools-cut", "odmz ", "stop", (272, 6, None)),
    ("openai", OLLAMA, "chat-stream", '}C"Zgp', "length", (25, 6, None)),
    ("openai", OLLAMA, "chat-length", "j~", "length", (25, 2, None)),
    ("openai", LLAMA_SERVER, "chat-stream", None, "length", (25, 6, 24)),
    ("openai", LLAMA_SERVER, "chat-length", "6a", "length", (25, 2, 24)),
    ("openai", LLAMA_SERVER, "chat-schema", None, "stop", (25, 54, 24)),
    ("anthropic", OLLAMA, "messages-stream", "v:g5 n", "length", (25, 6, None)),
    ("anthropic", OLLAMA, "messages", "lh}e_m{6A];^,ph}xr@ ", "length", (25, 20, None)),
    ("anthropic", LLAMA_SERVER, "messages-stream", "sJ}vf2", "length", (25, 6, 24)),
    ("anthropic", LLAMA_SERVER, "messages", "jf\")q_eA^'ecpjse", "stop", (25, 17, 24)),
]
ERRORS = [
    ("ollama", OLLAMA, "api-chat-no-model", AttemptCode.NOT_FOUND, "the model is not known"),
    ("ollama", OLLAMA, "api-chat-bad-json", AttemptCode.UPSTREAM, "status 400"),
    ("ollama", OLLAMA, "api-chat-bad-schema", AttemptCode.UPSTREAM, "the schema is not accepted"),
    ("ollama", OLLAMA, "api-chat-think", AttemptCode.UPSTREAM, "the model does not support thinking"),
    ("ollama", OLLAMA, "not-found", AttemptCode.NOT_FOUND, "status 404"),
    ("openai", OLLAMA, "chat-no-model", AttemptCode.NOT_FOUND, "not_found_error"),
    ("openai", OLLAMA, "chat-too-long", AttemptCode.CONTEXT_WINDOW, "exceed_context_size_error"),
    ("openai", OLLAMA, "chat-bad-messages", AttemptCode.UPSTREAM, "invalid_request_error"),
    ("openai", LLAMA_SERVER, "chat-too-long", AttemptCode.CONTEXT_WINDOW, "exceed_context_size_error"),
    ("openai", LLAMA_SERVER, "chat-bad-json", AttemptCode.UPSTREAM, "invalid_request_error"),
    ("openai", LLAMA_SERVER, "not-found", AttemptCode.NOT_FOUND, "not_found_error"),
]
STREAMS: list[tuple[str, str, Callable[[], Answer]]] = [
    (OLLAMA, "api-chat-stream", OllamaAnswer),
    (OLLAMA, "chat-stream", OpenAIAnswer),
    (LLAMA_SERVER, "chat-stream", OpenAIAnswer),
    (OLLAMA, "messages-stream", AnthropicAnswer),
    (LLAMA_SERVER, "messages-stream", AnthropicAnswer),
]


@pytest.mark.parametrize(("protocol", "server", "name", "code", "words"), ERRORS)
async def test_recorded_error_has_its_code(
    protocol: str, server: str, name: str, code: AttemptCode, words: str
) -> None:
    """What real servers answer to bad requests is told apart; the reason names the kind, not the message."""
    async with ReplayServer(recording(server, name).raw) as replay, backend_for(protocol, replay.url) as backend:
        with pytest.raises(BackendError) as raised:
            await tell(backend, ask())
    assert raised.value.code is code
    assert words in raised.value.reason
    assert not raised.value.retryable


@pytest.mark.parametrize("piece", [None, 7])
@pytest.mark.parametrize(("protocol", "server", "name", "text", "finish_reason", "tokens"), ANSWERS)
async def test_recorded_answer_is_read_whole(
    protocol: str,
    server: str,
    name: str,
    text: str | None,
    finish_reason: str,
    tokens: tuple[int, int, int | None],
    piece: int | None,
) -> None:
    """Text, finish reason and usage, whether streamed or not, in one piece or in small ones."""
    replay_server = ReplayServer(recording(server, name).raw, piece=piece)
    async with replay_server as replay, backend_for(protocol, replay.url) as backend:
        told = await tell(backend, ask())
    if text is not None:
        assert told.text == text
    assert told.text
    prompt, completion, cached = tokens
    assert told.finish.finish_reason == finish_reason
    assert told.finish.usage == Usage(prompt_tokens=prompt, completion_tokens=completion, cached_tokens=cached)
    assert orjson.loads(replay.requests[0])["stream"] is True


def _read(answer: Answer, pieces: list[bytes]) -> tuple[str, Finish]:
    text = ""
    for piece in pieces:
        read = answer.feed(piece)
        if isinstance(read, Finish):
            return text + read.text, read
        text += read.text if read is not None else ""
    last = answer.end()
    return text + last.text, last


@pytest.mark.parametrize(("server", "name", "make"), STREAMS)
def test_answer_does_not_depend_on_where_reads_divide_it(server: str, name: str, make: Callable[[], Answer]) -> None:
    """Two reads divided at every byte in turn, and single bytes, give what one read gives."""
    body = recording(server, name).body
    whole, finish = _read(make(), [body])
    for cut in range(1, len(body)):
        text, divided = _read(make(), [body[:cut], body[cut:]])
        assert text == whole
        assert (divided.finish_reason, divided.usage) == (finish.finish_reason, finish.usage)
    assert _read(make(), [body[i : i + 1] for i in range(len(body))])[0] == whole


@pytest.mark.parametrize(("server", "name", "make"), STREAMS)
def test_recorded_stream_that_is_cut_is_never_a_success(server: str, name: str, make: Callable[[], Answer]) -> None:
    """Ended cleanly at any byte before its terminal event, it is `truncated`."""
    body = recording(server, name).body
    terminal = {"api-chat-stream": b'"done":true', "chat-stream": b'"finish_reason":"length"'}
    end = body.index(terminal.get(name, b'"message_stop"'))
    for cut in range(0, end, 3):
        with pytest.raises(BackendError) as raised:
            _read(make(), [body[:cut]] if cut else [])
        assert raised.value.code is AttemptCode.TRUNCATED
