"""A primary fails over, a slot moves: workers and clients go on there, on real servers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace
from redis.crc import key_slot
from structlog.testing import capture_logs

from llm_routerd.client import Client
from llm_routerd.protocol.keys import Layout
from tests.support.binaries import server_binary
from tests.support.clusters import cluster
from tests.support.eventually import eventually
from tests.support.fakes import FakeBackend, says
from tests.support.sentinels import sentinels
from tests.support.workers import DAEMON, make_config, run_worker

if TYPE_CHECKING:
    from collections.abc import Callable

    from llm_routerd.config.tree import Config
    from tests.support.clusters import Cluster
    from tests.support.sentinels import Sentinels

__all__ = ["cluster", "sentinels", "server_binary"]

CONFIG = replace(make_config(daemon=replace(DAEMON, lease_seconds=4.0, drain_seconds=5.0)))
LAYOUT = Layout("llm", 3)


def sharded() -> Config:
    """Three shards."""
    return replace(CONFIG, redis=replace(CONFIG.redis, shards=LAYOUT.shards))


async def answered(client: Client, request_id: str, **request: Any) -> str:
    """Submit, and again by its id where a failover has lost it, until there is an end; its type."""
    for _ in range(20):
        await client.submit(id=request_id, prompt="hello", **request)
        try:
            return (await client.result(request_id, timeout_seconds=2.0)).type
        except TimeoutError:
            continue
    raise AssertionError("never answered")


async def all_answered(client: Client, prefix: str, count: int = 20) -> None:
    """So many requests, each with a result."""
    ends = await asyncio.gather(*(answered(client, f"{prefix}{number}", stream=True) for number in range(count)))
    assert ends == ["result"] * count


def kill(sentinels: Sentinels) -> None:
    """SIGKILL of the primary."""
    sentinels.promoted(sentinels.kill_primary())


def stop(sentinels: Sentinels) -> None:
    """SIGSTOP of the primary."""
    sentinels.promoted(sentinels.stop_primary())


def hand_over(sentinels: Sentinels) -> None:
    """SENTINEL FAILOVER."""
    sentinels.failover()


@pytest.mark.parametrize("fail", [hand_over, kill, stop])
async def test_worker_and_client_follow_a_primary_that_fails_over(
    sentinels: Sentinels, fail: Callable[[Sentinels], None]
) -> None:
    """Whatever happens to the old one; the Sentinels of the URL are all that is known."""
    model = FakeBackend(says("one ", "two ", "three", delay=0.02))
    with capture_logs() as logs:
        async with (
            run_worker(sentinels.url, {"local": model}, config=CONFIG) as worker,
            Client(sentinels.url, patience_seconds=30) as client,
        ):
            await all_answered(client, "before")
            failing = asyncio.create_task(asyncio.to_thread(fail, sentinels))
            await all_answered(client, "during")
            await failing
            await all_answered(client, "after")
            await eventually(lambda: worker.status().ready)
    assert [line for line in logs if line["log_level"] == "error"] == []


async def test_hung_primary_is_left_as_soon_as_it_has_a_successor(sentinels: Sentinels) -> None:
    """And not only when its silence has lasted for as long as any server's may."""
    async with run_worker(sentinels.url, {"local": FakeBackend(says("hi"))}, config=CONFIG) as worker:
        (shard,) = worker.shards
        generation = shard.pipe.generation
        await asyncio.to_thread(stop, sentinels)
        successor = asyncio.get_running_loop().time()
        await eventually(lambda: shard.pipe.generation > generation and worker.status().ready)
        assert asyncio.get_running_loop().time() - successor < 5.0


def fail_over(cluster: Cluster, slot: int) -> None:
    """CLUSTER FAILOVER."""
    cluster.failover(slot)


def kill_node(cluster: Cluster, slot: int) -> None:
    """SIGKILL of the node that has it."""
    node = cluster.node_of(slot)
    cluster.kill(node)
    cluster.promoted(slot, node)


def move(cluster: Cluster, slot: int) -> None:
    """Its keys go to another node one by one."""
    here = cluster.node_of(slot)
    others = (cluster.node_of(key_slot(keys.dead.encode())) for keys in LAYOUT.keys)
    there = next((node for node in others if node is not here), None) or cluster.node_of((slot + 6000) % 16384)
    cluster.move_slot(slot, there, pause_seconds=0.01)


@pytest.mark.parametrize("fail", [fail_over, kill_node, move])
async def test_worker_and_client_follow_a_slot_to_another_node(
    cluster: Cluster, fail: Callable[[Cluster, int], None]
) -> None:
    """The seed of the URL is the very node that fails."""
    slot = key_slot(LAYOUT.keys[0].dead.encode())
    seed = f"redis+cluster://127.0.0.1:{cluster.node_of(slot).port}"
    model = FakeBackend(says("one ", "two ", "three", delay=0.02))
    with capture_logs() as logs:
        async with run_worker(seed, {"local": model}, config=sharded()) as worker:
            await submit_all(cluster, "before")
            failing = asyncio.create_task(asyncio.to_thread(fail, cluster, slot))
            await submit_all(cluster, "during")
            await failing
            await submit_all(cluster, "after")
            await eventually(lambda: worker.status().ready)
    assert [line for line in logs if line["log_level"] == "error"] == []


async def submit_all(cluster: Cluster, prefix: str, count: int = 20) -> None:
    """By a client for each shard; requests go where their ids belong."""
    clients = [Client(cluster.url, prefix=keys.prefix, patience_seconds=30) for keys in LAYOUT.keys]
    try:
        ids = [f"{prefix}{number}" for number in range(count)]
        ends = await asyncio.gather(*(answered(clients[LAYOUT.shard_of(each)], each) for each in ids))
        assert ends == ["result"] * count
    finally:
        for client in clients:
            await client.aclose()
