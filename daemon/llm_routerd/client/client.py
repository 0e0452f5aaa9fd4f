"""A client of the wire protocol, for Python producers and for the command line.

    async with Client("redis://127.0.0.1:6379/0") as client:
        request_id = await client.submit(prompt="Why is the sky blue?", stream=True)
        async for event in client.follow(request_id):
            match event:
                case Token(text=text):
                    print(text, end="")
                case Result():
                    print(event.answer.content)

The events are those of the library (`llm_routerd.protocol.events`), with their place in the stream.

Redis may go away meanwhile: everything here is idempotent (a request has an id, an event an explicit stream
ID), so it is repeated until it succeeds or the client's patience is over.
"""

from __future__ import annotations

import asyncio
import uuid
from contextlib import suppress
from dataclasses import replace
from enum import Enum, auto
from functools import partial
from typing import TYPE_CHECKING, Self, TypeVar, Unpack

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import (
    MovedError,
    NoPermissionError,
    RedisError,
    ResponseError,
)
from redis.exceptions import TimeoutError as RedisTimeoutError

from llm_routerd.client.events import (
    check_id,
    check_stream_id,
    entries_of,
    event_of,
)
from llm_routerd.client.lane_state import LaneState, look_at
from llm_routerd.client.look_up import LaneSearch, Sighting
from llm_routerd.errors import BrokerError, NotAllowedError, UnknownRequestError
from llm_routerd.protocol.events import FINAL_ID, FINAL_PART, Cancelled
from llm_routerd.protocol.keys import LANES, Keys, Lane
from llm_routerd.protocol.reading import as_end, read_event
from llm_routerd.protocol.request import as_json
from llm_routerd.protocol.wire import encode
from llm_routerd.queue.connection import Backoff, as_broker_error, fitness, is_passed, is_unfit, lasts, pooled

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from redis.asyncio import Redis

    from llm_routerd.protocol.reading import SeenEnd, SeenEvent
    from llm_routerd.protocol.request import RequestFields
    from llm_routerd.queue.connection import Bounds, Greeting

T = TypeVar("T")

# Greater than every event but the final one: a read from here sees that one alone, at the same cost always.
_BEFORE_FINAL = f"{FINAL_PART - 1}-{2**64 - 1}"

_BLOCK_MS = 5_000
_EVENTS_PER_READ = 500
_STRAY_SECONDS = 3_600
_CANCEL_TRIES = 10


class _Sealing(Enum):
    """What came of writing the final event."""

    DONE = auto()
    LATE = auto()  # another one stands
    ABSENT = auto()  # there are no events, and there were to be some


class Client:
    """Submits, follows and cancels requests.  Safe for many tasks of one event loop at once.

    Every method raises `BrokerError` when Redis refuses, or stays away for longer than `patience_seconds`; of its
    subclasses `NotAllowedError` tells that the user may not do it, `UnsuitableServerError` that the server is too old
    or a cluster that does not keep the queue in one place.
    """

    def __init__(
        self,
        redis: str | Redis = "redis://127.0.0.1:6379/0",
        *,
        prefix: str = "llm",
        patience_seconds: float = 60.0,
    ) -> None:
        """Make a client; nothing is connected yet.

        Args:
            redis: URL, or a client that remains the caller's: `aclose` leaves it open.
            prefix: of the queue's keys.
            patience_seconds: how long a call goes on trying while Redis is away.

        Raises:
            BrokerError: the URL is unsound; the message says how, and quotes nothing of it but an option's name.
        """
        self.keys = Keys(prefix)
        self._patience_seconds = patience_seconds
        self._needs = fitness.Needs(prefix=prefix)
        self._server: pooled.Server | None = None
        if isinstance(redis, str):
            self._server = pooled.Server.at(redis, self._needs)
            redis = self._server.redis
        self.redis = redis
        socket_seconds = self.redis.connection_pool.connection_kwargs.get("socket_timeout") or pooled.REPLY_SECONDS
        self._block_ms = max(1, min(_BLOCK_MS, int(socket_seconds * 500)))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections, unless they were given to us."""
        if self._server is not None:
            await self._server.aclose()

    async def submit(
        self,
        *,
        lane: Lane = "normal",
        on_trouble: Callable[[BrokerError], None] | None = None,
        **request: Unpack[RequestFields],
    ) -> str:
        """Add a request, and return its id: the given one, else a new one.

        It always has an id, because that is what makes it safe to add once more after a lost reply: whoever
        submits the same id twice gets one answer.  `on_trouble` is told of each try that failed and is repeated.

        Raises:
            ValueError: the id is not valid.
            TypeError: a value is not JSON.
        """
        request_id = check_id(request.get("id") or uuid.uuid4().hex)
        data = as_json({"id": request_id, **request})
        key = self.keys.requests(lane)
        await self.patiently(lambda: self.redis.xadd(key, {"data": data}), on_trouble, stream=key)
        return request_id

    async def follow(self, request_id: str, last_id: str = "0-0") -> AsyncGenerator[SeenEvent, None]:
        """Yield the events after `last_id` as they come; ends after the final one.  An event knows its `stream_id`.

        It waits without end for a request that nobody answers, or whose events have expired.

        Raises:
            ValueError: the id or `last_id` is not valid.
        """
        key = self.keys.events(check_id(request_id))
        position = last_id
        if check_stream_id(last_id) >= check_stream_id(FINAL_ID):
            return
        while True:
            for event in await self.patiently(partial(self._read, key, position), stream=key):
                position = event.stream_id
                yield event
                if event.is_final:
                    return

    async def result(self, request_id: str, timeout_seconds: float | None = None) -> SeenEnd:
        """Wait for the final event, whichever of `result`, `error` and `cancelled` it is.

        Raises:
            TimeoutError: there was none within `timeout_seconds`.
        """
        async with asyncio.timeout(timeout_seconds):
            async for event in self.follow(request_id, _BEFORE_FINAL):
                return as_end(event)
        raise AssertionError("a stream ends with its final event")

    async def final(self, request_id: str) -> SeenEnd | None:
        """The final event if there is one by now."""
        key = self.keys.events(check_id(request_id))
        entries = await self.patiently(lambda: self.redis.xrange(key, FINAL_ID, FINAL_ID), stream=key)
        return next((as_end(event_of(entry)) for entry in entries or ()), None)

    async def cancel(
        self, request_id: str, reason: str = "cancelled by the client", *, anyway: bool = False
    ) -> SeenEnd:
        """Cancel a request wherever it is, and return the final event that stands now.

        It tells who won the race: a `Cancelled`, or the `Result` or `Failed` that was there before.
        Only what exists is cancelled: what has events, or stands in a lane all the while.  Where there are no events,
        the lanes are looked through, their newest 100,000 entries: tenths of a second for 50,000.  `anyway` does not
        look, and a request of that id that is submitted within the next hour is dead on arrival.

        Raises:
            UnknownRequestError: nothing is known of it, and nothing was written.
            NotAllowedError: this user may submit and follow, and not cancel.
        """
        key = self.keys.events(check_id(request_id))
        data = encode(Cancelled(request_id=request_id, reason=reason))
        must_exist, sighting = True, None
        for _ in range(_CANCEL_TRIES):
            sealing = await self.patiently(partial(self._seal, key, data, must_exist=must_exist), stream=key)
            if sealing is _Sealing.DONE:
                return as_end(read_event(FINAL_ID, Cancelled.type, data))
            if sealing is _Sealing.LATE:
                if final := await self.final(request_id):
                    return final
                # It expired between the two.
            elif anyway:
                must_exist = False
            elif sighting is None:
                sighting = await self._look_in_lanes(request_id)
                must_exist = not sighting.is_known
            else:  # nor did a worker begin it while the lanes were looked at
                raise UnknownRequestError(request_id, why_unsure=sighting.why_unsure, others=sighting.others)
        raise BrokerError(f"the events of {request_id} cannot take a final event: somebody has written past its place")

    async def look_up(self, request_id: str) -> Sighting:
        """Whether anything is known of a request; costs what `cancel` costs."""
        check_id(request_id)
        if await self._has_events(request_id):
            return Sighting(is_known=True)
        sighting = await self._look_in_lanes(request_id)
        # Meanwhile a worker may have taken it from the lane.
        return Sighting(is_known=True) if await self._has_events(request_id) else sighting

    async def lanes(self) -> tuple[LaneState, ...]:
        """What waits, what runs, and who works, the most urgent lane first."""
        return tuple([await self.patiently(partial(self._lane, lane)) for lane in LANES])

    async def _lane(self, lane: Lane) -> LaneState:
        return await look_at(self.redis, lane, self.keys.requests(lane))

    async def server_time_ms(self) -> int:
        """Unix time by the Redis server's clock, which is what `deadline_ms` is measured by."""
        seconds, microseconds = await self.patiently(lambda: self.redis.time())  # noqa: PLW0108 - another after a MOVED
        return int(seconds) * 1000 + int(microseconds) // 1000

    async def greeting(self, metrics_channel: str = "") -> Greeting | None:
        """What the server says of itself; None: nothing.

        Raises:
            UnsuitableServerError: it cannot serve a daemon with this prefix and this metrics channel.
        """
        found = await self.patiently(lambda: fitness.ask(self.redis.execute_command))
        fitness.check(found, replace(self._needs, metrics_channel=metrics_channel))
        return found

    async def ping(self) -> None:
        """Ask once whether Redis answers; no patience.

        Raises:
            BrokerError: it does not; the message says why.
        """
        try:
            await pooled.once(self.redis.ping)
        except RedisError as error:
            raise as_broker_error(error) from error

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
            try:
                return await (pooled.once if self._server is None else self._server.once)(operation)
            except RedisError as error:
                if not self._may_pass(error):
                    await self._examine()
                    raise as_broker_error(error, stream) from error
                # Counted from the first failure: before it, a read may have waited long while all was well.
                give_up = give_up or clock() + self._patience_seconds
                if self._server is not None:
                    self._server.lost(error)
                wait_seconds = backoff.next_seconds()
                if clock() + wait_seconds > give_up:
                    raise as_broker_error(error) from error
                if on_trouble is not None and not isinstance(error, MovedError):
                    on_trouble(as_broker_error(error))
            await asyncio.sleep(wait_seconds)

    async def _examine(self) -> None:
        """Look whether a server that refuses something could serve us at all; connections of ours have looked before.

        Raises:
            UnsuitableServerError: it could not.
        """
        if self._server is not None:
            return
        try:
            found = await pooled.once(lambda: fitness.ask(self.redis.execute_command))
        except RedisError:
            return
        fitness.check(found, self._needs)

    def _may_pass(self, error: RedisError) -> bool:
        """Whether the same command may succeed later, where the server is then."""
        return _is_away(error) or (isinstance(error, MovedError) and self._server is not None)

    def bounded(self, bounds: Bounds) -> Redis:
        """Another client of the same server, of whose replies no more is kept than `bounds` says.  It is the caller's.

        What XRANGE gives comes as it is on the wire, for it may be cut: pairs of an ID and `Fields`.
        """
        return pooled.bounded(self.redis, bounds)

    async def _read(self, key: str, position: str) -> list[SeenEvent]:
        reply = await self.redis.xread({key: position}, count=_EVENTS_PER_READ, block=self._block_ms)
        streams = reply.values() if isinstance(reply, dict) else [entries for _, entries in reply or ()]
        return [event_of(entry) for entries in streams for entry in entries_of(entries)]

    async def _look_in_lanes(self, request_id: str) -> Sighting:
        return await LaneSearch(lambda: self.redis, self.keys, request_id, self.patiently).run()

    async def _has_events(self, request_id: str) -> bool:
        key = self.keys.events(request_id)
        return bool(await self.patiently(lambda: self.redis.xrange(key, count=1), stream=key))

    async def _seal(self, key: str, data: bytes, *, must_exist: bool) -> _Sealing:
        """Write the final event.  What makes a key bounds it in the same round trip, so no stray one is left behind."""
        pipe = self.redis.pipeline(transaction=False)
        pipe.xadd(key, {"type": Cancelled.type, "data": data}, id=FINAL_ID, nomkstream=must_exist)
        if not must_exist:
            pipe.expire(key, _STRAY_SECONDS, nx=True)
        added, *expire = await pipe.execute(raise_on_error=False)
        if isinstance(added, ResponseError) and is_passed(added):
            return _Sealing.LATE
        if isinstance(added, NoPermissionError):
            right = f"it needs XADD on {self.keys.events('*')}, as the user `canceller` of systemd/users.acl has it"
            raise NotAllowedError("this user may not cancel", right)
        if isinstance(added, Exception):
            raise added
        if added and must_exist:  # not before: a key of another type is not ours to bound
            with suppress(NoPermissionError):  # who may write the events but not EXPIRE has still cancelled
                # NX: what the daemon made has its TTL already, and only a key that nobody knows of has none.
                await self.redis.expire(key, _STRAY_SECONDS, nx=True)
        for reply in expire:
            if isinstance(reply, Exception) and not isinstance(reply, NoPermissionError):
                raise reply
        return _Sealing.DONE if added else _Sealing.ABSENT


def _is_away(error: RedisError) -> bool:
    """Whether the same command may succeed later: the server is down, starting, or not the primary now."""
    if lasts(error) or isinstance(error, MovedError):
        return False
    return isinstance(error, (RedisConnectionError, RedisTimeoutError)) or is_unfit(error)
