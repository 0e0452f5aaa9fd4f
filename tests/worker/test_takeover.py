"""What is to be taken over, and a backlog of new requests: neither keeps the other waiting."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from msgspec import structs

from llm_routerd.protocol.keys import GROUP, HANDED_BACK, HANDED_BACK_IDLE_MS, handed_back_for
from llm_routerd.queue.deliveries import Backlog
from tests.support.endings import final_of
from tests.support.eventually import eventually
from tests.support.fakes import FakeBackend, says, waits_for
from tests.support.queue import LIMITS, add, open_broker, open_client
from tests.support.workers import DAEMON, make_config, run_worker

if TYPE_CHECKING:
    from llm_routerd.protocol.keys import Lane

LANE = "llm:requests"
CONFIG = make_config(daemon=structs.replace(DAEMON, lease_seconds=0.3, concurrency=2))
BACKLOG = 120


async def delivered(client: Any, owner: str, count: int, *, lane: Lane = "normal") -> list[str]:
    """So many requests, which a worker of this name was given."""
    key = LANE if lane == "normal" else f"{LANE}:{lane}"
    entries = [await add(client, lane) for _ in range(count)]
    await client.xreadgroup(GROUP, owner, {key: ">"}, count=count)
    return entries


async def handed_back(client: Any, count: int, *, lane: Lane = "normal") -> list[str]:
    """So many requests, which a worker has handed back."""
    key = LANE if lane == "normal" else f"{LANE}:{lane}"
    entries = await delivered(client, "left", count, lane=lane)
    await client.xclaim(key, GROUP, HANDED_BACK, 0, entries, idle=HANDED_BACK_IDLE_MS, justid=True)
    return entries


async def backlog(client: Any, lane: Lane = "normal") -> list[str]:
    """New requests for seconds of work."""
    return [await add(client, lane) for _ in range(BACKLOG)]


async def test_request_of_a_dead_worker_does_not_wait_for_the_end_of_a_backlog(valkey_url: str) -> None:
    """Its lease, and a few of the new ones."""
    backend = FakeBackend(says("x", delay=0.1))
    async with open_client(valkey_url) as client, open_broker(valkey_url, "dead"):
        (victim,) = await delivered(client, "dead", 1)
        await backlog(client)
        async with run_worker(valkey_url, {"local": backend}, config=CONFIG):
            assert (await final_of(client, victim))[0] == "result"
            assert await client.xlen(LANE) > BACKLOG - 15


async def test_what_was_handed_back_and_what_is_new_take_turns(valkey_url: str) -> None:
    """However much there is of either."""
    backend = FakeBackend(says("x", delay=0.01))
    async with open_client(valkey_url) as client, open_broker(valkey_url, "other"):
        old = await handed_back(client, 30)
        await backlog(client)
        async with run_worker(valkey_url, {"local": backend}, config=CONFIG):
            for entry in old:
                assert (await final_of(client, entry))[0] == "result"
            left = await client.xlen(LANE)
    assert BACKLOG * 0.3 < left < BACKLOG * 0.9


async def test_new_requests_of_an_urgent_lane_go_before_old_ones_of_another(valkey_url: str) -> None:
    """As they go before its new ones."""
    backend = FakeBackend(says("x", delay=0.01))
    async with open_client(valkey_url) as client, open_broker(valkey_url, "other"):
        old = await handed_back(client, 10, lane="low")
        await backlog(client, "high")
        async with run_worker(valkey_url, {"local": backend}, config=CONFIG) as worker:
            await eventually(lambda: len(backend.calls) > BACKLOG / 2)
            assert worker.in_flight <= CONFIG.daemon.concurrency
            assert await client.xlen("llm:requests:low") >= len(old) - CONFIG.daemon.concurrency  # taken at the start
            for entry in old:
                assert (await final_of(client, entry))[0] == "result"


async def test_look_takes_nothing(broker_url: str) -> None:
    """It tells whether there is something, and what was trimmed away."""
    async with (
        open_client(broker_url) as client,
        open_broker(broker_url, limits=replace(LIMITS, lease_ms=30)) as broker,
    ):
        assert not (await broker.claim(room=0)).more
        await handed_back(client, 3)
        for _ in range(2):
            look = await broker.claim(room=0)
            assert (look.more, look.deliveries) == (True, [])
            assert (await broker.claim_of(HANDED_BACK, count=0)).more
        taken = await broker.claim(room=2)
        assert (len(taken.deliveries), taken.more) == (2, True)
        await client.xtrim(LANE, maxlen=0, approximate=False)
        look = await broker.claim(room=0)
        assert (look.more, len(look.gone)) == (False, 1)


async def test_reconnected_worker_keeps_what_it_has_while_memory_is_short(valkey_url: str) -> None:
    """XGROUP CREATE is refused then, for a group that stands too; nobody is to wait for it, and no lease runs out."""
    gate = asyncio.Event()
    config = structs.replace(CONFIG, daemon=structs.replace(CONFIG.daemon, lease_seconds=0.4))
    backend, other = FakeBackend(waits_for(gate)), FakeBackend(says("x"))
    async with open_client(valkey_url) as client:
        async with run_worker(valkey_url, {"local": backend}, consumer="w1", config=config) as worker:
            entry = await add(client)
            await eventually(lambda: backend.running == 1)
            links = [each["id"] for each in await client.client_list() if each["name"].startswith("llm-routerd")]
            async with run_worker(valkey_url, {"local": other}, consumer="w2", config=config):
                await client.config_set("maxmemory", "1")
                try:
                    generation = worker.shards[0].pipe.generation
                    for link in links:
                        await client.client_kill_filter(_id=link)
                    await eventually(lambda: worker.shards[0].pipe.generation > generation)
                    await asyncio.sleep(2 * config.daemon.lease_seconds)
                    (pending,) = await client.xpending_range(LANE, GROUP, "-", "+", 10)
                    assert pending["consumer"] == "w1"
                    assert pending["time_since_delivered"] < config.daemon.lease_seconds * 1000
                finally:
                    await client.config_set("maxmemory", "0")
                gate.set()
                assert (await final_of(client, entry))[0] == "result"
        assert (len(backend.calls), len(other.calls)) == (1, 0)


async def test_all_is_handed_back_however_much_it_is(broker_url: str) -> None:
    """Also what lies behind a thousand others."""
    async with open_client(broker_url) as client, open_broker(broker_url) as broker:
        async with client.pipeline(transaction=False) as many:
            for _ in range(2100):
                many.xadd(LANE, {"prompt": "x"})
            await many.execute()
        await client.xreadgroup(GROUP, "w1", {LANE: ">"}, count=2100)
        assert await broker.hand_everything_back() == 2100
        assert [each["name"] for each in (await client.xpending(LANE, GROUP))["consumers"]] == [HANDED_BACK]


async def test_what_waits_for_a_model_keeps_no_other_waiting(broker_url: str) -> None:
    """A worker that does not know it passes it over at once, and one that does takes as much as it has room for."""
    limits = replace(LIMITS, lease_ms=50)
    async with (
        open_client(broker_url) as client,
        open_broker(broker_url, "w1", limits=limits) as knowing,
        open_broker(broker_url, "w2", limits=limits) as other,
    ):
        parked = await delivered(client, "left", 60)
        await client.xclaim(LANE, GROUP, handed_back_for("x"), 0, parked, idle=HANDED_BACK_IDLE_MS, justid=True)
        (victim,) = await delivered(client, "dead", 1)
        await client.xclaim(LANE, GROUP, "dead", 0, [victim], idle=1000, justid=True)
        knowing.models = ("x",)
        await knowing.renew(())
        assert (await knowing.backlog("normal")) == Backlog(unread=0, handed_back=60)
        assert (await other.claim(room=0)).more
        assert [each.entry for each in (await other.claim(room=1)).deliveries] == [victim]
        assert [each.entry for each in (await knowing.claim(room=40)).deliveries] == parked[:40]
        assert (await knowing.backlog("normal")) == Backlog(unread=0, handed_back=20)


async def test_orphans_do_not_wait_for_the_end_of_a_backlog(valkey_url: str) -> None:
    """Nor do they count as having been delivered once more."""
    backend = FakeBackend(says("x", delay=0.1))
    async with open_client(valkey_url) as client, open_broker(valkey_url, "other"):
        orphans = await delivered(client, "dead", 4)
        await client.xgroup_delconsumer(LANE, GROUP, "dead")
        await backlog(client)
        async with run_worker(valkey_url, {"local": backend}, config=CONFIG):
            for entry in orphans:
                assert (await final_of(client, entry))[0] == "result"
                (attempt, *_) = await client.xrange(f"llm:events:{entry}")
                assert json.loads(attempt[1]["data"])["delivery"] == 1
            assert await client.xlen(LANE) > BACKLOG - 40
