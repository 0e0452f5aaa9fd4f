"""Entries that Redis delivers to nobody any more: found, left alone for a lease, taken up."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from llm_routerd.accounting.gauges import Gauges
from llm_routerd.protocol.events import FINAL_ID
from llm_routerd.protocol.keys import GROUP, HANDED_BACK
from tests.support.eventually import eventually
from tests.support.fakes import FakeBackend, says, waits_for
from tests.support.queue import add, commit, no_fence, open_broker, open_client, result, started, take, two_workers
from tests.support.workers import DAEMON, make_config, run_worker

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

CONFIG = make_config(daemon=replace(DAEMON, lease_seconds=0.6))
LANE = "llm:requests"


async def until_answered(client: Any, ids: list[str]) -> None:
    """Wait for each of them to have its final event."""
    async with asyncio.timeout(15):
        for request_id in ids:
            while not await client.xrange(f"llm:events:{request_id}", FINAL_ID, FINAL_ID):  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.02)


async def dead_consumer(client: Any, broker_url: str) -> list[str]:
    """A worker took five and died; an operator removed it."""
    async with open_broker(broker_url, "dead") as broker:
        entries = [await add(client) for _ in range(5)]
        deliveries = await take(broker_url, broker, free=30)
        transcript = broker.transcript(deliveries[0].entry, publish=False, fenced=no_fence)
        await broker.begin(deliveries[0], transcript, started("dead"), publish=False)
        await client.xgroup_delconsumer(LANE, GROUP, "dead")
    return entries


async def group_at_the_end(client: Any, broker_url: str) -> list[str]:
    """Somebody made the group himself, at `$`."""
    del broker_url
    entries = [await add(client) for _ in range(3)]
    await client.xgroup_create(LANE, GROUP, "$")
    return entries


async def group_moved_on(client: Any, broker_url: str) -> list[str]:
    """Somebody moved the group on, over what it had not read."""
    async with open_broker(broker_url):
        entries = [await add(client) for _ in range(3)]
        await client.xgroup_setid(LANE, GROUP, "$")
    return entries


@pytest.mark.parametrize("make", [dead_consumer, group_at_the_end, group_moved_on])
async def test_orphans_are_answered(broker_url: str, make: Callable[[Any, str], Awaitable[list[str]]]) -> None:
    """Each once, whatever made them; and they are counted."""
    async with open_client(broker_url) as client:
        orphans = await make(client, broker_url)
        backend = FakeBackend(says("x"))
        async with run_worker(broker_url, {"local": backend}, config=CONFIG) as worker:
            new = await add(client)
            await until_answered(client, [new, *orphans])
            await eventually(lambda: not worker.in_flight)
            page = worker.metrics.render_prometheus(Gauges())
        assert len(backend.calls) == len(orphans) + 1
        assert await client.xlen(LANE) == 0
        assert f"orphans_total {len(orphans)}" in page


async def test_living_workers_entry_is_no_orphan(broker_url: str) -> None:
    """It has it back with its next renewal, long before anybody takes it up."""
    gate = asyncio.Event()
    async with open_client(broker_url) as client:
        busy, idle = FakeBackend(waits_for(gate)), FakeBackend(says("x"))
        async with run_worker(broker_url, {"local": busy}, consumer="w1", config=CONFIG):
            entry = await add(client)
            await eventually(lambda: busy.running == 1)
            await client.xgroup_delconsumer(LANE, GROUP, "w1")
            async with run_worker(broker_url, {"local": idle}, consumer="w2", config=CONFIG):
                await asyncio.sleep(3 * CONFIG.daemon.lease_seconds)
                gate.set()
                await until_answered(client, [entry])
        assert (len(busy.calls), len(idle.calls)) == (1, 0)


async def test_what_is_waiting_pending_or_settled_is_no_orphan(broker_url: str) -> None:
    """Nor what was handed back; and a lane without a group, or that is not there, has none."""
    async with open_client(broker_url) as client, open_broker(broker_url) as broker:
        for _ in range(4):
            await add(client)
        one, two, three, _ = await take(broker_url, broker, free=30)
        await commit(broker, one, result(one.entry), transcript=None, request_ids=(one.entry,))
        await client.xclaim(LANE, GROUP, HANDED_BACK, 0, [two.entry], justid=True)
        await add(client)
        assert await broker.find_orphans("normal") == []
        assert await broker.find_orphans("low") == []
        assert await broker.take_orphans("normal", [one.entry, two.entry, three.entry], seen_for_ms=500) == []
        await client.delete(LANE)
        assert await broker.find_orphans("normal") == []


async def test_orphan_is_taken_by_one_and_only_while_it_is_one(broker_url: str) -> None:
    """Two workers found it; the second finds it pending."""
    async with two_workers(broker_url) as (client, broker, other):
        entries = await dead_consumer(client, broker_url)
        assert await broker.find_orphans("normal") == entries
        taken = await broker.take_orphans("normal", entries[:3], seen_for_ms=500)
        assert [(delivery.entry, delivery.claimed) for delivery in taken] == [(entry, True) for entry in entries[:3]]
        assert [each.entry for each in await other.take_orphans("normal", entries, seen_for_ms=500)] == entries[3:]
        assert await broker.find_orphans("normal") == []


async def test_many_are_found_page_by_page(broker_url: str) -> None:
    """In bounded replies."""
    async with open_client(broker_url) as client, open_broker(broker_url) as broker:
        pipe = client.pipeline()
        for _ in range(230):
            pipe.xadd(LANE, {"prompt": "x"})
        entries = await pipe.execute()
        await client.xgroup_setid(LANE, GROUP, "$")
        assert await broker.find_orphans("normal") == entries


async def test_worker_with_no_room_takes_them_as_it_gets_some(broker_url: str) -> None:
    """Never more than it may."""
    async with open_client(broker_url) as client:
        orphans = await group_at_the_end(client, broker_url)
        backend = FakeBackend(says("x", delay=0.05))
        config = make_config(daemon=replace(DAEMON, lease_seconds=0.6, concurrency=1))
        async with run_worker(broker_url, {"local": backend}, config=config):
            await until_answered(client, orphans)
        assert len(backend.calls) == len(orphans)
