"""A server that behaves badly, in every way that a backend has to survive, for all three protocols.

`FAULTS` names the ways.  In a test: `async with FaultyServer("cut-cleanly", "ollama") as server:`, then `server.url`.
Some faults need no server at all (nothing listens, the name does not resolve); for these `url` is all there is.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from tests.backends.recordings import read_request
from tests.standin.wire import error_body, wire_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.standin.wire import Wire

LONG = 10 * 1024 * 1024
_ERRORS = {
    400: "bad request",
    401: "no",
    403: "no",
    404: "model 'x' not found",
    408: "too slow",
    429: "slow down",
    500: "broken",
    503: "busy",
    529: "Overloaded",
}


@dataclass(slots=True)
class _Exchange:
    """One request being answered."""

    protocol: str
    wire: Wire
    writer: asyncio.StreamWriter
    url: str
    left: asyncio.Event = field(default_factory=asyncio.Event)  # the client has closed the connection

    def head(self, status: str = "200 OK", *headers: str, kind: str | None = None) -> None:
        lines = [f"HTTP/1.1 {status}", f"Content-Type: {kind or self.wire.content_type}", *headers]
        self.writer.write("\r\n".join([*lines, "", ""]).encode())

    def stream(self) -> None:
        """The head of a stream, and whatever the protocol opens it with."""
        self.head("200 OK", "Transfer-Encoding: chunked")
        self.chunk(self.wire.start())

    def chunk(self, data: bytes) -> None:
        if data:
            self.writer.write(b"%x\r\n%b\r\n" % (len(data), data))

    def end(self) -> None:
        self.writer.write(b"0\r\n\r\n")

    def whole(self, status: str, body: bytes, *headers: str, kind: str = "application/json") -> None:
        self.head(status, f"Content-Length: {len(body)}", *headers, kind=kind)
        self.writer.write(body)

    def in_place_of_text(self, old: bytes, new: bytes) -> None:
        """A token in whose bytes `old` is replaced, where the text `token` would have been."""
        self.chunk(self.wire.text("token").replace(old, new))


def _status(status: int, *headers: str, message: str | None = None) -> Callable[[_Exchange], Awaitable[None]]:
    async def answer(exchange: _Exchange) -> None:
        body = error_body(exchange.protocol, status, message or _ERRORS[status])
        exchange.whole(f"{status} X", body, *headers)

    return answer


async def _redirect(exchange: _Exchange) -> None:
    exchange.whole("307 Temporary Redirect", b"", f"Location: {exchange.url}/elsewhere")


async def _html(exchange: _Exchange) -> None:
    exchange.whole("200 OK", b"<html><body>Please log in.</body></html>", kind="text/html; charset=utf-8")


async def _html_unlabelled(exchange: _Exchange) -> None:
    exchange.whole("200 OK", b"<html><body>Please log in.</body></html>")


async def _malformed_json(exchange: _Exchange) -> None:
    exchange.stream()
    exchange.chunk(exchange.wire.text("token"))
    exchange.in_place_of_text(b'"token"', b'"token')
    exchange.chunk(exchange.wire.end("stop", 1, 2))
    exchange.end()


async def _not_the_protocol(exchange: _Exchange) -> None:
    exchange.stream()
    exchange.in_place_of_text(b'"token"', b"17")
    exchange.chunk(exchange.wire.end("stop", 1, 2))
    exchange.end()


async def _invalid_utf8(exchange: _Exchange) -> None:
    exchange.stream()
    exchange.in_place_of_text(b"token", b"\xff\xfe")
    exchange.chunk(exchange.wire.end("stop", 1, 2))
    exchange.end()


async def _lone_surrogate(exchange: _Exchange) -> None:
    exchange.stream()
    exchange.in_place_of_text(b"token", b"\\ud800")
    exchange.chunk(exchange.wire.end("stop", 1, 2))
    exchange.end()


async def _empty_answer(exchange: _Exchange) -> None:
    exchange.stream()
    exchange.chunk(exchange.wire.end("stop", 1, 0))
    exchange.end()


async def _no_body(exchange: _Exchange) -> None:
    exchange.whole("200 OK", b"")


async def _error_in_stream(exchange: _Exchange) -> None:
    exchange.stream()
    exchange.chunk(exchange.wire.text("token"))
    exchange.chunk(exchange.wire.error(500, "something broke"))
    exchange.end()


async def _cut_cleanly(exchange: _Exchange) -> None:
    exchange.stream()
    exchange.chunk(exchange.wire.text("token"))
    exchange.end()


async def _cut_in_event(exchange: _Exchange) -> None:
    exchange.stream()
    exchange.chunk(exchange.wire.text("token")[:-9])
    exchange.end()


async def _cut_closed(exchange: _Exchange) -> None:
    exchange.stream()
    exchange.chunk(exchange.wire.text("token"))


async def _cut_reset(exchange: _Exchange) -> None:
    exchange.stream()
    exchange.chunk(exchange.wire.text("token"))
    await exchange.writer.drain()
    await asyncio.sleep(0.02)  # a reset overtakes what has been sent and not been read
    exchange.writer.transport.abort()


async def _cut_before_token(exchange: _Exchange) -> None:
    exchange.head("200 OK", "Transfer-Encoding: chunked")


async def _no_answer(exchange: _Exchange) -> None:
    """The connection closes without a byte."""


async def _not_http(exchange: _Exchange) -> None:
    exchange.writer.write(b"-ERR unknown command 'POST'\r\n")


async def _stall_before_head(exchange: _Exchange) -> None:
    await exchange.left.wait()


async def _stall_before_token(exchange: _Exchange) -> None:
    exchange.stream()
    await exchange.left.wait()


async def _stall_after_token(exchange: _Exchange) -> None:
    exchange.stream()
    exchange.chunk(exchange.wire.text("token"))
    await exchange.left.wait()


async def _long_line(exchange: _Exchange) -> None:
    exchange.stream()
    piece = b"x" * 65_536
    exchange.in_place_of_text(b"token", piece)
    opening = exchange.wire.text("token").partition(b"token")[0]
    exchange.chunk(opening)
    for _ in range(LONG // len(piece)):
        exchange.chunk(piece)
        await exchange.writer.drain()
        if exchange.left.is_set():
            return
    exchange.end()


async def _endless(exchange: _Exchange) -> None:
    exchange.stream()
    while not exchange.left.is_set():
        exchange.chunk(exchange.wire.text("token"))
        await exchange.writer.drain()
        await asyncio.sleep(0.001)


FAULTS: dict[str, Callable[[_Exchange], Awaitable[None]] | None] = {
    "refused": None,
    "no-such-host": None,
    "tls": None,
    "tls-stall": None,
    "400": _status(400),
    "400-context": _status(400, message="prompt is too long: 210000 tokens exceed the context window"),
    "401": _status(401),
    "403": _status(403),
    "404": _status(404),
    "408": _status(408),
    "429": _status(429),
    "429-retry-after": _status(429, "Retry-After: 7"),
    "500": _status(500),
    "503": _status(503, "Retry-After: 3"),
    "529": _status(529),
    "redirect": _redirect,
    "html": _html,
    "html-unlabelled": _html_unlabelled,
    "malformed-json": _malformed_json,
    "not-the-protocol": _not_the_protocol,
    "invalid-utf8": _invalid_utf8,
    "lone-surrogate": _lone_surrogate,
    "empty-answer": _empty_answer,
    "no-body": _no_body,
    "error-in-stream": _error_in_stream,
    "cut-cleanly": _cut_cleanly,
    "cut-in-event": _cut_in_event,
    "cut-closed": _cut_closed,
    "cut-reset": _cut_reset,
    "cut-before-token": _cut_before_token,
    "no-answer": _no_answer,
    "not-http": _not_http,
    "stall-before-head": _stall_before_head,
    "stall-before-token": _stall_before_token,
    "stall-after-token": _stall_after_token,
    "long-line": _long_line,
    "endless": _endless,
}


class FaultyServer:
    """One fault in one protocol (`ollama`, `openai` or `anthropic`); `requests` counts what came, `open` what is open."""

    def __init__(self, fault: str, protocol: str) -> None:
        self._behaviour = FAULTS[fault]
        self._fault = fault
        self._protocol = protocol
        self._server: asyncio.Server | None = None
        self.requests = 0
        self.open = 0
        self.asked = asyncio.Event()  # set once a request has come
        self.busy = asyncio.Event()  # set while a connection is open
        self.idle = asyncio.Event()  # set while none is
        self.idle.set()
        self.url = ""

    async def __aenter__(self) -> Self:
        match self._fault:
            case "refused":
                self.url = f"http://127.0.0.1:{_unused_port()}"
            case "no-such-host":
                self.url = "http://no-such-host.invalid"
            case _:
                self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
                scheme = "https" if self._behaviour is None else "http"
                self.url = f"{scheme}://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()
            async with asyncio.timeout(5):
                await self.idle.wait()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        self.idle.clear()
        self.busy.set()
        try:
            if self._behaviour is None:  # the client's TLS greeting is answered with something else, or not at all
                if self._fault == "tls":
                    writer.write(b"HTTP/1.1 400 X\r\n\r\n")
                await reader.read()
                return
            await read_request(reader)
            self.requests += 1
            self.asked.set()
            wire = wire_of(self._protocol, "stand-in", usage=True)
            exchange = _Exchange(self._protocol, wire, writer, self.url)
            watcher = asyncio.create_task(self._watch(reader, exchange))
            try:
                await self._behaviour(exchange)
                await writer.drain()
            finally:
                watcher.cancel()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            self.open -= 1
            if self.open == 0:
                self.busy.clear()
                self.idle.set()

    async def _watch(self, reader: asyncio.StreamReader, exchange: _Exchange) -> None:
        with contextlib.suppress(ConnectionError):
            await reader.read()
        exchange.left.set()


def _unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
