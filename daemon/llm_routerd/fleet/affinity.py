"""Which of boxes that cost the same: the one that has read the beginning of the messages before.

Rendezvous hashing with bounded load: a key prefers the boxes in an order of its own, the same in every worker, and a
box that runs more than 1.25 times its share is passed over.
"""

from __future__ import annotations

import math
from hashlib import blake2b
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection

    from llm_routerd.fleet.standing import Standing

BOUND: Final = 1.25


def preference(key: str, box: str) -> int:
    """The higher, the rather; of keys and boxes alone."""
    return int.from_bytes(blake2b(f"{key}\0{box}".encode(), digest_size=8).digest(), "big")


def within_bound(boxes: Collection[Standing]) -> frozenset[str]:
    """Names of those that one more call would leave below 1.25 times their share of what all run, by their slots."""
    total = sum(each.taken for each in boxes) + 1
    slots = sum(each.box.slots for each in boxes)
    return frozenset(each.name for each in boxes if each.taken + 1 <= math.ceil(BOUND * total * each.box.slots / slots))


def prefer(key: str, boxes: Collection[Standing]) -> Standing:
    """The one of these to take; without a key the one with the largest part of its slots free."""
    if key:
        names = within_bound(boxes)
        within = [box for box in boxes if box.name in names] or boxes
        return max(within, key=lambda box: (preference(key, box.name), box.name))
    return min(boxes, key=lambda box: (not box.tells, box.taken / box.box.slots, box.name))
