"""What a request, a token and an idle shard cost Redis, its disk, its replica and the network: figures to plan with."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING

from redis import RedisError

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

SHARDS = (1, 4, 16, 64)
TEAMS = (1, 2, 4)
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


async def measure_team(bed: Bed, *, rounds: int, requests: int) -> AsyncIterator[Row]:
    """CPU of one Redis by request with more and more workers, each with all it can do."""
    rows = [
        Row(key=f"team_{size}_redis", title=f"CPU of Redis per short request, {size} workers", unit="µs")
        for size in TEAMS
    ]
    async with AsyncExitStack() as stack:
        teams = []
        for size in TEAMS:
            prefix = f"team{next(_numbers)}"
            for _ in range(size):
                stack.enter_context(Process(bed, "daemon", prefix, 64))
            teams.append(await stack.enter_async_context(Producer.of(bed, "daemon", prefix)))
        for number in range(-1, rounds):
            for producer, row in zip(teams, rows, strict=True):
                batch = make_requests(requests, "short")
                before = bed.redis_cpu_seconds()
                await producer.add(batch)
                await producer.all_done()
                if number >= 0:
                    row.add("daemon", (bed.redis_cpu_seconds() - before) / requests * 1e6)
                await producer.check_all(batch)
    for row in rows:
        yield row
