"""Models on local boxes, as a real server has them: memory for one at a time, and loading takes a while."""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from llm_routerd.router import Router
from llm_routerd.running.kept_slots import KEEP_SECONDS
from tests.standin.box import GB, Box, Model
from tests.standin.flapping import Flap
from tests.standin.server import StandIn
from tests.support.boxes import ask_by_turns, config_for
from tests.support.eventually import eventually

if TYPE_CHECKING:
    from pathlib import Path

BOX = Box(models={name: Model(size=6 * GB, load_seconds=0.1, says="delay_ms=2") for name in ("a", "b")}, memory=8 * GB)


async def test_requests_for_two_models_by_turns_load_each_once(tmp_path: Path) -> None:
    """First come, first served would load one for each request."""
    async with StandIn(box=BOX) as server, Router(config_for(tmp_path, server.url)) as router:
        answered = await ask_by_turns(router, 30)
        loads = sum(server.state()["loads"].values())
        assert server.state()["most_running"] == 1
    assert sorted(answered) == ["a@box0"] * 15 + ["b@box0"] * 15
    assert loads <= 6


async def test_two_boxes_share_the_work_and_keep_a_model_each(tmp_path: Path) -> None:
    """Each loads one, and then answers for it."""
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(StandIn(box=BOX)) for _ in range(2)]
        router = await stack.enter_async_context(Router(config_for(tmp_path, *(each.url for each in servers))))
        await ask_by_turns(router, 30)
        loads = [sum(each.state()["loads"].values()) for each in servers]
        calls = [len(each.state()["calls"]) for each in servers]
    assert sum(loads) <= 6
    assert min(calls) >= 8


async def test_box_that_comes_and_goes_costs_no_answer(tmp_path: Path) -> None:
    """While one refuses connections the other answers; whatever it tells of its memory is no more than a hint."""
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(StandIn(box=BOX)) for _ in range(2)]
        router = await stack.enter_async_context(Router(config_for(tmp_path, *(each.url for each in servers))))
        for flap in (
            Flap(ps="lies", ps_models=("a", "b", "c")),
            Flap(status=500, status_seconds=0.5),
            Flap(ps="never"),
        ):
            servers[0].flap(flap)
            answered = await ask_by_turns(router, 8)
            assert [each[0] for each in answered] == ["a", "b"] * 4
            servers[0].flap(Flap())


async def test_boxes_that_die_and_come_back_lose_no_answer_and_no_slot(tmp_path: Path) -> None:
    """Sixty requests while two of three fail in turn; at the end all slots are free."""
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(StandIn(box=BOX)) for _ in range(3)]
        router = await stack.enter_async_context(Router(config_for(tmp_path, *(each.url for each in servers), slots=2)))
        rng = random.Random(3)

        async def trouble() -> None:
            while True:
                flaky = servers[rng.randrange(2)]
                flaky.flap(Flap(status=rng.choice([500, 503]), status_seconds=0.1))
                await asyncio.sleep(0.15)

        async with asyncio.TaskGroup() as group:
            troubling = group.create_task(trouble())
            answered = await ask_by_turns(router, 60)
            troubling.cancel()
        assert len(answered) == 60
        assert max(each.state()["most_running"] for each in servers) <= 2
        fleet = router._in_use().fleet
        await eventually(lambda: fleet.held == 0)
        await asyncio.sleep(3 * KEEP_SECONDS)
    assert (await fleet._own.look()).calls == ()
