"""One box while a plan is made: what it holds, what runs there, and what has been planned for it so far."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from typing import TYPE_CHECKING, Final

from llm_routerd.fleet.picture import LANES, Resident, Running

if TYPE_CHECKING:
    from llm_routerd.fleet.estimates import Reckoning
    from llm_routerd.fleet.picture import BoxView, Loading, Waking

RANKS: Final = {lane: rank for rank, lane in enumerate(LANES)}
HIGH: Final = RANKS["high"]
# What lasts longer than expected is taken to last a fifth of its age more: the older, the longer.
_OVERDUE_SHARE: Final = 0.2


def left(began: float, seconds: float, now: float) -> float:
    """How long something is expected to last yet, that was expected to last so many seconds when it began."""
    return max(began + seconds - now, _OVERDUE_SHARE * (now - began), 0.0)


def boot_left(waking: Waking, now: float) -> float:
    """How long until a box is up; what is overdue is taken to come soon, for it is given up before long."""
    if waking.woken is None:
        return max(0.0, waking.not_before - now) + waking.boot_seconds
    due = waking.woken + waking.boot_seconds
    return due - now if now < due else _OVERDUE_SHARE * (now - due)


class Standing:
    """A box.

    Attributes:
        tells: whether it says what is resident; one that does not is taken to have what it may serve.
        residents: by model.
        ready: when each model will be resident that is being loaded, or for which that is planned.
        loads: those of them that are being loaded.
        runs: how many calls each model has running.
        taken: slots.
        shared: slots that calls of other lanes than the high one may take yet.
        closed_from: the rank of the lane from which on no call begins here: the box is kept for another.
        loads_closed_from: likewise, from which on nothing is loaded here.
        queue: how many calls are planned to wait for it.
        version: one more with each change, the queue's aside.
        waking: of a box that does not answer, and can be woken.
        boot_left: seconds until that is expected to be up, if it is woken as soon as it may be; 0 of others.
    """

    def __init__(self, view: BoxView, reckoning: Reckoning, now: float) -> None:
        self.box = view.box
        self.name = view.box.name
        self.down_until = view.down_until
        self.waking = view.waking
        self.is_up = view.down_until <= now and view.waking is None
        self.boot_left = 0.0 if view.waking is None else boot_left(view.waking, now)
        self.running = view.running
        self.tells = view.residents is not None
        self.residents = {each.model: each for each in view.residents or ()}
        self._reckoning = reckoning
        self._now = now
        self.loads = {each.model for each in view.loading}
        self.ready = {each.model: now + self._loading_left(each) for each in view.loading}
        self.loading_bytes = {each.model: each.bytes or reckoning.sizes.get(each.model, 0) for each in view.loading}
        self.runs = Counter(call.model for call in view.running)
        for call in view.running if self.tells and self.is_up else ():
            # What runs is there, whatever was last heard; since when is not known, so that it is held for nobody.
            if call.model not in self.residents and call.model not in self.loads:
                self.residents[call.model] = Resident(model=call.model, since=-math.inf, used=now)
        self.closed_from = self.loads_closed_from = len(LANES)
        self.queue = 0
        self.version = 0
        self.taken = len(view.running)
        shared = [call for call in view.running if call.lane != "high"]
        self.shared = view.box.slots - view.box.reserve - len(shared)
        self._ends = self._slots(view.running, view.box.slots)
        self._shared_ends = self._slots(shared, view.box.slots - view.box.reserve)

    def _loading_left(self, loading: Loading) -> float:
        return left(loading.began, self._reckoning.load_seconds(self.name, loading.model), self._now)

    def _slots(self, calls: tuple[Running, ...] | list[Running], slots: int) -> list[float]:
        """For each slot when it is expected to be free."""
        awake = self._now + self.boot_left
        ends = sorted(max(self._now + self.left(call), awake) for call in calls)
        free = [awake] * (slots - len(ends))
        return free + ends[-slots:] if slots > 0 else []

    def left(self, call: Running) -> float:
        """How many seconds the call is expected to last yet."""
        return 0.0 if call.is_cut else left(call.began, call.seconds, self._now)

    def takes(self, rank: int) -> bool:
        """Whether a call of the lane may begin here now, its model aside."""
        return (
            self.is_up and rank < self.closed_from and self.taken < self.box.slots and (rank == HIGH or self.shared > 0)
        )

    def serves(self, rank: int) -> bool:
        """Whether calls of the lane ever find a slot here."""
        return bool(self.ends_of(rank))

    def ends_of(self, rank: int) -> list[float]:
        """When each slot is free for the lane, after all that is planned so far: a heap."""
        return self._ends if rank == HIGH else self._shared_ends

    def has(self, model: str) -> bool:
        """Whether the model is resident, as far as one knows."""
        if model in self.loads:
            return False
        return not self.tells or model in self.residents

    def drain_seconds(self, models: tuple[str, ...]) -> float:
        """Seconds until no call runs on these models."""
        return max((self.left(call) for call in self.running if call.model in models), default=0.0)

    def size(self, model: str) -> int:
        """Bytes that it takes; 0: not known."""
        resident = self.residents.get(model)
        return (resident.bytes if resident else 0) or self._reckoning.sizes.get(model, 0)

    # ------------------------------------------------------------------ what is planned

    def begin(self, model: str, rank: int, seconds: float) -> None:
        """A call begins here."""
        self.version += 1
        self.taken += 1
        self.runs[model] += 1
        heapq.heapreplace(self._ends, self._now + seconds)
        if rank != HIGH:
            self.shared -= 1
            heapq.heapreplace(self._shared_ends, self._now + seconds)

    def load(self, model: str, victims: tuple[str, ...], seconds: float) -> None:
        """The model is loaded from now on, in place of others."""
        self.version += 1
        for victim in victims:
            self.residents.pop(victim, None)
        self.loading_bytes[model] = self.size(model)
        self.loads.add(model)
        self.ready[model] = self._now + seconds

    def wait(self, rank: int, start: float, seconds: float) -> int:
        """A call waits for a slot here until `start` seconds from now; returns how many do so before it."""
        heapq.heapreplace(self.ends_of(rank), self._now + start + seconds)
        self.queue += 1
        return self.queue - 1

    def close(self, rank: int) -> None:
        """No call of this lane or a lower one begins here any more."""
        if rank < self.closed_from:
            self.version += 1
            self.closed_from = rank

    def close_to_loads(self, rank: int) -> None:
        """Nothing is loaded here any more for a call of this lane or a lower one."""
        if rank < self.loads_closed_from:
            self.version += 1
            self.loads_closed_from = rank

    def expect(self, model: str, seconds: float) -> None:
        """The model will be resident so many seconds from now: that is planned."""
        self.version += 1
        self.ready[model] = self._now + seconds
