"""Whoever waits for a box is told: in time, not too often, and only what he could not know."""

from __future__ import annotations

import asyncio
import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from structlog.testing import capture_logs

from llm_routerd.fleet.waits import Wait, Why
from llm_routerd.protocol.codes import AttemptCode
from llm_routerd.protocol.events import Queued, Token
from llm_routerd.router import _Events
from llm_routerd.running.caller import Arrival
from llm_routerd.running.queued import FIRST_SECONDS, Pace, WaitNotice, event_of
from llm_routerd.running.run import Run
from tests.running.asking import Sink, codes, request
from tests.running.test_fleet import resources_on
from tests.support.boxes import ATTIC, DESK, config_of
from tests.support.eventually import eventually
from tests.support.fakes import fails, waits_for

if TYPE_CHECKING:
    from llm_routerd.running.resources import Resources

BIG = config_of(ATTIC).deployments["big@attic"]


def wait(seconds: float = 20.0, before: int = 1, why: Why = Why.QUEUED, **more: Any) -> Wait:
    """One, on a box."""
    return Wait(**{
        "token": "t", "worker": "w", "seconds": seconds, "why": why, "box": "attic", "model": "big:1b",
        "before": before, **more,
    })  # fmt: skip


class Telling:
    """A pace, and what it lets through."""

    def __init__(self) -> None:
        self.pace = Pace()
        self.pace.begins(0.0)
        self.told: list[tuple[float, Wait]] = []

    def hear(self, now: float, what: Wait) -> bool:
        """Whether it was told."""
        is_due = self.pace.is_due(what, now)
        if is_due:
            self.pace.told(what, now)
            self.told.append((now, what))
        return is_due


def test_what_begins_soon_is_told_nothing() -> None:
    """An event that is past when it is read helps nobody."""
    telling = Telling()
    assert not telling.hear(0.0, wait())
    assert not telling.hear(FIRST_SECONDS - 0.01, wait())
    assert telling.hear(FIRST_SECONDS, wait())


def test_estimate_that_counts_down_is_no_news() -> None:
    """Whoever was told it counts himself; and what differs by little is no news either."""
    telling = Telling()
    assert telling.hear(1.0, wait(20.0))
    assert not telling.hear(11.0, wait(10.0))
    assert not telling.hear(15.0, wait(7.9))
    assert telling.hear(15.0, wait(8.1))
    assert not telling.hear(17.0, wait(8.0))
    assert not telling.hear(60.0, wait(0.0))
    assert telling.hear(60.0, wait(4.0))


@pytest.mark.parametrize(
    "changed",
    [
        wait(before=0),
        wait(why=Why.LOADING),
        wait(why=Why.LOADING, before=2),
        wait(box="desk"),
        wait(math.nan),
        wait(1e300),
        wait(why=Why.DOWN),
    ],
)
def test_other_place_reason_box_or_certainty_is_news_a_second_later(changed: Wait) -> None:
    """And not before."""
    telling = Telling()
    telling.hear(1.0, wait())
    assert not telling.hear(1.9, changed)
    assert telling.hear(2.0, changed)
    assert not telling.hear(4.0, replace(changed, seconds=changed.seconds - 2.0))


def test_next_wait_is_told_of_though_it_is_the_same() -> None:
    """An attempt stood between; still there is a second between two events."""
    telling = Telling()
    assert telling.hear(1.0, wait())
    telling.pace.begins(1.2)
    assert not telling.hear(1.5, wait())
    assert telling.hear(2.0, wait())


def test_what_could_not_be_told_is_tried_again() -> None:
    """Only what was told counts."""
    pace = Pace()
    pace.begins(0.0)
    assert pace.is_due(wait(), 1.0)
    assert pace.is_due(wait(), 1.1)


@given(st.lists(st.tuples(st.floats(0.01, 400.0), st.floats(allow_nan=True), st.integers(0, 9)), max_size=60))
def test_there_is_a_second_between_two_events_whatever_is_planned(plans: list[tuple[float, float, int]]) -> None:
    """And more of it, the longer the wait."""
    telling, now = Telling(), 0.0
    for after, seconds, before in plans:
        now += after
        telling.hear(now, wait(seconds, before))
    times = [each for each, _ in telling.told]
    assert all(other - one >= max(1.0, other / 60) - 1e-9 for one, other in pairwise(times))


def test_night_is_told_in_some_hundred_events() -> None:
    """Each look has other news, four times a second, for twelve hours."""
    telling = Telling()
    for look in range(12 * 3600 * 4):
        telling.hear(look / 4, wait(before=look % 7))
    assert 200 < len(telling.told) < 600


@pytest.mark.parametrize("seconds", [math.nan, math.inf, -math.inf, 1e300])
def test_estimate_that_is_none_is_left_out(seconds: float) -> None:
    """JSON knows neither, and nobody waits so long."""
    assert event_of(wait(seconds), BIG).estimated_wait_ms is None


def test_event_tells_what_is_known() -> None:
    """Names as they are in an attempt."""
    assert event_of(wait(20.0, 2), BIG) == Queued(
        position=2,
        reason="2 before you on attic",
        estimated_wait_ms=20_000,
        box="attic",
        deployment="big@attic",
        model="ollama/big:1b",
    )
    down = event_of(wait(3.0, 0, Why.DOWN), BIG)
    assert (down.summary, down.estimated_wait_ms) == ("attic is down", None)
    assert event_of(wait(-1.0, -1), None).position == 0
    nowhere = event_of(wait(box="", model=""), None)
    assert (nowhere.box, nowhere.deployment, nowhere.model) == (None, None, None)


@pytest.mark.parametrize("evil", ["\x1b[2Jowned\r\n\u2028", "a" * 100_000, "\ud800", "\u202egnp.exe"])
def test_names_of_models_stay_on_their_line(evil: str) -> None:
    """They are what somebody has called them: short, and printable."""
    model = replace(BIG, model=f"ollama/{evil}", name=evil)
    event = event_of(wait(why=Why.LOADING, model=evil, box=evil), model)
    for text in (event.reason, event.box, event.deployment, event.model):
        assert text is not None
        assert text.isprintable()
        assert 0 < len(text) <= 200
    assert len(event.raw) < 4_000


# --- with boxes


def start(resources: Resources, sink: Sink, *, model: str = "big", **properties: Any) -> asyncio.Task[list[str | None]]:
    """A request under way; its task brings the codes of its attempts."""
    chain = resources.config.chains[model]
    asked = Run(resources, request(**properties), chain, sink, deadline=None, arrival=Arrival())

    async def run() -> list[str | None]:
        return codes(await asked.until_done())  # type: ignore[arg-type]  # the sink withdraws nothing

    return asyncio.create_task(run())


async def test_only_who_streams_is_told_and_only_while_he_waits() -> None:
    """The one that runs is told nothing, nor is one that shows nothing."""
    gate = asyncio.Event()
    resources, models = resources_on(config_of(ATTIC), waits_for(gate))
    sinks = [Sink(), Sink(), Sink()]
    tasks = [start(resources, sinks[0], stream=True)]
    await eventually(lambda: models["big@attic"].running == 1)
    tasks.append(start(resources, sinks[1], stream=True))
    await eventually(lambda: sinks[1].waits)
    tasks.append(start(resources, sinks[2]))
    await asyncio.sleep(0.6)
    (told,) = sinks[1].waits
    assert (told.position, told.reason, told.deployment) == (0, "next on attic", "big@attic")
    gate.set()
    assert await asyncio.gather(*tasks) == [[None]] * 3
    assert [sink.waits for sink in sinks] == [[], [told], []]
    await resources.aclose()


async def test_each_of_two_groups_is_told_of() -> None:
    """What is waited for after the first one has failed is another box's."""
    gate = asyncio.Event()
    config = config_of(ATTIC, DESK, models=("a", "b"))
    chains = {
        name: replace(config.chains["a"], name=name, deployments=deployments)
        for name, deployments in {"one": ("a@attic",), "two": ("b@desk",), "both": ("a@attic", "b@desk")}.items()
    }
    resources, models = resources_on(replace(config, chains={**config.chains, **chains}), waits_for(gate))
    others = [start(resources, Sink(), model="one"), start(resources, Sink(), model="two")]
    await eventually(lambda: models["a@attic"].running == models["b@desk"].running == 1)
    models["a@attic"].scripts = [fails(AttemptCode.AUTH)]
    sink = Sink()
    asked = start(resources, sink, model="both", stream=True)
    await eventually(lambda: [each.box for each in sink.waits] == ["attic"])
    others[0].cancel()
    await eventually(lambda: [each.box for each in sink.waits] == ["attic", "desk"], seconds=5)
    assert [kind for kind, _ in sink.seen] == ["attempt", "rejected"]
    gate.set()
    assert (await asked)[-1] is None
    await asyncio.gather(*others, return_exceptions=True)
    await resources.aclose()


async def test_whose_model_is_being_loaded_is_told() -> None:
    """He has the slot, and nobody before him; with what a load has taken before."""
    gate = asyncio.Event()
    resources, models = resources_on(config_of(ATTIC))
    models["big@attic"].has_resident = {}
    models["big@attic"].loaded = False

    async def load() -> None:
        await gate.wait()

    models["big@attic"].on_warm = load
    sink, silent = Sink(), Sink()
    tasks = [start(resources, sink, stream=True)]
    await eventually(lambda: sink.waits)
    tasks.append(start(resources, silent))
    assert (sink.waits[0].summary, sink.waits[0].position) == ("loading big:1b on attic", 0)
    gate.set()
    assert await asyncio.gather(*tasks) == [[None]] * 2
    count = len(sink.waits)
    await asyncio.sleep(0.4)
    assert (len(sink.waits), silent.waits) == (count, [])
    await resources.aclose()


async def test_load_that_takes_longer_than_ever_has_no_estimate_any_more() -> None:
    """It is told once, and then that nobody knows."""
    told: list[Queued] = []
    notice = WaitNotice(lambda event: not told.append(event), asyncio.get_running_loop(), is_wanted=True)  # type: ignore[func-returns-value]
    with notice.of_loading(BIG, 0.6):
        await eventually(lambda: len(told) == 2, seconds=5)
    assert told[0].estimated_wait_ms is not None
    assert 0 < told[0].estimated_wait_ms < 600
    assert told[1].estimated_wait_ms is None


async def test_request_that_is_cancelled_while_it_waits_is_told_no_more() -> None:
    """Its place is free for the next."""
    gate = asyncio.Event()
    resources, models = resources_on(config_of(ATTIC), waits_for(gate))
    first = start(resources, Sink())
    await eventually(lambda: models["big@attic"].running == 1)
    sink = Sink()
    asked = start(resources, sink, stream=True)
    await eventually(lambda: sink.waits)
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)
    await asyncio.sleep(1.2)
    assert len(sink.waits) == 1
    gate.set()
    assert await first == [None]
    await resources.aclose()


async def test_sink_that_fails_costs_neither_the_request_nor_the_others() -> None:
    """It stands in the log."""
    gate = asyncio.Event()
    resources, models = resources_on(config_of(ATTIC), waits_for(gate))

    class Broken(Sink):
        def queued(self, event: Queued) -> bool:
            self.waits.append(event)
            raise OSError("away")

    tasks = [start(resources, Sink())]
    await eventually(lambda: models["big@attic"].running == 1)
    broken, sound = Broken(), Sink()
    with capture_logs() as logs:
        tasks += [start(resources, broken, stream=True), start(resources, sound, stream=True)]
        await eventually(lambda: broken.waits and sound.waits)
        gate.set()
        assert await asyncio.gather(*tasks) == [[None]] * 3
    assert {line["event"] for line in logs} >= {"queued_not_told"}
    assert "fleet_failed" not in {line["event"] for line in logs}
    await resources.aclose()


async def test_reader_of_the_library_who_has_enough_to_read_is_not_told() -> None:
    """What waits for him grows no further."""
    events, told = _Events(), event_of(wait(), BIG)
    assert events.queued(told)
    while events.has_room:
        events.put(Token("a"))
    count = len(events.waiting)
    assert not events.queued(told)
    assert len(events.waiting) == count
