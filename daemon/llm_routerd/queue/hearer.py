"""The blocking read of what is said to runs, on a connection of its own.

What has been observed is deleted from the streams that it hears, so it always reads from their beginnings, and whatever
stands there is news.  A read is ended early by CLIENT UNBLOCK, where it is to hear more streams.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from llm_routerd.queue.connection import ConnectionFactory, Pipe, ResponseError, execute, is_wrong_type

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis.asyncio.connection import AbstractConnection

BLOCK_MS = 1000
GRACE_SECONDS = 5.0
UNBLOCK_SECONDS = 0.005  # between two tries
UNBLOCK_TRIES = 20


class Hearer:
    """Hears many streams at once.

    Args:
        factory: makes its connection.
        pipe: to the same server.

    Attributes:
        is_hearing: a read is under way.
    """

    def __init__(self, factory: ConnectionFactory, pipe: Pipe) -> None:
        self._factory = factory
        self._pipe = pipe
        self._connection: AbstractConnection | None = None
        self._client_id: int | None = None
        self._reads = 0
        self._leaves = False
        self.is_hearing = False

    async def hear(self, keys: Sequence[str]) -> list[str]:
        """Those of these streams in which something stands, as soon as there is one; empty after a while.

        Raises:
            ResponseError: one of the keys is no stream, or a right is missing.
            RedisError, OSError, TimeoutError: the server is away.
        """
        if self._leaves:
            await self.aclose()
        try:
            if self._connection is None:
                self._connection = await self._factory.connect(loads=())
                self._client_id = await execute(self._connection, ("CLIENT", "ID"), timeout_seconds=GRACE_SECONDS)
            self._reads += 1
            self.is_hearing = True
            command = ("XREAD", "COUNT", 1, "BLOCK", BLOCK_MS, "STREAMS", *keys, *("0-0",) * len(keys))
            reply = await execute(self._connection, command, timeout_seconds=BLOCK_MS / 1000 + GRACE_SECONDS)
        except BaseException as error:
            if isinstance(error, Exception) and not (isinstance(error, ResponseError) and is_wrong_type(error)):
                self._factory.whereabouts.lost(error)
            await self.aclose()
            raise
        finally:
            self.is_hearing = False
        return [key.decode() for key, _ in reply or ()]

    async def begin_anew(self) -> None:
        """End the read that is under way, so that the next one hears more; the server may not have begun it yet."""
        reads, client_id = self._reads, self._client_id
        if client_id is None:
            return
        with suppress(ResponseError):  # an ACL may refuse it; then the read ends by itself
            for _ in range(UNBLOCK_TRIES):
                if self._reads != reads or await self._pipe.call("CLIENT", "UNBLOCK", client_id):
                    return
                await asyncio.sleep(UNBLOCK_SECONDS)

    def leave(self) -> None:
        """The factory leads elsewhere by now: the next read is there."""
        self._leaves = True

    async def aclose(self) -> None:
        """Close the connection."""
        self._client_id, self._leaves = None, False
        if self._connection is not None:
            connection, self._connection = self._connection, None
            await connection.disconnect(nowait=True)
