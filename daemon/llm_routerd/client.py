"""A client of the wire protocol, for Python producers and for the command line.

    async with Client("redis://127.0.0.1:6379/0") as client:
        request_id = await client.submit(prompt="Why is the sky blue?", stream=True)
        async for event in client.follow(request_id):
            print(event.type, event.data)

Redis may go away meanwhile: everything here is idempotent (a request has an id, an event an explicit stream
ID), so it is repeated until it succeeds or the client's patience is over.
"""

from __future__ import annotations

import asyncio
import re
import uuid
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypedDict, TypeVar, Unpack

import orjson
from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    NoPermissionError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from llm_routerd.config.addresses import check_redis_url
from llm_routerd.core.errors import BrokerError, ConfigError
from llm_routerd.core.events import FINAL_ID, FINAL_PART
from llm_routerd.queue.connection import CONNECT_SECONDS, Backoff, describe, is_unfit
from llm_routerd.queue.handshake import connection_of
from llm_routerd.queue.keys import GROUP, LANES, Keys, Lane, is_handed_back

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable

T = TypeVar("T")

_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_STREAM_ID = re.compile(r"(\d{1,20})(?:-(\d{1,20}))?")
# Greater than every event but the final one: a read from here sees that one alone, at the same cost always.
_BEFORE_FINAL = f"{FINAL_PART - 1}-{2**64 - 1}"

_BLOCK_MS = 5_000
_REPLY_SECONDS = 10.0  # above the longest BLOCK, or a quiet stream would look like a dead server
_EVENTS_PER_READ = 500
_CONNECTIONS = 10_000  # every follower holds one while it waits; the default of 100 would refuse the next
_STRAY_SECONDS = 3_600
_ACTIVE_MS = 30_000  # an idle worker's read ends every few seconds, a busy one renews its leases every ten


class RequestFields(TypedDict, total=False):
    """The properties of a request, as in `schemas/request.schema.json`."""

    id: str
    prompt: str
    messages: list[dict[str, Any]]
    model: str
    schema: dict[str, Any] | bool
    stream: bool | str
    tools: list[dict[str, Any]]
    tool_choice: str | dict[str, Any]
    params: dict[str, Any]
    tenant_id: str
    context: str
    metadata: dict[str, Any]
    timeout_ms: int
    deadline_ms: int
    local_only: bool
    publish: bool
    traceparent: str


@dataclass(frozen=True, slots=True)
class ClientEvent:
    """One entry of an events stream.

    Attributes:
        id: its stream ID, `<attempt>-<seq>`; what `follow` resumes from.
        type: `attempt`, `token`, `reasoning`, `rejected`, or a final `result`, `error`, `cancelled`.
        data: as in the protocol; empty where somebody else wrote what is no JSON object.
    """

    id: str
    type: str
    data: dict[str, Any]

    @property
    def attempt(self) -> int:
        """The attempt that it belongs to; for a final event the protocol's largest number."""
        return int(self.id.partition("-")[0])

    @property
    def answer_attempt(self) -> int | None:
        """The attempt whose text a `result` is: whoever has shown another's drops it.  None: it is none, or untold."""
        attempt = self.data.get("attempt") if self.type == "result" else None
        return attempt if isinstance(attempt, int) else None

    @property
    def is_final(self) -> bool:
        """Whether it is the request's last event."""
        return self.id == FINAL_ID


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneState:
    """What stands in one lane.

    Attributes:
        has_group: a worker has been here since the stream was made.
        waiting: entries that no worker has taken.
        running: entries that workers hold.
        workers: names of the workers that showed a sign of life within the last half minute.
    """

    lane: Lane
    has_group: bool
    waiting: int
    running: int
    workers: frozenset[str]


class Client:
    """Submits, follows and cancels requests.  Safe for many tasks of one event loop at once.

    Every method raises `BrokerError` when Redis refuses, or stays away for longer than `patience_seconds`.
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
        self._owned = isinstance(redis, str)
        self.redis: Redis = _connect(redis) if isinstance(redis, str) else redis
        socket_seconds = self.redis.connection_pool.connection_kwargs.get("socket_timeout") or _REPLY_SECONDS
        self._block_ms = max(1, min(_BLOCK_MS, int(socket_seconds * 500)))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections, unless they were given to us."""
        if self._owned:
            await self.redis.aclose()

    async def submit(self, *, lane: Lane = "normal", **request: Unpack[RequestFields]) -> str:
        """Add a request, and return its id: the given one, else a new one.

        It always has an id, because that is what makes it safe to add once more after a lost reply: whoever
        submits the same id twice gets one answer.

        Raises:
            ValueError: the id is none.
            TypeError: a value is not JSON.
        """
        request_id = check_id(request.get("id") or uuid.uuid4().hex)
        data = orjson.dumps({"id": request_id, **request})
        await self.patiently(lambda: self.redis.xadd(self.keys.requests(lane), {"data": data}))
        return request_id

    async def follow(self, request_id: str, last_id: str = "0-0") -> AsyncGenerator[ClientEvent, None]:
        """Yield the events after `last_id` as they come; ends after the final one.

        It waits without end for a request that nobody answers, or whose events have expired.

        Raises:
            ValueError: the id or `last_id` is none.
        """
        key = self.keys.events(check_id(request_id))
        position = last_id
        if check_stream_id(last_id) >= check_stream_id(FINAL_ID):
            return
        while True:
            for event in await self.patiently(partial(self._read, key, position)):
                position = event.id
                yield event
                if event.is_final:
                    return

    async def result(self, request_id: str, timeout_seconds: float | None = None) -> ClientEvent:
        """Wait for the final event, whichever of `result`, `error` and `cancelled` it is.

        Raises:
            TimeoutError: there was none within `timeout_seconds`.
        """
        async with asyncio.timeout(timeout_seconds):
            async for event in self.follow(request_id, _BEFORE_FINAL):
                return event
        raise AssertionError("a stream ends with its final event")

    async def final(self, request_id: str) -> ClientEvent | None:
        """The final event if there is one by now."""
        key = self.keys.events(check_id(request_id))
        entries = await self.patiently(lambda: self.redis.xrange(key, FINAL_ID, FINAL_ID))
        return next(map(_event, entries or ()), None)

    async def cancel(self, request_id: str, reason: str = "cancelled by the client") -> ClientEvent:
        """Cancel a request wherever it is, and return the final event that stands now.

        Its type tells who won the race: `cancelled`, or the `result` or `error` that was there before.
        """
        key = self.keys.events(check_id(request_id))
        data = orjson.dumps({"id": request_id, "reason": reason})
        while True:
            if await self.patiently(lambda: self._seal(key, data)):
                return ClientEvent(FINAL_ID, "cancelled", {"id": request_id, "reason": reason})
            if final := await self.final(request_id):
                return final
            # It expired between the two: nothing is known of the request any more, so the next try succeeds.

    async def lanes(self) -> tuple[LaneState, ...]:
        """What waits, what runs, and who works, the most urgent lane first."""
        return tuple([await self.patiently(partial(self._lane, lane)) for lane in LANES])

    async def server_time_ms(self) -> int:
        """Unix time by the Redis server's clock, which is what `deadline_ms` is measured by."""
        seconds, microseconds = await self.patiently(self.redis.time)
        return int(seconds) * 1000 + int(microseconds) // 1000

    async def ping(self) -> None:
        """Ask once whether Redis answers; no patience.

        Raises:
            BrokerError: it does not; the message says why.
        """
        try:
            await _once(self.redis.ping)
        except RedisError as error:
            raise BrokerError(describe(_refusal_in(error))) from error

    async def patiently(self, operation: Callable[[], Awaitable[T]]) -> T:
        """Run an operation on `redis` that may be repeated, until it succeeds or the patience is over.

        Raises:
            BrokerError: it is over, or the server refuses what was asked.
        """
        backoff = Backoff()
        clock = asyncio.get_running_loop().time
        give_up: float | None = None
        while True:
            try:
                return await _once(operation)
            except RedisError as caught:
                error = _refusal_in(caught)
                if not _is_away(error):
                    raise BrokerError(describe(error)) from error
                # Counted from the first failure: before it, a read may have waited long while all was well.
                give_up = give_up or clock() + self._patience_seconds
                wait_seconds = backoff.next_seconds()
                if clock() + wait_seconds > give_up:
                    raise BrokerError(describe(error)) from error
            await asyncio.sleep(wait_seconds)

    async def _read(self, key: str, position: str) -> list[ClientEvent]:
        reply = await self.redis.xread({key: position}, count=_EVENTS_PER_READ, block=self._block_ms)
        streams = reply.values() if isinstance(reply, dict) else [entries for _, entries in reply or ()]
        return [_event(entry) for entries in streams for entry in _flat(entries)]

    async def _seal(self, key: str, data: bytes) -> bool:
        """Write the final event; False: another stands.  One round trip, so no stray key is left behind."""
        pipe = self.redis.pipeline(transaction=False)
        pipe.xadd(key, {"type": "cancelled", "data": data}, id=FINAL_ID)
        # NX: what the daemon made has its TTL already, and only a key that nobody knows of has none.
        pipe.expire(key, _STRAY_SECONDS, nx=True)
        added, expire = await pipe.execute(raise_on_error=False)
        if isinstance(added, ResponseError) and "equal or smaller" in str(added):
            return False
        for reply in (added, expire):
            # Who may write the events but not EXPIRE has still cancelled.
            if isinstance(reply, Exception) and not (reply is expire and isinstance(reply, NoPermissionError)):
                raise reply
        return True

    async def _lane(self, lane: Lane) -> LaneState:
        key = self.keys.requests(lane)
        length = int(await self.redis.xlen(key))
        empty = LaneState(lane=lane, has_group=False, waiting=length, running=0, workers=frozenset())
        try:
            groups = await self.redis.xinfo_groups(key)
            group = next((group for group in groups if as_text(group["name"]) == GROUP), None)
            if group is None:
                return empty
            consumers = await self.redis.xinfo_consumers(key, GROUP)
        except NoPermissionError:
            raise
        except ResponseError as error:
            if "no such key" in str(error).lower() or "NOGROUP" in str(error):
                return empty
            raise
        running = int(group["pending"])
        return LaneState(
            lane=lane,
            has_group=True,
            waiting=max(0, length - running),  # a worker removes an entry as soon as it is answered
            running=running,
            workers=frozenset(
                as_text(c["name"])
                for c in consumers
                if int(c["idle"]) < _ACTIVE_MS and not is_handed_back(as_text(c["name"]))
            ),
        )


def check_id(request_id: str) -> str:
    """The same id.

    Raises:
        ValueError: it is no id of the protocol; a request with it would be answered under another name.
    """
    if not _ID.fullmatch(request_id):
        raise ValueError("an id has 1 to 128 characters of A-Z a-z 0-9 . _ : -")
    return request_id


def check_stream_id(text: str) -> tuple[int, int]:
    """Both parts of a stream ID; the second one may be left out.

    Raises:
        ValueError: it is none; `$` is none either, it would lose what was written before.
    """
    match = _STREAM_ID.fullmatch(text)
    if match is None:
        raise ValueError("a stream ID is <number>-<number>")
    return int(match[1]), int(match[2] or 0)


def _connect(url: str) -> Redis:
    try:
        check_redis_url(url)
    except ConfigError as error:
        raise BrokerError(f"the Redis URL: {error}") from None
    connection_class, options = connection_of(url)
    settings: dict[str, Any] = {
        "socket_timeout": None,  # `_once` bounds every reply
        "socket_connect_timeout": CONNECT_SECONDS,
        "retry": Retry(NoBackoff(), 0),
        "max_connections": _CONNECTIONS,
        "protocol": 2,
    }
    return Redis.from_pool(ConnectionPool(connection_class=connection_class, **settings | options))


async def _once(operation: Callable[[], Awaitable[T]]) -> T:
    """One try within bounds, after which a cancellation of ours is not forgotten.

    redis-py sends through `asyncio.wait_for` where a socket timeout is set, and that may swallow a cancellation up
    to Python 3.11 (gh-86296): a follower would then read on for ever.
    """
    task = asyncio.current_task()
    cancellations = task.cancelling() if task else 0
    try:
        async with asyncio.timeout(_REPLY_SECONDS):
            reply = await operation()
    except TimeoutError:
        raise RedisTimeoutError("no reply") from None
    if task and task.cancelling() > cancellations:
        raise asyncio.CancelledError
    return reply


def _refusal_in(error: RedisError) -> RedisError:
    """A refused password, which a Unix socket's connection reports as a lost connection; else the error."""
    return error.__cause__ if isinstance(error.__cause__, AuthenticationError) else error


def _is_away(error: RedisError) -> bool:
    """Whether the same command may succeed later: the server is down, starting, or not the primary now."""
    if isinstance(error, (AuthenticationError, AuthorizationError)):
        return False
    return isinstance(error, (RedisConnectionError, RedisTimeoutError)) or is_unfit(error)


def _flat(entries: Iterable[Any]) -> Iterable[tuple[Any, Any]]:
    """The entries of one stream, whichever protocol the client that we were given speaks."""
    for entry in entries:
        if isinstance(entry, list):
            yield from entry
        else:
            yield entry


def _event(entry: tuple[Any, Any]) -> ClientEvent:
    entry_id, fields = entry
    texts = {as_text(name): value for name, value in (fields or {}).items()}
    try:
        data = orjson.loads(texts.get("data", b"{}"))
    except orjson.JSONDecodeError:
        data = {}  # a final event ends the request even where a person wrote it by hand, and wrote it badly
    return ClientEvent(as_text(entry_id), as_text(texts.get("type", "")), data if isinstance(data, dict) else {})


def as_text(value: bytes | str | None) -> str:
    """A reply of a client that decodes, or of one that does not; "" for none."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value or ""
