"""Calls of the low lane that are cut for the high lane, and begun again."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from llm_routerd.config.fleet import FleetConfig
from llm_routerd.protocol.codes import AttemptCode
from llm_routerd.routing.chain_run import MOST_CUTS
from llm_routerd.running.caller import Arrival
from llm_routerd.running.run import Run
from tests.running.asking import Sink, codes, request
from tests.running.test_fleet import resources_on
from tests.support.boxes import ATTIC, config_of
from tests.support.eventually import eventually
from tests.support.fakes import says, waits_for

if TYPE_CHECKING:
    from llm_routerd.protocol.keys import Lane
    from llm_routerd.running.resources import Resources
    from tests.support.fakes import FakeBackend, Script

PREEMPTS = FleetConfig(preempt=True)
CUT = AttemptCode.PREEMPTED.value


def on_one_slot(*scripts: Script, fleet: FleetConfig = PREEMPTS, **box: Any) -> tuple[Resources, FakeBackend]:
    """A box that has its model, and how it answers."""
    resources, models = resources_on(replace(config_of(replace(ATTIC, **box)), fleet=fleet), *scripts)
    models["big@attic"].has_resident = {"big:1b": 1}
    return resources, models["big@attic"]


def asked(resources: Resources, lane: Lane, sink: Sink | None = None, **properties: Any) -> asyncio.Task[Any]:
    """A request under way."""
    run = Run(
        resources,
        request(**properties),
        resources.config.chains["big"],
        sink or Sink(),
        deadline=None,
        arrival=Arrival(lane=lane),
    )
    return asyncio.create_task(run.until_done())


async def test_low_call_is_cut_for_a_high_one_and_answered_after_it() -> None:
    """The chat waits for no batch; the batch's attempt is told as rejected, and costs neither retry nor cooldown."""
    never, order = asyncio.Event(), []
    resources, attic = on_one_slot(waits_for(never), says("chat"), says("batch"))
    sink = Sink()
    batch = asked(resources, "low", sink, stream=True)
    await eventually(lambda: attic.running == 1)
    batch.add_done_callback(lambda _: order.append("batch"))
    chat = asked(resources, "high")
    chat.add_done_callback(lambda _: order.append("chat"))
    async with asyncio.timeout(3):
        first, second = await asyncio.gather(chat, batch)
    assert order == ["chat", "batch"]
    assert (first.event.content, second.event.content) == ("chat", "batch")
    assert codes(second) == [CUT, None]
    assert [each for each in sink.seen if each[0] != "token"] == [
        ("attempt", "big@attic"),
        ("rejected", CUT),
        ("attempt", "big@attic"),
    ]
    assert resources.health.states(0.0)["big@attic"].failures == 0
    assert resources.fleet.held == 0
    await resources.aclose()


async def test_nobody_is_cut_unless_asked_for() -> None:
    """By default the chat waits for the slot."""
    gate = asyncio.Event()
    resources, attic = on_one_slot(waits_for(gate), fleet=FleetConfig())
    batch = asked(resources, "low")
    await eventually(lambda: attic.running == 1)
    chat = asked(resources, "high")
    await asyncio.sleep(0.5)
    assert not chat.done()
    gate.set()
    assert [codes(each) for each in await asyncio.gather(batch, chat)] == [[None], [None]]
    await resources.aclose()


async def test_only_the_low_lane_is_cut_and_only_for_the_high_one() -> None:
    """A normal call keeps its slot from a high one, and a low one from a normal one."""
    for running, waiting in (("normal", "high"), ("high", "high"), ("low", "normal")):
        gate = asyncio.Event()
        resources, attic = on_one_slot(waits_for(gate))
        first = asked(resources, running)  # type: ignore[arg-type]  # a lane
        await eventually(lambda attic=attic: attic.running == 1)  # type: ignore[misc]
        second = asked(resources, waiting)  # type: ignore[arg-type]  # likewise
        await asyncio.sleep(0.4)
        assert attic.running == 1
        gate.set()
        assert [codes(each) for each in await asyncio.gather(first, second)] == [[None], [None]]
        await resources.aclose()


async def test_no_call_is_cut_for_ever() -> None:
    """After some cuts it is let be, however many of the high lane wait."""
    gate = asyncio.Event()
    resources, attic = on_one_slot(waits_for(gate))
    attic.scripts = [waits_for(asyncio.Event()), says("chat")] * MOST_CUTS + [waits_for(gate), says("last")]
    batch = asked(resources, "low")
    for _ in range(MOST_CUTS):
        await eventually(lambda: attic.running == 1)
        async with asyncio.timeout(3):
            assert codes(await asked(resources, "high")) == [None]
    await eventually(lambda: attic.running == 1)
    patient = asked(resources, "high")
    await asyncio.sleep(0.6)
    assert not patient.done()
    gate.set()
    assert codes(await batch) == [CUT] * MOST_CUTS + [None]
    assert codes(await patient) == [None]
    await resources.aclose()


async def test_what_was_cut_keeps_its_turn() -> None:
    """It goes before those of its lane that came after it."""
    resources, attic = on_one_slot(waits_for(asyncio.Event()), says("chat"), says("first"), says("second"))
    first = asked(resources, "low")
    await eventually(lambda: attic.running == 1)
    second = asked(resources, "low")
    await asyncio.sleep(0.3)
    await asked(resources, "high")
    endings = await asyncio.gather(first, second)
    assert [each.event.content for each in endings] == ["first", "second"]
    await resources.aclose()


async def test_call_that_ends_as_it_is_cut_is_answered() -> None:
    """A cut that comes too late is none: the answer stands, and the slot is free all the same."""
    gate = asyncio.Event()
    resources, attic = on_one_slot(waits_for(gate), says("chat"))
    batch = asked(resources, "low")
    await eventually(lambda: attic.running == 1)
    (slot,) = resources.fleet._held.values()
    gate.set()
    await batch
    slot.cut()
    assert codes(await asked(resources, "high")) == [None]
    await resources.aclose()


async def test_cancelled_while_it_is_cut() -> None:
    """A cancellation stays one: nothing is begun again, no slot is left."""
    resources, attic = on_one_slot(waits_for(asyncio.Event()))
    batch = asked(resources, "low")
    await eventually(lambda: attic.running == 1)
    (slot,) = resources.fleet._held.values()
    slot.cut()
    batch.cancel()
    outcome = await asyncio.gather(batch, return_exceptions=True)
    assert isinstance(outcome[0], asyncio.CancelledError)
    assert (resources.fleet.held, attic.running) == (0, 0)
    await resources.aclose()
