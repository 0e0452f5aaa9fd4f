"""The listening shell around an `aiohttp.web.Application`: what no client may take more of than its share.

aiohttp bounds a head's size, how many requests are read ahead of their answers, and how long a connection idles.
Here is what it does not: how many connections there are, how long a head and an answer's reader may take; in `bodies`
how long a body, and how large it is.  A handler is cancelled when its client hangs up.

* Of more connections than there may be, the one that has idled longest is closed; where none idles, the new one is
  told 503.  One that has not sent its whole head idles.
* A head has 10 s from its first byte on, else 408.
* A client that has taken (next to) nothing for 60 s of what was written to it is cut off.
* Of all clients together no more than 256 MiB wait for being taken; those are cut off that leave most.
"""

from __future__ import annotations

import asyncio
import socket
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, cast

import orjson
from aiohttp import web

from llm_routerd.config.addresses import read_listen
from llm_routerd.errors import ConfigError
from llm_routerd.gateway.fault import BUSY_RETRY_SECONDS
from llm_routerd.gateway.http.bodies import LIMITS, Limits
from llm_routerd.logs import get_logger
from llm_routerd.protocol.codes import ErrorCode

if TYPE_CHECKING:
    from aiohttp.web_server import Server

_log = get_logger()

_NAME = "llm-routerd"  # and no versions
_BACKLOG = 128
_LEAST_GRACE_SECONDS = 0.05
_LINGER_SECONDS = 1.0  # to take in what comes of a body that nobody wants, so that its client reads why
_PROBES: Final = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}  # seconds, seconds, times
_LEAST_TAKEN_BYTES = 16_384  # of what waits for a reader, in the time after which he would be cut off
_LARGE_BYTES = 65_536  # less than this is not worth counting
_MOST_UNREAD_BYTES = 268_435_456


class HttpServer:
    """Serves an application until `stop()`.

    Args:
        app: not frozen yet.
        listen: `host:port` or `[v6]:port`; port 0 takes any free one.
        max_connections: at once.
        limits: how long a client may take.

    Raises:
        ConfigError: `listen` is no such address.
    """

    def __init__(self, app: web.Application, listen: str, *, max_connections: int, limits: Limits = LIMITS) -> None:
        self._listen = listen
        self._host, self._port = read_listen(listen, "gateway.listen")
        self._places = _Places(max_connections)
        self._limits = limits
        app.on_response_prepare.append(_mark)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
        self._servers: list[asyncio.Server] = []

    @property
    def port(self) -> int:
        """The port that is listened on, or was asked for."""
        return int(self._servers[0].sockets[0].getsockname()[1]) if self._servers else self._port

    @property
    def connections(self) -> int:
        """How many there are."""
        return len(self._places.taken)

    async def start(self) -> None:
        """Listen.

        Raises:
            ConfigError: it is not possible at this address.
        """
        await self._runner.setup()
        server = cast("Server", self._runner.server)  # `setup` has made it
        _tell_connections(server)
        loop = asyncio.get_running_loop()
        try:
            listening = await loop.create_server(
                lambda: _Connection(server, self._places, self._limits, loop),
                self._host,
                self._port,
                backlog=min(_BACKLOG, self._places.most),
            )
        except OSError as error:
            await self._runner.cleanup()
            why = error.strerror or str(error)
            raise ConfigError(
                f"gateway.listen = {self._listen!r}: {why}; end what listens there, or choose another address"
            ) from None
        self._servers.append(listening)

    async def stop(self, grace_seconds: float = 5.0) -> None:
        """Listen no more; what is being answered has this long to be whole, and is then broken off."""
        for listening in self._servers:
            listening.close()
        self._servers.clear()
        # It waits for this twice, and for ever where it is nothing.
        self._runner._shutdown_timeout = max(grace_seconds / 2, _LEAST_GRACE_SECONDS)  # noqa: SLF001
        await self._runner.cleanup()


class _Places:
    """The connections that there are, and those of them that idle, the longest first.

    Args:
        most: how many there may be.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.taken: set[_Connection] = set()
        self.idle: dict[_Connection, None] = {}
        self._unread: dict[_Connection, int] = {}
        self._unread_bytes = 0

    def take(self, connection: _Connection) -> bool:
        """Have a place for one more, which idles; False: all have something to do."""
        if len(self.taken) >= self.most:
            if not self.idle:
                return False
            oldest = next(iter(self.idle))
            self.leave(oldest)
            oldest.abort()
        self.taken.add(connection)
        self.idle[connection] = None
        return True

    def leave(self, connection: _Connection) -> None:
        """It has gone, or is to go."""
        self.taken.discard(connection)
        self.idle.pop(connection, None)
        self.took(connection)

    def wait(self, connection: _Connection, size: int) -> None:
        """So many bytes wait for its reader; where that is too much of all together, those go that have most."""
        self.took(connection)
        self._unread[connection] = size
        self._unread_bytes += size
        while self._unread_bytes > _MOST_UNREAD_BYTES:
            largest = max(self._unread, key=self._unread.__getitem__)
            self.took(largest)
            largest.abort()

    def took(self, connection: _Connection) -> None:
        """Nothing waits for its reader."""
        self._unread_bytes -= self._unread.pop(connection, 0)


class _Connection(web.RequestHandler):
    """aiohttp's, and what it takes too long for.

    aiohttp makes a request where a head is whole (see `_tell_connections`), and calls `log_access` when it is answered.
    """

    __slots__ = ("_head_timer", "_limits", "_places", "_socket", "_unread", "_unread_timer")

    def __init__(self, server: Server, places: _Places, limits: Limits, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(
            server,
            loop=loop,
            keepalive_timeout=limits.idle,
            access_log=None,  # type: ignore[arg-type]
            auto_decompress=False,
            lingering_time=_LINGER_SECONDS,
        )
        self._places = places
        self._limits = limits
        self._socket: asyncio.Transport | None = None  # aiohttp forgets its own where it closes it
        self._head_timer: asyncio.TimerHandle | None = None
        self._unread = 0  # bytes that the kernel has not taken, when that was last looked at
        self._unread_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._socket = cast("asyncio.Transport", transport)
        if not self._places.take(self):
            self._refuse(503, "unavailable", "too many connections; come again", retry=True)
            return
        _notice_death(self._socket, self._limits.unread)
        # Any byte that the kernel does not take tells of a reader who has stopped, also the last of an answer.
        self._socket.set_write_buffer_limits(high=0)
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._places.leave(self)
        self._stop_timers()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport is None:
            return  # it is being closed
        if data and self._head_timer is None and self in self._places.idle and not self._close:
            self._head_timer = self._loop.call_later(self._limits.head, self._give_up_head)
        super().data_received(data)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._wait_for_reader()

    def _wait_for_reader(self) -> None:
        assert self._socket is not None  # noqa: S101 - it is what pauses
        self._unread = self._socket.get_write_buffer_size()
        self._unread_timer = self._loop.call_later(self._limits.unread, self._look_at_reader)
        if self._unread >= _LARGE_BYTES:
            self._places.wait(self, self._unread)

    def _look_at_reader(self) -> None:
        """Cut him off, unless he has taken something: an answer may be large and its reader's line thin."""
        assert self._socket is not None  # noqa: S101 - as above
        if self._unread - self._socket.get_write_buffer_size() < _LEAST_TAKEN_BYTES:
            self.abort()
        else:
            self._wait_for_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._places.took(self)
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None

    def begin(self) -> None:
        """A head is whole."""
        self._places.idle.pop(self, None)
        self._stop_head_timer()

    def log_access(
        self,
        request: web.BaseRequest,
        response: web.StreamResponse,  # noqa: ARG002 - aiohttp's signature
        time: float | None,  # noqa: ARG002 - as above
    ) -> None:
        """It is answered."""
        if self in self._places.taken:
            self._places.idle[self] = None
        if not request.content.is_eof():
            self.close()  # takes in what still comes, for a moment, and looks at none of it

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 - it quotes what has been sent
    ) -> web.StreamResponse:
        """What is no HTTP, has met a fault of ours, or whose client has gone: of that there is nothing to tell."""
        if isinstance(exc, ConnectionError):
            raise exc
        if status >= 500:  # noqa: PLR2004 - an HTTP status
            _log.error("gateway_request_failed", status=status, exc_info=exc)
        if request.writer.output_size > 0:
            raise ConnectionError("the answer has begun")
        told = "the request is not valid HTTP" if status < 500 else "see the log"  # noqa: PLR2004 - as above
        code = ErrorCode.INVALID_REQUEST if status < 500 else ErrorCode.INTERNAL  # noqa: PLR2004 - as above
        response = web.Response(
            status=status, body=_error(code, told), headers={"Server": _NAME}, content_type="application/json"
        )
        response.force_close()
        return response

    def abort(self) -> None:
        """End it at once."""
        if self._socket is not None:
            self._socket.abort()

    def _give_up_head(self) -> None:
        self._refuse(408, ErrorCode.INVALID_REQUEST, "the request's head has not come in time")
        self.force_close()

    def _refuse(self, status: int, code: str, told: str, *, retry: bool = False) -> None:
        """Answer what is no request yet, and close."""
        body = _error(code, told)
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n"
            + (f"Retry-After: {BUSY_RETRY_SECONDS}\r\n" if retry else "")
        )
        if self._socket is not None:
            self._socket.write(head.encode() + b"\r\n" + body)
            self._socket.close()

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _stop_timers(self) -> None:
        self._stop_head_timer()
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None


def _error(code: str, told: str) -> bytes:
    """The body of an answer to what no door has seen."""
    return orjson.dumps({"error": {"code": code, "message": told}})


def _notice_death(transport: asyncio.Transport, unread_seconds: float) -> None:
    """Have the kernel find out within about a minute that a client has gone without a word: his laptop is shut.

    Else what he asked for would go on for nobody: of a silent connection the kernel finds out after hours, and of one
    that is written to after a quarter of one.
    """
    options = {**_PROBES, "TCP_USER_TIMEOUT": int(unread_seconds * 1000)}
    for name, value in options.items():
        if (option := getattr(socket, name, None)) is not None:  # not every system has them
            transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, option, value)


def _tell_connections(server: Server) -> None:
    """Have each know when it has a whole head: that is where aiohttp makes a request."""
    make = server.request_factory

    def make_and_tell(*parts: Any) -> web.BaseRequest:
        request = make(*parts)
        if isinstance(request.protocol, _Connection):
            request.protocol.begin()
        return request

    server.request_factory = make_and_tell


async def _mark(request: web.Request, response: web.StreamResponse) -> None:
    """An answer that comes before the body does is the last: what follows on the connection may be anything."""
    response.headers["Server"] = _NAME
    if not request.content.is_eof():
        response.force_close()
        response.headers["Connection"] = "close"  # the others have been made by now
