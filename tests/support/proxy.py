"""A TCP proxy before Redis that misbehaves on demand, as networks do."""

from __future__ import annotations

import asyncio
import re
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_READER = b"llm-routerd-read"  # a worker's reading connection gives itself this name
_LOADING = b"-LOADING Redis is loading the dataset in memory\r\n"
_GREETING = re.compile(rb"\$\d+\r\n[a-z]+\r\n\$7\r\nversion\r\n\$\d+\r\n[0-9.]+")  # of a reply to HELLO


class Proxy:
    """Forwards to one port; the flags change what it does from then on.

    Attributes:
        target: that port; new connections are to it.
        loses_replies: requests get through, and what is answered is lost.
        swallows: packets get lost, in both directions, on the connections of that time; new ones hang.
        is_loading: new connections are told that the server is loading.
        speaks_as: kind and version of server that replies to HELLO tell of; None: what it is.
        piece_seconds: every 64 KiB of a reply take so long.
        delay_seconds: whatever comes, either way, takes so long.
        trips: how often a client has written after it was answered, on all connections.
        passes_requests, passes_replies: so many bytes of each connection get through, and what comes after is lost;
            None: all do.
        drops_next_delivery: the next reply that brings a request to a reader is lost, with its connection.
        dropped: how many were.
    """

    def __init__(self, port: int) -> None:
        self.target = port
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0
        self.connections = 0
        self.swallows = False
        self.loses_replies = False
        self.passes_requests: int | None = None
        self.passes_replies: int | None = None
        self.carried = [0, 0]  # bytes of requests and of replies, of all connections
        self.is_loading = False
        self.speaks_as: tuple[bytes, bytes] | None = None
        self.piece_seconds = 0.0
        self.delay_seconds = 0.0
        self.trips = 0
        self.drops_next_delivery = False
        self.dropped = 0

    @property
    def url(self) -> str:
        """Where clients connect to."""
        return f"redis://127.0.0.1:{self.port}/0"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if self.is_loading:
            while await reader.read(65536):  # one command at a time: its reply is waited for
                writer.write(_LOADING)
            writer.close()
            return
        there = await asyncio.open_connection("127.0.0.1", self.target)
        link = _Link(self)
        try:
            await asyncio.gather(link.copy(reader, there[1]), link.copy(there[0], writer, is_reply=True))
        finally:
            there[1].transport.abort()

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a connection in a task of its own."""
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)

        def served(_task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            _ = task.cancelled() or task.exception()  # the server may be down
            writer.transport.abort()  # also where it was dropped before it was served

        task.add_done_callback(served)

    async def drop(self) -> None:
        """Drop all connections; new ones are taken."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()


class _Link:
    """One connection, both ways."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._is_reader = False
        self._is_dead = False
        self._is_answered = True
        self._left = [proxy.passes_requests, proxy.passes_replies]

    async def copy(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, *, is_reply: bool = False) -> None:
        proxy = self._proxy
        try:
            while data := await source.read(65536):
                self._is_reader = self._is_reader or (not is_reply and _READER in data)
                self._is_dead = self._is_dead or proxy.swallows
                data = self._let_through(data, is_reply=is_reply)
                if (self._is_dead and not data) or (is_reply and proxy.loses_replies):
                    continue
                if is_reply and self._is_reader and proxy.drops_next_delivery and b"prompt" in data:
                    proxy.drops_next_delivery = False
                    proxy.dropped += 1
                    break
                if is_reply and proxy.speaks_as:
                    data = _GREETING.sub(_greeting(*proxy.speaks_as), data)
                if proxy.delay_seconds:
                    await asyncio.sleep(proxy.delay_seconds)
                proxy.trips += self._is_answered and not is_reply
                self._is_answered = is_reply
                target.write(data)
                if is_reply and proxy.piece_seconds and len(data) > 10_000:
                    await asyncio.sleep(proxy.piece_seconds)
        except ConnectionError:
            pass
        finally:
            target.close()

    def _let_through(self, data: bytes, *, is_reply: bool) -> bytes:
        """What of this is not lost; once something is, the connection is dead, both ways."""
        if self._is_dead:
            return b""
        left = self._left[is_reply]
        if left is not None:
            data, self._is_dead = data[:left], len(data) > left
            self._left[is_reply] = left - len(data)
        self._proxy.carried[is_reply] += len(data)
        return data


def _greeting(server: bytes, version: bytes) -> bytes:
    return b"$%d\r\n%s\r\n$7\r\nversion\r\n$%d\r\n%s" % (len(server), server, len(version), version)


@asynccontextmanager
async def open_proxy(port: int) -> AsyncIterator[Proxy]:
    """A proxy to a server on this machine."""
    proxy = Proxy(port)
    server = await asyncio.start_server(proxy.accept, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        await asyncio.sleep(0)  # for what was accepted and is not served yet
        await proxy.drop()
