"""A queue is spread over more shards while requests come: workers one by one, producers in the middle."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING

from llm_routerd.client import Client
from llm_routerd.protocol.keys import Layout
from tests.chaos.world import World
from tests.support.servers import ValkeyProcess
from tests.topology.producers import Subscribers
from tests.topology.sites import ClusterSite
from tests.topology.verdict import judge

if TYPE_CHECKING:
    from collections.abc import Callable

    from llm_routerd.protocol.keys import Keys
    from tests.chaos.world import Server

SECONDS = 12.0
REQUESTS = 150
CALM_SECONDS = 30.0


async def grow(world: World, subscribers: Subscribers, old: Layout, new: Layout) -> list[int]:
    """Restart the workers one by one, so that they serve both layouts; returns their exit statuses.

    Of the producers some know the new layout when the first worker does, some only when the last has for a while.
    """
    statuses = []
    for number, slot in enumerate(world.slots):
        await slot.ready()
        await asyncio.sleep(SECONDS / (len(world.slots) + 3))
        slot.signal(signal.SIGTERM)
        statuses.append(await slot.ended())
        world.configure(number, f'prefix = "{new.prefix}"\nshards = {new.shards}\ndraining = [{old.shards}]')
        slot.start()
        subscribers.layouts = (old, new)
    await asyncio.sleep(SECONDS / (len(world.slots) + 3))
    subscribers.layouts = (new,)
    return statuses


async def grown(server: Server, primary: Callable[[Keys], ValkeyProcess], prefix: str) -> None:
    """Each request has one answer, by one call, in the layout that it was asked in, and nothing is left in either."""
    seed = int(os.environ.get("SEED", "20261128"))
    old, new = Layout(prefix, 1), Layout(prefix, 3)
    async with World(server, redis=f'prefix = "{prefix}"', channel=f"{prefix}_router_metrics") as world:
        subscribers = Subscribers(server.url, old, seed)
        async with asyncio.timeout(SECONDS + CALM_SECONDS), asyncio.TaskGroup() as group:
            growing = group.create_task(grow(world, subscribers, old, new))
            group.create_task(subscribers.run(REQUESTS, SECONDS))
        async with Client(server.url, prefix=prefix, shards=new.shards, draining=[old.shards]) as client:
            forgotten = [each.name for each in subscribers.asked if await client.final(each.name) is None]
        findings = await asyncio.to_thread(judge, world, primary, subscribers.asked, [])
        told = "\n".join([f"seed {seed}", *findings.faults, world.worker_log()])
    assert not findings.faults, told
    assert forgotten == []
    assert growing.result() == [0, 0, 0], told
    assert {each.layout for each in subscribers.asked} == {old, new}


async def test_no_request_is_lost_when_a_queue_grows_under_load() -> None:
    """On one server, where the old keys have no hash tag."""
    server = ValkeyProcess(tcp=True)
    await grown(server, lambda _: server, "llm")


async def test_no_request_is_lost_when_a_queue_grows_over_a_cluster() -> None:
    """From the one node that had it to all."""
    site = ClusterSite(None, Layout("{llm}", 3))
    await grown(site, site.primary, "{llm}")
