"""Slots whose call is over, kept for a moment: the next call of the same kind has one without asking Redis for it.

A box that is busy with short calls would else cost each of them two scripts.  Nobody is kept waiting for it: a slot is
kept only while nobody was seen to wait, and is given back after `KEEP_SECONDS`, or twice that at most.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from llm_routerd.running.box_calls import Slot

if TYPE_CHECKING:
    from collections.abc import Callable

    from llm_routerd.running.box_calls import Wanted

KEEP_SECONDS = 0.02
MOST_SECONDS = 5.0  # a slot is had by one call after the other: others see it as one call, whose end they estimate


class KeptSlots:
    """By what the picture says of the calls that had them: the next one must be told of in the same words.

    Args:
        drop: gives slots back, by their tokens.
    """

    def __init__(self, drop: Callable[..., None]) -> None:
        self._drop = drop
        self._slots: dict[tuple[object, ...], list[Slot]] = {}
        self._since_last: set[str] = set()  # tokens of those that were kept since the timer's last turn
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def keep(self, slot: Slot) -> bool:
        """Keep it; False: it has been had for too long, or the next call may want another box."""
        if slot.is_cut or len(slot.wanted.members) != 1 or self._loop.time() > slot.since + MOST_SECONDS:
            return False
        self._slots.setdefault(_kind(slot.deployment.name, slot.wanted), []).append(slot)
        self._since_last.add(slot.token)
        if self._timer is None:
            self._timer = self._loop.call_later(KEEP_SECONDS, self._turn)
        return True

    def take(self, wanted: Wanted) -> Slot | None:
        """One that is as if it had been granted for this call, of the only deployment that may make it."""
        deployment = wanted.members[0]
        kept = self._slots.get(_kind(deployment.name, wanted))
        if not kept:
            return None
        slot = kept.pop()
        return Slot(slot.token, deployment, wanted, since=slot.since)

    def give_back(self) -> None:
        """Give all back."""
        self._since_last.clear()
        self._turn()

    def _turn(self) -> None:
        """Give back those that have been kept for a whole turn."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        tokens = []
        for kind, slots in list(self._slots.items()):
            tokens += [slot.token for slot in slots if slot.token not in self._since_last]
            self._slots[kind] = [slot for slot in slots if slot.token in self._since_last]
            if not self._slots[kind]:
                del self._slots[kind]
        self._since_last.clear()
        if self._slots:
            self._timer = self._loop.call_later(KEEP_SECONDS, self._turn)
        if tokens:
            self._drop(*tokens)


def _kind(deployment: str, wanted: Wanted) -> tuple[object, ...]:
    return deployment, wanted.lane, wanted.tenant, wanted.is_firm
