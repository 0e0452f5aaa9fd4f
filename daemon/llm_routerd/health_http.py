"""`/metrics`, `/healthz` and `/readyz` over HTTP, on `metrics.listen`.

Written on asyncio's streams: `aiohttp.web` would add 18 ms and 2 MB to every start, for three fixed pages.
One request per connection, GET and HEAD only, every read and write bounded in size and time: nobody who
reaches the port can hold more than a few kilobytes for a few seconds.  Nor can anybody keep others out: where all
places are taken, the oldest connection that has not asked anything gives way, and where there is none, the oldest.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from llm_routerd.core.errors import ConfigError
from llm_routerd.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_log = get_logger()

_MAX_HEAD_BYTES = 8192
_MAX_CONNECTIONS = 32
_MAX_PORT = 65_535
_EXCHANGE_SECONDS = 5.0
_CLOSE_SECONDS = 1.0

_TEXT = "text/plain; charset=utf-8"
_PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"

_REASONS = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
}


class HealthServer:
    """Serves metrics and health until `stop()`.

    Args:
        listen: `host:port`, `[v6]:port` or `:port` (all addresses); port 0 takes any free one.
        metrics: renders the Prometheus text; called per scrape.
        not_ready: why new requests are not being taken, in one line; None: they are.
        not_alive: why the daemon should be restarted, in one line; None: it should not.

    Raises:
        ConfigError: `listen` is no such address.
    """

    def __init__(
        self,
        listen: str,
        *,
        metrics: Callable[[], Awaitable[str]],
        not_ready: Callable[[], str | None],
        not_alive: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._listen = listen
        self._host, self._port = parse_listen(listen)
        self._metrics = metrics
        self._not_ready = not_ready
        self._not_alive = not_alive
        self._server: asyncio.Server | None = None
        self._exchanges: dict[asyncio.Task[None], None] = {}  # the oldest first
        self._idle: dict[asyncio.Task[None], None] = {}  # those that have not asked yet

    @property
    def port(self) -> int:
        """The port that is listened on, or was asked for."""
        if self._server is not None and self._server.sockets:
            return int(self._server.sockets[0].getsockname()[1])
        return self._port

    async def start(self) -> str | None:
        """Listen.

        Returns:
            None; or one line saying why it is not possible, for the log.  It is no reason to stop: a second
            worker on the same machine finds the port taken by the first, and answers requests all the same.
        """
        try:
            self._server = await asyncio.start_server(
                self._serve_connection,
                self._host,
                self._port,
                limit=_MAX_HEAD_BYTES,
                backlog=_MAX_CONNECTIONS,
            )
        except OSError as error:
            return f"metrics.listen = {self._listen!r}: {error.strerror or error}"
        return None

    async def stop(self) -> None:
        """Stop listening and break off what is under way."""
        server, self._server = self._server, None
        if server is None:
            return
        server.close()
        exchanges = list(self._exchanges)
        for exchange in exchanges:
            exchange.cancel()
        await asyncio.gather(*exchanges, return_exceptions=True)
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_SECONDS):
                await server.wait_closed()

    async def _serve_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None:
            writer.transport.abort()
            return
        if len(self._exchanges) >= _MAX_CONNECTIONS:
            self._end(next(iter(self._idle or self._exchanges)))
        self._exchanges[task] = self._idle[task] = None
        try:
            async with asyncio.timeout(_EXCHANGE_SECONDS):
                head = await self._read_head(reader)
                self._idle.pop(task, None)
                writer.write(await self._answer(head))
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (TimeoutError, OSError, EOFError):
            pass  # too slow, or gone
        finally:
            writer.transport.abort()  # after an orderly close this does nothing
            self._forget(task)

    def _end(self, task: asyncio.Task[None]) -> None:
        self._forget(task)
        task.cancel()

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._exchanges.pop(task, None)
        self._idle.pop(task, None)

    async def _read_head(self, reader: asyncio.StreamReader) -> bytes | None:
        """A request's head; None: it is too long."""
        try:
            return await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            return None

    async def _answer(self, head: bytes | None) -> bytes:
        if head is None:
            return _response(431, "the request's head is too long\n")
        method, _, rest = head.partition(b"\r\n")[0].partition(b" ")
        target, _, version = rest.partition(b" ")
        if not version.startswith(b"HTTP/1."):
            return _response(400, "not an HTTP/1 request\n")
        if method not in {b"GET", b"HEAD"}:
            return _response(405, "GET and HEAD only\n")
        response = await self._page(target.partition(b"?")[0])
        return response.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" if method == b"HEAD" else response

    async def _page(self, path: bytes) -> bytes:
        try:
            match path:
                case b"/metrics":
                    return _response(200, await self._metrics(), _PROMETHEUS)
                case b"/healthz":
                    return _verdict(self._not_alive())
                case b"/readyz":
                    return _verdict(self._not_ready())
                case _:
                    return _response(404, "/metrics, /healthz, /readyz\n")
        except Exception:  # noqa: BLE001 -- the outer border of one HTTP request
            _log.exception("health_page_failed", page=path.decode(errors="replace"))
            return _response(500, "see the log\n")


def parse_listen(listen: str) -> tuple[str | None, int]:
    """Split `host:port`.

    Returns:
        The host, None standing for all addresses, and the port.

    Raises:
        ConfigError: it has no port, or one out of range, or an IPv6 address without brackets.
    """
    host, colon, port = listen.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    sound = colon and port.isascii() and port.isdigit() and int(port[:6]) <= _MAX_PORT
    if not sound or (":" in host and not bracketed):
        raise ConfigError(f'metrics.listen = {listen!r}: expected "host:port", "[v6 address]:port" or ""')
    return (host[1:-1] if bracketed else host) or None, int(port)


def _verdict(complaint: str | None) -> bytes:
    if complaint is None:
        return _response(200, "ok\n")
    return _response(503, " ".join(complaint.split()) + "\n")


def _response(status: int, text: str, content_type: str = _TEXT) -> bytes:
    body = text.encode(errors="replace")
    allow = "Allow: GET, HEAD\r\n" if status == 405 else ""  # noqa: PLR2004 -- an HTTP status
    head = (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\n{allow}"
        f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
        "Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body
