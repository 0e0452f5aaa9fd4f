"""Slots that are kept for the next call."""

from __future__ import annotations

import asyncio

from llm_routerd.running.box_calls import Slot, Wanted
from llm_routerd.running.kept_slots import KEEP_SECONDS, MOST_SECONDS, KeptSlots
from tests.support.boxes import ATTIC, config_of

DEPLOYMENT = config_of(ATTIC).deployments["big@attic"]
WANTED = Wanted(members=(DEPLOYMENT,))


def slot(name: str = "t", wanted: Wanted = WANTED, *, age: float = 0.0) -> Slot:
    """One that was granted so many seconds ago."""
    return Slot(name, DEPLOYMENT, wanted, since=asyncio.get_running_loop().time() - age)


async def test_next_call_of_the_same_kind_has_it_once() -> None:
    """As if it had been granted; nothing is given back."""
    dropped: list[str] = []
    kept = KeptSlots(lambda *tokens: dropped.extend(tokens))
    assert kept.take(WANTED) is None
    assert kept.keep(slot())
    taken = kept.take(WANTED)
    assert taken is not None
    assert (taken.token, taken.is_cut, taken.loads) == ("t", False, False)
    assert kept.take(WANTED) is None
    await asyncio.sleep(3 * KEEP_SECONDS)
    assert dropped == []


async def test_call_of_another_kind_does_not_have_it() -> None:
    """The picture tells of lane, tenant and deployment: it would be wrong."""
    kept = KeptSlots(lambda *_tokens: None)
    kept.keep(slot())
    for other in (
        Wanted(members=(DEPLOYMENT,), lane="high"),
        Wanted(members=(DEPLOYMENT,), tenant="alice"),
        Wanted(members=(DEPLOYMENT,), is_firm=True),
        Wanted(members=(config_of(ATTIC, models=("b",)).deployments["b@attic"],)),
    ):
        assert kept.take(other) is None
    assert kept.take(WANTED) is not None
    kept.give_back()


async def test_what_nobody_takes_is_given_back_soon() -> None:
    """Each after a turn of the timer, or two."""
    dropped: list[str] = []
    kept = KeptSlots(lambda *tokens: dropped.extend(tokens))
    kept.keep(slot("a"))
    await asyncio.sleep(KEEP_SECONDS / 2)
    kept.keep(slot("b"))
    assert dropped == []
    await asyncio.sleep(3 * KEEP_SECONDS)
    assert sorted(dropped) == ["a", "b"]
    assert kept.take(WANTED) is None


async def test_all_are_given_back_at_once_when_somebody_waits() -> None:
    """And none twice."""
    dropped: list[str] = []
    kept = KeptSlots(lambda *tokens: dropped.extend(tokens))
    kept.keep(slot("a"))
    kept.keep(slot("b", Wanted(members=(DEPLOYMENT,), lane="low")))
    kept.give_back()
    kept.give_back()
    await asyncio.sleep(3 * KEEP_SECONDS)
    assert sorted(dropped) == ["a", "b"]


async def test_slot_that_was_had_for_long_or_was_cut_is_not_kept() -> None:
    """Whoever holds it goes back to Redis."""
    kept = KeptSlots(lambda *_tokens: None)
    assert not kept.keep(slot(age=MOST_SECONDS + 1))
    cut = slot()
    cut.cut()
    assert not kept.keep(cut)
    assert kept.take(WANTED) is None
