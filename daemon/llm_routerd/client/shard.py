"""One shard of the queue, as its producers see it: what is asked of the server that has its keys, again and again."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, TypeVar

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import MovedError, NoPermissionError, ReadOnlyError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from llm_routerd.client.events import data_of, entries_of, event_of
from llm_routerd.client.lane_state import LaneState, look_at
from llm_routerd.client.look_up import LaneSearch, Sighting
from llm_routerd.client.survey import Survey, look_around
from llm_routerd.client.tool_list import ToolList, list_tools
from llm_routerd.errors import BrokerError, NotAllowedError
from llm_routerd.protocol.events import FINAL_ID, Cancelled
from llm_routerd.protocol.keys import LANES, Keys, Lane
from llm_routerd.protocol.reading import as_end
from llm_routerd.queue.connection import Backoff, Needs, as_broker_error, fitness, is_passed, is_unfit, lasts, pooled

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from redis.asyncio import Redis

    from llm_routerd.protocol.reading import SeenEnd, SeenEvent
    from llm_routerd.queue.connection import Bounds

T = TypeVar("T")

_EVENTS_PER_READ = 500
STRAY_SECONDS = 3_600


class Sealing(Enum):
    """What came of writing the final event."""

    DONE = auto()
    LATE = auto()  # another one stands
    ABSENT = auto()  # there are no events, and there were to be some


class Shard:
    """One shard; every method that asks the server raises `BrokerError` as `Client` has it.

    Args:
        keys: its own.
        where: the server that has them, or a client that is not ours, which stays where it is.
        patience_seconds: how long a call goes on trying while the server is away.
    """

    def __init__(self, keys: Keys, where: pooled.Server | Redis, *, patience_seconds: float) -> None:
        self.keys = keys
        self._where = where
        self._patience_seconds = patience_seconds
        self._needs = Needs(prefix=keys.prefix)

    @property
    def redis(self) -> Redis:
        """What to ask now."""
        return self._where.redis if isinstance(self._where, pooled.Server) else self._where

    @property
    def server(self) -> pooled.Server | None:
        """Our own connections; None: they were given to us."""
        return self._where if isinstance(self._where, pooled.Server) else None

    async def add(self, lane: Lane, data: bytes, on_trouble: Callable[[BrokerError], None] | None = None) -> None:
        """Add a request to a lane."""
        key = self.keys.requests(lane)
        await self.patiently(lambda: self.redis.xadd(key, {"data": data}), on_trouble, stream=key)

    async def read(
        self, request_id: str, position: str, block_ms: int | None, *, count: int = _EVENTS_PER_READ
    ) -> list[SeenEvent]:
        """The events after `position`, as soon as there are any; none within `block_ms`: none.  None: do not wait."""
        key = self.keys.events(request_id)

        async def read() -> list[SeenEvent]:
            reply = await self.redis.xread({key: position}, count=count, block=block_ms)
            streams = reply.values() if isinstance(reply, dict) else [entries for _, entries in reply or ()]
            return [event_of(entry) for entries in streams for entry in entries_of(entries)]

        return await self.patiently(read, stream=key)

    async def final(self, request_id: str) -> SeenEnd | None:
        """The final event if there is one by now."""
        event = await self.at(request_id, FINAL_ID)
        return None if event is None else as_end(event)

    async def at(self, request_id: str, stream_id: str) -> SeenEvent | None:
        """The event with this ID if there is one."""
        key = self.keys.events(request_id)
        entries = await self.patiently(lambda: self.redis.xrange(key, stream_id, stream_id), stream=key)
        return next((event_of(entry) for entry in entries or ()), None)

    async def last(self, request_id: str) -> SeenEvent | None:
        """The newest event; None: there is none."""
        key = self.keys.events(request_id)
        entries = await self.patiently(lambda: self.redis.xrevrange(key, count=1), stream=key)
        return next((event_of(entry) for entry in entries or ()), None)

    async def has_events(self, request_id: str) -> bool:
        """Whether it has begun or ended."""
        key = self.keys.events(request_id)
        return bool(await self.patiently(lambda: self.redis.xrange(key, count=1), stream=key))

    async def consent(self, request_id: str, fields: Mapping[str, str | bytes]) -> None:
        """Write what a person says to a tool call; the stream goes an hour after the last word."""
        key = self.keys.consent(request_id)

        async def write() -> None:
            try:
                await self.redis.xadd(key, dict[Any, Any](fields))
            except NoPermissionError as error:
                right = f"it needs XADD on {self.keys.consent('*')}, as the user `approver` of systemd/users.acl has it"
                raise NotAllowedError("this user may not speak for a person", right) from error
            with suppress(NoPermissionError):  # who may write the consent but not EXPIRE has still said it
                await self.redis.expire(key, STRAY_SECONDS)  # not before: a key of another type is not ours to bound

        await self.patiently(write, stream=key)

    async def look_in_lanes(self, request_id: str) -> Sighting:
        """Whether it stands in a lane."""
        return await LaneSearch(lambda: self.redis, self.keys, request_id, self.patiently).run()

    async def lanes(self) -> tuple[LaneState, ...]:
        """What stands in each lane, the most urgent first."""
        return tuple([await self._lane(lane) for lane in LANES])

    async def _lane(self, lane: Lane) -> LaneState:
        return await self.patiently(lambda: look_at(self.redis, lane, self.keys.requests(lane)))

    async def tools(self, patterns: Sequence[str] = ("*",)) -> ToolList:
        """What is registered of these names and globs, and who serves it."""
        return await self.patiently(lambda: list_tools(self.redis, self.keys, patterns))

    async def tool(self, name: str) -> bytes | None:
        """The registration of a tool, as it stands; None: there is none."""
        execute: Callable[..., Awaitable[bytes | None]] = self.redis.execute_command
        return await self.patiently(lambda: execute("HGET", self.keys.tools, name))

    async def survey(self) -> Survey:
        """What there is to be seen at one look."""
        return await self.patiently(lambda: look_around(self.redis, self.keys))

    async def newest(self, stream: str, before: str, most: int) -> list[tuple[str, bytes]]:
        """Of a stream with a field `data`, as the metrics' is, the last before an ID ("+": of all), newest first."""
        return data_of(await self.patiently(lambda: self.redis.xrevrange(stream, before, count=most), stream=stream))

    async def since(self, stream: str, after: str, most: int) -> list[tuple[str, bytes]]:
        """Of such a stream the first after an ID, oldest first."""
        return data_of(await self.patiently(lambda: self.redis.xrange(stream, f"({after}", count=most), stream=stream))

    async def seal(self, request_id: str, data: bytes, *, must_exist: bool) -> Sealing:
        """Write the final event."""
        key = self.keys.events(request_id)
        return await self.patiently(lambda: self._seal(key, data, must_exist=must_exist), stream=key)

    async def _seal(self, key: str, data: bytes, *, must_exist: bool) -> Sealing:
        """What makes a key bounds it in the same round trip, so no stray one is left behind."""
        pipe = self.redis.pipeline(transaction=False)
        pipe.xadd(key, {"type": Cancelled.type, "data": data}, id=FINAL_ID, nomkstream=must_exist)
        if not must_exist:
            pipe.expire(key, STRAY_SECONDS, nx=True)
        added, *expire = await pipe.execute(raise_on_error=False)
        if isinstance(added, ResponseError) and is_passed(added):
            return Sealing.LATE
        if isinstance(added, NoPermissionError):
            right = f"it needs XADD on {self.keys.events('*')}, as the user `canceller` of systemd/users.acl has it"
            raise NotAllowedError("this user may not cancel", right)
        if isinstance(added, Exception):
            raise added
        if added and must_exist:  # not before: a key of another type is not ours to bound
            with suppress(NoPermissionError):  # who may write the events but not EXPIRE has still cancelled
                # NX: what the daemon made has its TTL already, and only a key that nobody knows of has none.
                await self.redis.expire(key, STRAY_SECONDS, nx=True)
        for reply in expire:
            if isinstance(reply, Exception) and not isinstance(reply, NoPermissionError):
                raise reply
        return Sealing.DONE if added else Sealing.ABSENT

    async def ping(self) -> None:
        """Ask once whether it answers; no patience."""
        try:
            await pooled.once(self.redis.ping)
        except RedisError as error:
            raise as_broker_error(error) from error

    async def place(self) -> str:
        """Host and port of the server that has it; "" where that cannot be told, or it is at a Unix socket."""
        if self.server is None:
            return ""
        try:
            place = await self.server.place()
        except RedisError:
            return ""
        return "" if place is None else f"{place.host}:{place.port}"

    async def patiently(
        self,
        operation: Callable[[], Awaitable[T]],
        on_trouble: Callable[[BrokerError], None] | None = None,
        *,
        stream: str = "",
    ) -> T:
        """Run an operation on `redis` that may be repeated, until it succeeds or the patience is over.

        `on_trouble` is told why a try failed, before the next one; not of a MOVED, which leads on at once.  `stream`
        is the key that is named where it is of another type.

        Raises:
            BrokerError: it is over, or the server refuses what was asked.
        """
        backoff = Backoff()
        clock = asyncio.get_running_loop().time
        give_up: float | None = None
        while True:
            server = self.server
            try:
                return await (pooled.once if server is None else server.once)(operation)
            except RedisError as error:
                if not self._may_pass(error):
                    await self._examine()
                    raise as_broker_error(error, stream) from error
                # Counted from the first failure: before it, a read may have waited long while all was well.
                give_up = give_up or clock() + self._patience_seconds
                self._lost(error)
                wait_seconds = backoff.next_seconds()
                if clock() + wait_seconds > give_up:
                    raise await self._given_up(error) from error
                if on_trouble is not None and not isinstance(error, MovedError):
                    on_trouble(as_broker_error(error))
            await asyncio.sleep(wait_seconds)

    def _lost(self, error: RedisError) -> None:
        """The next try is where the keys are then: in a Cluster, on a node that is not that of all shards."""
        if (server := self.server) is None:
            return
        if isinstance(error, MovedError):
            self._where = server = server.apart(self._needs)
        server.lost(error)

    async def _given_up(self, error: RedisError) -> BrokerError:
        """What to tell of the last failure: of a replica, where its primary is."""
        told = as_broker_error(error)
        if not isinstance(error, ReadOnlyError) or (self.server is not None and self.server.may_move):
            return told
        replication = await self._replication()
        return BrokerError(told.detail, _primary_in(replication) or told.remedy, is_refusal=True)

    async def losing(self) -> BrokerError | None:
        """What is wrong with a server that takes requests and loses them: a replica that may be written to; else None.

        Of one that does not say what it is nothing is known.
        """
        replication = await self._replication()
        if replication.get("role") != "slave" or int(replication.get("slave_read_only", 1)):
            return None
        told = "the server is a replica that may be written to, and what is written there is lost"
        return BrokerError(told, _primary_in(replication) or "name its primary in the Redis URL", is_refusal=True)

    async def _replication(self) -> dict[str, Any]:
        """What the server says of its replication; nothing where it does not, or is away."""
        try:
            found: dict[str, Any] = await pooled.once(lambda: self.redis.info("replication"))
        except RedisError:
            return {}
        return found

    async def _examine(self) -> None:
        """Look whether a server that refuses something could serve us at all; connections of ours have looked before.

        Raises:
            UnsuitableServerError: it could not.
        """
        if self.server is not None:
            return
        try:
            found = await pooled.once(lambda: fitness.ask(self.redis.execute_command))
        except RedisError:
            return
        fitness.check(found, self._needs)

    def _may_pass(self, error: RedisError) -> bool:
        """Whether the same command may succeed later, where the server is then."""
        if isinstance(error, MovedError):
            return self.server is not None and not self.server.is_fixed
        return _is_away(error)

    def bounded(self, bounds: Bounds) -> Redis:
        """Another client of the same server, of whose replies no more is kept than `bounds` says.  It is the caller's.

        What XRANGE gives comes as it is on the wire, for it may be cut: pairs of an ID and `Fields`.
        """
        return pooled.bounded(self.redis, bounds)


def _primary_in(replication: Mapping[str, Any]) -> str:
    """Where to go from a replica, for a person; "" where it does not say."""
    host, port = replication.get("master_host"), replication.get("master_port")
    return f"name its primary, {host}:{port}, in the Redis URL" if host and port else ""


def _is_away(error: RedisError) -> bool:
    """Whether the same command may succeed later: the server is down, starting, or not the primary now."""
    if lasts(error) or isinstance(error, MovedError):
        return False
    return isinstance(error, (RedisConnectionError, RedisTimeoutError)) or is_unfit(error)


__all__ = ["STRAY_SECONDS", "Sealing", "Shard"]
