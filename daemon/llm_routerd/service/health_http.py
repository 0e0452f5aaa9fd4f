"""`/metrics`, `/healthz` and `/readyz` over HTTP, on `metrics.listen`.

Written on asyncio's streams: `aiohttp.web` would add 18 ms and 2 MB to every start, for three fixed pages.
One request per connection, GET and HEAD only, every read and write bounded in size and time: nobody who
reaches the port can hold more than a few kilobytes for a few seconds.  Nor can anybody keep others out: where all
places are taken, the oldest connection that has not asked anything gives way, and where there is none, the oldest.

The pages are wanted most while the process may open no more files, so this keeps a few descriptors for itself.  Sockets
are accepted and closed here, and not by the event loop: asyncio's accepts nothing for a second then, uvloop's closes
what it has accepted, and both close a socket later than a descriptor would have to be taken again.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from llm_routerd.config.addresses import read_listen
from llm_routerd.descriptors import Reserve
from llm_routerd.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_log = get_logger()

_MAX_HEAD_BYTES = 8192
_MAX_CONNECTIONS = 32
_EXCHANGE_SECONDS = 5.0
_RESERVED = 4  # descriptors, and so many pages at once while none else is left
_ACCEPT_PAUSE_SECONDS = 0.05  # after a connection that could not be accepted
_READ_BYTES = 4096
_SHORT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

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
        self._host, self._port = read_listen(listen, "metrics.listen")
        self._metrics = metrics
        self._not_ready = not_ready
        self._not_alive = not_alive
        self._loop: asyncio.AbstractEventLoop
        self._sockets: list[socket.socket] = []
        self._reserve = Reserve(_RESERVED)
        self._exchanges: dict[asyncio.Task[None], None] = {}  # the oldest first
        self._idle: dict[asyncio.Task[None], None] = {}  # those that have not asked yet

    @property
    def port(self) -> int:
        """The port that is listened on, or was asked for."""
        return int(self._sockets[0].getsockname()[1]) if self._sockets else self._port

    async def start(self) -> str | None:
        """Listen.

        Returns:
            None; or one line saying why it is not possible, for the log.  It is no reason to stop: a second
            worker on the same machine finds the port taken by the first, and answers requests all the same.
        """
        self._loop = asyncio.get_running_loop()
        try:
            found = await self._loop.getaddrinfo(
                self._host, self._port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
            for family, address in dict.fromkeys((each[0], each[4]) for each in found):
                self._sockets.append(_listening(family, address))
        except OSError as error:
            self._close_sockets()
            return f"metrics.listen = {self._listen!r}: {error.strerror or error}"
        self._reserve.fill()
        for listening in self._sockets:
            self._loop.add_reader(listening, self._accept, listening)
        return None

    async def stop(self) -> None:
        """Stop listening and break off what is under way."""
        for listening in self._sockets:
            self._loop.remove_reader(listening)
        self._close_sockets()
        exchanges = list(self._exchanges)
        for exchange in exchanges:
            exchange.cancel()
        await asyncio.gather(*exchanges, return_exceptions=True)
        self._reserve.close()

    def _close_sockets(self) -> None:
        for listening in self._sockets:
            listening.close()
        self._sockets.clear()

    def _accept(self, listening: socket.socket) -> None:
        """Take one that has knocked; where no descriptor is free, on one of the reserve.

        One at a time: without a descriptor, Linux does not tell whether there is anybody more.
        """
        while True:
            try:
                taken, _ = listening.accept()
            except OSError as error:
                if error.errno not in _SHORT:
                    self._reserve.fill()
                    return  # gone again
                if not self._reserve.give_up():
                    self._make_room(listening)
                    return
            else:
                taken.setblocking(False)
                self._serve_soon(taken)
                return

    def _make_room(self, listening: socket.socket) -> None:
        """Nothing is left: end the oldest that has not asked anything, and look again in a moment."""
        if self._idle:
            self._end(next(iter(self._idle)))
        self._loop.remove_reader(listening)  # it would be called again and again
        self._loop.call_later(_ACCEPT_PAUSE_SECONDS, self._listen_again, listening)

    def _listen_again(self, listening: socket.socket) -> None:
        if listening in self._sockets:
            self._loop.add_reader(listening, self._accept, listening)

    def _serve_soon(self, taken: socket.socket) -> None:
        if len(self._exchanges) >= _MAX_CONNECTIONS:
            self._end(next(iter(self._idle or self._exchanges)))
        task = self._loop.create_task(self._serve(taken), name="health-page")
        self._exchanges[task] = self._idle[task] = None
        task.add_done_callback(lambda done: self._close(done, taken))

    def _close(self, task: asyncio.Task[None], taken: socket.socket) -> None:
        """Also where the task never ran."""
        taken.close()
        self._reserve.fill()
        self._forget(task)
        if not task.cancelled() and (fault := task.exception()) is not None:
            _log.error("health_page_failed", exc_info=fault)

    async def _serve(self, taken: socket.socket) -> None:
        try:
            async with asyncio.timeout(_EXCHANGE_SECONDS):
                head = await self._read_head(taken)
                task = asyncio.current_task()
                if task is not None:
                    self._idle.pop(task, None)
                await self._loop.sock_sendall(taken, await self._answer(head))
            taken.shutdown(socket.SHUT_WR)
            with suppress(BlockingIOError):  # what lies unread would make the kernel drop the answer
                while taken.recv(_READ_BYTES):
                    pass
        except (TimeoutError, OSError, EOFError):
            pass  # too slow, or gone

    def _end(self, task: asyncio.Task[None]) -> None:
        self._forget(task)
        task.cancel()

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._exchanges.pop(task, None)
        self._idle.pop(task, None)

    async def _read_head(self, taken: socket.socket) -> bytes | None:
        """A request's head; None: it is too long."""
        head = b""
        while b"\r\n\r\n" not in head:
            if len(head) > _MAX_HEAD_BYTES:
                return None
            read = await self._loop.sock_recv(taken, _READ_BYTES)
            if not read:
                raise EOFError
            head += read
        return head

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


def _listening(family: int, address: Any) -> socket.socket:
    """A socket that listens at an address, as asyncio would make it."""
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind(address)
        made.listen(_MAX_CONNECTIONS)
        made.setblocking(False)
    except OSError:
        made.close()
        raise
    return made


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
