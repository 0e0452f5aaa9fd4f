"""A queue is spread over more shards while requests come: workers one by one, producers in the middle."""

from __future__ import annotations

import asyncio
import os
import signal

from llm_routerd.protocol.keys import Layout
from tests.chaos.world import World
from tests.support.servers import ValkeyProcess
from tests.topology.producers import Subscribers
from tests.topology.verdict import judge

SECONDS = 12.0
REQUESTS = 150
OLD, NEW = Layout("llm", 1), Layout("llm", 3)
CALM_SECONDS = 30.0


async def grow(world: World, subscribers: Subscribers) -> list[int]:
    """Restart the workers one by one, so that they serve both layouts; returns their exit statuses."""
    statuses = []
    for number, slot in enumerate(world.slots):
        await asyncio.sleep(SECONDS / (len(world.slots) + 2))
        if number == 1:
            subscribers.layout = NEW
        slot.signal(signal.SIGTERM)
        statuses.append(await slot.ended())
        world.configure(number, f'prefix = "{NEW.prefix}"\nshards = {NEW.shards}\ndraining = [{OLD.shards}]')
        slot.start()
    return statuses


async def test_no_request_is_lost_when_a_queue_grows_under_load() -> None:
    """Each has one answer, by one call, in the layout that it was asked in; the old one is empty at the end."""
    seed = int(os.environ.get("SEED", "20261128"))
    async with World(server := ValkeyProcess(tcp=True)) as world:
        subscribers = Subscribers(server.url, OLD, seed)
        async with asyncio.timeout(SECONDS + CALM_SECONDS), asyncio.TaskGroup() as group:
            growing = group.create_task(grow(world, subscribers))
            group.create_task(subscribers.run(REQUESTS, SECONDS))
        findings = await asyncio.to_thread(judge, world, lambda _: server, subscribers.asked, [])
        told = "\n".join([f"seed {seed}", *findings.faults, world.worker_log()])
    assert not findings.faults, told
    assert growing.result() == [0, 0, 0], told
    assert {each.layout for each in subscribers.asked} == {OLD, NEW}
