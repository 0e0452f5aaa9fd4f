"""A run with tools on a queue that several servers have, of which one fails while it waits."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from msgspec.structs import replace
from redis.crc import key_slot

from llm_routerd import ToolWorker
from llm_routerd.client import Client, Result, ToolCalled
from llm_routerd.protocol.keys import Layout
from tests.support.fakes import FakeBackend
from tests.support.runs import answers, calls, turns
from tests.support.toolcalls import serving
from tests.support.wire import eventually_true
from tests.support.workers import make_config, run_worker

if TYPE_CHECKING:
    from tests.support.clusters import Cluster

SHARDS = 3


async def test_run_waits_through_the_loss_of_its_shards_primary(cluster: Cluster) -> None:
    """In each shard one: called, confirmed after the failover of one of them, answered; no model is asked twice."""
    layout = Layout("{llm}", SHARDS)
    config = make_config(cluster.url)
    config = replace(config, redis=replace(config.redis, url=cluster.url, prefix="{llm}", shards=SHARDS))
    model = FakeBackend(turns(calls("switch", lamp="hall"), answers("done")))
    tools = ToolWorker(cluster.url, prefix="{llm}", shards=SHARDS)
    acted: list[str] = []

    @tools.tool(confirm=True)
    async def switch(lamp: str) -> str:
        """Switch a lamp."""
        acted.append(lamp)
        return "on"

    ids = [next(f"r{n}" for n in range(1000) if layout.shard_of(f"r{n}") == shard) for shard in range(SHARDS)]
    async with (
        asyncio.timeout(100),
        serving(tools),
        run_worker(cluster.url, {"local": model}, config=config),
        Client(cluster.url, prefix="{llm}", shards=SHARDS) as client,
    ):
        await eventually_true(lambda: _is_registered(client))
        for request_id in ids:
            await client.submit(id=request_id, prompt="Light!", agent={"tools": ["switch"]})
        asked = [await _asked(client, request_id) for request_id in ids]
        slot = key_slot(layout.keys[0].tools.encode())
        node = await asyncio.to_thread(cluster.failover, slot)
        await asyncio.to_thread(cluster.settled)
        await asyncio.to_thread(cluster.kill, node)
        await asyncio.to_thread(cluster.promoted, slot, node)
        for request_id, call in zip(ids, asked, strict=True):
            word = {"confirm": call.call_id, "args_sha256": call.args_sha256, "by": "ada"}
            await client.consent(request_id, word)
        ends = [await client.result(request_id) for request_id in ids]
        assert [(type(end), end.data.get("turns")) for end in ends] == [(Result, 2)] * SHARDS
    assert acted == ["hall"] * SHARDS
    assert len(model.calls) == 2 * SHARDS


async def _is_registered(client: Client) -> bool:
    return bool((await client.tools()).tools)


async def _asked(client: Client, request_id: str) -> ToolCalled:
    async for event in client.follow(request_id):
        if isinstance(event, ToolCalled):
            return event
    raise AssertionError("the run has ended")
