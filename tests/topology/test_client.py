"""A client whose queue is spread over the nodes of a Cluster, or whose primary dies."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from llm_routerd.client import Client
from llm_routerd.protocol.keys import Layout
from tests.support.sentinels import running_sentinels

if TYPE_CHECKING:
    from tests.support.clusters import Cluster

IDS = [f"r{number}" for number in range(12)]


async def kinds(client: Client, request_id: str) -> list[str]:
    """The types of a request's events, up to its end."""
    return [event.type async for event in client.follow(request_id)]


async def test_shards_are_found_on_the_nodes_of_a_cluster(cluster: Cluster) -> None:
    """By any node, with a plain URL as well, and again where one of them has failed over."""
    for url in (cluster.seeds[1], cluster.seeds[1].replace("redis+cluster://", "redis://")):
        async with Client(url, shards=8, prefix="queue") as client, asyncio.timeout(60):
            for request_id in IDS:
                await client.submit(id=request_id, prompt="Why?")
            assert (await client.lanes())[1].waiting == len(IDS)
            assert (await client.cancel("r1")).type == "cancelled"
            following = asyncio.create_task(kinds(client, "r2"))
            await asyncio.sleep(0.2)
            keys = Layout("queue", 8).keys_of("r2")
            slot = cluster.nodes[0].command("CLUSTER", "KEYSLOT", keys.dead)
            await asyncio.to_thread(cluster.failover, slot)
            assert (await client.cancel("r2")).type == "cancelled"
            assert await following == ["cancelled"]
        for node in cluster.primaries():
            node.command("FLUSHALL")


async def test_failover_loses_neither_a_request_nor_a_follower(server_binary: Any) -> None:
    """The primary dies while one follows and another submits; the id makes a second try the same request."""
    with running_sentinels(server_binary) as service:
        async with Client(service.url, shards=2) as client, asyncio.timeout(60):
            await client.submit(id="r1", prompt="Why?")
            await client.redis.execute_command("WAIT", 2, 5000)  # type: ignore[no-untyped-call]  # redis-py
            following = asyncio.create_task(kinds(client, "r1"))
            await asyncio.sleep(0.2)
            dead = await asyncio.to_thread(service.kill_primary)
            submitting = asyncio.create_task(client.submit(id="r2", prompt="Why?"))
            await asyncio.to_thread(service.promoted, dead)
            assert await submitting == "r2"
            assert (await client.lanes())[1].waiting == 2
            await client.cancel("r1")
            assert await following == ["cancelled"]
