"""The load: adds requests, follows their events, and checks that every token arrived.  Outside of what is measured."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

import hiredis
import orjson
from redis.asyncio import Redis

from tests.benchmarks import peer
from tests.benchmarks.systems import JSON_ANSWER, LONG_TOKENS, OPEN_TOKENS, SHORT_TOKENS, TRICKLE_TOKENS
from tests.benchmarks.wire import BEFORE_FINAL, FINAL_ID, Request, events_key
from tests.standin.script import some_words

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from tests.benchmarks.systems import Bed, System

_PAGE = 200
_WAIT_MS = 120_000

EXPECTED: dict[str, Any] = {
    "long": "".join(some_words(LONG_TOKENS)),
    "short": "".join(some_words(SHORT_TOKENS)),
    "trickle": "".join(some_words(TRICKLE_TOKENS)),
    "open": "".join(some_words(OPEN_TOKENS)),
    "json": orjson.loads(JSON_ANSWER),
}


class DeliveryError(AssertionError):
    """A token, a result or an order is not as it should be: nothing that was measured counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One entry of an events stream; `received` is Unix time in seconds, 0 where nobody waited for it."""

    event_id: str
    kind: str
    data: Any
    received: float = 0.0


@dataclass(slots=True)
class Delivered:
    """What has been checked: how many requests, how many token events, and which consumers answered."""

    requests: int = 0
    token_events: int = 0
    consumers: dict[str, int] = field(default_factory=dict)


def check(request: Request, events: Sequence[Event], delivered: Delivered) -> None:
    """Hold a request's events against what the model said.

    Raises:
        DeliveryError: they differ.
    """
    if not events or events[-1].event_id != FINAL_ID or events[-1].kind != "result":
        raise DeliveryError(f"{request.id}: no result but {[event.kind for event in events[-1:]]}")
    content = _answer_of(request, events[-1].data["content"])
    expected = EXPECTED.get(request.model, content)
    if content != expected:
        raise DeliveryError(f"{request.id}: the result is not the model's answer")
    tokens = [event for event in events if event.kind == "token"]
    if request.stream and _answer_of(request, "".join(event.data["text"] for event in tokens)) != expected:
        raise DeliveryError(f"{request.id}: the token events are not the model's answer")
    if not request.stream and tokens:
        raise DeliveryError(f"{request.id}: tokens that nobody asked for")
    delivered.requests += 1
    delivered.token_events += len(tokens)
    if events[0].kind == "attempt":
        consumer = events[0].data["consumer"]
        delivered.consumers[consumer] = delivered.consumers.get(consumer, 0) + 1


def _answer_of(request: Request, content: Any) -> Any:
    """What a text means: with a schema, its JSON, which the daemon has parsed already."""
    return orjson.loads(content) if request.schema is not None and isinstance(content, str) else content


class Producer:
    """Adds requests to one system's queue and knows where its events are."""

    def __init__(self, redis: Redis, prefix: str, queue: tuple[Any, Any] | None) -> None:
        self._redis = redis
        self._prefix = prefix
        self._queue = queue

    @classmethod
    @asynccontextmanager
    async def of(cls, bed: Bed, system: System, prefix: str) -> AsyncIterator[Producer]:
        """A producer for the process with this prefix."""
        redis = Redis.from_url(bed.redis_url, protocol=2, socket_timeout=None)  # it waits for final events
        try:
            if system != "peer":
                yield cls(redis, prefix, None)
                return
            worker, task = peer.make_worker(bed.redis_url, bed.model_url, prefix, 1)
            async with worker:
                yield cls(redis, prefix, (worker, task))
        finally:
            await redis.aclose()

    def key(self, request: Request) -> str:
        """Where a request's events are."""
        return events_key(self._prefix, request.id)

    async def add(self, requests: Sequence[Request]) -> None:
        """Add requests, in one pipeline."""
        if self._queue is not None:
            worker, task = self._queue
            await worker.enqueue_many([task.enqueue(request.to_wire()) for request in requests])
            return
        pipeline = self._redis.pipeline(transaction=False)
        for request in requests:
            pipeline.xadd(f"{self._prefix}:requests", {"data": orjson.dumps(request.to_wire())})
        await pipeline.execute()

    async def ended(self, request: Request) -> None:
        """Wait for a request's final event; the server wakes us for nothing else.

        Raises:
            DeliveryError: there was none in time.
        """
        if not await self._redis.xread({self.key(request): BEFORE_FINAL}, block=_WAIT_MS):
            raise DeliveryError(f"{request.id}: no final event")

    async def all_done(self) -> None:
        """Wait until nothing is left in the lane: whatever was in it is answered."""
        async with asyncio.timeout(_WAIT_MS / 1000):
            while await self._redis.xlen(f"{self._prefix}:requests"):  # noqa: ASYNC110 - no event tells it
                await asyncio.sleep(0.05)

    async def memory_bytes(self) -> int:
        """What the server's data takes."""
        return int((await self._redis.info("memory"))["used_memory_dataset"])

    async def check_all(self, requests: Sequence[Request]) -> Delivered:
        """Wait for all of them, check every event, and remove the streams.

        Raises:
            DeliveryError: something is missing, or not what the model said.
        """
        delivered = Delivered()
        for start in range(0, len(requests), _PAGE):
            page = requests[start : start + _PAGE]
            pipeline = self._redis.pipeline(transaction=False)
            for request in page:
                pipeline.xread({self.key(request): BEFORE_FINAL}, block=_WAIT_MS)
                pipeline.xrange(self.key(request))
            replies = await pipeline.execute()
            for request, entries in zip(page, replies[1::2], strict=True):
                check(request, [parse_event(*entry) for entry in entries], delivered)
            await self._redis.unlink(*map(self.key, page))
        return delivered


def parse_event(event_id: bytes, fields: dict[bytes, bytes], received: float = 0.0) -> Event:
    """An entry as redis-py gives it."""
    data = orjson.loads(fields[b"data"])
    return Event(event_id=event_id.decode(), kind=fields[b"type"].decode(), data=data, received=received)


class Follower(asyncio.Protocol):
    """A subscriber: XREAD BLOCK on one events stream after the other, each event with the time it came.

    Bare, because hundreds of these must not take the time that they measure.
    """

    def __init__(self) -> None:
        self._parser = hiredis.Reader()
        self._key = ""
        self._seen: list[tuple[float, bytes, list[bytes]]] = []
        self._ended: asyncio.Future[list[Event]]
        self._transport: asyncio.Transport

    @classmethod
    async def connect(cls, redis_url: str) -> Follower:
        """A follower with a connection of its own."""
        address = urlsplit(redis_url)
        _, follower = await asyncio.get_running_loop().create_connection(
            cls, address.hostname or "localhost", address.port or 6379
        )
        return follower

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep it."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass of it

    def close(self) -> None:
        """Close the connection."""
        self._transport.close()

    def follow(self, key: str) -> asyncio.Future[list[Event]]:
        """The events of a stream, once the final one has come."""
        self._key = key
        self._seen = []
        self._ended = asyncio.get_running_loop().create_future()
        self._ask("0")
        return self._ended

    def _ask(self, after: str | bytes) -> None:
        command: Any = ("XREAD", "BLOCK", _WAIT_MS, "STREAMS", self._key, after)
        self._transport.write(hiredis.pack_command(command))

    def data_received(self, data: bytes) -> None:
        """A reply, or a part of one."""
        now = time.time()
        self._parser.feed(data)
        while (reply := self._parser.gets()) is not False:
            if not isinstance(reply, list):
                self._ended.set_exception(DeliveryError(f"{self._key}: {reply!r} where events belong"))
                return
            entries = reply[0][1]
            self._seen += [(now, event_id, fields) for event_id, fields in entries]
            last = entries[-1][0]
            if last == FINAL_ID.encode():
                self._ended.set_result([_of_flat(*seen) for seen in self._seen])
            else:
                self._ask(last)


def _of_flat(received: float, event_id: bytes, fields: list[bytes]) -> Event:
    return parse_event(event_id, dict(zip(fields[::2], fields[1::2], strict=True)), received)
