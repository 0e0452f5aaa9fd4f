"""The blocking read of new requests, on a connection of its own.

Rules:
- Capacity first: never more is asked for than the worker has room for.  (One race is let be: with less than three
  places free, a blocking read over three lanes may bring one entry of each.)
- A blocking read is never cancelled: 3 of 300 cancelled reads left entries unseen in the pending list.  It ends by
  itself after `BLOCK_MS`, or by CLIENT UNBLOCK.  At a stop a silent server is not waited for that long: all that this
  consumer has is handed back then, seen or not.
- Whenever the connection is new, groups that are missing are made (at `0`), and one's own pending entries come first:
  the reply that held them may have been lost.
- A lane whose key is of another type is left out, for a read over all lanes would be refused as a whole.
- So is one of which so many wait for a slot of a box that no more shall: the others are read all the same.
- Nothing here waits for another connection: whoever stops the reader gets it back in bounded time.
- Redis puts a reply together before it sends any of it: when one has brought what was too long to be kept, or a
  connection was lost, the next ones bring one entry each, then two, and so on.
- As long as the pipe finds Redis away, that is told by the pipe, and is no trouble of the reader's own.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from llm_routerd.protocol.cut import CutList
from llm_routerd.protocol.keys import GROUP, LANES, Keys, Lane
from llm_routerd.queue import scripts
from llm_routerd.queue.connection import (
    Backoff,
    ConnectionFactory,
    PipeState,
    RedisError,
    ResponseError,
    describe,
    execute,
    is_missing_group,
    is_wrong_type,
)
from llm_routerd.queue.deliveries import Delivery, next_cursor, parse_claimed, parse_entries

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

    from redis.asyncio.connection import AbstractConnection

    from llm_routerd.queue.broker import Broker
    from llm_routerd.queue.scripts.binding import Call

BLOCK_MS = 5000
SHUT_BLOCK_MS = 250  # where a lane is shut, which may be open again before that is over
LOOK_SECONDS = 1.0  # between two looks at lanes whose keys are of another type
GRACE_SECONDS = 5.0
_ANY_NUMBER = 1000
TROUBLE_LOSSES = 5  # in a row, some three seconds
TROUBLE_SECONDS = 3.0  # without a connection, where each try hangs
STOP_SECONDS = 1.5  # longest time for the read that is under way at a stop


class Reader:
    """Reads new requests for one worker.

    Args:
        factory: makes its connection.
        broker: the worker's side of the queue.
        on_wait: called when it begins to wait, for requests or for Redis.
        share: how many it may wait for, where there are other readers; None: as many as are free.
        shut: lanes that are not to be read now.
    """

    def __init__(
        self,
        factory: ConnectionFactory,
        broker: Broker,
        *,
        on_wait: Callable[[], None] = lambda: None,
        share: Callable[[], int] | None = None,
        shut: Callable[[], Collection[Lane]] = tuple,
    ) -> None:
        self._share = share
        self._shut = shut
        self._factory = factory
        self._on_wait = on_wait
        self._broker = broker
        self._pipe = broker.pipe
        self._keys: Keys = broker.keys
        self._backoff = Backoff()
        self._connection: AbstractConnection | None = None
        self._client_id: int | None = None
        self._left_behind: int | None = None  # the client of the last connection
        self._stopped = False
        self._leaves = False  # the connection leads where the factory did before
        self._losses = 0  # in a row
        self._lost_since: float | None = None  # loop time; None: all is well
        self._bound: asyncio.Timeout | None = None  # of the read that is under way
        self.trouble: str | None = None  # why nothing can be read; None: it can
        self._more = False  # the last read was full: there is probably more
        self._most = _ANY_NUMBER  # entries that one read asks for
        self._lanes = broker.lane_types
        self._looked_at = 0.0  # when the lanes were, in loop time

    async def read(self, free: int) -> list[Delivery]:
        """Up to `free` requests; an empty list when none came in time or Redis is away (after a pause)."""
        try:
            return await self._bounded_read(free)
        except ResponseError as error:
            if is_missing_group(error) or is_wrong_type(error):
                await self.aclose()  # the next connection makes it again
            else:
                await self._lost(error)
        except (RedisError, OSError, TimeoutError) as error:
            await self._lost(error)
        return []

    async def _bounded_read(self, free: int) -> list[Delivery]:
        try:
            async with asyncio.timeout(STOP_SECONDS if self._stopped else None) as self._bound:
                with self._pipe.reach.hurries(self._bound):
                    return await self._read(free)
        finally:
            self._bound = None  # a bound that has been left cannot be moved any more

    def _measured(self, taken: list[Delivery]) -> list[Delivery]:
        """The same, having noted how many the next read is to bring."""
        if any(isinstance(delivery.fields, CutList) for delivery in taken):
            self._most = 1
        elif taken:
            self._most = min(2 * self._most, _ANY_NUMBER)
        return taken

    async def _read(self, free: int) -> list[Delivery]:
        if self._leaves:  # it may be no read that was broken off
            await self.aclose()
        if self._connection is None:
            self._on_wait()
            self._lost_since = self._lost_since or asyncio.get_running_loop().time()
            return await self._connect()
        await self._look_at_others()
        if self._more or free < len(LANES):
            asked = min(free, self._most)
            taken = await self._take(asked)
            self._more = len(taken) == asked
            if taken:
                return self._measured(taken)
        return [] if self._stopped else self._measured(await self._block(free))

    async def _connect(self) -> list[Delivery]:
        self._leaves = False
        self._connection = connection = await self._factory.connect()
        self._client_id = await execute(connection, ("CLIENT", "ID"), timeout_seconds=GRACE_SECONDS)
        await self._leave(connection)
        own: list[Delivery] = []
        for lane in LANES:
            await self._lanes.make_group(self._ask(connection), lane)
            await self._appear(connection, self._keys.requests(lane))
            own += await self._own_pending(lane)
        self._backoff.reset()
        self._losses, self._lost_since, self.trouble = 0, None, None
        self._pipe.reach.reached()
        self._looked_at = asyncio.get_running_loop().time()
        return own

    async def _own_pending(self, lane: Lane) -> list[Delivery]:
        own: list[Delivery] = []
        cursor: bytes | None = b"-"
        while cursor:
            reply = await self._script(self._broker.own_call(lane, cursor))
            cursor = next_cursor(reply[0])
            own += parse_claimed(lane, reply[1], own=True)
        return own

    async def _leave(self, connection: AbstractConnection) -> None:
        """End a read of the last connection: a server that has not heard of its end would still give it requests."""
        if self._left_behind is not None:
            command = ("CLIENT", "UNBLOCK", self._left_behind)
            with suppress(ResponseError):  # an ACL may refuse it; then the read ends by itself
                await execute(connection, command, timeout_seconds=GRACE_SECONDS)
            self._left_behind = None

    async def _look_at_others(self) -> None:
        """Find out now and then whether keys that were of another type are lanes again."""
        now = asyncio.get_running_loop().time()
        if not self._lanes.others or now < self._looked_at + LOOK_SECONDS:
            return
        self._looked_at = now
        assert self._connection is not None  # noqa: S101 - read() has seen to it
        for lane in tuple(self._lanes.others):
            await self._lanes.make_group(self._ask(self._connection), lane)

    @staticmethod
    def _ask(connection: AbstractConnection) -> Callable[..., Awaitable[Any]]:
        async def ask(*command: Any) -> Any:
            return await execute(connection, command, timeout_seconds=GRACE_SECONDS)

        return ask

    async def _appear(self, connection: AbstractConnection, lane: str) -> None:
        """Be seen as a consumer before anything is read: before Redis 7.2 a blocking read alone makes nobody one."""
        with suppress(ResponseError):  # nothing depends on it
            command = ("XGROUP", "CREATECONSUMER", lane, GROUP, self._broker.consumer)
            await execute(connection, command, timeout_seconds=GRACE_SECONDS)

    async def _take(self, free: int) -> list[Delivery]:
        call = scripts.take(
            lanes=self._keys.lanes, consumer=self._broker.consumer, count=free, shut=" ".join(self._shut())
        )
        return self._parse(await self._script(call))

    async def _block(self, free: int) -> list[Delivery]:
        self._on_wait()
        lanes, block_ms = self._lanes.sound, BLOCK_MS
        if self._lanes.others:
            block_ms = min(block_ms, round(LOOK_SECONDS * 1000))
            if not lanes:
                await asyncio.sleep(LOOK_SECONDS)
                return []
        if shut := self._shut():
            lanes, block_ms = tuple(lane for lane in lanes if lane not in shut), min(block_ms, SHUT_BLOCK_MS)
            if not lanes:
                await asyncio.sleep(SHUT_BLOCK_MS / 1000)
                return []
        free = free if self._share is None else min(free, self._share())
        count = max(1, min(free // len(lanes), self._most))
        args = (
            "XREADGROUP",
            "GROUP",
            GROUP,
            self._broker.consumer,
            "COUNT",
            count,
            "BLOCK",
            block_ms,
            "STREAMS",
        )
        news = (">",) * len(lanes)
        assert self._connection is not None  # noqa: S101 - read() has seen to it
        reply = await execute(
            self._connection,
            (*args, *map(self._keys.requests, lanes), *news),
            timeout_seconds=block_ms / 1000 + GRACE_SECONDS,
            has_time=self._has_time,
        )
        if not reply:
            return []
        self._more = any(len(entries) >= count for _, entries in reply)
        return self._parse(reply)

    def _parse(self, reply: Any) -> list[Delivery]:
        lanes = {self._keys.requests(lane).encode(): lane for lane in LANES}
        return [delivery for key, entries in reply or () for delivery in parse_entries(lanes[key], entries)]

    async def _script(self, call: Call) -> Any:
        assert self._connection is not None  # noqa: S101 - read() has seen to it
        return await execute(self._connection, call.command, timeout_seconds=GRACE_SECONDS, has_time=self._has_time)

    def _has_time(self) -> bool:
        return not self._stopped

    async def _lost(self, error: BaseException) -> None:
        now = asyncio.get_running_loop().time()
        if self._pipe.state is not PipeState.READY:
            self._losses, self._lost_since, self.trouble = 0, now, None
        self._losses += 1
        self._most = 1
        self._lost_since = max(self._lost_since or now, self._pipe.ready_since)
        if self._losses >= TROUBLE_LOSSES or now - self._lost_since >= TROUBLE_SECONDS:
            self.trouble = describe(error)
        self._factory.whereabouts.lost(error)
        await self.aclose()
        if not self._stopped:
            await self._pipe.reach.pause(self._backoff.next_seconds())

    def leave(self) -> None:
        """Give the connection up for where the factory leads by now; what it may have brought is looked for there."""
        self._leaves = True
        if self._bound is not None and not self._bound.expired():
            self._bound.reschedule(asyncio.get_running_loop().time())

    async def stop(self) -> None:
        """End a blocking read that is under way, without losing what it may bring, and begin no other."""
        self._stopped = True
        self._pipe.reach.reached()  # for nobody waits for its next try now
        if self._bound is not None and not self._bound.expired():
            self._bound.reschedule(asyncio.get_running_loop().time() + STOP_SECONDS)
        if self._client_id is not None:
            with suppress(ResponseError):  # an ACL may refuse it; then the read ends by itself
                await self._pipe.call("CLIENT", "UNBLOCK", self._client_id)

    async def aclose(self) -> None:
        """Close the connection."""
        self._left_behind, self._client_id = self._client_id or self._left_behind, None
        if self._connection is not None:
            connection, self._connection = self._connection, None
            await connection.disconnect(nowait=True)
