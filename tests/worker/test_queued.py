"""Requests that wait for a box of several workers: what stands in their streams meanwhile, and afterwards."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from llm_routerd.client import Client, Queued
from llm_routerd.client.following import follows, order_of
from llm_routerd.protocol.events import FINAL_ID
from llm_routerd.protocol.keys import Keys
from llm_routerd.queue.boxes import SharedBoxes
from llm_routerd.queue.connection import ConnectionFactory, Pipe
from llm_routerd.queue.picture import CallDetails
from tests.support.boxes import ATTIC, config_of
from tests.support.endings import final_of, nothing_left
from tests.support.eventually import eventually
from tests.support.fakes import FakeBackend, says, waits_for
from tests.support.queue import add, events_of, open_client
from tests.support.runs import ADD, answer, answers, calls, next_call, register, submit, turns
from tests.support.workers import DAEMON, run_worker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

CONFIG = replace(config_of(ATTIC), daemon=replace(DAEMON, lease_seconds=0.5))


def backends(*scripts: Any) -> dict[str, FakeBackend]:
    """Those of a worker, by deployment."""
    local = FakeBackend(*scripts)
    local.has_resident = {"big:1b": 1}
    return {"big@attic": local, "cloud": FakeBackend(says("from the cloud"))}


@pytest.fixture
async def taken(broker_url: str) -> AsyncIterator[SharedBoxes]:
    """The box's only slot is held, by somebody's call."""
    pipe = Pipe(ConnectionFactory(broker_url, client_name="other"))
    running = asyncio.create_task(pipe.run())
    boxes = SharedBoxes(pipe, Keys("llm"), worker="other")
    details = CallDetails(lane="normal", box="attic", model="big:1b", expected_seconds=7.0)
    assert (await boxes.occupy("taken", details, slots=1)).verdict == "granted"
    yield boxes
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def told(client: Any, request_id: str = "r1", *, count: int = 1) -> None:
    """So many events `queued` are there."""
    async with asyncio.timeout(15):
        while True:
            kinds = [kind for _, kind, _ in await events_of(client, request_id)]
            if kinds.count("queued") >= count:
                return
            await asyncio.sleep(0.02)


async def test_who_waits_reads_why_and_then_his_answer(broker_url: str, taken: SharedBoxes) -> None:
    """IDs follow each other, so that whoever resumes misses nothing and sees nothing twice; all is gone in the end."""
    async with open_client(broker_url) as client, Client(broker_url) as asker:
        async with run_worker(broker_url, backends(says("hi")), config=CONFIG):
            await add(client, id="r1", prompt="hello", stream="live")
            events = []
            async for event in asker.follow("r1"):
                events.append(event)
                if len(events) == 1:
                    assert isinstance(event, Queued)
                    assert (event.box, event.deployment, event.position) == ("attic", "big@attic", 0)
                    assert event.reason == "next on attic"
                    assert event.estimated_wait_ms is not None
                    assert 0 < event.estimated_wait_ms < 7_100
                    await taken.release("taken")
        await nothing_left(client)
        assert [event.type for event in events if event.type != "queued"] == ["attempt", "token", "result"]
        orders = [(0, 0), *(order_of(event.stream_id) for event in events[:-1])]
        assert all(follows(one, other) for one, other in pairwise(orders))
        again = [event.stream_id async for event in asker.follow("r1", events[0].stream_id)]
        assert again == [event.stream_id for event in events[1:]]
        assert events[-1].data["ttft_ms"] is not None


async def test_nothing_stands_of_the_wait_of_one_that_does_not_stream(broker_url: str, taken: SharedBoxes) -> None:
    """Its stream begins with its attempt, as ever."""
    async with open_client(broker_url) as client, run_worker(broker_url, backends(says("hi")), config=CONFIG):
        await add(client, id="silent", prompt="hello")
        await add(client, id="r1", prompt="hello", stream="true")
        await told(client)
        assert await events_of(client, "silent") == []
        await taken.release("taken")
        await final_of(client, "silent")
        assert [kind for _, kind, _ in await events_of(client, "silent")] == ["attempt", "result"]


async def test_request_is_cancelled_while_it_waits(broker_url: str, taken: SharedBoxes) -> None:
    """The cancellation is the last word, and no place is kept for it."""
    async with open_client(broker_url) as client, Client(broker_url) as asker:
        async with run_worker(broker_url, backends(says("hi")), config=CONFIG) as worker:
            await add(client, id="r1", prompt="hello", stream="true")
            await told(client)
            assert (await asker.cancel("r1")).type == "cancelled"
            await eventually(lambda: worker.in_flight == 0)
            await asyncio.sleep(1.2)
            events = await events_of(client, "r1")
            assert (events[-1][0], events[-1][1]) == (FINAL_ID, "cancelled")
            assert {kind for _, kind, _ in events[:-1]} == {"queued"}
        await taken.release("taken")
        await nothing_left(client)


async def test_worker_that_dies_while_it_waits_is_followed_by_another(broker_url: str, taken: SharedBoxes) -> None:
    """Which tells on, under the next IDs; the request is answered once, in its first attempt."""
    async with open_client(broker_url) as client:
        await add(client, id="r1", prompt="hello", stream="true")
        await client.xgroup_create("llm:requests", "llm-router", "0")
        await client.xreadgroup("llm-router", "dead", {"llm:requests": ">"}, count=1)
        data = '{"position":3,"reason":"3 before you on attic"}'
        await client.xadd("llm:events:r1", {"type": "queued", "data": data}, id="0-4")
        await client.pexpire("llm:events:r1", 60_000)
        async with run_worker(broker_url, backends(says("hi")), consumer="w2", config=CONFIG):
            await told(client, count=2)
            await taken.release("taken")
            assert (await final_of(client, "r1"))[0] == "result"
        events = await events_of(client, "r1")
        assert [event_id for event_id, _, _ in events[:2]] == ["0-4", "0-5"]
        (attempt,) = [(event_id, data) for event_id, kind, data in events if kind == "attempt"]
        assert (attempt[0], attempt[1]["delivery"], attempt[1]["consumer"]) == ("1-0", 2, "w2")
        kinds = [kind for _, kind, _ in events]
        assert kinds.index("attempt") == len(kinds) - 1 - kinds[::-1].index("queued") + 1


async def test_worker_that_lost_a_request_says_nothing_more_of_it(broker_url: str, taken: SharedBoxes) -> None:
    """Though it has not found that out yet: Redis knows whose it is."""
    slow = replace(CONFIG, daemon=replace(DAEMON, lease_seconds=60.0))
    async with open_client(broker_url) as client, run_worker(broker_url, backends(says("hi")), config=slow):
        await add(client, id="r1", prompt="hello", stream="true")
        await told(client)
        ((entry, _),) = await client.xrange("llm:requests")
        await client.xclaim("llm:requests", "llm-router", "other", 0, [entry])
        before = await events_of(client, "r1")
        for number in range(3):  # each is news to whoever waits
            details = CallDetails(lane="normal", box="attic", model="big:1b", expected_seconds=100.0 * (number + 2))
            await taken.release("taken")
            await taken.occupy("taken", details, slots=2)
            await asyncio.sleep(0.5)
        assert await events_of(client, "r1") == before


async def test_redis_that_stands_still_costs_the_request_nothing(valkey_url: str) -> None:
    """What was to be told is told when it is back, or not; the answer comes."""
    gate = asyncio.Event()
    models = backends(waits_for(gate), says("hi"))
    async with open_client(valkey_url) as client, run_worker(valkey_url, models, config=CONFIG):
        await add(client, id="r0", prompt="hello")
        await eventually(lambda: models["big@attic"].running == 1)
        await add(client, id="r1", prompt="hello", stream="true")
        await asyncio.sleep(0.1)
        await client.execute_command("CLIENT", "PAUSE", 1500, "WRITE")
        await asyncio.sleep(1.0)
        gate.set()
        assert (await final_of(client, "r1"))[0] == "result"
        events = await events_of(client, "r1")
        assert events[-1][0] == FINAL_ID
        assert len([kind for _, kind, _ in events if kind == "attempt"]) == 1


async def test_run_with_tools_waits_in_each_turn_and_goes_on_on_another_worker(
    broker_url: str, taken: SharedBoxes
) -> None:
    """What it has waited for is nothing that it is rebuilt from; its tool is called once."""
    script = turns(calls("add", a=1, b=1), answers("two"))
    details = CallDetails(lane="normal", box="attic", model="big:1b", expected_seconds=7.0)
    async with open_client(broker_url) as client:
        async with run_worker(broker_url, backends(script), consumer="w1", config=CONFIG):
            await register(client, add=ADD)
            await submit(client, stream="true", model="big")
            await told(client)
            await taken.release("taken")
            _, call = await next_call(client, "add")
            async with asyncio.timeout(10):
                while True:
                    if (await taken.occupy("again", details, slots=1)).verdict == "granted":
                        break
                    await asyncio.sleep(0.02)
            await answer(client, "r1", call["call_id"], "2")
            before = len(await events_of(client, "r1"))
            await told(client, count=2)
        async with run_worker(broker_url, backends(script), consumer="w2", config=CONFIG):
            await told(client, count=3)
            await taken.release("again")
            kind, end = await final_of(client, "r1")
        assert (kind, end["content"], end["turns"]) == ("result", "two", 2)
        kinds = [kind for _, kind, _ in await events_of(client, "r1")]
        assert [kind for kind in kinds if kind != "queued"] == [
            "attempt", "tool_call", "turn", "tool_result", "attempt", "token", "result",
        ]  # fmt: skip
        assert "queued" in kinds[:1]
        assert set(kinds[before:-3]) <= {"queued", "tool_result"}
        assert await client.xlen("llm:tools:add") <= 1
