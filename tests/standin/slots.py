"""The places of one loaded model, and what each has of its last prompt in its cache.

More calls than places wait, first come first served.  Who has a place is given the free slot whose cache has most of
the beginning of its prompt, if that is more than a tenth of it, as llama.cpp does; else the one that was not used for
longest.  That beginning is not read again; but one token always is, for the first of the answer comes of it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


ALIKE = 0.1
"""The part of a prompt that has to stand in a slot's cache for the slot to be preferred."""


@dataclass(slots=True, eq=False)
class Slot:
    """A place.

    Attributes:
        number: which of them it is.
        cache: the tokens of its last prompt, and of what was answered.
        is_busy: whether a call has it.
        used: when it was last given back, as a count of all uses.
    """

    number: int
    cache: Sequence[int] = ()
    is_busy: bool = False
    used: int = 0


@dataclass(slots=True, eq=False)
class Slots:
    """All places of one model.

    Attributes:
        count: how many there are.
        waiting: calls without one.
    """

    count: int
    waiting: int = 0
    all: list[Slot] = field(init=False)
    _free: asyncio.Semaphore = field(init=False)
    _uses: int = 0

    def __post_init__(self) -> None:
        self.all = [Slot(number) for number in range(self.count)]
        self._free = asyncio.Semaphore(self.count)

    @property
    def busy(self) -> int:
        """Slots that a call has."""
        return sum(slot.is_busy for slot in self.all)

    async def take(self, tokens: Sequence[int]) -> tuple[Slot, int]:
        """Wait for a place, and take it for such a prompt.

        Returns:
            the slot, and how many tokens need not be read again.
        """
        self.waiting += 1
        try:
            await self._free.acquire()
        finally:
            self.waiting -= 1
        free = {slot.number: common_beginning(slot.cache, tokens) for slot in self.all if not slot.is_busy}
        best = max(free, key=lambda number: (free[number], -self.all[number].used))
        if free[best] <= ALIKE * len(tokens):
            best = min(free, key=lambda number: self.all[number].used)
        self.all[best].is_busy = True
        return self.all[best], max(0, min(free[best], len(tokens) - 1))

    def give_back(self, slot: Slot, cache: Sequence[int]) -> None:
        """The call is over, and has left this in the slot's cache."""
        self._uses += 1
        slot.cache, slot.used, slot.is_busy = cache, self._uses, False
        self._free.release()


def common_beginning(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences have in common at their beginning."""
    for number, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return number
    return min(len(one), len(other))
