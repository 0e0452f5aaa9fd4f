"""The rule, one sentence after the other."""

from __future__ import annotations

import math
import random
import time

import pytest
from msgspec.structs import replace

from llm_routerd.fleet.estimates import Estimates, Seen
from llm_routerd.fleet.picture import Loading, Picture, Place, Rules
from llm_routerd.fleet.plan import Begin, make_plan
from llm_routerd.fleet.waits import Wait, Why
from tests.fleet.scene import NOW, picture, place, resident, running, view, waiting

RULES = Rules()


def _begun(seen: Picture, rules: Rules = RULES) -> list[tuple[str, str]]:
    return [(each.token, each.box) for each in make_plan(seen, rules, NOW).begin]


# ---------------------------------------------------------------------- placing


def test_call_begins_where_its_model_is_resident_and_a_slot_is_free() -> None:
    """And not on the empty box, though that comes first."""
    assert _begun(picture(view("e"), view("x", residents=("a",)), calls=[waiting("1", "a", "ex")])) == [("1", "x")]


def test_call_waits_for_its_model_where_that_is_sooner_than_loading_elsewhere() -> None:
    """Eight GiB take about nineteen seconds."""
    busy = view("x", residents=("a",), running=(running("r", "a", left=6.0),))
    wait = place(waiting("1", "a", "xy"), picture(busy, view("y")), RULES, NOW)
    assert isinstance(wait, Wait)
    assert wait.seconds == pytest.approx(6.0)
    assert wait.reason == "next on x"


def test_model_is_loaded_elsewhere_where_that_is_sooner_than_waiting() -> None:
    """On the empty box."""
    busy = view("x", residents=("a",), running=(running("r", "a", left=60.0),))
    begin = place(waiting("1", "a", "xy"), picture(busy, view("y")), RULES, NOW)
    assert isinstance(begin, Begin)
    assert (begin.box, begin.loads, begin.push_out) == ("y", True, ())


def test_free_memory_comes_before_pushing_out() -> None:
    """Also where the name comes later."""
    begin = place(waiting("1", "a", "xy"), picture(view("x", residents=("b",)), view("y")), RULES, NOW)
    assert isinstance(begin, Begin)
    assert begin.box == "y"


def test_what_was_used_longest_ago_is_pushed_out_and_no_more_than_needed() -> None:
    """Two of four GiB are held; eight are wanted of twelve."""
    held = (replace(resident("c", ago=50.0)), replace(resident("d", ago=90.0), bytes=4 << 30))
    begin = place(waiting("1", "a"), picture(view("x", gib=12, residents=held)), RULES, NOW)
    assert isinstance(begin, Begin)
    assert begin.push_out == ("d",)


def test_pinned_model_is_never_pushed_out() -> None:
    """However long the other waits."""
    held = view("x", residents=(resident("a", pinned=True),))
    wait = place(waiting("1", "b", turn=0.0), picture(held), RULES, NOW)
    assert isinstance(wait, Wait)
    assert (wait.why, wait.seconds, wait.reason) == (Why.NEVER, math.inf, "no box has room for b")


def test_model_that_runs_is_not_pushed_out() -> None:
    """The call waits for what runs."""
    held = view("x", slots=2, residents=("a",), running=(running("r", "a", left=7.0),))
    wait = place(waiting("1", "b"), picture(held), RULES, NOW)
    assert isinstance(wait, Wait)
    assert wait.reason == "x finishes what runs before it loads b"
    assert wait.seconds > 7.0


def test_model_that_others_want_soon_is_not_pushed_out() -> None:
    """Though their call came later."""
    plan = make_plan(
        picture(view("x", residents=("a",)), calls=[waiting("b", "b", ago=9.0), waiting("a", "a")]), RULES, NOW
    )
    assert [each.token for each in plan.begin] == ["a"]
    assert plan.waits["b"].reason == "x answers for what it has loaded before it loads b"
    assert plan.turns == ("b",)


def test_box_of_unknown_residency_counts_as_able() -> None:
    """It is asked without loading, and after one that is known to have the model."""
    unknown = view("e", residents=None)
    assert _begun(picture(unknown, calls=[waiting("1", "a", "e")])) == [("1", "e")]
    assert _begun(picture(unknown, view("x", residents=("a",)), calls=[waiting("1", "a", "ex")])) == [("1", "x")]


def test_unknown_memory_holds_one_model_and_its_server_chooses_what_goes() -> None:
    """Nothing is named to be pushed out, and nothing else begins meanwhile."""
    box = view("x", slots=3, gib=0, residents=("a",))
    plan = make_plan(picture(box, calls=[waiting("1", "b", turn=0.0, ago=2.0), waiting("2", "a")]), RULES, NOW)
    assert [(each.token, each.loads, each.push_out) for each in plan.begin] == [("1", True, ())]


def test_model_that_is_being_loaded_is_waited_for() -> None:
    """By its second call; the first one is what loads it."""
    box = view("x", slots=4, loading=(Loading(model="a", began=NOW - 5.0),), running=(running("r", "a", left=20.0),))
    plan = make_plan(picture(box, calls=[waiting("1", "a")]), RULES, NOW)
    assert not plan.begin
    assert plan.waits["1"].reason == "loading a on x"
    assert 5.0 < plan.waits["1"].seconds < 20.0


def test_one_model_is_loaded_at_a_time_on_a_box() -> None:
    """Though there is room for both."""
    plan = make_plan(picture(view("x", slots=4, gib=24), calls=[waiting("1", "a"), waiting("2", "b")]), RULES, NOW)
    assert [each.token for each in plan.begin] == ["1"]


def test_box_that_is_down_begins_nothing() -> None:
    """Whoever waits is told so."""
    wait = place(waiting("1", "a"), picture(view("x", residents=("a",), down_until=NOW + 4.0)), RULES, NOW)
    assert isinstance(wait, Wait)
    assert wait.seconds == pytest.approx(4.0)
    assert wait.reason == "x is down"


def test_model_that_no_box_has_room_for_waits_for_nothing() -> None:
    """So does one that no known box serves."""
    seen = picture(view("x"))
    for call in (waiting("1", "huge"), waiting("1", "a", "?"), waiting("1", "a", "")):
        wait = place(call, seen, RULES, NOW)
        assert isinstance(wait, Wait)
        assert wait.why is Why.NEVER


def test_those_who_wait_are_told_how_many_are_before_them() -> None:
    """In their order."""
    busy = view("x", residents=("a",), running=(running("r", "a"),))
    plan = make_plan(picture(busy, calls=[waiting(str(i), "a", ago=9.0 - i) for i in range(3)]), RULES, NOW)
    assert [plan.waits[str(i)].reason for i in range(3)] == ["next on x", "1 before you on x", "2 before you on x"]
    assert [plan.waits[str(i)].seconds for i in range(3)] == [
        pytest.approx(10.0),
        pytest.approx(15.0),
        pytest.approx(20.0),
    ]


def test_long_queue_spreads_to_boxes_where_loading_is_sooner() -> None:
    """Those at its end load the model on the idle box, those at its front stay."""
    busy = view("x", residents=("a",), running=(running("r", "a"),))
    calls = [waiting(f"{i}", "a", "xy", ago=9.0 - i) for i in range(6)]
    plan = make_plan(picture(busy, view("y"), calls=calls), RULES, NOW)
    ((token, box),) = [(each.token, each.box) for each in plan.begin]
    assert (box, "0" < token <= "5") == ("y", True)
    assert plan.waits["0"].box == "x"


# ---------------------------------------------------------------------- order


def test_high_before_normal_before_low() -> None:
    """Whoever came first."""
    calls = [waiting(lane, "a", lane=lane, ago=ago) for lane, ago in (("low", 9.0), ("normal", 5.0), ("high", 1.0))]
    box = view("x", slots=3, residents=("a",))
    assert [token for token, _ in _begun(picture(box, calls=calls))] == ["high", "normal", "low"]


def test_reserved_slots_are_for_the_high_lane() -> None:
    """Others take what is beside them, also when the high lane has used some."""
    calls = [waiting("n1", "a"), waiting("n2", "a"), waiting("low", "a", lane="low")]
    box = view("x", slots=3, reserve=2, residents=("a",))
    assert _begun(picture(box, calls=calls)) == [("n1", "x")]
    busy = view("x", slots=3, reserve=2, residents=("a",), running=(running("h", "a", "high"),))
    assert _begun(picture(busy, calls=[*calls, waiting("h2", "a", lane="high")])) == [("h2", "x"), ("n1", "x")]


def test_tenant_with_fewest_running_is_next() -> None:
    """Then the oldest call; each that begins counts."""
    box = view("x", slots=4, residents=("a",), running=(running("r", "a", tenant="big"),))
    calls = [waiting(f"big{i}", "a", tenant="big", ago=50.0 - i) for i in range(3)]
    calls += [waiting(f"small{i}", "a", tenant="small", ago=5.0 - i) for i in range(2)]
    assert [token for token, _ in _begun(picture(box, calls=calls))] == ["small0", "big0", "small1"]


def test_call_that_was_passed_over_long_enough_gets_the_box() -> None:
    """Nothing else begins there, and its model is loaded in place of what others want."""
    calls = [waiting("b", "b", turn=NOW - 30.0, ago=60.0), waiting("a", "a", ago=90.0)]
    plan = make_plan(picture(view("x", slots=2, residents=("a",)), calls=calls), RULES, NOW)
    assert [(each.token, each.push_out) for each in plan.begin] == [("b", ("a",))]


def test_box_is_kept_for_who_was_passed_over_until_what_runs_has_ended() -> None:
    """Its free slot stays free for its lane and the lower one, and not for the high lane."""
    box = view("x", slots=3, residents=("a",), running=(running("r", "a"),))
    calls = [waiting("b", "b", turn=NOW - 31.0), waiting("a", "a", ago=99.0), waiting("l", "a", lane="low")]
    assert _begun(picture(box, calls=calls)) == []
    assert _begun(picture(box, calls=[*calls, waiting("h", "a", lane="high")])) == [("h", "x")]


def test_model_just_loaded_stays_while_calls_wait_for_it() -> None:
    """`min_resident` is stronger than `max_wait`; when nobody wants it, it goes."""
    young = view("x", residents=(resident("a", ago=5.0),))
    late = waiting("b", "b", turn=NOW - 40.0)
    assert _begun(picture(young, calls=[late, waiting("a", "a")])) == [("a", "x")]
    assert _begun(picture(young, calls=[late])) == [("b", "x")]


def test_model_that_runs_unheard_of_is_held_for_nobody() -> None:
    """Else each call that begins on it would make it young again."""
    box = view("x", slots=2, running=(replace(running("r", "a"), began=NOW),))
    assert _begun(picture(box, calls=[waiting("b", "b", turn=NOW - 31.0), waiting("a", "a")])) == []


def test_higher_lane_pushes_out_what_a_lower_one_wants() -> None:
    """At once, and what is lower begins nothing there while the box has to be emptied."""
    calls = [waiting("h", "b", lane="high"), waiting("l", "a", lane="low", ago=50.0)]
    assert _begun(picture(view("x", residents=(resident("a", ago=5.0),)), calls=calls)) == [("h", "x")]
    busy = view("x", slots=2, residents=("a",), running=(running("r", "a"),))
    assert _begun(picture(busy, calls=calls)) == []


def test_after_twice_max_wait_every_box_is_kept() -> None:
    """Before that, one."""
    boxes = [view(name, slots=2, residents=("a",), running=(running(f"r{name}", "a"),)) for name in "xy"]
    for late, begun in ((40.0, 1), (61.0, 0)):
        calls = [waiting("b", "b", "xy", turn=NOW - late), *(waiting(f"a{i}", "a", "xy") for i in range(2))]
        assert len(_begun(picture(*boxes, calls=calls))) == begun


# ---------------------------------------------------------------------- cutting


def test_low_lane_call_is_cut_for_a_high_one_that_finds_no_place() -> None:
    """The one that began last; only where the rules say so, and not for what is free soon."""
    older, newer = running("older", "a", "low"), replace(running("newer", "a", "low"), began=NOW - 2.0)
    box = view("x", slots=2, residents=("a",), running=(older, newer))
    seen = picture(box, calls=[waiting("h", "a", lane="high")])
    assert make_plan(seen, RULES, NOW).cuts == ()
    (cut,) = make_plan(seen, Rules(preempt=True), NOW).cuts
    assert (cut.token, cut.box, cut.for_token) == ("newer", "x", "h")
    soon = view("x", slots=2, residents=("a",), running=(older, replace(newer, is_cut=True)))
    assert make_plan(picture(soon, calls=seen.waiting), Rules(preempt=True), NOW).cuts == ()


def test_call_that_is_being_cut_is_not_cut_for_another() -> None:
    """The second call that finds no place gets the next one."""
    low = [running("l1", "a", "low"), replace(running("l2", "a", "low"), began=NOW - 1.0, is_cut=True)]
    box = view("x", slots=2, residents=("a",), running=tuple(low))
    calls = [waiting(name, "a", lane="high", ago=ago) for name, ago in (("h1", 2.0), ("h2", 1.0))]
    cuts = make_plan(picture(box, calls=calls), Rules(preempt=True), NOW).cuts
    assert [(cut.token, cut.for_token) for cut in cuts] == [("l1", "h2")]


def test_calls_of_other_lanes_are_never_cut() -> None:
    """Nor is a low one, where it would not be enough."""
    calls = [waiting("h", "b", lane="high")]
    box = view("x", slots=2, residents=("a",), running=(running("n", "a"), running("l", "a", "low")))
    assert make_plan(picture(box, calls=calls), Rules(preempt=True), NOW).cuts == ()


def test_all_calls_of_a_model_are_cut_to_load_another() -> None:
    """When all are of the low lane."""
    box = view("x", slots=4, residents=("a",), running=(running("l1", "a", "low"), running("l2", "a", "low")))
    cuts = make_plan(picture(box, calls=[waiting("h", "b", lane="high")]), Rules(preempt=True), NOW).cuts
    assert {cut.token for cut in cuts} == {"l1", "l2"}


# ---------------------------------------------------------------------- speed, affinity


def test_fastest_of_free_boxes_is_taken_and_a_much_faster_one_is_waited_for() -> None:
    """A hundred tokens take one second on x, and fifty on y."""
    estimates = Estimates(tokens_per_second={("x", "a"): Seen(100.0, 3.0, NOW), ("y", "a"): Seen(2.0, 3.0, NOW)})
    call = waiting("1", "a", "xy", tokens=100)
    slow = view("y", residents=("a",))
    free = picture(view("x", residents=("a",)), slow, calls=[call], estimates=estimates)
    assert _begun(free) == [("1", "x")]
    busy = view("x", residents=("a",), running=(running("r", "a", left=5.0),))
    assert _begun(picture(busy, slow, calls=[call], estimates=estimates)) == []
    overdue = replace(call, turn=NOW - 30.0)
    assert _begun(picture(busy, slow, calls=[overdue], estimates=estimates)) == [("1", "y")]


def test_same_beginning_goes_to_the_same_box_and_is_waited_for_where_reading_it_again_is_dearer() -> None:
    """Reading 3000 tokens takes ten seconds where no speed is known."""
    boxes = [view(name, slots=4, residents=("a",)) for name in "xyz"]
    places = {
        key: {_begun(picture(*boxes, calls=[waiting(str(i), "a", "xyz", key=key)]))[0][1] for i in range(5)}
        for key in map(str, range(20))
    }
    assert all(len(each) == 1 for each in places.values())
    assert set().union(*places.values()) == {"x", "y", "z"}
    call = waiting("1", "a", "xy", key="k", prompt_tokens=3000)
    for left, begun in ((2.0, []), (30.0, [("1", "y")])):
        busy = view("x", residents=("a",), running=(running("r", "a", left=left),))
        assert _begun(picture(busy, view("y", residents=("a",)), calls=[call], served={"k": "x"})) == begun
    full = view("x", slots=2, residents=("a",), running=(running("r", "a", left=2.0), running("s", "a", left=2.0)))
    idle = view("y", slots=2, residents=("a",))
    assert _begun(picture(full, idle, calls=[call], served={"k": "x"})) == [("1", "y")], "more than its share"


def test_box_that_a_key_prefers_is_passed_over_where_it_runs_more_than_its_share() -> None:
    """Of five running calls and the next, each of two boxes should have three, and four at most."""
    keys = [str(i) for i in range(20)]
    for busy, other in ("xy", "yx"):
        boxes = (
            view(busy, slots=9, residents=("a",), running=tuple(running(f"r{i}", "a") for i in range(5))),
            view(other, slots=9, residents=("a",)),
        )
        places = {_begun(picture(*boxes, calls=[waiting("1", "a", "xy", key=key)]))[0][1] for key in keys}
        assert places == {other}


# ---------------------------------------------------------------------- all of it


def test_each_worker_begins_its_own() -> None:
    """And leaves the others'."""
    calls = [waiting(str(i), "a", worker=f"w{i % 2}") for i in range(4)]
    plan = make_plan(picture(view("x", slots=3, residents=("a",)), calls=calls), RULES, NOW)
    assert [each.token for each in plan.of("w0")] == ["0", "2"]
    assert [each.token for each in plan.of("w1")] == ["1"]


def test_five_hundred_calls_on_eight_boxes_take_milliseconds() -> None:
    """Five here; it may take four times that where machines are slow."""
    rng = random.Random(7)
    names, models = "abcdefgh", ("a", "b", "c")
    boxes = [
        view(name, slots=4, reserve=1, gib=14, residents=models[:2], running=(running(f"r{name}", "a"),))
        for name in names
    ]
    calls = [
        replace(
            waiting(str(i), models[i % 3], names, ago=rng.random() * 100, tenant=str(i % 10), tokens=100 + i),
            lane=rng.choice(["high", "normal", "low"]),
            candidates=tuple(Place(name, models[i % 3]) for name in names),
        )
        for i in range(500)
    ]
    seen = picture(*boxes, calls=calls)
    taken = []
    for _ in range(5):
        began = time.process_time()
        plan = make_plan(seen, Rules(preempt=True), NOW)
        taken.append(time.process_time() - began)
    assert len(plan.begin) + len(plan.waits) == 500
    assert min(taken) < 0.020
