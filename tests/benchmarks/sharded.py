"""Shards of a Cluster: what a request costs a worker when there are more of both."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING

from redis.crc import key_slot

from llm_routerd.protocol.keys import Layout
from tests.benchmarks.load import Producer
from tests.benchmarks.systems import Bed, Process
from tests.benchmarks.table import Row, Target
from tests.benchmarks.wire import Request
from tests.support.clusters import running_cluster

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.support.clusters import Cluster

SHARDS = 4
AT_ONCE = 4  # requests that a producer adds together
_numbers = count()


async def measure_shards(bed: Bed, *, rounds: int, rate: int, seconds: float) -> AsyncIterator[Row]:
    """CPU per request of four workers on four shards of a Cluster, one each, against one on one, in turn.

    Each worker gets as many requests a second, and all of them together less than the machine can do: what is measured
    is what a request costs, and not what it costs to wait for one of two cores.
    """
    title = (
        f"{SHARDS} workers on {SHARDS} shards of a Cluster, {rate} requests/s each: CPU per request against one on one"
    )
    row = Row(key="shards_cpu", title=title, unit="of one", target=Target.at_most(1.1))
    with running_cluster() as cluster:
        async with AsyncExitStack() as stack:
            many = [await _Member.enter(stack, bed, cluster, "many", shard) for shard in range(SHARDS)]
            one = [await _Member.enter(stack, bed, cluster, "one", 0)]
            for number in range(-1, rounds):
                alone, together = (
                    await _cpu_per_request(one, rate, seconds),
                    await _cpu_per_request(many, rate, seconds),
                )
                if number >= 0:
                    row.add("daemon", together / alone)
    yield row


async def _cpu_per_request(team: list[_Member], rate: int, seconds: float) -> float:
    """All of them at once."""
    before = sum(member.process.cpu_seconds() for member in team)
    done = await asyncio.gather(*(member.trickle(rate, seconds) for member in team))
    return (sum(member.process.cpu_seconds() for member in team) - before) / sum(done)


class _Member:
    """A worker and the producer of its shard."""

    def __init__(self, process: Process, producer: Producer, layout: Layout, shard: int) -> None:
        self.process = process
        self._producer = producer
        self._ids = _ids_of(layout, shard)

    @classmethod
    async def enter(cls, stack: AsyncExitStack, bed: Bed, cluster: Cluster, prefix: str, shard: int) -> _Member:
        layout = Layout(prefix, SHARDS)
        keys = layout.keys[shard]
        node = cluster.node_of(key_slot(keys.dead.encode()))
        there = replace(bed, redis_url=f"redis://127.0.0.1:{node.port}/0")
        redis = f"shards = {SHARDS}\nserve = [{shard}]\n"
        process = stack.enter_context(Process(there, "daemon", prefix, 64, redis=redis))
        producer = await stack.enter_async_context(Producer.of(there, "daemon", keys.prefix))
        return cls(process, producer, layout, shard)

    async def trickle(self, rate: int, seconds: float) -> int:
        """So many short requests a second, each checked at the end; returns how many."""
        batch = [Request(id=next(self._ids), model="short") for _ in range(round(rate * seconds))]
        clock = asyncio.get_running_loop().time
        began = clock()
        for number in range(0, len(batch), AT_ONCE):
            await asyncio.sleep(began + number / rate - clock())
            await self._producer.add(batch[number : number + AT_ONCE])
        await self._producer.check_all(batch)
        return len(batch)


def _ids_of(layout: Layout, shard: int) -> Iterator[str]:
    """Ids of that shard that no others have."""
    ids = (f"s{number}" for number in _numbers)
    return (each for each in ids if layout.shard_of(each) == shard)
