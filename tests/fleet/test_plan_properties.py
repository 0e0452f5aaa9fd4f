"""Whatever the picture says, right or wrong: what a plan never does."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from llm_routerd.fleet.order import in_turn, running_by_tenant
from llm_routerd.fleet.picture import (
    LANES,
    Box,
    BoxView,
    Loading,
    Picture,
    Place,
    Resident,
    Rules,
    Running,
    Waiting,
    Waking,
)
from llm_routerd.fleet.plan import Plan, make_plan
from llm_routerd.fleet.standing import RANKS, boot_left

if TYPE_CHECKING:
    import random

NOW = 1000.0
NAMES = st.sampled_from("xyz")
MODELS = st.sampled_from("abcd")
LANE = st.sampled_from(LANES)
AGES = st.sampled_from([0.0, 1.0, 5.0, 19.0, 25.0, 31.0, 45.0, 70.0, 400.0])
TENANTS = st.sampled_from(["", "t", "u"])
BOUNDS = st.sampled_from([None, None, NOW - 1.0, NOW + 5.0, NOW + 50.0, NOW + 500.0])
WAKING = st.builds(
    Waking,
    boot_seconds=st.sampled_from([5.0, 60.0]),
    woken=st.none() | AGES.map(lambda age: NOW - age),
    not_before=st.sampled_from([0.0, NOW, NOW + 30.0]),
    is_late=st.booleans(),
)
BYTES = st.sampled_from([0, 4, 6, 9])


@st.composite
def _views(draw: st.DrawFn, name: str) -> BoxView:
    """A box; what it runs may be more than it has slots, or of models that it does not have."""
    slots = draw(st.integers(1, 4))
    held = draw(st.none() | st.lists(MODELS, unique=True, max_size=3))
    residents = (
        None
        if held is None
        else tuple(
            Resident(
                model=model,
                bytes=draw(BYTES),
                since=NOW - draw(AGES),
                used=NOW - draw(AGES),
                pinned=draw(st.integers(0, 5)) == 0,
            )
            for model in held
        )
    )
    loads = tuple(Loading(model=model, began=NOW - draw(AGES), bytes=4) for model in draw(st.lists(MODELS, max_size=1)))
    calls = tuple(
        Running(
            token=f"{name}{i}",
            worker="w",
            model=draw(st.sampled_from(held) if held else MODELS),
            lane=draw(LANE),
            began=NOW - draw(AGES),
            seconds=draw(AGES),
            tenant=draw(TENANTS),
        )
        for i in range(draw(st.integers(0, slots + (draw(st.integers(0, 9)) == 0))))
    )
    box = Box(
        name=name, slots=slots, reserve=draw(st.integers(0, slots)), memory_bytes=draw(st.sampled_from([0, 10, 20]))
    )
    down = draw(st.sampled_from([0.0, 0.0, 0.0, NOW + 5.0]))
    waking = draw(st.none() | WAKING) if down else None
    return BoxView(
        box=box,
        residents=residents,
        loading=_for_calls(loads, calls, residents) if held is not None and draw(st.integers(0, 4)) == 0 else (),
        running=calls,
        down_until=down,
        waking=waking,
    )


def _for_calls(
    loads: tuple[Loading, ...], calls: tuple[Running, ...], residents: tuple[Resident, ...] | None
) -> tuple[Loading, ...]:
    """A model that is on its way is so for a call, and is not there yet."""
    there, wanted = {each.model for each in residents or ()}, {each.model for each in calls}
    return tuple(each for each in loads if each.model in wanted - there)


@st.composite
def _pictures(draw: st.DrawFn, names: str = "xyz") -> Picture:
    boxes = tuple(draw(_views(name)) for name in names[: draw(st.integers(1, len(names)))])
    calls = []
    for i in range(draw(st.integers(0, 12))):
        model = draw(MODELS)
        places = draw(st.lists(st.sampled_from(names), unique=True, min_size=1))
        calls.append(
            Waiting(
                token=f"{i:02}",
                worker=draw(st.sampled_from(["w1", "w2"])),
                lane=draw(LANE),
                candidates=tuple(Place(name, model) for name in places),
                since=NOW - draw(AGES),
                seconds=draw(st.sampled_from([1.0, 10.0, 60.0])),
                tenant=draw(TENANTS),
                key=draw(st.sampled_from(["", "k", "l"])),
                turn=draw(st.none() | AGES.map(lambda age: NOW - age)),
                begin_by=draw(BOUNDS),
                end_by=draw(BOUNDS),
            )
        )
    return Picture(boxes=boxes, waiting=tuple(calls), sizes={"a": 4, "b": 6, "c": 9})


RULES = st.builds(
    Rules,
    max_wait=st.sampled_from([0.0, 10.0, 30.0]),
    min_resident=st.sampled_from([0.0, 20.0]),
    preempt=st.booleans(),
)


def _begun(seen: Picture, plan: Plan) -> dict[str, list[Waiting]]:
    """By box."""
    calls = {call.token: call for call in seen.waiting}
    begun: dict[str, list[Waiting]] = {view.box.name: [] for view in seen.boxes}
    for each in plan.begin:
        begun[each.box].append(calls[each.token])
    return begun


@given(_pictures(), RULES)
def test_slots_reserve_and_pins_hold(seen: Picture, rules: Rules) -> None:
    """And every call either begins, on a box that may serve it and is up, or is told why it waits."""
    plan = make_plan(seen, rules, NOW)
    begun = _begun(seen, plan)
    assert Counter([*(each.token for each in plan.begin), *plan.waits]) == Counter(call.token for call in seen.waiting)
    for view in seen.boxes:
        new = begun[view.box.name]
        assert not new or len(view.running) + len(new) <= view.box.slots
        assert not new or view.down_until <= NOW
        shared = sum(call.lane != "high" for call in view.running)
        new_shared = sum(call.lane != "high" for call in new)
        assert not new_shared or shared + new_shared <= view.box.slots - view.box.reserve
    views = {view.box.name: view for view in seen.boxes}
    calls = {call.token: call for call in seen.waiting}
    for each in plan.begin:
        assert Place(each.box, each.model) in calls[each.token].candidates
        runs = {call.model for call in views[each.box].running}
        pinned = {held.model for held in views[each.box].residents or () if held.pinned}
        assert not set(each.push_out) & (runs | pinned)
        assert each.loads or not each.push_out
        assert not each.loads or not views[each.box].loading
    assert all(wait.reason and wait.seconds >= 0 for wait in plan.waits.values())


@given(_pictures(), RULES)
def test_what_is_loaded_has_room(seen: Picture, rules: Rules) -> None:
    """Where all sizes are known, and the picture itself does not hold too much."""
    views = {view.box.name: view for view in seen.boxes}
    for each in make_plan(seen, rules, NOW).begin:
        view = views[each.box]
        held = {held.model: held.bytes or seen.sizes.get(held.model, 0) for held in view.residents or ()}
        running = {call.model for call in view.running}
        size = seen.sizes.get(each.model, 0)
        if each.loads and view.box.memory_bytes and size and all(held.values()) and running <= held.keys():
            left = sum(bytes_ for model, bytes_ in held.items() if model not in each.push_out)
            assert left + size <= view.box.memory_bytes


@given(_pictures(), RULES, st.randoms(use_true_random=False))
def test_plan_is_the_same_in_any_order_of_the_picture(seen: Picture, rules: Rules, rng: random.Random) -> None:
    """So two workers, who read it in orders of their own, never begin more than one of them would."""
    boxes, calls = list(seen.boxes), list(seen.waiting)
    rng.shuffle(boxes)
    rng.shuffle(calls)
    first = make_plan(seen, rules, NOW)
    second = make_plan(replace(seen, boxes=tuple(boxes), waiting=tuple(calls)), rules, NOW)
    assert first == second
    mine, others = first.of("w1"), second.of("w2")
    assert {each.token for each in (*mine, *others)} == {each.token for each in first.begin}
    for view in seen.boxes:
        new = [each for each in (*mine, *others) if each.box == view.box.name]
        assert not new or len(view.running) + len(new) <= view.box.slots


@given(_pictures("x"), RULES)
def test_nobody_is_passed_over_for_longer_than_max_wait(seen: Picture, rules: Rules) -> None:
    """On one box: what is later in turn, or of a lower lane, does not begin before it; `min_resident` apart."""
    plan = make_plan(seen, rules, NOW)
    (view,) = seen.boxes
    young = {each.model for each in view.residents or () if each.since + rules.min_resident > NOW}
    begun = {each.token: each for each in plan.begin}
    for lane in LANES:
        order = in_turn([call for call in seen.waiting if call.lane == lane], running_by_tenant(seen, lane))
        for place, call in enumerate(order):
            wait = plan.waits.get(call.token)
            is_overdue = call.turn is not None and call.turn + rules.max_wait <= NOW
            if not is_overdue or wait is None or wait.box == "" or wait.why == "down":
                continue
            later = [*order[place + 1 :], *(each for each in seen.waiting if RANKS[each.lane] > RANKS[lane])]
            passing = [begun[each.token].model for each in later if each.token in begun]
            assert set(passing) <= young or view.box.reserve
            if view.box.reserve == 0:
                # what passes is of the same lane, on a model that may not be pushed out yet
                assert not any(each.token in begun for each in later if each.lane != lane)


@given(_pictures(), RULES)
def test_boxes_are_woken_for_somebody_and_when_they_may_be(seen: Picture, rules: Rules) -> None:
    """Each once, none that boots; and whoever waits for one may wait for its boot."""
    plan = make_plan(seen, rules, NOW)
    views = {view.box.name: view for view in seen.boxes}
    wanted = {place.box for call in seen.waiting for place in call.candidates if call.token in plan.waits}
    assert len(set(plan.wakes)) == len(plan.wakes)
    for box in plan.wakes:
        waking = views[box].waking
        assert waking is not None
        assert waking.woken is None
        assert waking.not_before <= NOW
        assert box in wanted
    for call in seen.waiting:
        wait = plan.waits.get(call.token)
        waking = views[wait.box].waking if wait and wait.box else None
        if wait and waking is not None and wait.seconds != float("inf"):
            left = boot_left(waking, NOW)
            assert call.begin_by is None or NOW + left <= call.begin_by
            assert call.end_by is None or NOW + left <= call.end_by


@given(_pictures(), RULES)
def test_who_is_twice_overdue_is_passed_over_nowhere(seen: Picture, rules: Rules) -> None:
    """By nobody of its lane, on any box that it could be loaded on; where `min_resident` holds a model, it could not."""
    plan = make_plan(seen, rules, NOW)
    begun = {each.token: each for each in plan.begin}
    able = {
        view.box.name
        for view in seen.boxes
        for residents in [view.residents or ()]
        if not any(each.pinned or each.since + rules.min_resident > NOW for each in residents)
    }
    for lane in LANES:
        order = in_turn([call for call in seen.waiting if call.lane == lane], running_by_tenant(seen, lane))
        for place, call in enumerate(order):
            wait = plan.waits.get(call.token)
            if (
                wait is None
                or call.turn is None
                or call.turn + 2 * rules.max_wait > NOW
                or wait.seconds == float("inf")
            ):
                continue
            boxes = {each.box for each in call.candidates} & able
            for each in order[place + 1 :]:
                start = begun.get(each.token)
                assert start is None or start.box not in boxes


@given(_pictures(), RULES)
def test_higher_lanes_are_planned_as_if_there_were_no_lower_ones(seen: Picture, rules: Rules) -> None:
    """High before normal before low: what is lower changes nothing for what is higher."""
    plan = make_plan(seen, rules, NOW)
    for rank in range(len(LANES)):
        upper = {call.token for call in seen.waiting if RANKS[call.lane] <= rank}
        alone = make_plan(replace(seen, waiting=tuple(c for c in seen.waiting if c.token in upper)), rules, NOW)
        assert alone.begin == tuple(each for each in plan.begin if each.token in upper)
        assert alone.waits == {token: wait for token, wait in plan.waits.items() if token in upper}


@given(_pictures(), RULES)
def test_only_low_lane_calls_are_cut_each_once_and_only_if_allowed(seen: Picture, rules: Rules) -> None:
    """For calls of the high lane that wait."""
    cuts = make_plan(seen, rules, NOW).cuts
    assert not cuts or rules.preempt
    assert len({cut.token for cut in cuts}) == len(cuts)
    low = {call.token for view in seen.boxes for call in view.running if call.lane == "low"}
    high = {call.token for call in seen.waiting if call.lane == "high"}
    assert {cut.token for cut in cuts} <= low
    assert {cut.for_token for cut in cuts} <= high


@given(_pictures(), RULES)
def test_following_plans_comes_to_an_end(seen: Picture, rules: Rules) -> None:
    """Each begins something that waited, so that whoever asks until nothing begins asks no more often than calls wait."""
    for _ in range(len(seen.waiting) + 1):
        plan = make_plan(seen, rules, NOW)
        begun = {each.token for each in plan.begin}
        if not begun:
            break
        seen = _followed(seen, plan)
    assert not make_plan(seen, rules, NOW).begin


def _followed(seen: Picture, plan: Plan) -> Picture:
    calls = {call.token: call for call in seen.waiting}
    boxes = []
    for view in seen.boxes:
        new = [each for each in plan.begin if each.box == view.box.name]
        gone = {model for each in new for model in each.push_out}
        boxes.append(
            replace(
                view,
                residents=None if view.residents is None else tuple(r for r in view.residents if r.model not in gone),
                loading=(*view.loading, *(Loading(model=each.model, began=NOW) for each in new if each.loads)),
                running=(
                    *view.running,
                    *(
                        Running(
                            token=each.token,
                            worker=each.worker,
                            model=each.model,
                            lane=calls[each.token].lane,
                            began=NOW,
                            seconds=each.seconds,
                        )
                        for each in new
                    ),
                ),
            )
        )
    left = tuple(call for call in seen.waiting if call.token not in {each.token for each in plan.begin})
    return replace(seen, boxes=tuple(boxes), waiting=left)
