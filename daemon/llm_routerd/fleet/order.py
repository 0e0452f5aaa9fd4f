"""Whose turn it is within a lane."""

from __future__ import annotations

from collections import Counter
from operator import itemgetter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llm_routerd.fleet.picture import Lane, Picture, Waiting


def running_by_tenant(picture: Picture, lane: Lane) -> Counter[str]:
    """How many calls of the lane each tenant has running."""
    return Counter(call.tenant for view in picture.boxes for call in view.running if call.lane == lane)


def in_turn(waiting: Iterable[Waiting], running: Counter[str]) -> list[Waiting]:
    """The calls of one lane as they would begin if every model were resident everywhere.

    First those that have been passed over, by when that was.  Then the tenant with the fewest running calls, and of the
    same number the call that has waited longest: as the calls begin one by one, each counts as running for the next.
    """
    calls = sorted(waiting, key=lambda call: (call.since, call.token))
    passed = sorted((call for call in calls if call.turn is not None), key=lambda call: call.turn or 0.0)
    counted = running.copy()
    counted.update(call.tenant for call in passed)
    ranked = []
    for call in calls:
        if call.turn is None:
            ranked.append((counted[call.tenant], call))
            counted[call.tenant] += 1
    ranked.sort(key=itemgetter(0))  # stable: of the same number in the order of time
    return passed + [call for _, call in ranked]
