"""Producers and workers of a queue that is spread over shards, which mean the same shard by the same id."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from llm_routerd.client import Client
from tests.support.fakes import FakeBackend, says
from tests.support.workers import make_config, run_worker

if TYPE_CHECKING:
    from llm_routerd.config.tree import Config

ANSWERS = 24


def layout(**redis: Any) -> Config:
    """A configuration with this layout."""
    config = make_config()
    return replace(config, redis=replace(config.redis, **redis))


async def test_what_is_submitted_is_answered_and_found(broker_url: str) -> None:
    """With an id, and without one in whichever lane of whichever shard."""
    async with (
        asyncio.timeout(60),
        Client(broker_url, shards=4) as client,
        run_worker(broker_url, {"local": FakeBackend(says("hi"))}, config=layout(shards=4)),
    ):
        ids = [await client.submit(prompt="Why?") for _ in range(ANSWERS)]
        for number, shard in enumerate(client.shards.all):
            lane = shard.keys.requests("high" if number % 2 else "low")
            entry: Any = await client.redis.xadd(lane, {"prompt": "Why?"})
            ids.append(entry.decode())
        ends = await asyncio.gather(*map(client.result, ids))
        assert [end.data["content"] for end in ends] == ["hi"] * (ANSWERS + 4)
        assert [(lane.waiting, lane.running) for lane in await client.lanes()] == [(0, 0)] * 3


async def test_queue_grows_while_its_producers_wait(broker_url: str) -> None:
    """What was submitted by the earlier layout is answered there, and found by whoever knows of both."""
    async with Client(broker_url, shards=2) as before:
        ids = [await before.submit(prompt="Why?") for _ in range(ANSWERS)]
    async with asyncio.timeout(60), Client(broker_url, shards=8, draining=(2,)) as client:
        waiting = [asyncio.create_task(client.result(each)) for each in ids]
        ids += [await client.submit(prompt="Why?") for _ in range(ANSWERS)]
        config = layout(shards=8, draining=(2,))
        async with run_worker(broker_url, {"local": FakeBackend(says("hi"))}, config=config):
            ends = [*await asyncio.gather(*waiting), *await asyncio.gather(*map(client.result, ids[ANSWERS:]))]
        assert {end.type for end in ends} == {"result"}
