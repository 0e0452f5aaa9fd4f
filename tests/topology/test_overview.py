"""What the gateway's page shows of a queue that is spread over the nodes of a Cluster."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from msgspec.structs import replace

from llm_routerd.client import Client
from llm_routerd.gateway.admission import Caller
from llm_routerd.gateway.http.overviews import Overviews
from tests.support.fakes import FakeBackend, hangs, says
from tests.support.workers import make_config, run_worker

if TYPE_CHECKING:
    from collections.abc import Callable

    from llm_routerd.gateway.overview import Overview
    from tests.support.clusters import Cluster


async def test_all_shards_are_seen_as_one_house(cluster: Cluster) -> None:
    """What has ended, what runs and what waits, wherever its keys are; nothing is counted for each shard."""
    url = cluster.seeds[1]
    config = make_config(url)
    patient = replace(config.deployments["local"], timeout=60.0, idle_timeout=60.0)
    config = replace(
        config,
        redis=replace(config.redis, shards=8),
        daemon=replace(config.daemon, concurrency=8),
        deployments={**config.deployments, "local": patient},
    )
    backend = FakeBackend(*[says("blue")] * 6, hangs())
    async with Client(url, shards=8) as client, asyncio.timeout(60):
        looks = Overviews(client)

        async def until(condition: Callable[[Overview], bool]) -> Overview:
            while not condition(seen := await looks.see(config, Caller())):  # noqa: ASYNC110 - of another process
                await asyncio.sleep(0.1)
            return seen

        async with run_worker(url, {"local": backend}, config=config):
            ended = [await client.submit(prompt="Why?") for _ in range(6)]
            for request_id in ended:
                await client.result(request_id)
            asked = {await client.submit(prompt="Why?") for _ in range(20)}
            seen = await until(lambda seen: seen.lanes[1].waiting > 0 and len(seen.running) == seen.lanes[1].running)
            assert len(seen.running) + seen.lanes[1].waiting == len(asked)
            assert {each.id for each in seen.running} < asked
            assert (seen.today.sums.requests, seen.deployments[0].answers) == (6, 6)
            assert [(each.name, each.running) for each in seen.workers or ()] == [("w1", len(seen.running))]
            assert seen.lanes[1].oldest_ms is not None
            for request_id in asked:
                await client.cancel(request_id)
    for node in cluster.primaries():
        node.command("FLUSHALL")
