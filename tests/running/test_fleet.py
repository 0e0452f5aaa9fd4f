"""Slots of boxes: shared, given in order, where the model is."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from llm_routerd.protocol.call import BackendError
from llm_routerd.protocol.codes import AttemptCode, Lack
from llm_routerd.running.caller import Arrival
from llm_routerd.running.run import Run
from tests.running.asking import Sink, codes, request
from tests.support.boxes import ATTIC, DESK, config_of
from tests.support.eventually import eventually
from tests.support.fakes import FakeBackend, fails, says, waits_for
from tests.support.workers import make_test_resources

if TYPE_CHECKING:
    from llm_routerd.config.tree import Config
    from llm_routerd.protocol.keys import Lane
    from llm_routerd.running.resources import Resources
    from tests.support.fakes import Script


def resources_on(config: Config, *scripts: Script) -> tuple[Resources, dict[str, FakeBackend]]:
    """Resources whose models all play these scripts; by deployment."""
    backends = {name: FakeBackend(*(scripts or (says("hi"),))) for name in config.deployments}
    backends["cloud"] = FakeBackend(says("from the cloud"))
    return make_test_resources(config, backends, consumer="w1"), backends


async def ask(resources: Resources, model: str = "big", lane: Lane = "normal", **properties: Any) -> list[str | None]:
    """The codes of one request's attempts."""
    asked = request(**properties)
    chain = resources.config.chains[model]
    ending = await Run(resources, asked, chain, Sink(), deadline=None, arrival=Arrival(lane=lane)).until_done()
    return codes(ending)  # type: ignore[arg-type]  # the sink withdraws nothing


async def test_calls_at_once_are_no_more_than_the_slots_of_all_boxes() -> None:
    """Each takes the one that is free; the others wait, and nobody goes to the cloud."""
    gate = asyncio.Event()
    resources, models = resources_on(config_of(ATTIC, replace(DESK, slots=2)), waits_for(gate))
    running = [asyncio.create_task(ask(resources)) for _ in range(8)]
    await eventually(lambda: sum(each.running for each in models.values()) == 3)
    await asyncio.sleep(0.1)
    assert (models["big@attic"].running, models["big@desk"].running) == (1, 2)
    gate.set()
    assert await asyncio.gather(*running) == [[None]] * 8
    assert models["cloud"].calls == []
    await resources.aclose()


async def test_model_goes_where_it_is_in_memory() -> None:
    """Though the other box is named first; nothing is loaded."""
    resources, models = resources_on(config_of(ATTIC, DESK))
    models["big@attic"].has_resident = {"other:1b": 1}
    models["big@desk"].has_resident = {"big:1b": 1}
    assert await ask(resources) == [None]
    assert (len(models["big@attic"].calls), len(models["big@desk"].calls)) == (0, 1)
    assert models["big@desk"].warmed_for == []
    await resources.aclose()


async def test_calls_for_two_models_on_one_box_do_not_take_turns() -> None:
    """A A A B B B, and not A B A B A B: two loads in place of one for each call."""
    resources, models = resources_on(config_of(ATTIC, models=("a", "b")), says("hi", delay=0.01))
    box: dict[str, int] = {"a:1b": 1}

    def becomes(name: str) -> Any:
        async def load() -> None:
            await asyncio.sleep(0.02)
            box.clear()
            box[f"{name}:1b"] = 1

        return load

    for name in ("a", "b"):
        backend = models[f"{name}@attic"]
        backend.has_resident, backend.on_warm = box, becomes(name)
        backend.loaded = False
    order: list[str] = []

    async def one(model: str) -> None:
        assert await ask(resources, model) == [None]
        order.append(model)

    await asyncio.gather(*(one("ab"[number % 2]) for number in range(12)))
    assert sum(one != other for one, other in pairwise(order)) <= 2, order
    await resources.aclose()


async def test_high_lane_goes_first_and_has_its_reserve() -> None:
    """Low and normal calls leave the reserved slot alone, however long it is free."""
    gate = asyncio.Event()
    resources, models = resources_on(config_of(replace(ATTIC, slots=2, reserve=1)), waits_for(gate))
    batch = [asyncio.create_task(ask(resources, lane="low")) for _ in range(3)]
    await eventually(lambda: models["big@attic"].running == 1)
    await asyncio.sleep(0.4)
    assert models["big@attic"].running == 1
    chat = asyncio.create_task(ask(resources, lane="high"))
    await eventually(lambda: models["big@attic"].running == 2)
    gate.set()
    assert await asyncio.gather(chat, *batch) == [[None]] * 4
    await resources.aclose()


async def test_who_waits_too_long_goes_on_in_the_chain_and_is_told_why() -> None:
    """All boxes of the model were waited for at once: the next is the cloud."""
    gate = asyncio.Event()
    resources, models = resources_on(config_of(ATTIC, DESK, queue_timeout=0.3), waits_for(gate))
    running = [asyncio.create_task(ask(resources)) for _ in range(2)]
    await eventually(lambda: models["big@attic"].running == models["big@desk"].running == 1)
    began = asyncio.get_running_loop().time()
    assert await ask(resources) == ["busy", None]
    assert asyncio.get_running_loop().time() - began < 0.6
    gate.set()
    assert await asyncio.gather(*running) == [[None]] * 2
    assert await ask(resources) == [None]
    await resources.aclose()


async def test_who_has_nobody_else_to_ask_waits_as_long_as_it_takes() -> None:
    """A batch for a model of one's own is longer than any bound; a deadline holds all the same."""
    gate = asyncio.Event()
    config = config_of(ATTIC, queue_timeout=0.1)
    chain = replace(config.chains["big"], deployments=("big@attic",))
    config = replace(config, chains={**config.chains, "own": chain})
    resources, models = resources_on(config, waits_for(gate))
    running = [asyncio.create_task(ask(resources, "own")) for _ in range(3)]
    await eventually(lambda: models["big@attic"].running == 1)
    late = Run(resources, request(), chain, Sink(), deadline=asyncio.get_running_loop().time() + 0.2)
    ending = await late.until_done()
    assert codes(ending) == ["busy"]  # type: ignore[arg-type]  # the sink withdraws nothing
    gate.set()
    assert await asyncio.gather(*running) == [[None]] * 3
    await resources.aclose()


async def test_box_that_fails_is_left_for_another() -> None:
    """A failure on one is a rejected attempt; the same model is asked on the next box."""
    resources, models = resources_on(config_of(ATTIC, DESK))
    models["big@attic"].scripts = [fails(AttemptCode.UPSTREAM)]
    models["big@attic"].has_resident = models["big@desk"].has_resident = {"big:1b": 1}
    found = [await ask(resources) for _ in range(6)]
    assert all(each[-1] is None for each in found)
    assert models["cloud"].calls == []
    assert ["upstream", None] in found
    await resources.aclose()


async def test_each_attempt_is_told_of_whoever_made_it() -> None:
    """Of a box that failed, of the next one, and of the cloud after them."""
    resources, models = resources_on(config_of(ATTIC, DESK), fails(AttemptCode.UPSTREAM))
    asked = request()
    run = Run(resources, asked, resources.config.chains["big"], Sink(), deadline=None)
    ending = await run.until_done()
    made = [record.deployment for record in ending.spent.attempts]
    assert (sorted(made[:2]), made[2:]) == (["big@attic", "big@desk"], ["cloud"])
    assert sum(len(each.calls) for each in models.values()) == 3
    await resources.aclose()


async def test_box_that_does_not_answer_is_passed_over() -> None:
    """It is asked what it has in memory first, and no call waits for it."""
    resources, models = resources_on(config_of(ATTIC, DESK))

    async def gone() -> Any:
        raise BackendError(AttemptCode.CONNECT, "nobody listens")

    models["big@attic"].resident = gone  # type: ignore[method-assign]
    models["big@desk"].has_resident = {}
    assert [await ask(resources) for _ in range(3)] == [[None]] * 3
    assert models["big@attic"].calls == []
    await resources.aclose()


async def test_box_that_never_tells_what_it_has_holds_nobody_up() -> None:
    """It is waited for once, and not for long; calls for the others go on meanwhile."""
    resources, models = resources_on(config_of(ATTIC, DESK))
    models["big@attic"].resident = asyncio.Event().wait  # type: ignore[assignment]
    models["big@desk"].has_resident = {"big:1b": 1}
    began = asyncio.get_running_loop().time()
    assert [await ask(resources) for _ in range(20)] == [[None]] * 20
    assert asyncio.get_running_loop().time() - began < 1.5
    await resources.aclose()


@pytest.mark.parametrize("when", ["while it waits", "while it is called"])
async def test_cancelled_call_gives_its_slot_back(when: str) -> None:
    """At once, whenever it comes."""
    gate = asyncio.Event()
    resources, models = resources_on(config_of(ATTIC), waits_for(gate))
    first = asyncio.create_task(ask(resources))
    await eventually(lambda: models["big@attic"].running == 1)
    second = asyncio.create_task(ask(resources))
    await asyncio.sleep(0.05)
    gone, stays = (second, first) if when == "while it waits" else (first, second)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    gate.set()
    assert await stays == [None]
    assert await ask(resources) == [None]
    await eventually(lambda: not resources.fleet.held)
    await resources.aclose()


async def test_chain_that_goes_by_memory_asks_the_first_that_is_loaded() -> None:
    """Whatever is loaded answers; the first of the chain where nothing is."""
    config = config_of(ATTIC, models=("a", "b"))
    chain = replace(config.chains["default"], strategy="resident")
    config = replace(config, chains={"big": chain, **config.chains})
    resources, models = resources_on(config)
    models["a@attic"].has_resident = models["b@attic"].has_resident = {"b:1b": 1}
    assert await ask(resources) == [None]
    assert (len(models["a@attic"].calls), len(models["b@attic"].calls)) == (0, 1)
    models["a@attic"].has_resident = models["b@attic"].has_resident = {}
    resources, models = resources_on(config)
    assert await ask(resources) == [None]
    assert (len(models["a@attic"].calls), len(models["b@attic"].calls)) == (1, 0)
    await resources.aclose()


@pytest.mark.parametrize(
    ("error", "is_asked"),
    [
        (BackendError(AttemptCode.CONNECT, "nobody listens"), False),
        (BackendError(AttemptCode.UPSTREAM, "a proxy has nobody behind it", status=502), False),
        (BackendError(AttemptCode.UPSTREAM, "it fails", status=500), True),
        (BackendError(AttemptCode.AUTH, "it does not tell us", status=401), True),
        (BackendError(AttemptCode.INTERNAL, "no file is left", lack=Lack.RESOURCES), True),
    ],
    ids=["nobody", "proxy", "fails", "refuses", "our lack"],
)
async def test_only_a_box_that_is_silent_is_down(error: BackendError, *, is_asked: bool) -> None:
    """One that says no is there; and what we lack ourselves says nothing of it."""
    resources, models = resources_on(config_of(ATTIC))

    async def tells() -> Any:
        raise error

    models["big@attic"].resident = tells  # type: ignore[method-assign]
    await resources.fleet._watch.look_at("attic")
    seen = (await resources.fleet._look()).boxes["attic"]
    assert (seen.down_until_ms is None) == is_asked
    await resources.aclose()


async def test_box_that_could_not_load_the_model_is_tried_by_one_and_not_by_each() -> None:
    """Its memory is used by others: the next requests go where the model can be loaded, and come back after a while."""
    resources, models = resources_on(config_of(ATTIC, DESK))
    tried = 0

    async def fails_to_load() -> None:
        nonlocal tried
        tried += 1
        raise BackendError(AttemptCode.UPSTREAM, "out of memory", status=500)

    for name in ("big@attic", "big@desk"):
        models[name].has_resident, models[name].loaded = {}, False
    models["big@attic"].on_warm = fails_to_load
    assert [(await ask(resources))[-1] for _ in range(12)] == [None] * 12
    assert tried <= 1
    assert models["cloud"].calls == []
    resources.fleet._not_loaded = dict.fromkeys(resources.fleet._not_loaded, 0.0)
    assert (await ask(resources))[-1] is None
    await resources.aclose()


async def test_only_box_that_could_not_load_the_model_is_tried_again() -> None:
    """There is no other, and its memory may be free by now."""
    resources, models = resources_on(config_of(ATTIC))
    models["big@attic"].has_resident, models["big@attic"].loaded = {}, False

    async def fails_once() -> None:
        models["big@attic"].on_warm = None
        raise BackendError(AttemptCode.UPSTREAM, "out of memory", status=500)

    models["big@attic"].on_warm = fails_once
    assert (await ask(resources))[-1] is None
    assert (await ask(resources))[-1] is None
    assert len(models["big@attic"].calls) >= 1
    await resources.aclose()


async def test_box_that_hangs_ends_a_wait_that_nobody_else_could(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says nothing, so no call begins there that might fail; whoever has nobody else to ask is told so."""
    monkeypatch.setattr("llm_routerd.running.fleet.DOWN_SECONDS_AT_MOST", 0.5)
    monkeypatch.setattr("llm_routerd.running.box_watch.ASK_SECONDS", 0.2)
    config = config_of(ATTIC)
    chain = replace(config.chains["big"], deployments=("big@attic",))
    resources, models = resources_on(replace(config, chains={**config.chains, "own": chain}))
    models["big@attic"].resident = asyncio.Event().wait  # type: ignore[assignment]
    async with asyncio.timeout(5):
        assert await ask(resources, "own") == ["busy"]
    assert models["big@attic"].calls == []
    await resources.aclose()
