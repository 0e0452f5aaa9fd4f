"""Boxes that sleep: a request waits for one, or goes on; one packet; nothing is held against it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace
from structlog.testing import capture_logs

from llm_routerd.protocol.codes import AttemptCode
from llm_routerd.queue.power import AWAKE_SECONDS
from llm_routerd.running import box_watch, waking
from llm_routerd.running.run import Run
from llm_routerd.running.waking import PACKETS, magic_packet, send_packets
from tests.running.asking import Sink, codes, request
from tests.support.boxes import DESK, config_of
from tests.support.eventually import eventually
from tests.support.fakes import FakeBackend, fails, says, waits_for
from tests.support.wakeable import MAC, Card, Machine, OnMachine, listening, wakeable
from tests.support.workers import make_test_resources

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from llm_routerd.config.tree import Config
    from llm_routerd.running.ending import Answered, Unanswered
    from llm_routerd.running.resources import Resources


@pytest.fixture
async def card() -> AsyncIterator[Card]:
    """Of the attic's box."""
    async with listening() as it:
        yield it


@pytest.fixture(autouse=True)
def _quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A boot takes a fraction of a second here."""
    for module in (box_watch, waking):
        monkeypatch.setattr(module, "BOOT_LOOK_SECONDS", 0.05)


def resources_on(config: Config, machine: Machine, *scripts: Any, **others: FakeBackend) -> Resources:
    """Resources with that machine in the attic; all else is up."""
    backends = {
        name: OnMachine(machine, *(scripts or (says("hi"),))) if each.box == "attic" else FakeBackend(says("other"))
        for name, each in config.deployments.items()
    }
    for backend in backends.values():
        backend.has_resident = {}
    return make_test_resources(config, backends | others, consumer="w1")


def alone(config: Config) -> Config:
    """Without the cloud: there is nobody else to ask."""
    chain = replace(config.chains["big"], deployments=config.chains["big"].deployments[:-1])
    return replace(config, chains={**config.chains, "big": chain})


async def ask(resources: Resources, *, seconds: float | None = None, **properties: Any) -> Answered | Unanswered:
    """What becomes of one request."""
    deadline = None if seconds is None else asyncio.get_running_loop().time() + seconds
    chain = resources.config.chains["big"]
    run = Run(resources, request(**properties), chain, Sink(), deadline=deadline)
    return await run.until_done()  # type: ignore[return-value]  # the sink withdraws nothing


def reasons(ending: Answered | Unanswered) -> list[str | None]:
    """Of its attempts."""
    return [record.reason for record in ending.spent.attempts]


async def test_packet_is_six_times_ff_and_sixteen_times_the_address(card: Card) -> None:
    """As on the wire; some of them, for UDP may lose one; they count as one waking."""
    await send_packets(MAC, "127.0.0.1", card.port)
    await eventually(lambda: len(card.packets) == PACKETS)
    expected = b"\xff" * 6 + bytes([0xAA, 0xBB, 0xCC, 0xDD, 0xEE, 0xFF]) * 16
    assert set(card.packets) == {expected} == {magic_packet("AA-BB-CC-DD-EE-FF")}
    assert card.wakings == 1


async def test_request_waits_for_the_boot_and_is_answered(card: Card) -> None:
    """Though a boot is longer than `queue_timeout`, for there is nobody else; no attempt is lost on it."""
    machine = Machine(card)
    config = alone(config_of(wakeable(card), queue_timeout=0.05))
    resources = resources_on(config, machine)
    with capture_logs() as logs:
        endings = await asyncio.gather(*(ask(resources) for _ in range(4)))
        await eventually(lambda: any(line["event"] == "box_awake" for line in logs))
    assert [codes(each) for each in endings] == [[None]] * 4
    assert (card.wakings, len(card.packets)) == (1, PACKETS)
    assert [line["event"] for line in logs if line["event"].startswith("box_")] == ["box_woken", "box_awake"]
    learnt = (await resources.fleet._own.look()).boxes["attic"].power.boot_seconds
    assert learnt == 1.0, "a boot is never taken to be shorter"
    await resources.aclose()


@pytest.mark.parametrize("bounds", [{"seconds": 0.8}, {"queue_timeout": 0.8}])
async def test_request_that_may_not_wait_so_long_goes_on_at_once(bounds: dict[str, float], card: Card) -> None:
    """And wakes the box for those that come after it."""
    machine = Machine(card, boot_seconds=0.6)
    more: dict[str, Any] = {"queue_timeout": bounds["queue_timeout"]} if "queue_timeout" in bounds else {}
    resources = resources_on(config_of(wakeable(card), **more), machine)
    began = asyncio.get_running_loop().time()
    with capture_logs() as logs:
        ending = await ask(resources, seconds=bounds.get("seconds"))
        assert asyncio.get_running_loop().time() - began < 0.55, "it waited for the boot"
        assert codes(ending) == ["busy", None]
        assert reasons(ending)[0] == "waking attic takes longer than this may wait"
        await eventually(lambda: any(line["event"] == "box_awake" for line in logs))
    assert codes(await ask(resources, seconds=1.0)) == [None]
    assert card.wakings == 1
    await resources.aclose()


async def test_request_that_may_wait_does_so_though_there_is_a_cloud(card: Card) -> None:
    """`queue_timeout` says for how long a local answer is worth it."""
    resources = resources_on(config_of(wakeable(card), queue_timeout=30.0), Machine(card))
    ending = await ask(resources, seconds=40.0)
    assert codes(ending) == [None]
    assert (ending.spent.attempts[-1].deployment, card.wakings) == ("big@attic", 1)
    await resources.aclose()


async def test_box_that_is_up_is_asked_and_the_one_that_sleeps_is_left_alone(card: Card) -> None:
    """No needless waking."""
    resources = resources_on(config_of(wakeable(card), DESK), Machine(card))
    for _ in range(3):
        assert codes(await ask(resources)) == [None]
    await asyncio.sleep(0.2)
    assert card.packets == []
    await resources.aclose()


async def test_box_that_does_not_come_is_given_up_and_left_alone_for_a_while(card: Card) -> None:
    """Twice a boot; requests go on at once meanwhile, and send no packet each; then it is tried again."""
    box = wakeable(card, wake_seconds=0.5)
    machine = Machine(card, boot_seconds=60.0)
    resources = resources_on(config_of(box, queue_timeout=0.4), machine)
    with capture_logs() as logs:
        for _ in range(5):
            assert codes(await ask(resources)) == ["busy", None]
        await eventually(lambda: any(line["event"] == "box_not_woken" for line in logs))
        assert card.wakings == 1
        ending = await ask(resources)
        assert reasons(ending)[0] == "attic is down"
        assert card.wakings == 1
        await asyncio.sleep(0.55)
        await ask(resources)
        await eventually(lambda: card.wakings == 2)
        await ask(resources)
    assert card.wakings == 2
    await resources.aclose()


async def test_packet_that_cannot_be_sent_is_one_line(card: Card) -> None:
    """Its address is wrong: the request goes on, nobody tries it in a tight loop."""
    box = wakeable(card, wake_address="256.256.256.256:9")
    resources = resources_on(config_of(box), Machine(card))
    with capture_logs() as logs:
        for _ in range(3):
            assert codes(await ask(resources, seconds=0.5)) == ["busy", None]
        await asyncio.sleep(0.3)
    told = [line for line in logs if line["event"] == "box_not_woken"]
    assert len(told) == 1
    assert told[0]["why"].startswith("the packet could not be sent: ")
    await resources.aclose()


async def test_box_of_a_kind_that_tells_nothing_is_woken_too(card: Card) -> None:
    """It is asked whether it answers, before a call is sent into the dark."""
    box = wakeable(card, kind="vllm")
    config = config_of(box, DESK)
    config = replace(
        config,
        deployments={
            name: replace(each, model=each.model.replace("ollama/", "openai/")) if each.box else each
            for name, each in config.deployments.items()
        },
    )
    chain = replace(config.chains["big"], deployments=("big@attic",))
    resources = resources_on(replace(config, chains={**config.chains, "big": chain}), Machine(card))
    assert codes(await ask(resources)) == [None]
    assert card.wakings == 1
    await resources.aclose()


async def test_nobody_there_is_not_held_against_a_box_that_sleeps_at_times(card: Card) -> None:
    """It fell asleep a moment after it had answered: calls are lost on it, and its deployment never cools down."""
    machine = Machine(card, is_up=True)
    resources = resources_on(alone(config_of(wakeable(card), queue_timeout=30.0)), machine)
    assert codes(await ask(resources)) == [None]
    for _ in range(4):
        machine.is_up = False
        power = (await resources.fleet._own.look()).boxes["attic"].power
        assert power.awake_ms
        ending = await ask(resources)
        assert codes(ending) == ["connect"]
        await asyncio.sleep(0.05)
        assert codes(await ask(resources)) == [None]
    states = resources.health.states(asyncio.get_running_loop().time())
    assert states["big@attic"].failures == 0
    await resources.aclose()


async def test_failures_from_before_are_forgotten_when_the_box_is_awake(card: Card) -> None:
    """It died with what it was doing; woken, it is asked again at once, whatever its cooldown."""
    machine = Machine(card, is_up=True)
    config = alone(config_of(wakeable(card)))
    resources = resources_on(config, machine, *[fails(AttemptCode.TRUNCATED)] * 3, says("hi"))
    for number in range(3):
        await ask(resources, tenant_id=f"tenant-{number}")
    now = asyncio.get_running_loop().time
    assert resources.health.states(now())["big@attic"].cooldown_seconds > 0
    machine.is_up = False
    await asyncio.sleep(0.02)  # silence of the millisecond in which it has answered says nothing
    await resources.fleet._watch.look_at("attic")
    await resources.fleet._look()
    machine.is_up = True
    await resources.fleet._watch.look_at("attic")
    await resources.fleet._look()
    assert resources.health.states(now())["big@attic"].cooldown_seconds == 0
    assert codes(await ask(resources)) == [None]
    await resources.aclose()


async def test_box_that_is_too_busy_to_tell_is_not_taken_to_sleep(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its calls go on, and no packet is sent for those that wait."""
    monkeypatch.setattr(box_watch, "ASK_SECONDS", 0.05)
    monkeypatch.setattr(box_watch, "WATCH_SECONDS", 0.1)
    gate, machine = asyncio.Event(), Machine(card, is_up=True)
    resources = resources_on(alone(config_of(wakeable(card))), machine, waits_for(gate))
    running = [asyncio.create_task(ask(resources)) for _ in range(2)]
    backend = resources.backends.get("big@attic")
    assert isinstance(backend, OnMachine)
    await eventually(lambda: backend.running == 1)

    async def says_nothing() -> dict[str, int]:
        await asyncio.sleep(60)
        return {}

    monkeypatch.setattr(backend, "resident", says_nothing)
    await asyncio.sleep(0.5)
    assert (await resources.fleet._own.look()).boxes["attic"].down_until_ms is None
    gate.set()
    assert [codes(each) for each in await asyncio.gather(*running)] == [[None]] * 2
    assert card.packets == []
    await resources.aclose()


async def test_box_that_was_idle_is_looked_at_before_a_call_is_sent(card: Card) -> None:
    """Whatever it answered then: it may have gone to sleep by itself."""
    machine = Machine(card, is_up=True)
    resources = resources_on(alone(config_of(wakeable(card))), machine)
    assert codes(await ask(resources)) == [None]
    own = resources.fleet._own
    clock = own._clock
    own._clock = lambda: clock() + AWAKE_SECONDS + 6.0
    resources.fleet._watch._due.clear()
    machine.is_up = False
    resources.fleet._kept.give_back()
    assert codes(await ask(resources)) == [None]
    assert card.wakings == 1
    await resources.aclose()
