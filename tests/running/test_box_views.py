"""The rule's picture of a box, of what all workers know."""

from __future__ import annotations

from llm_routerd.config.fleet import Box
from llm_routerd.queue.picture import BoxCall, BoxSeen, Picture, Resident, WaitingCall
from llm_routerd.running.boxes import plannable

GB = 10**9
NOW_MS = 1_000_000


def view(box: Box, *, has: dict[str, int], runs: tuple[str, ...], pinned: tuple[str, ...] = ()) -> list[str]:
    """Models that the rule takes to be there: the box told `has`, and calls of the models `runs` have a slot.

    Another box has the model `new`, of 6 GB, so that its size is known.
    """
    calls = tuple(
        BoxCall(lane="normal", box=box.name, model=model, token=model, began_ms=NOW_MS, until_ms=NOW_MS)
        for model in runs
    )
    told = {model: Resident(bytes=size, since_ms=0) for model, size in has.items()}
    other = BoxSeen(resident={"new": Resident(bytes=6 * GB, since_ms=0)})
    shared = Picture(now_ms=NOW_MS, calls=calls, boxes={box.name: BoxSeen(resident=told), "other": other})
    found = plannable(
        shared,
        {box.name: box},
        pinned={(box.name, model) for model in pinned},
        turns={},
        served={},
    )
    return [each.model for each in found.boxes[0].residents or ()]


def box(memory_gb: float = 0.0) -> Box:
    """A box with so much memory."""
    return Box(name="attic", api_base="http://attic:1", slots=4, memory_gb=memory_gb)


def test_what_a_load_pushes_out_is_not_there_any_more() -> None:
    """The box has not been asked since; else calls would begin whose model is loaded again at once."""
    assert view(box(8.0), has={"old": 6 * GB}, runs=("new",)) == []


def test_load_that_has_room_pushes_nothing_out() -> None:
    """And of several models no more go than need to."""
    assert view(box(24.0), has={"old": 6 * GB}, runs=("new",)) == ["old"]
    assert view(box(12.0), has={"a": 3 * GB, "b": 3 * GB}, runs=("new",)) == ["a", "b"]
    assert view(box(10.0), has={"a": 3 * GB, "b": 3 * GB}, runs=("new",)) == ["b"]


def test_what_is_not_known_is_taken_to_need_all() -> None:
    """Of the box's memory, or of a model's size."""
    assert view(box(), has={"old": 6 * GB}, runs=("new",)) == []
    assert view(box(24.0), has={"old": 6 * GB}, runs=("never seen",)) == []
    assert view(box(24.0), has={"old": 0}, runs=("new",)) == []


def test_what_is_pinned_or_used_stays() -> None:
    """Nothing pushes it out."""
    assert view(box(8.0), has={"old": 6 * GB}, runs=("new",), pinned=("old",)) == ["old"]
    assert view(box(8.0), has={"old": 6 * GB}, runs=("new", "old")) == ["old"]


def test_nothing_goes_while_nothing_is_loaded() -> None:
    """Calls of what is there push nothing out."""
    assert view(box(), has={"a": 0, "b": 0}, runs=("a",)) == ["a", "b"]


def test_turn_that_all_have_been_told_of_counts_before_ones_own() -> None:
    """So that all workers come to the same plan."""
    waiting = tuple(
        WaitingCall(lane="normal", token=token, since_ms=0, until_ms=NOW_MS, turn_ms=turn_ms)
        for token, turn_ms in (("told", 5000), ("seen", None), ("neither", None))
    )
    found = plannable(
        Picture(now_ms=NOW_MS, waiting=waiting), {}, pinned=(), turns={"told": 9.0, "seen": 9.0}, served={}
    )
    assert {each.token: each.turn for each in found.waiting} == {"told": 5.0, "seen": 9.0, "neither": None}


def test_clock_that_was_set_back_makes_nothing_longer() -> None:
    """Times that lie ahead are taken to be now: a turn is over after `max_wait`, and a call has just begun."""
    ahead = NOW_MS + 240_000
    call = BoxCall(lane="normal", box="attic", model="old", token="t", began_ms=ahead, until_ms=ahead)
    waits = WaitingCall(lane="normal", token="w", since_ms=ahead, until_ms=ahead, turn_ms=ahead)
    shared = Picture(now_ms=NOW_MS, calls=(call,), waiting=(waits,))
    found = plannable(shared, {"attic": box()}, pinned=set(), turns={}, served={})
    assert found.boxes[0].running[0].began == NOW_MS / 1000
    assert (found.waiting[0].since, found.waiting[0].turn) == (NOW_MS / 1000, NOW_MS / 1000)
