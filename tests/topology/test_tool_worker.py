"""Tool workers of a queue that several servers have, of which one fails."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from redis.crc import key_slot

from llm_routerd import ToolRequest  # noqa: TC001 - signatures are read at run time
from llm_routerd.protocol.keys import Layout
from tests.support.toolcalls import make_worker, open_caller, serving

if TYPE_CHECKING:
    from llm_routerd import ToolWorker
    from tests.support.clusters import Cluster
    from tests.support.sentinels import Sentinels


def acting(worker: ToolWorker) -> list[str]:
    """A tool that acts, and what it has acted on."""
    acted: list[str] = []

    @worker.tool
    async def act(call: ToolRequest) -> str:
        """Act."""
        acted.append(call.call_id)
        return "acted"

    return acted


async def test_each_shard_of_a_cluster_is_served_and_goes_on_after_its_primary_was_killed(cluster: Cluster) -> None:
    """MOVED leads to where it is; the others notice nothing."""
    layout = Layout("{llm}", 3)
    worker, _ = make_worker(cluster.url, prefix="{llm}", shards=3)
    acted = acting(worker)
    slots = [key_slot(keys.tools.encode()) for keys in layout.keys]
    async with serving(worker), asyncio.timeout(90):
        for number, keys in enumerate(layout.keys):
            node = await asyncio.to_thread(cluster.node_of, slots[number])
            async with open_caller(f"redis://127.0.0.1:{node.port}", keys=keys) as caller:
                await caller.until_registered("act")
                assert await caller.asked("act", call_id=f"before-{number}") == {"result": "acted"}
        node = await asyncio.to_thread(cluster.failover, slots[0])
        await asyncio.to_thread(cluster.settled)
        async with open_caller(f"redis://127.0.0.1:{node.port}", keys=layout.keys[0], request_id="moved") as caller:
            assert await caller.asked("act", call_id="moved") == {"result": "acted"}
        await asyncio.to_thread(cluster.kill, node)
        node = await asyncio.to_thread(cluster.promoted, slots[0], node)
        async with open_caller(f"redis://127.0.0.1:{node.port}", keys=layout.keys[0], request_id="killed") as caller:
            assert await caller.asked("act", call_id="killed") == {"result": "acted"}
    assert acted == ["before-0", "before-1", "before-2", "moved", "killed"]


async def test_worker_follows_a_failover_that_sentinels_lead(sentinels: Sentinels) -> None:
    """What was called at the new primary is answered there."""
    worker, _ = make_worker(sentinels.url)
    acted = acting(worker)
    async with serving(worker), asyncio.timeout(90):
        node = await asyncio.to_thread(sentinels.primary)
        async with open_caller(f"redis://127.0.0.1:{node.port}") as caller:
            await caller.until_registered("act")
            assert await caller.asked("act", call_id="before") == {"result": "acted"}
        killed = await asyncio.to_thread(sentinels.kill_primary)
        node = await asyncio.to_thread(sentinels.promoted, killed)
        async with open_caller(f"redis://127.0.0.1:{node.port}", request_id="after") as caller:
            assert await caller.asked("act", call_id="after") == {"result": "acted"}
    assert acted == ["before", "after"]
