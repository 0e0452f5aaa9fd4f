"""What a request, a token and an idle shard cost Redis, its disk, its replica and the network: figures to plan with."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING

from redis import RedisError

from llm_routerd.protocol.keys import Layout
from tests.benchmarks.load import Delivered, Follower, Producer, check
from tests.benchmarks.systems import LONG_TOKENS, TRICKLE_TOKENS, Bed, Process, cpu_seconds_of
from tests.benchmarks.table import Row
from tests.benchmarks.workloads import make_requests
from tests.support.clusters import running_cluster
from tests.support.eventually import waited_for
from tests.support.servers import ValkeyProcess, running_valkey

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from tests.benchmarks.load import Event
    from tests.benchmarks.wire import Request

SHARDS = (1, 4, 16, 64)
SPREADS = ((1, 1), (4, 1), (1, 4), (1, 16), (4, 16))  # workers, shards
_MEGABYTE = 1_048_576
_WORKERS = "llm-routerd"  # what the names of their connections begin with
_KEPT = {"appendonly": "yes", "appendfsync": "everysec", "auto-aof-rewrite-percentage": "0"}
_numbers = count()


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Requests whose cost is told by request.

    Attributes:
        key, title: of its rows.
        model, stream: as of `make_requests`.
        rate: so many a second, each followed from its beginning; 0: all at once, and only their ends awaited.
        requests: how many.
    """

    key: str
    title: str
    model: str
    stream: bool | str
    rate: int
    requests: int


def _short(rate: int, requests: int) -> Load:
    how = f"{rate}/s" if rate else "64 at once"
    key = f"short{rate or ''}"
    return Load(key=key, title=f"short request, {how}", model="short", stream=False, rate=rate, requests=requests)


def _trickle(rate: int, requests: int) -> Load:
    title = f"{TRICKLE_TOKENS} tokens 5 ms apart, {rate}/s"
    return Load(key=f"trickle{rate}", title=title, model="trickle", stream="live", rate=rate, requests=requests)


_LONG = Load(key="long", title=f"{LONG_TOKENS} tokens in one go", model="long", stream=True, rate=0, requests=300)
LOADS = (_short(0, 2500), _short(500, 1500), _short(100, 300), _LONG, _trickle(100, 300), _trickle(20, 80))


@dataclass(frozen=True, slots=True)
class Meter:
    """What primary and replica have used so far; bytes as the primary counts them, CPU in seconds."""

    to_workers: int
    from_workers: int
    to_others: int
    from_others: int
    file: int
    replica: int
    cpu: float
    replica_cpu: float
    worker_cpu: float

    def per(self, before: Meter, requests: int) -> dict[str, float]:
        """By request, since then; CPU in µs."""
        return {
            name: (getattr(self, name) - getattr(before, name)) / requests * (1e6 if name.endswith("cpu") else 1)
            for name in self.__slots__
        }


_TITLES = {
    "from_workers": ("worker to Redis", "bytes"),
    "to_workers": ("Redis to worker", "bytes"),
    "from_others": ("producer to Redis", "bytes"),
    "to_others": ("Redis to producer", "bytes"),
    "file": ("append-only file", "bytes"),
    "replica": ("to each replica", "bytes"),
    "cpu_alone": ("CPU of Redis with neither", "µs"),
    "cpu": ("CPU of Redis with file and replica", "µs"),
    "replica_cpu": ("CPU of the replica", "µs"),
    "worker_cpu": ("CPU of the worker", "µs"),
}


class _Primary:
    """A server with an append-only file and a replica."""

    def __init__(self, server: ValkeyProcess, replica: ValkeyProcess) -> None:
        self.server, self.replica = server, replica

    def read(self, worker: Process) -> Meter:
        with self.server.connect() as client:
            stats, persistence = client.info("stats"), client.info("persistence")
            ours = [each for each in client.client_list() if each["name"].startswith(_WORKERS)]
            offset = client.info("replication")["master_repl_offset"]
        to_workers = sum(int(each["tot-net-out"]) for each in ours)
        from_workers = sum(int(each["tot-net-in"]) for each in ours)
        return Meter(
            to_workers=to_workers,
            from_workers=from_workers,
            to_others=stats["total_net_output_bytes"] - stats["total_net_repl_output_bytes"] - to_workers,
            from_others=stats["total_net_input_bytes"] - stats["total_net_repl_input_bytes"] - from_workers,
            file=persistence["aof_current_size"],
            replica=offset,
            cpu=cpu_seconds_of(self.server.pid),
            replica_cpu=cpu_seconds_of(self.replica.pid),
            worker_cpu=worker.cpu_seconds(),
        )


@contextmanager
def _primary_with_replica() -> Iterator[_Primary]:
    with (
        running_valkey(_KEPT, tcp=True) as server,
        running_valkey({"replicaof": f"127.0.0.1 {server.port}", "repl-diskless-sync-delay": "0"}) as replica,
    ):
        waited_for(
            "a replica", lambda: replica.command("ROLE")[3] == "connected" or None, seconds=20, passing=RedisError
        )
        yield _Primary(server, replica)


async def measure_costs(bed: Bed, *, rounds: int) -> AsyncIterator[Row]:
    """Bytes and CPU by request: over the wire, into the file, to a replica; and CPU of a Redis that has neither."""
    prefix = f"costs{next(_numbers)}"
    async with AsyncExitStack() as stack:
        primary = stack.enter_context(_primary_with_replica())
        there = replace(bed, redis_url=primary.server.tcp_url, redis_pid=primary.server.pid)
        worker, _ = [stack.enter_context(Process(each, "daemon", prefix, 64)) for each in (there, bed)]
        producer, alone = [
            await stack.enter_async_context(Producer.of(each, "daemon", prefix)) for each in (there, bed)
        ]
        for load in LOADS:
            rows = {
                name: Row(key=f"cost_{load.key}_{name}", title=f"{load.title}: {title}", unit=unit)
                for name, (title, unit) in _TITLES.items()
            }
            for number in range(-1, rounds):
                before = primary.read(worker)
                await _carry_out(there, producer, load)
                costs = primary.read(worker).per(before, load.requests)
                began = bed.redis_cpu_seconds()
                await _carry_out(bed, alone, load)
                costs["cpu_alone"] = (bed.redis_cpu_seconds() - began) / load.requests * 1e6
                for name, row in rows.items() if number >= 0 else ():
                    row.add("daemon", costs[name])
            for row in rows.values():
                yield row


async def _carry_out(bed: Bed, producer: Producer, load: Load) -> None:
    requests = make_requests(load.requests, load.model, stream=load.stream)
    if not load.rate:
        await producer.add(requests)
        await asyncio.gather(*map(producer.ended, requests[-1:]))
        await producer.all_done()
        return
    followers = [await Follower.connect(bed.redis_url) for _ in range(32)]
    following: list[asyncio.Future[list[Event]]] = []
    for number, request in enumerate(requests):
        if number >= len(followers):
            check(requests[number - len(followers)], await following[number - len(followers)], Delivered())
        following.append(followers[number % len(followers)].follow(producer.key(request)))
        await producer.add([request])
        await asyncio.sleep(1 / load.rate)
    await asyncio.gather(*following)
    for follower in followers:
        follower.close()


async def measure_idle_shards(bed: Bed, *, seconds: float) -> AsyncIterator[Row]:
    """What shards cost that nobody uses: a worker that serves them, and the Redis that has them."""
    empty = await _cpu_in(seconds, bed.redis_cpu_seconds)
    for shards in SHARDS:
        title = f"idle worker that serves {shards} shards"
        with Process(bed, "daemon", f"idle{next(_numbers)}", 64, redis=f"shards = {shards}\n") as worker:
            await asyncio.sleep(2)
            ours, theirs = await asyncio.gather(
                _cpu_in(seconds, worker.cpu_seconds), _cpu_in(seconds, bed.redis_cpu_seconds)
            )
            figures = {
                f"CPU of {title}": ("cpu", "% of a core", ours),
                f"CPU of Redis for an {title}": ("redis_cpu", "% of a core", theirs - empty),
                f"memory of an {title}": ("rss", "MB", worker.rss_bytes() / _MEGABYTE),
            }
        for name, (key, unit, value) in figures.items():
            row = Row(key=f"idle_{shards}_{key}", title=name, unit=unit)
            row.add("daemon", value)
            yield row


async def measure_idle_cluster(*, seconds: float) -> AsyncIterator[Row]:
    """What a node of a Cluster costs that nobody uses."""
    with running_cluster(config={"cluster-node-timeout": "15000"}) as cluster:
        await asyncio.sleep(2)
        used = await _cpu_in(seconds, lambda: sum(cpu_seconds_of(node.pid) for node in cluster.nodes))
        nodes = len(cluster.nodes)
    row = Row(key="idle_node", title=f"CPU of an idle node of a Cluster of {nodes}", unit="% of a core")
    row.add("daemon", used / nodes)
    yield row


async def _cpu_in(seconds: float, read: Callable[[], float]) -> float:
    """In percent of a core."""
    before, began = read(), time.perf_counter()
    await asyncio.sleep(seconds)
    return (read() - before) / (time.perf_counter() - began) * 100


async def measure_spread(bed: Bed, *, rounds: int, rate: int, seconds: float) -> AsyncIterator[Row]:
    """CPU by request of one Redis and of all workers, at one rate in all, spread over workers and shards."""
    async with AsyncExitStack() as stack:
        spreads = {(workers, shards): await _Spread.enter(stack, bed, workers, shards) for workers, shards in SPREADS}
        rows: dict[tuple[int, int], tuple[Row, Row]] = {}
        for workers, shards in spreads:
            title = f"{rate} short requests/s, {workers} workers, {shards} shards"
            rows[workers, shards] = (
                Row(key=f"spread_{workers}_{shards}_redis", title=f"{title}: CPU of Redis per request", unit="µs"),
                Row(key=f"spread_{workers}_{shards}", title=f"{title}: CPU of the workers per request", unit="µs"),
            )
        for number in range(-1, rounds):
            for size, spread in spreads.items():
                costs = await spread.trickle(bed, rate, seconds if number >= 0 else 1.0)
                for row, cost in zip(rows[size], costs, strict=True) if number >= 0 else ():
                    row.add("daemon", cost * 1e6)
    for pair in rows.values():
        for row in pair:
            yield row


class _Spread:
    """Some workers that serve all of some shards, and a producer for each of these."""

    def __init__(self, layout: Layout, processes: list[Process], producers: list[Producer]) -> None:
        self._layout, self._processes, self._producers = layout, processes, producers

    @classmethod
    async def enter(cls, stack: AsyncExitStack, bed: Bed, workers: int, shards: int) -> _Spread:
        layout = Layout(f"spread{next(_numbers)}", shards)
        more = f"shards = {shards}\n"
        processes = [stack.enter_context(Process(bed, "daemon", layout.prefix, 64, redis=more)) for _ in range(workers)]
        producers = [await stack.enter_async_context(Producer.of(bed, "daemon", keys.prefix)) for keys in layout.keys]
        return cls(layout, processes, producers)

    async def trickle(self, bed: Bed, rate: int, seconds: float) -> tuple[float, float]:
        """Seconds of CPU by request, of Redis and of all workers; all answers are checked."""
        requests = make_requests(round(rate * seconds), "short")
        clock = asyncio.get_running_loop().time
        before, began = (bed.redis_cpu_seconds(), self._cpu_seconds()), clock()
        for number, request in enumerate(requests):
            await asyncio.sleep(began + number / rate - clock())
            await self._producer_of(request).add([request])
        await asyncio.gather(*(producer.all_done() for producer in self._producers))
        after = bed.redis_cpu_seconds(), self._cpu_seconds()
        for producer in self._producers:
            await producer.check_all([each for each in requests if self._producer_of(each) is producer])
        return (after[0] - before[0]) / len(requests), (after[1] - before[1]) / len(requests)

    def _cpu_seconds(self) -> float:
        return sum(process.cpu_seconds() for process in self._processes)

    def _producer_of(self, request: Request) -> Producer:
        return self._producers[self._layout.shard_of(request.id)]
