"""What becomes of connections when all goes well, and of those that were closed while they waited in the pool."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from yarl import URL

from llm_routerd.backends.factory import Backends
from llm_routerd.backends.wire import transport as transport_module
from llm_routerd.backends.wire.transport import Transport
from llm_routerd.protocol.call import BackendError
from llm_routerd.protocol.codes import AttemptCode
from tests.backends.recordings import read_request
from tests.standin.server import StandIn
from tests.standin.wire import wire_of
from tests.support.calling import PROTOCOLS, ask, backend_for, deployment_of, tell

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class _ClosesOnSecondRequest:
    """Answers one request per connection, keeps it open, and closes it when the next request arrives on it."""

    def __init__(self, *, answers: int) -> None:
        self._answers = answers
        self.requests = 0
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        self.requests += 1
        if self.requests <= self._answers:
            body = wire_of("ollama", "m", usage=False).end("stop", 1, 1)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
            await read_request(reader)
            self.requests += 1
        writer.close()


async def _with_server(server: _ClosesOnSecondRequest) -> asyncio.Server:
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    return listening


async def test_fresh_connection_that_is_closed_is_not_tried_again() -> None:
    """The server may have seen the request, and have begun to answer it."""
    server = _ClosesOnSecondRequest(answers=0)
    async with await _with_server(server), backend_for("ollama", server.url) as backend:
        with pytest.raises(BackendError) as raised:
            await tell(backend, ask())
    assert (raised.value.code, server.requests) == (AttemptCode.UPSTREAM, 1)


async def test_pooled_connection_that_is_closed_is_replaced_once() -> None:
    """The caller does not notice that the connection from the pool was dead."""
    server = _ClosesOnSecondRequest(answers=3)
    async with await _with_server(server), backend_for("ollama", server.url) as backend:
        for _ in range(2):
            assert (await tell(backend, ask())).finish.finish_reason == "stop"
    assert server.requests == 3


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_whole_answers_share_one_connection(protocol: str) -> None:
    """A stream that was read to its end leaves its connection to the next call."""
    async with StandIn() as server, backend_for(protocol, server.url) as backend:
        for _ in range(3):
            await tell(backend, ask())
        assert len(server.connections) == 1


async def test_backends_close_what_is_open() -> None:
    """After a reload the old connections go, also one that is answering; names are those of the configuration."""
    async with StandIn() as server:
        backends = Backends({"a": deployment_of("ollama", server.url), "b": deployment_of("openai", server.url)})
        stream = backends.get("a").stream(ask("[[tokens=1000 delay_ms=5]]"))
        await anext(stream)
        await tell(backends.get("b"), ask())
        with pytest.raises(KeyError):
            backends.get("c")
        await backends.aclose()
        with pytest.raises(BackendError):
            async for _ in stream:
                pass
        assert not server.connections or await _all_closed(server)


async def _all_closed(server: StandIn) -> bool:
    for connection in list(server.connections):
        async with asyncio.timeout(1):
            await connection.closed.wait()
    return not server.connections


async def _get(transport: Transport, url: URL) -> Any:
    return await transport.get_json(url, headers={}, connect_seconds=0.1)


async def _post(transport: Transport, url: URL) -> Any:
    return await transport.post_json(url, {}, headers={}, connect_seconds=0.1)


@pytest.mark.parametrize(
    "says", [b"", b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 90\r\n\r\n{"]
)
@pytest.mark.parametrize("question", [_get, _post])
async def test_question_to_a_server_that_falls_silent_is_over_in_bounded_time(
    monkeypatch: pytest.MonkeyPatch, question: Callable[[Transport, URL], Awaitable[Any]], says: bytes
) -> None:
    """Before its answer begins, or in the middle of it."""
    monkeypatch.setattr(transport_module, "_QUESTION_SECONDS", 0.1)
    writers = []

    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(says)
        writers.append(writer)

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = URL(f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/")
    transport = Transport()
    try:
        async with asyncio.timeout(5):
            with pytest.raises(BackendError):
                await question(transport, url)
    finally:
        await transport.aclose()
        for writer in writers:
            writer.transport.abort()
        listener.close()
        await listener.wait_closed()
