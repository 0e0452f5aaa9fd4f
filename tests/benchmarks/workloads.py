"""The measurements, each a function that brings rows for the table."""

from __future__ import annotations

import asyncio
import re
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import count
from statistics import quantiles
from typing import TYPE_CHECKING, Any

from tests.benchmarks.load import Delivered, Follower, Producer, check
from tests.benchmarks.systems import (
    JSON_SCHEMA,
    LONG_TOKENS,
    OPEN_TOKENS,
    STAMPED_TOKENS,
    SYSTEMS,
    TRICKLE_TOKENS,
    Bed,
    Process,
    System,
)
from tests.benchmarks.table import Row, Target
from tests.benchmarks.wire import Request

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence

_numbers = count()
STAMP = re.compile(r"\d{10}\.\d{6}")
_MEGABYTE = 1_048_576
_OURS: tuple[System, ...] = ("floor", "daemon")
_PEER_ROUNDS = 2  # it is slow, and its figures are far from the others'


@dataclass(frozen=True, slots=True, kw_only=True)
class Burst:
    """Requests that are all added at once; the process takes `concurrency` of them at a time.

    Attributes:
        units: what CPU time is divided by, per request.
        peer_requests: fewer, because it is slow.
    """

    key: str
    title: str
    unit: str
    scale: float
    units: int
    target: Target
    requests: int
    peer_requests: int
    model: str
    stream: bool | str = False
    schema: dict[str, Any] | None = None


TOKENS = Burst(
    key="cpu_per_token",
    title=f"CPU per streamed token ({LONG_TOKENS}-token answers, 32 at once)",
    unit="µs",
    scale=1e6,
    units=LONG_TOKENS,
    target=Target.ratio(1.3),
    requests=600,
    peer_requests=32,
    model="long",
    stream=True,
)
SHORT = Burst(
    key="cpu_per_short",
    title="CPU per short request (no stream, 64 at once)",
    unit="ms",
    scale=1e3,
    units=1,
    target=Target.ratio(2),
    requests=2500,
    peer_requests=250,
    model="short",
)
SHORT_WITH_SCHEMA = Burst(
    key="cpu_per_short_schema",
    title="the same with a schema",
    unit="ms",
    scale=1e3,
    units=1,
    target=Target.ratio(2),
    requests=2500,
    peer_requests=250,
    model="json",
    schema=JSON_SCHEMA,
)


def make_requests(number: int, model: str, *, stream: bool | str = False, schema: Any = None) -> list[Request]:
    """Requests with ids that no others have."""
    return [Request(id=f"r{next(_numbers)}", model=model, stream=stream, schema=schema) for _ in range(number)]


class Field:
    """The systems under one kind of load, side by side, with warm processes."""

    def __init__(self) -> None:
        self._stack = AsyncExitStack()
        self.processes: dict[System, Process] = {}
        self.producers: dict[System, Producer] = {}

    async def enter(self, bed: Bed, systems: Iterable[System], concurrency: int) -> None:
        """Start them."""
        for system in systems:
            process = self._stack.enter_context(Process(bed, system, f"{system}{next(_numbers)}", concurrency))
            self.processes[system] = process
            producer = Producer.of(bed, system, process.prefix)
            self.producers[system] = await self._stack.enter_async_context(producer)

    async def leave(self) -> None:
        """Kill them."""
        await self._stack.aclose()


async def measure_bursts(
    bed: Bed, bursts: Sequence[Burst], *, concurrency: int, rounds: int, systems: Sequence[System] = SYSTEMS
) -> AsyncIterator[Row]:
    """CPU per unit of several bursts, floor, daemon and peer in turn."""
    field = Field()
    await field.enter(bed, systems, concurrency)
    try:
        for burst in bursts:
            row = Row(key=burst.key, title=burst.title, unit=burst.unit, target=burst.target)
            walls = Row(key=f"{burst.key}_wall", title=f"wall time of {burst.key}", unit=burst.unit)
            servers = Row(key=f"{burst.key}_redis", title=f"CPU of Redis for {burst.key}", unit=burst.unit)
            for number in range(-1, rounds):  # round -1 warms up
                for system in systems if number < _PEER_ROUNDS else _OURS:
                    whole = burst.peer_requests if system == "peer" else burst.requests
                    requests = whole if number >= 0 else max(8, whole // 4)
                    cpu, wall, redis_cpu, delivered = await _run_burst(bed, field, system, burst, requests)
                    if number >= 0:
                        for each, seconds in ((row, cpu), (walls, wall), (servers, redis_cpu)):
                            each.add(system, seconds / requests / burst.units * burst.scale)
                        row.note(system, "token_events_per_request", delivered.token_events / requests)
            for each in (row, walls, servers):
                yield each
    finally:
        await field.leave()


async def _run_burst(
    bed: Bed, field: Field, system: System, burst: Burst, number: int
) -> tuple[float, float, float, Delivered]:
    """CPU of the process, wall time and CPU of Redis, in seconds; and what was delivered."""
    process, producer = field.processes[system], field.producers[system]
    requests = make_requests(number, burst.model, stream=burst.stream, schema=burst.schema)
    cpu, redis_cpu, began = process.cpu_seconds(), bed.redis_cpu_seconds(), time.perf_counter()
    await producer.add(requests)
    await producer.ended(requests[-1])
    wall, redis_cpu = time.perf_counter() - began, bed.redis_cpu_seconds() - redis_cpu
    delivered = await producer.check_all(requests)  # of which few are still under way
    return process.cpu_seconds() - cpu, wall, redis_cpu, delivered


async def measure_trickle(bed: Bed, *, rounds: int, seconds: float) -> AsyncIterator[Row]:
    """20 requests/s of tokens that come one by one: CPU per token, and time to first token."""
    cpu_row = Row(
        key="cpu_per_trickled_token",
        title=f"CPU per trickled token (20 requests/s of {TRICKLE_TOKENS} tokens, 5 ms apart)",
        unit="µs",
        target=Target.ratio(1.3),
    )
    p50 = Row(key="ttft_p50", title="time to first token at 20 requests/s, p50", unit="ms", target=Target.above(1))
    p99 = Row(key="ttft_p99", title="the same, p99", unit="ms", target=Target.above(3))
    field = Field()
    await field.enter(bed, SYSTEMS, 64)
    try:
        for number in range(-1, rounds):
            for system in SYSTEMS if number < 1 else _OURS:
                cpu, ttfts = await _trickle(bed, field, system, seconds if number >= 0 else 1.0)
                if number >= 0:
                    cpu_row.add(system, cpu * 1e6)
                    p50.add(system, percentile(ttfts, 50) * 1e3)
                    p99.add(system, percentile(ttfts, 99) * 1e3)
    finally:
        await field.leave()
    for row in (cpu_row, p50, p99):
        yield row


async def _trickle(bed: Bed, field: Field, system: System, seconds: float) -> tuple[float, list[float]]:
    """CPU per token, and the times from XADD to the first token at a subscriber, all in seconds."""
    process, producer = field.processes[system], field.producers[system]
    requests = make_requests(round(seconds * 20), "trickle", stream="live")
    idle = [await Follower.connect(bed.redis_url) for _ in range(16)]
    delivered, ttfts = Delivered(), []

    async def one(request: Request) -> None:
        follower = idle.pop() if idle else await Follower.connect(bed.redis_url)
        events = follower.follow(producer.key(request))
        began = time.time()
        await producer.add([request])
        check(request, seen := await events, delivered)
        ttfts.append(next(event.received for event in seen if event.kind == "token") - began)
        idle.append(follower)

    cpu = process.cpu_seconds()
    async with asyncio.TaskGroup() as group:
        for request in requests:
            group.create_task(one(request))
            await asyncio.sleep(1 / 20)
    cpu = process.cpu_seconds() - cpu
    for follower in idle:
        follower.close()
    return cpu / len(requests) / TRICKLE_TOKENS, ttfts


async def measure_delay(bed: Bed, *, rounds: int, streams: int = 256) -> AsyncIterator[Row]:
    """The way of a token from the model's write to a subscriber, with many slow streams open."""
    title = f"delay of a token, {streams} open streams of 10 tokens/s, p99"
    row = Row(key="token_delay_p99", title=title, unit="ms", target=Target.above(5))
    median = Row(key="token_delay_p50", title="the same, p50", unit="ms")
    field = Field()
    await field.enter(bed, SYSTEMS, streams)
    try:
        for number in range(rounds):
            for system in SYSTEMS if number < 1 else _OURS:
                delays = await _delays(bed, field.producers[system], streams)
                row.add(system, percentile(delays, 99) * 1e3)
                median.add(system, percentile(delays, 50) * 1e3)
    finally:
        await field.leave()
    yield row
    yield median


async def _delays(bed: Bed, producer: Producer, streams: int) -> list[float]:
    requests = make_requests(streams, "stamped", stream="live")
    followers = [await Follower.connect(bed.redis_url) for _ in requests]
    events = []
    for follower, request in zip(followers, requests, strict=True):
        events.append(follower.follow(producer.key(request)))
        await producer.add([request])
        await asyncio.sleep(0.5 / streams)  # so that the streams do not beat in time
    delays = []
    for request, following in zip(requests, events, strict=True):
        check(request, seen := await following, Delivered())
        own = [
            event.received - float(stamp)
            for event in seen
            if event.kind == "token"
            for stamp in STAMP.findall(event.data["text"])
        ]
        assert len(own) == STAMPED_TOKENS, f"{request.id}: {len(own)} tokens of {STAMPED_TOKENS}"
        delays += own[10:]  # while all of the streams were open
    for follower in followers:
        follower.close()
    return delays


async def measure_starts(bed: Bed, *, rounds: int) -> AsyncIterator[Row]:
    """From the start of the process to READY=1, bytecode compiled."""
    row = Row(key="start", title="start to READY", unit="s", target=Target.at_most(0.4))
    for number in range(-1, rounds):  # round -1 compiles
        for system in SYSTEMS if number < 1 else _OURS:
            with Process(bed, system, f"{system}{next(_numbers)}", 64) as process:
                if number >= 0:
                    row.add(system, process.start_seconds)
    yield row


async def measure_idle(bed: Bed, *, seconds: float) -> AsyncIterator[Row]:
    """Memory and CPU of processes that have nothing to do."""
    memory = Row(key="rss_idle", title="resident memory, idle", unit="MB", target=Target.at_most(60))
    cpu = Row(key="cpu_idle", title="CPU when idle", unit="% of a core", target=Target.at_most(0.5))
    field = Field()
    await field.enter(bed, SYSTEMS, 64)
    try:
        await asyncio.sleep(2)  # what comes after READY (the price table) is done
        before = {system: process.cpu_seconds() for system, process in field.processes.items()}
        await asyncio.sleep(seconds)
        for system, process in field.processes.items():
            cpu.add(system, (process.cpu_seconds() - before[system]) / seconds * 100)
            memory.add(system, process.rss_bytes() / _MEGABYTE)
    finally:
        await field.leave()
    yield memory
    yield cpu


async def measure_open_streams(bed: Bed, *, streams: int = 1024) -> AsyncIterator[Row]:
    """Memory while many slow streams are open, and that they are not slowed down."""
    title = f"resident memory, {streams} open streams"
    row = Row(key="rss_open", title=title, unit="MB", target=Target.at_most(150))
    field = Field()
    await field.enter(bed, _OURS, streams)
    try:
        for system, process in field.processes.items():
            producer = field.producers[system]
            requests = make_requests(streams, "open", stream=True)
            began = time.perf_counter()
            await producer.add(requests)
            ended = asyncio.create_task(producer.ended(requests[-1]))
            peak = 0
            while not ended.done():
                peak = max(peak, process.rss_bytes())
                await asyncio.sleep(0.2)
            await ended
            row.add(system, peak / _MEGABYTE)
            row.note(system, "seconds_over_the_model", time.perf_counter() - began - (OPEN_TOKENS - 1))
            await producer.check_all(requests)
    finally:
        await field.leave()
    yield row


async def measure_two_workers(bed: Bed, *, rounds: int, requests: int) -> AsyncIterator[Row]:
    """CPU per request of two workers on one queue against one alone, in turn; and the share of each of the two."""
    title = "two workers: CPU per short request against one worker"
    row = Row(key="two_workers_cpu", title=title, unit="of one", target=Target.at_most(1.1))
    shares = Row(key="two_workers_share", title="the smaller share of the two", unit="%", target=Target.at_least(40))
    teams = [(f"daemon{next(_numbers)}", 1), (f"daemon{next(_numbers)}", 2)]
    async with AsyncExitStack() as stack:
        processes = [
            [stack.enter_context(Process(bed, "daemon", prefix, 64)) for _ in range(size)] for prefix, size in teams
        ]
        producers = [await stack.enter_async_context(Producer.of(bed, "daemon", prefix)) for prefix, _ in teams]
        for number in range(-1, rounds):
            used = []
            delivered = Delivered()
            for team, producer in zip(processes, producers, strict=True):
                batch = make_requests(requests, "short")
                before = sum(process.cpu_seconds() for process in team)
                await producer.add(batch)
                delivered = await producer.check_all(batch)
                used.append(sum(process.cpu_seconds() for process in team) - before)
            if number >= 0:
                row.add("daemon", used[1] / used[0])
                consumers = delivered.consumers
                shares.add("daemon", min(consumers.values()) / requests * 100 if len(consumers) > 1 else 0.0)
    yield row
    yield shares


async def measure_memory(bed: Bed, *, requests: int) -> AsyncIterator[Row]:
    """What Redis keeps of a finished request until its TTL is over: events, account, metrics event."""
    short = Row(
        key="redis_short", title="Redis' memory per finished short request", unit="kB", target=Target.at_most(2)
    )
    title = f"the same, a streamed answer of {LONG_TOKENS} tokens"
    long = Row(key="redis_long", title=title, unit="kB")
    field = Field()
    await field.enter(bed, ["daemon"], 64)
    try:
        producer = field.producers["daemon"]
        for row, number, model, stream in ((short, requests, "short", False), (long, requests // 10, "long", True)):
            before = await producer.memory_bytes()
            await producer.add(batch := make_requests(number, model, stream=stream))
            await producer.all_done()
            row.add("daemon", (await producer.memory_bytes() - before) / number / 1000)
            await producer.check_all(batch)
    finally:
        await field.leave()
    yield short
    yield long


async def measure_soak(bed: Bed, *, first: int = 10_000, last: int = 100_000, page: int = 2_500) -> AsyncIterator[Row]:
    """Memory after many requests, against that after a tenth of them."""
    title = f"memory after {last:,} requests, above that after {first:,}"
    row = Row(key="soak", title=title, unit="MB", target=Target.at_most(5))
    field = Field()
    await field.enter(bed, _OURS, 64)
    try:
        for system, process in field.processes.items():
            after_first = 0
            for done in range(page, last + 1, page):
                # Every other page streams, every fourth has a schema.
                kind = ("short", "json", "short", "short")[done // page % 4]
                requests = make_requests(
                    page, kind, stream=bool(done // page % 2), schema=JSON_SCHEMA if kind == "json" else None
                )
                await field.producers[system].add(requests)
                await field.producers[system].check_all(requests)
                if done == first:
                    after_first = process.rss_bytes()
            row.add(system, (process.rss_bytes() - after_first) / _MEGABYTE)
    finally:
        await field.leave()
    yield row


def percentile(values: Sequence[float], which: int) -> float:
    """A percentile of many values."""
    return quantiles(values, n=100, method="inclusive")[which - 1]
