"""A worker's side of the queue for tests, and what stands in Redis afterwards."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from llm_routerd.protocol.codes import ErrorCode
from llm_routerd.protocol.events import AttemptStarted, Failed, Result
from llm_routerd.protocol.keys import Keys, Lane
from llm_routerd.protocol.outcome import Usage
from llm_routerd.queue.broker import Broker
from llm_routerd.queue.connection import ConnectionFactory, Pipe
from llm_routerd.queue.deliveries import Commitment, Delivery, Limits
from llm_routerd.queue.reader import Reader

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from llm_routerd.protocol.events import FinalEvent
    from llm_routerd.queue.deliveries import Committed
    from llm_routerd.queue.outbox import Transcript

LIMITS = Limits(lease_ms=500, result_ttl_ms=60_000, metrics_channel="llm_router_metrics", metrics_maxlen=100)
ATTEMPT = AttemptStarted(deployment="local", model="ollama/tiny", delivery=1, consumer="w1")


@asynccontextmanager
async def open_client(url: str) -> AsyncIterator[Any]:
    """A plain client that decodes, as a subscriber in another language would see things."""
    client = Redis.from_url(url, decode_responses=True, retry=Retry(NoBackoff(), 0), protocol=2)
    try:
        yield client
    finally:
        await client.aclose()


@asynccontextmanager
async def open_broker(url: str, consumer: str = "w1", *, limits: Limits = LIMITS) -> AsyncIterator[Broker]:
    """A broker whose pipe runs and whose groups exist."""
    pipe = Pipe(ConnectionFactory(url, client_name="test"))
    task = asyncio.create_task(pipe.run())
    broker = Broker(pipe, Keys("llm"), consumer=consumer, limits=limits)
    try:
        async with asyncio.timeout(10):
            await broker.create_groups()
        yield broker
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def two_workers(url: str) -> AsyncIterator[tuple[Any, Broker, Broker]]:
    """A client, and the brokers of two workers: `w1` and `w2`."""
    async with open_client(url) as client, open_broker(url) as broker, open_broker(url, "w2") as other:
        yield client, broker, other


@asynccontextmanager
async def open_reader(url: str, broker: Broker) -> AsyncIterator[Reader]:
    """A reader that has connected."""
    reader = Reader(ConnectionFactory(url, client_name="test-read"), broker)
    try:
        yield reader
    finally:
        await reader.aclose()


async def take(url: str, broker: Broker, *, free: int = 10) -> list[Delivery]:
    """What one look at the lanes brings."""
    async with open_reader(url, broker) as reader:
        own = await reader.read(free)  # the first read of a connection looks at one's own pending entries
        return own + await reader.read(free)


async def take_one(url: str, broker: Broker) -> Delivery:
    """The one request that waits."""
    (delivery,) = await take(url, broker)
    return delivery


async def begin_one(
    url: str, broker: Broker, request_id: str = "r1", *, consumer: str = "w1"
) -> tuple[Delivery, Transcript]:
    """The one request that waits, with its first attempt begun."""
    delivery = await take_one(url, broker)
    return delivery, await begin(broker, delivery, request_id, consumer=consumer)


async def begin(broker: Broker, delivery: Delivery, request_id: str = "r1", *, consumer: str = "") -> Transcript:
    """The first attempt of a delivery, on its broker's worker or whoever is told."""
    transcript = broker.transcript(request_id, publish=False, fenced=no_fence)
    event = started(consumer or broker.consumer)
    assert await broker.begin(delivery, transcript, event, publish=False) == "begun"
    return transcript


async def commit(broker: Broker, delivery: Delivery, event: FinalEvent, **named: Any) -> Committed:
    """The end of a delivery; `named` is what else `Commitment` takes."""
    return await broker.commit(Commitment(delivery=delivery, event=event, **named))


def entry_of(entry: str, lane: Lane = "normal") -> Delivery:
    """An entry, as it is known to whoever has it."""
    return Delivery(lane=lane, entry=entry, fields=())


async def events_of(client: Any, request_id: str) -> list[tuple[str, str, dict[str, Any]]]:
    """The events of a request: ID, type, data."""
    entries = await client.xrange(f"llm:events:{request_id}")
    return [(event_id, fields["type"], json.loads(fields["data"])) for event_id, fields in entries]


def started(consumer: str = "w1", delivery: int = 1) -> AttemptStarted:
    """An attempt on a deployment."""
    return AttemptStarted(deployment="local", model="ollama/tiny", delivery=delivery, consumer=consumer)


def result(request_id: str, text: str = "done") -> Result:
    """An answer."""
    return Result(
        request_id=request_id,
        content=text,
        raw_text=text,
        finish_reason="stop",
        tool_calls=(),
        model_used="ollama/tiny",
        deployment="local",
        attempts=(),
        attempt=1,
        usage=Usage(prompt_tokens=1, completion_tokens=2),
        cost_usd=0.0,
        latency_ms=1,
        ttft_ms=1,
        queue_ms=1,
        tenant_id=None,
        context=None,
        metadata=None,
    )


def failure(request_id: str, code: ErrorCode = ErrorCode.INVALID_REQUEST) -> Failed:
    """An error."""
    return Failed(request_id=request_id, code=code, message="bad")


async def add(client: Any, lane: Lane = "normal", **fields: str) -> str:
    """XADD a request as a producer does; returns its entry ID."""
    key = "llm:requests" if lane == "normal" else f"llm:requests:{lane}"
    entry: str = await client.xadd(key, {"prompt": "hello", **fields})
    return entry


def no_fence(_why: str) -> None:
    """A fence that must not be met."""
    raise AssertionError("fenced")
