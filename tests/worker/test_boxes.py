"""Workers of one queue share the slots of a box."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace
from structlog.testing import capture_logs

from llm_routerd.config.fleet import FleetConfig
from llm_routerd.protocol.keys import GROUP, Keys
from llm_routerd.queue.boxes import SharedBoxes
from llm_routerd.queue.connection import ConnectionFactory, Pipe
from llm_routerd.queue.picture import CallDetails
from llm_routerd.running.box_calls import Slot, Wanted
from tests.support.boxes import ATTIC, config_of
from tests.support.endings import final_of
from tests.support.eventually import eventually
from tests.support.fakes import FakeBackend, says
from tests.support.queue import add, open_client
from tests.support.workers import DAEMON, run_worker

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from llm_routerd.protocol.call import Call, Delta, Finish
    from llm_routerd.protocol.keys import Lane

KEYS = Keys("llm")


class Box:
    """A model that notes how many calls it has at once, for however many workers: each has a way of its own to it."""

    def __init__(self, workers: int = 1, *, delay: float = 0.03) -> None:
        self.running = self.most = 0
        self._delay = delay
        self.ways = [FakeBackend(self._answer) for _ in range(workers)]
        for each in self.ways:
            each.has_resident = {"big:1b": 1}

    async def _answer(self, backend: FakeBackend, call: Call) -> AsyncGenerator[Delta | Finish, None]:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            async for item in says("hi", delay=self._delay)(backend, call):
                yield item
        finally:
            self.running -= 1

    def backends(self, worker: int = 0) -> dict[str, FakeBackend]:
        """Those of a worker, by deployment."""
        return {"big@attic": self.ways[worker], "cloud": FakeBackend(says("from the cloud"))}

    @property
    def calls(self) -> list[int]:
        """How many calls each worker has made."""
        return [len(each.calls) for each in self.ways]


async def test_two_workers_make_no_more_calls_at_once_than_a_box_has_slots(broker_url: str) -> None:
    """With places for many more each; every request is answered, and there."""
    box, config = Box(workers=2), config_of(replace(ATTIC, slots=3))
    async with (
        open_client(broker_url) as client,
        run_worker(broker_url, box.backends(0), consumer="w1", config=config),
        run_worker(broker_url, box.backends(1), consumer="w2", config=config),
    ):
        ids = [f"r{number}" for number in range(24)]
        for each in ids:
            await add(client, id=each, prompt="hello")
        ends = [await final_of(client, each) for each in ids]
    assert {kind for kind, _ in ends} == {"result"}
    assert box.most == 3
    assert sum(box.calls) == 24
    assert min(box.calls) > 3


async def test_slot_of_a_worker_that_died_is_free_when_its_lease_is_over(valkey_url: str) -> None:
    """Nobody has to give it back; whoever waits gets it."""
    factory = ConnectionFactory(valkey_url, client_name="dead")
    pipe = Pipe(factory)
    running = asyncio.create_task(pipe.run())
    dead = SharedBoxes(pipe, KEYS, worker="dead", lease_seconds=1.0)
    details = CallDetails(lane="normal", box="attic", model="big:1b", expected_seconds=1.0)
    assert (await dead.occupy("t", details, slots=1)).verdict == "granted"
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    box = Box()
    async with open_client(valkey_url) as client, run_worker(valkey_url, box.backends(), config=config_of(ATTIC)):
        await add(client, id="r1", prompt="hello")
        await asyncio.sleep(0.3)
        assert box.calls == [0]
        kind, _ = await final_of(client, "r1")
    assert kind == "result"
    assert box.calls == [1]


async def test_worker_that_may_keep_no_picture_counts_for_itself(valkey_url: str) -> None:
    """And says so, once."""
    async with open_client(valkey_url) as client:
        await client.set(KEYS.box_calls, "a string")
        box = Box()
        with capture_logs() as logs:
            async with run_worker(valkey_url, box.backends(), config=config_of(ATTIC)):
                for number in range(6):
                    await add(client, id=f"r{number}", prompt="hello")
                ends = [await final_of(client, f"r{number}") for number in range(6)]
    assert {kind for kind, _ in ends} == {"result"}
    assert box.most == 1
    assert [line["event"] for line in logs].count("boxes_not_shared") == 1


@pytest.mark.parametrize("lane", ["high", "normal", "low"])
async def test_lane_of_a_request_is_that_of_its_call(lane: Lane, valkey_url: str) -> None:
    """So the slots that are reserved are given to whom they are for."""
    box = Box()
    config = config_of(replace(ATTIC, slots=2, reserve=1))
    async with open_client(valkey_url) as client, run_worker(valkey_url, box.backends(), config=config):
        for number in range(4):
            await add(client, lane=lane, id=f"r{number}", prompt="hello")
        for number in range(4):
            await final_of(client, f"r{number}")
    assert box.most == (2 if lane == "high" else 1)


async def test_batch_on_one_worker_is_cut_for_a_chat_on_another(broker_url: str) -> None:
    """No message goes from one to the other: both see the same picture, and the one whose call is in the way cuts it."""
    box = Box(workers=2, delay=30)
    config = replace(config_of(ATTIC), fleet=FleetConfig(preempt=True))
    async with (
        open_client(broker_url) as client,
        run_worker(broker_url, box.backends(0), consumer="w1", config=config),
    ):
        await add(client, lane="low", id="batch", prompt="hello")
        await eventually(lambda: box.running == 1)
        box._delay = 0.03
        async with run_worker(broker_url, box.backends(1), consumer="w2", config=config):
            first = box.calls[0]
            await add(client, lane="high", id="chat", prompt="hello")
            kind, chat = await final_of(client, "chat")
            assert kind == "result"
            kind, batch = await final_of(client, "batch")
    assert (kind, [each["code"] for each in batch["attempts"]]) == ("result", ["preempted", None])
    assert [each["code"] for each in chat["attempts"]] == [None]
    assert (first, sum(box.calls)) == (1, 3)


async def test_batch_that_waits_for_a_box_keeps_nobody_from_being_read(broker_url: str) -> None:
    """Neither a chat, nor whoever wants the cloud, though more wait than the worker has places."""
    box = Box(delay=30)
    config = config_of(ATTIC, queue_timeout=60.0)
    config = replace(config, daemon=replace(DAEMON, concurrency=2))
    async with (
        open_client(broker_url) as client,
        run_worker(broker_url, box.backends(), config=config) as worker,
    ):
        for number in range(8):
            await add(client, lane="low", id=f"low{number}", prompt="hello", model="big")
        await eventually(lambda: worker.resources.fleet.waiting("low") >= 2)
        await asyncio.sleep(0.3)
        assert worker.in_flight <= 2 + 2 + 1, "each of a lane that waits has been read"
        await add(client, lane="normal", id="cloudy", prompt="hello", model="cloud")
        async with asyncio.timeout(3):
            kind, end = await final_of(client, "cloudy")
        assert (kind, end["deployment"]) == ("result", "cloud")
        await add(client, lane="high", id="chat", prompt="hello", model="big")
        await eventually(lambda: worker.resources.fleet.waiting("high") == 1)


async def test_slot_that_is_kept_for_the_next_call_starves_nobody_elsewhere(broker_url: str) -> None:
    """One worker has call after call for the only slot; another's call gets it soon, and the first then waits."""
    box = Box(workers=2, delay=0.005)
    config = replace(config_of(ATTIC), daemon=replace(DAEMON, concurrency=1))
    async with (
        run_worker(broker_url, box.backends(0), consumer="w1", config=config) as busy,
        run_worker(broker_url, box.backends(1), consumer="w2", config=config) as other,
    ):
        deployment = config.deployments["big@attic"]

        async def call_after_call() -> None:
            fleet = busy.resources.fleet
            while True:
                slot = await fleet.take(Wanted(members=(deployment,)), seconds=10)
                assert isinstance(slot, Slot)
                await asyncio.sleep(0.005)
                fleet.release(slot)

        calling = asyncio.create_task(call_after_call())
        try:
            await asyncio.sleep(0.5)
            for _ in range(5):
                began = asyncio.get_running_loop().time()
                slot = await other.resources.fleet.take(Wanted(members=(deployment,)), seconds=5)
                assert isinstance(slot, Slot), slot
                assert asyncio.get_running_loop().time() - began < 2
                other.resources.fleet.release(slot)
        finally:
            calling.cancel()
            await asyncio.gather(calling, return_exceptions=True)


async def test_slot_that_the_picture_has_lost_is_told_again(valkey_url: str) -> None:
    """Redis was emptied under a running call: nobody else gets its slot, and the box is not taken to be idle."""
    box = Box(delay=3)
    async with open_client(valkey_url) as client, run_worker(valkey_url, box.backends(), config=config_of(ATTIC)):
        await add(client, id="r1", prompt="hello")
        await eventually(lambda: box.running == 1)
        await client.delete(KEYS.box_calls, KEYS.boxes, KEYS.box_waiting)
        await eventually_told(client, KEYS.box_calls, 1)
        await add(client, id="r2", prompt="hello")
        for each in ("r1", "r2"):
            assert (await final_of(client, each))[0] == "result"
    assert box.most == 1


async def eventually_told(client: Any, key: str, number: int) -> None:
    """So many fields stand in the hash, soon."""
    async with asyncio.timeout(5):
        while await client.hlen(key) != number:  # noqa: ASYNC110 - somebody else writes it
            await asyncio.sleep(0.02)


async def test_taken_over_requests_that_wait_take_places_beyond_what_may_wait(valkey_url: str) -> None:
    """What a dead worker has left is not taken on without bound, though none of it has a place."""
    box = Box(delay=60)
    config = replace(config_of(ATTIC), daemon=replace(DAEMON, concurrency=2))
    async with open_client(valkey_url) as client:
        for number in range(40):
            await add(client, lane="low", id=f"r{number}", prompt="hello")
        await client.xgroup_create(KEYS.requests("low"), GROUP, "0")
        await client.xreadgroup(GROUP, "dead", {KEYS.requests("low"): ">"}, count=40)
        async with run_worker(valkey_url, box.backends(), config=config) as worker:
            await eventually(lambda: worker.in_flight >= 4)
            await asyncio.sleep(3)
            assert worker.in_flight <= 2 + 2 + 3


async def test_reload_changes_the_slots_of_what_waits(valkey_url: str) -> None:
    """The fleet of before plans by the numbers of now: else it and its successor would starve each other."""
    box = Box(delay=0.2)
    async with open_client(valkey_url) as client, run_worker(valkey_url, box.backends(), config=config_of(ATTIC)) as it:
        for number in range(6):
            await add(client, id=f"r{number}", prompt="hello")
        await eventually(lambda: it.resources.fleet.waiting("normal") > 3)
        it.resources.fleet.follow({"attic": replace(ATTIC, slots=3)})
        for number in range(6):
            assert (await final_of(client, f"r{number}"))[0] == "result"
    assert box.most == 3
