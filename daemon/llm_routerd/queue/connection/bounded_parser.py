"""The replies of a connection on which others decide how long they are.

A blocking XREADGROUP cannot look at the length of an entry before it brings it, and whoever may XADD decides on that
length.  So the bytes may travel, and are never kept: hiredis parses replies as ever, and one that grows long is read
again from its beginning, and on from there, by a `Skimmer`, between whose pieces the event loop does what else there is
to do.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any

import hiredis
from redis._parsers.hiredis import _AsyncHiredisParser
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse, TryAgainError

from llm_routerd.queue.connection.skimmer import Bounds, Skimmer

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis.asyncio.connection import AbstractConnection

_INCOMPLETE = object()
_CLOSED = "Connection closed by server."


class BoundedParser(_AsyncHiredisParser):
    """A parser for redis-py's connections, for RESP2 without decoding; pass it as their `parser_class`.

    Args:
        socket_read_size: bytes that are taken from the stream at once.
        bounds: of the reply that is to be read; may change between two.
        on_progress: called whenever a part of a reply has come that is not its end.
    """

    _reader: Any  # hiredis.Reader, once it is connected
    _stream: Any  # asyncio.StreamReader

    def __init__(
        self,
        socket_read_size: int,
        *,
        bounds: Callable[[], Bounds],
        on_progress: Callable[[], object] = lambda: None,
    ) -> None:
        super().__init__(socket_read_size)
        self._bounds = bounds
        self.on_progress = on_progress
        self._forget()

    def on_connect(self, connection: AbstractConnection) -> None:
        """Begin with a connection that stands."""
        super().on_connect(connection)  # type: ignore[no-untyped-call]  # redis-py
        self._reader = self._new_reader()
        self._forget()

    @classmethod
    def parse_error(cls, response: str) -> Exception:
        """The error that a reply is; MOVED or ASK that name no place say no more than "not now"."""
        try:
            error: Exception = super().parse_error(response)  # type: ignore[no-untyped-call]  # redis-py
        except ValueError:
            return TryAgainError(response)
        return error

    def _new_reader(self) -> hiredis.Reader:
        return hiredis.Reader(protocolError=InvalidResponse, replyError=self.parse_error, notEnoughData=_INCOMPLETE)

    def _forget(self) -> None:
        """A reply begins with the next byte that comes."""
        self._chunks: list[bytes] = []  # what hiredis got since a reply began with the first byte of it
        self._held = 0  # bytes of them
        self._replies = 0  # that they hold whole

    async def read_response(self, disable_decoding: bool = False, push_request: bool = False) -> Any:  # noqa: ARG002
        """The next reply; one that is an error is returned, unless it ends the connection.

        Raises:
            ConnectionError: the connection has ended, or an error says that it is to.
            InvalidResponse: what comes is no RESP2.
        """
        if not self._connected:
            raise RedisConnectionError(_CLOSED)
        if self._reader.has_data():
            reply = self._reader.gets()
            if reply is _INCOMPLETE:
                reply = await self._read_on()
            else:
                self._replies += 1
        else:
            if self._held:
                self._forget()
            reply = await self._read_on()
        error = reply[0] if isinstance(reply, list) and reply else reply
        if isinstance(error, RedisConnectionError):
            raise error
        return reply

    async def _read_on(self) -> Any:
        """Read until the reply that has begun is whole."""
        while True:
            chunk = await self._receive()
            self._chunks.append(chunk)
            self._held += len(chunk)
            self._reader.feed(chunk)
            reply = self._reader.gets()
            if reply is not _INCOMPLETE:
                self._replies += 1
                return reply
            self.on_progress()
            if self._held > self._bounds().skim_from_bytes:
                await self._pass_over_replies()
                if self._held > self._bounds().skim_from_bytes:
                    return await self._skim()

    async def _receive(self) -> bytes:
        chunk: bytes = await self._stream.read(self._read_size)
        if not chunk:
            raise RedisConnectionError(_CLOSED)
        return chunk

    async def _pass_over_replies(self) -> None:
        """Hold nothing of the replies that went before the one that is being read."""
        if not self._replies:
            return
        chunks = deque(self._chunks)
        skimmer = Skimmer(Bounds(most_bytes=0, most_parts=0), Exception)
        rest = skimmer.feed(b"*%d\r\n" % self._replies)  # as if they were one
        while rest is None:
            rest = skimmer.feed(chunks.popleft())
            await asyncio.sleep(0)
        self._chunks = [rest, *chunks]
        self._replies, self._held = 0, sum(map(len, self._chunks))

    async def _skim(self) -> Any:
        """Read a long reply from its beginning, however long it is."""
        chunks = self._chunks
        self._reader = self._new_reader()  # lets go of what the other one has
        self._forget()
        skimmer, rest = Skimmer(self._bounds(), self.parse_error), None
        chunks.reverse()
        while rest is None:
            if chunks:
                chunk = chunks.pop()
            else:
                chunk = await self._receive()
                self.on_progress()
            rest = skimmer.feed(chunk)
            await asyncio.sleep(0)  # reading what has come already does not let others have their turn
        if rest:
            self._reader.feed(rest)
            self._chunks.append(rest)
            self._held = len(rest)
        return skimmer.value


def tell_progress(connection: AbstractConnection, told: Callable[[], object]) -> None:
    """Have `told` called whenever a part of a long reply has come."""
    parser = connection._parser  # noqa: SLF001 - redis-py has no other way to it
    if isinstance(parser, BoundedParser):
        parser.on_progress = told


__all__ = ["BoundedParser", "tell_progress"]
