"""Boxes that sleep: when they are woken, who waits for them, and who goes on."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest

from llm_routerd.fleet.estimates import Estimates, Seen
from llm_routerd.fleet.picture import Rules, Waking
from llm_routerd.fleet.plan import make_plan
from llm_routerd.fleet.waits import Why
from tests.fleet.scene import NOW, picture, running, view, waiting

if TYPE_CHECKING:
    from llm_routerd.fleet.picture import BoxView
    from llm_routerd.fleet.plan import Plan

RULES = Rules()
BOOT = 90.0
X = ("x",)


def asleep(name: str = "x", *, boot: float = BOOT, **more: Any) -> BoxView:
    """A box that sleeps, unless more is said."""
    how = {key: more.pop(key) for key in ("woken", "not_before", "is_late") if key in more}
    return view(name, waking=Waking(boot_seconds=boot, **how), **more)


def plan(*boxes: BoxView, calls: Any, **more: Any) -> Plan:
    """What is decided."""
    return make_plan(picture(*boxes, calls=calls, **more), RULES, NOW)


def test_box_is_woken_for_a_call_that_may_wait_for_it() -> None:
    """For nobody else can serve it; it takes the boot, and its model's load."""
    made = plan(asleep(), calls=[waiting("1", "a")])
    assert made.wakes == X
    assert made.begin == ()
    wait = made.waits["1"]
    assert (wait.why, wait.reason) == (Why.WAKING, "waking x")
    assert wait.seconds > BOOT + 10  # 8 GiB have to be loaded


@pytest.mark.parametrize(
    ("bounds", "waits"),
    [
        ({}, True),
        ({"begin_by": NOW + BOOT + 1}, True),
        ({"begin_by": NOW + BOOT - 1}, False),
        ({"end_by": NOW + BOOT + 40}, True),
        ({"end_by": NOW + BOOT + 10}, False),  # its model would be loaded, and no answer
        ({"begin_by": NOW + BOOT + 40, "end_by": NOW + 30}, False),
    ],
)
def test_call_that_may_not_wait_so_long_is_sent_on_at_once_and_wakes_the_box(bounds: Any, waits: bool) -> None:
    """For those that come after it; it loses no second in vain."""
    made = plan(asleep(), calls=[waiting("1", "a", **bounds)])
    assert made.wakes == X
    wait = made.waits["1"]
    assert (wait.why, math.isinf(wait.seconds)) == ((Why.WAKING, False) if waits else (Why.LATE, True))
    assert waits or wait.reason == "waking x takes longer than this may wait"


def test_who_may_wait_for_the_boot_also_waits_for_those_before_it() -> None:
    """As on a box that is up: how long they take is a guess, and `queue_timeout` bounds it."""
    calls = [
        waiting(f"{number:02}", "a", ago=30.0 - number, begin_by=NOW + BOOT + 1, seconds=30.0) for number in range(9)
    ]
    made = plan(asleep(), calls=calls)
    assert {wait.why for wait in made.waits.values()} == {Why.WAKING}
    assert [wait.before for wait in made.waits.values()] == list(range(9))


def test_box_that_boots_is_not_woken_again_and_takes_what_is_left_of_it() -> None:
    """What cannot wait for a whole boot may for the rest of one."""
    call = waiting("1", "a", begin_by=NOW + 31)
    made = plan(asleep(woken=NOW - 60), calls=[call])
    assert made.wakes == ()
    assert made.waits["1"].why is Why.WAKING
    overdue = plan(asleep(woken=NOW - 100), calls=[call])
    assert (overdue.wakes, overdue.waits["1"].why) == ((), Why.WAKING)
    assert made.waits["1"].seconds > overdue.waits["1"].seconds


def test_box_that_did_not_come_is_down_until_it_may_be_woken_again() -> None:
    """Who has time waits; who has not goes on at once; and no packet is sent."""
    box = asleep(not_before=NOW + 200, is_late=True)
    made = plan(box, calls=[waiting("1", "a"), waiting("2", "a", begin_by=NOW + 250)])
    assert made.wakes == ()
    assert {token: wait.reason for token, wait in made.waits.items()} == {"1": "x is down", "2": "x is down"}
    assert math.isinf(made.waits["2"].seconds)
    assert 290 < made.waits["1"].seconds < math.inf
    assert plan(asleep(not_before=NOW - 1, is_late=True), calls=[waiting("1", "a")]).wakes == X


def test_box_that_is_going_to_sleep_is_woken_when_it_sleeps() -> None:
    """A packet that comes before is lost."""
    made = plan(asleep(not_before=NOW + 15), calls=[waiting("1", "a")])
    assert (made.wakes, made.waits["1"].why) == ((), Why.WAKING)
    assert made.waits["1"].seconds > BOOT + 15


def test_nothing_is_woken_while_what_is_up_is_about_as_soon() -> None:
    """A free box; one where the model has to be loaded; one that is free soon."""
    call = waiting("1", "a", "xy")
    for up in (view("y", residents=("a",)), view("y"), view("y", residents=("a",), running=(running("r", "a"),))):
        made = plan(asleep(), up, calls=[call])
        assert made.wakes == ()
        assert [each.box for each in made.begin] == ["y"] * (not up.running)


def test_queue_that_is_longer_than_a_boot_wakes_a_box() -> None:
    """The first go on where they are; those at its end are answered sooner by the box that is woken."""
    up = view("y", residents=("a",), running=(running("r", "a", left=20.0),))
    calls = [waiting(f"{number:02}", "a", "xy", ago=50.0 - number, seconds=20.0) for number in range(20)]
    made = plan(asleep(), up, calls=calls)
    assert made.wakes == X
    where = [made.waits[call.token].box for call in calls]
    assert where[:4] == ["y"] * 4
    assert 4 < where.count("x") < 14
    assert plan(asleep(), up, calls=calls[:5]).wakes == ()


def test_free_slot_is_taken_though_a_fast_box_could_be_woken() -> None:
    """Past `max_wait` nobody is kept from what is free."""
    speeds = {("x", "a"): Seen(1000.0, 1, NOW), ("y", "a"): Seen(1.0, 1, NOW)}
    made = plan(
        asleep(),
        view("y", residents=("a",)),
        calls=[waiting("1", "a", "xy", tokens=1000)],
        estimates=Estimates(tokens_per_second=speeds),
    )
    assert ([each.box for each in made.begin], made.wakes) == (["y"], ())


def test_of_two_that_sleep_the_one_that_is_up_sooner_is_woken() -> None:
    """And one alone, for however many calls fit there."""
    made = plan(asleep("x"), asleep("y", boot=10.0, slots=2), calls=[waiting(n, "a", "xy") for n in "12"])
    assert made.wakes == ("y",)


def test_box_is_not_woken_for_a_model_that_has_no_room_there() -> None:
    """It would be in vain."""
    made = plan(asleep(), calls=[waiting("1", "huge")])
    assert (made.wakes, made.waits["1"].why) == ((), Why.NEVER)


def test_box_that_is_down_and_cannot_be_woken_is_waited_for_as_ever() -> None:
    """Until it is looked at again, whatever the call's bounds."""
    made = plan(view("x", down_until=NOW + 5), calls=[waiting("1", "a", begin_by=NOW + 1)])
    assert (made.wakes, made.waits["1"].why, made.waits["1"].seconds) == ((), Why.DOWN, 5.0)


def test_all_workers_come_to_the_same_waking() -> None:
    """Whoever sees it first wakes the box, also for a call of one that has died meanwhile: the script lets one do it."""
    calls = [waiting("1", "a", worker="w2", ago=5.0), waiting("2", "a", worker="w1")]
    assert plan(asleep(), calls=calls).wakes == plan(asleep(), calls=calls[::-1]).wakes == X


def test_models_on_their_way_after_a_boot_are_loaded_once() -> None:
    """The second call of a model waits for its slot, and for no second load."""
    made = plan(asleep(slots=2), calls=[waiting("1", "a", ago=2.0), waiting("2", "a")])
    assert made.waits["1"].seconds == pytest.approx(made.waits["2"].seconds)
