"""Keys of ours that hold something else: each is named, and stands in nobody's way but its own."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from llm_routerd.protocol.events import FINAL_ID
from llm_routerd.protocol.keys import LANES
from llm_routerd.queue import reader
from tests.support.endings import final_of
from tests.support.eventually import eventually
from tests.support.fakes import FakeBackend, hangs, says, waits_for
from tests.support.queue import add, commit, events_of, open_broker, open_client, result, started, take_one
from tests.support.workers import run_worker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

NORMAL = "llm:requests"
OTHERS: list[Any] = [
    ("high", "low", NORMAL),
    ("normal", "low", "llm:requests:high"),
    ("normal", "high", "llm:requests:low"),
]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks again at once."""
    monkeypatch.setattr(reader, "LOOK_SECONDS", 0.1)


def told(logs: list[Any], event: str) -> list[Any]:
    """The lines of the log with this event."""
    return [line for line in logs if line["event"] == event]


async def spoil(client: Any, key: str) -> None:
    """Put a list in the place of whatever stands there, at once."""
    pipeline = client.pipeline(transaction=True)
    pipeline.delete(key)
    pipeline.lpush(key, "a newcomer's request")
    await pipeline.execute()


@asynccontextmanager
async def spoilt(url: str, key: str) -> AsyncIterator[Any]:
    """A client, after it has done so."""
    async with open_client(url) as client:
        await spoil(client, key)
        yield client


@pytest.mark.parametrize(("one", "other", "key"), OTHERS)
async def test_lane_of_another_type_is_named_and_the_others_are_served(
    valkey_url: str, one: Any, other: Any, key: str
) -> None:
    """From the start on: up, not ready, and ready again soon after it has been mended, with one line for each."""
    with capture_logs() as logs:
        async with spoilt(valkey_url, key) as client:
            backend = FakeBackend(says("hi"))
            async with run_worker(valkey_url, {"local": backend}, until_ready=False) as worker:
                await eventually(lambda: told(logs, "lane_of_another_type"))
                for lane in (one, other):
                    assert (await final_of(client, await add(client, lane)))[0] == "result"
                assert not worker.status().ready
                assert key in worker.status().why
                assert "list" in worker.status().why
                await client.delete(key)
                await eventually(lambda: worker.status().ready)
                assert worker.status().why == ""
                assert (await final_of(client, await client.xadd(key, {"prompt": "hello"})))[0] == "result"
    assert [(line["key"], line["type"]) for line in told(logs, "lane_of_another_type")] == [(key, "list")]
    assert [line["key"] for line in told(logs, "lane_mended")] == [key]


async def test_lane_that_becomes_another_type_disturbs_no_request_of_another_lane(valkey_url: str) -> None:
    """Nor that which is under way: leases are renewed, commits stand, new requests are read."""
    gate = asyncio.Event()
    backend = FakeBackend(waits_for(gate), says("at once"))
    with capture_logs() as logs:
        async with open_client(valkey_url) as client, run_worker(valkey_url, {"local": backend}) as worker:
            first = await add(client, "high")
            await eventually(lambda: backend.running == 1)
            await spoil(client, NORMAL)
            assert (await final_of(client, await add(client, "low")))[0] == "result"
            await eventually(lambda: told(logs, "lane_of_another_type"))
            renewed = worker.shards[0]._leases._renewed_at
            await eventually(lambda: worker.shards[0]._leases._renewed_at > renewed)
            renewed = worker.shards[0]._leases._renewed_at
            await eventually(lambda: worker.shards[0]._leases._renewed_at > renewed)
            gate.set()
            assert (await final_of(client, first))[0] == "result"
            assert [data["delivery"] for _, kind, data in await events_of(client, first) if kind == "attempt"] == [1]
            assert not await client.xlen("llm:requests:high")
            await client.rename(NORMAL, "llm:old")
            await eventually(lambda: worker.status().ready)
            assert (await final_of(client, await add(client)))[0] == "result"
    assert [line["event"] for line in logs if line["log_level"] == "error"] == ["lane_of_another_type"]


async def test_request_whose_own_lane_becomes_another_type_is_answered(valkey_url: str) -> None:
    """Its model has been paid; there is nothing left to acknowledge."""
    gate = asyncio.Event()
    backend = FakeBackend(waits_for(gate))
    async with open_client(valkey_url) as client, run_worker(valkey_url, {"local": backend}) as worker:
        entry = await add(client)
        await eventually(lambda: backend.running == 1)
        await spoil(client, NORMAL)
        gate.set()
        assert (await final_of(client, entry))[0] == "result"
        await eventually(lambda: not worker.in_flight)
        assert len(backend.calls) == 1
        assert await client.lrange(NORMAL, 0, -1) == ["a newcomer's request"]


async def test_request_that_is_cancelled_when_its_lane_is_of_another_type_ends(valkey_url: str) -> None:
    """The acknowledgement finds nothing, and that is all."""
    backend = FakeBackend(hangs())
    with capture_logs() as logs:
        async with open_client(valkey_url) as client, run_worker(valkey_url, {"local": backend}) as worker:
            entry = await add(client)
            await eventually(lambda: backend.running == 1)
            await spoil(client, NORMAL)
            await client.xadd(f"llm:events:{entry}", {"type": "cancelled", "data": "{}"}, id=FINAL_ID)
            await eventually(lambda: not worker.in_flight)
    assert told(logs, "request_stopped")
    assert not told(logs, "request_failed")
    assert not told(logs, "redis_refused")


async def test_no_lane_at_all_is_waited_for_and_a_stop_is_heard(valkey_url: str) -> None:
    """All three are of another type: nothing can be read, and the daemon waits."""
    async with open_client(valkey_url) as client:
        for key in (NORMAL, "llm:requests:high", "llm:requests:low"):
            await client.set(key, "x")
        async with run_worker(valkey_url, {"local": FakeBackend(says("hi"))}, until_ready=False) as worker:
            await eventually(lambda: "string" in worker.status().why)
            await client.flushall()
            await eventually(lambda: worker.status().ready)
            assert (await final_of(client, await add(client)))[0] == "result"
            await client.set(NORMAL, "x")
            await eventually(lambda: not worker.status().ready)


@pytest.mark.parametrize("own", ["high", "normal", "low"])
async def test_every_script_works_beside_a_lane_of_another_type(valkey_url: str, own: Any) -> None:
    """Begin, renew, claim, orphans, hand back, commit, retire: for an entry of one lane while another is spoilt."""
    async with open_client(valkey_url) as client, open_broker(valkey_url) as broker:
        entry = await add(client, own)
        for lane in LANES:
            if lane != own:
                await spoil(client, broker.keys.requests(lane))
        await broker.create_groups()
        delivery = await take_one(valkey_url, broker)
        transcript = broker.transcript(entry, publish=False, fenced=lambda _why: None)
        assert await broker.begin(delivery, transcript, started(), publish=False) == "begun"
        renewal = await broker.renew([(delivery, broker.keys.events(entry))])
        assert (list(renewal.lost), list(renewal.sealed)) == ([], [])
        assert (await broker.claim(room=5)).deliveries == []
        for lane in LANES:
            assert await broker.find_orphans(lane) == []
        assert await broker.hand_back([delivery]) == 1
        (again,) = (await broker.claim_of("handed-back", count=5)).deliveries
        committed = await commit(broker, again, result(entry), transcript=transcript, request_ids=(entry,))
        assert committed.verdict == "committed"
        assert await client.xlen(broker.keys.requests(own)) == 0
        await broker.hand_everything_back()
        await broker.retire(oneself=True)


@pytest.mark.parametrize("sealed", [False, True], ids=["open", "its-error-stands-already"])
async def test_refused_request_is_done_once_where_dead_letters_have_no_place(valkey_url: str, *, sealed: bool) -> None:
    """`llm:dead` is a list: the error stands, the entry is acknowledged, and the lost letter is in the log."""
    with capture_logs() as logs:
        async with spoilt(valkey_url, "llm:dead") as client:
            if sealed:
                await client.xadd("llm:events:bad", {"type": "error", "data": "{}"}, id=FINAL_ID)
            entry = await add(client, id="bad", nonsense="1")
            async with run_worker(valkey_url, {}) as worker:
                assert (await final_of(client, "bad"))[0] == "error"
                assert (await final_of(client, entry))[0] == "error"
                async with asyncio.timeout(5):
                    while await client.xlen(NORMAL):  # noqa: ASYNC110 - Redis has no event for this
                        await asyncio.sleep(0.01)
                assert (await client.xpending(NORMAL, "llm-router"))["pending"] == 0
                assert worker.status().ready
    (line,) = told(logs, "dead_letter_refused")
    assert "WRONGTYPE" in line["why"]
    assert line["entry"] == entry


async def test_refused_request_whose_error_stands_everywhere_is_done_once_without_a_place_for_its_letter(
    valkey_url: str,
) -> None:
    """No event of ours is to be written, and no letter can be: that is told, and the entry is done with."""
    with capture_logs() as logs:
        async with spoilt(valkey_url, "llm:dead") as client:
            entry = await client.xadd(NORMAL, {"nonsense": "1"}, id="5-0")
            await client.xadd(f"llm:events:{entry}", {"type": "error", "data": "{}"}, id=FINAL_ID)
            async with run_worker(valkey_url, {}) as worker:
                async with asyncio.timeout(5):
                    while await client.xlen(NORMAL):  # noqa: ASYNC110 - Redis has no event for this
                        await asyncio.sleep(0.01)
                await eventually(lambda: not worker.in_flight)
                assert worker.status().ready
    assert len(told(logs, "dead_letter_refused")) == 1


async def test_cancellation_is_accounted_for_once_where_the_metrics_have_no_place(valkey_url: str) -> None:
    """`llm_router_metrics` is a list: the event is still PUBLISHed, and nothing fails."""
    backend = FakeBackend(hangs())
    with capture_logs() as logs:
        async with spoilt(valkey_url, "llm_router_metrics") as client, client.pubsub() as channel:
            await channel.subscribe("llm_router_metrics")
            async with run_worker(valkey_url, {"local": backend}) as worker:
                entry = await add(client)
                await eventually(lambda: backend.running == 1)
                await client.xadd(f"llm:events:{entry}", {"type": "cancelled", "data": "{}"}, id=FINAL_ID)
                await eventually(lambda: not worker.in_flight)
                assert worker.status().ready
            messages = [await channel.get_message(timeout=1.0) for _ in range(2)]
    assert [message["type"] for message in messages if message] == ["subscribe", "message"]
    assert told(logs, "metrics_refused")
    assert not told(logs, "redis_refused")
