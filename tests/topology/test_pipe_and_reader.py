"""The two connections of a shard, on real servers that fail over: what is sent arrives once, what is added is read."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from redis.crc import key_slot

from llm_routerd.protocol.keys import Keys
from llm_routerd.queue.broker import Broker
from llm_routerd.queue.connection import ConnectionFactory, Pipe, ResponseError, whereabouts_of
from llm_routerd.queue.connection.factory import is_passed
from llm_routerd.queue.reader import Reader
from tests.support.binaries import server_binary
from tests.support.clusters import cluster
from tests.support.eventually import eventually
from tests.support.queue import LIMITS
from tests.support.sentinels import sentinels

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

    from tests.support.clusters import Cluster
    from tests.support.sentinels import Sentinels
    from tests.support.servers import ValkeyProcess

__all__ = ["cluster", "sentinels", "server_binary"]

KEYS = Keys("{llm}")
EVENTS, LANE = KEYS.events("a"), KEYS.requests("normal")
SLOT = int(key_slot(LANE.encode()))


class Line:
    """A pipe that writes, and a reader that has read what is in `read`."""

    def __init__(self, url: str) -> None:
        whereabouts = whereabouts_of(url, KEYS.dead)
        makers = [ConnectionFactory(url, client_name=name, whereabouts=whereabouts) for name in ("pipe", "read")]
        self.pipe = Pipe(makers[0])
        self.broker = Broker(self.pipe, KEYS, consumer="w1", limits=LIMITS)
        self.reader = Reader(makers[1], self.broker)
        self.read: set[int] = set()
        self.whereabouts = whereabouts

    async def add(self, numbers: Iterable[int]) -> None:
        """An event and a request of each number, by commands that may be repeated."""
        await asyncio.gather(*(self._once(key, number) for number in numbers for key in (EVENTS, LANE)))

    async def _once(self, key: str, number: int) -> None:
        try:
            await self.pipe.call("XADD", key, f"{number}-1", "prompt", "hello")
        except ResponseError as refusal:
            if not is_passed(refusal):  # it has been there before its reply was lost
                raise

    async def run(self) -> None:
        """Read for ever."""
        while True:
            self.read |= {int(delivery.entry.partition("-")[0]) for delivery in await self.reader.read(100)}


@asynccontextmanager
async def running_line(url: str) -> AsyncIterator[Line]:
    """One whose connections stand."""
    line = Line(url)
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(line.pipe.run())]
        await line.broker.create_groups()
        running.append(tasks.create_task(line.run()))
        try:
            yield line
        finally:
            for task in running:
                task.cancel()
    await line.reader.aclose()


def standing(server: ValkeyProcess, key: str) -> list[int]:
    """The numbers that were added, in their order."""
    return [int(entry[0].partition("-")[0]) for entry in server.command("XRANGE", key, "-", "+")]


async def assert_all_there(line: Line, find: Callable[[], ValkeyProcess], numbers: Iterable[int]) -> None:
    """Each number once in either stream, and read."""
    wanted = list(numbers)
    server = await asyncio.to_thread(find)
    for key in (EVENTS, LANE):
        assert await asyncio.to_thread(standing, server, key) == wanted
    await eventually(lambda: line.read == set(wanted))


async def test_what_is_sent_while_the_primary_hangs_or_is_dead_arrives_at_its_successor(sentinels: Sentinels) -> None:
    """SIGSTOP, then SIGKILL, with replicas that have all that was answered before."""
    async with running_line(sentinels.url) as line:
        done = 0
        for fail in (sentinels.stop_primary, sentinels.kill_primary):
            await line.add(range(done + 1, done + 21))
            await asyncio.to_thread(_replicated, sentinels)
            before = await asyncio.to_thread(fail)
            adding = asyncio.create_task(line.add(range(done + 21, done + 41)))
            await asyncio.to_thread(sentinels.promoted, before)
            async with asyncio.timeout(6):
                await adding
            done += 40
            await assert_all_there(line, sentinels.primary, range(1, done + 1))
            if fail == sentinels.stop_primary:
                sentinels.cont(before)
                await asyncio.to_thread(sentinels.settled)


def _replicated(sentinels: Sentinels) -> None:
    sentinels.settled()
    assert sentinels.primary().command("WAIT", 2, 5000) == 2


async def test_primary_that_does_not_know_of_its_successor_is_left(sentinels: Sentinels) -> None:
    """It is told only after seconds, and takes writes until then: they would be thrown away."""
    for sentinel in sentinels.sentinels:
        sentinel.command("SENTINEL", "DEBUG", "publish-period", "3000")  # a quarter of the time until it is told
    async with running_line(sentinels.url) as line:
        await line.add(range(1, 21))
        await asyncio.to_thread(_replicated, sentinels)
        before = await asyncio.to_thread(sentinels.primary)
        after = await asyncio.to_thread(sentinels.failover)
        await eventually(lambda: _asks_at(line, after))
        assert (await asyncio.to_thread(before.command, "ROLE"))[0] == "master"
        await line.add(range(21, 41))
        await assert_all_there(line, lambda: after, range(1, 41))


def _asks_at(line: Line, server: ValkeyProcess) -> bool:
    connection: Any = line.pipe._connection
    return connection is not None and connection.port == server.port


async def test_slot_is_followed_through_a_cluster(cluster: Cluster) -> None:
    """CLUSTER FAILOVER of the seed's slots, the slot on the move, SIGKILL of who has it: commands run all the time."""
    seed = await asyncio.to_thread(cluster.node_of, SLOT)
    async with running_line(f"redis+cluster://127.0.0.1:{seed.port}") as line:
        for first, fail in ((1, _fail_over), (201, _move)):
            failing = asyncio.create_task(asyncio.to_thread(fail, cluster))
            for number in range(first, first + 200):
                await line.add([number])
                await asyncio.sleep(0.01)
            await failing
            await assert_all_there(line, lambda: cluster.node_of(SLOT), range(1, first + 200))
            await asyncio.to_thread(cluster.settled)
        node = await asyncio.to_thread(cluster.node_of, SLOT)
        await asyncio.to_thread(cluster.kill, node)
        adding = asyncio.create_task(line.add(range(401, 421)))
        await asyncio.to_thread(cluster.promoted, SLOT, node)
        async with asyncio.timeout(6):
            await adding
        await assert_all_there(line, lambda: cluster.node_of(SLOT), range(1, 421))


def _fail_over(cluster: Cluster) -> None:
    """No command that was answered is lost by it."""
    cluster.failover(SLOT)


def _move(cluster: Cluster) -> None:
    """To another node, key by key, slowly."""
    cluster.settled()
    here = cluster.node_of(SLOT)
    there = next(node for node in cluster.primaries() if node is not here)
    cluster.move_slot(SLOT, there, pause_seconds=0.05)
