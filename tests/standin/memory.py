"""Which models are in a box's memory: they are loaded, kept, and pushed out, as by Ollama's scheduler.

A call for a model that is not resident loads it, which takes its time; where there is no room, others are pushed out,
the least recently used first, and one that has calls running only once they are over.  While a call waits for room,
every call behind it waits as well, also one for a model that is resident: calls are looked at one by one.  Loads go on
one at a time, and calls for models that are resident pass them by.  A call with another window reloads the model.

A client that leaves ends the load that goes on for it.  A model that nobody calls goes after its `keep_alive`.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.standin.slots import Slots

if TYPE_CHECKING:
    from tests.standin.box import Box

_HISTORY = 1000
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3}
_FOR_EVER = 10**10  # seconds until a model goes that never does


class LoadError(Exception):
    """A model cannot be loaded; as Ollama says it, with its HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(slots=True, eq=False)
class Resident:
    """A model in memory, or on its way there.

    Attributes:
        name: as the box has it.
        window: tokens of each slot.
        size: bytes.
        slots: its places.
        keep_alive: seconds after the last call; infinite: for ever.
        users: calls that have it or wait for its places.
        used: when it was last called, in seconds of the monotonic clock.
        is_loaded: it is ready.
        is_gone: it was pushed out, or never came to be.
    """

    name: str
    window: int
    size: int
    slots: Slots
    keep_alive: float
    users: int = 0
    used: float = 0.0
    is_loaded: bool = False
    is_gone: bool = False
    settled: asyncio.Event = field(default_factory=asyncio.Event)  # loaded, or gone
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    timer: asyncio.TimerHandle | None = None

    @property
    def seconds_left(self) -> float:
        """Until it goes, if nobody calls it; of one that is called now, its whole time."""
        since = 0.0 if self.users else time.monotonic() - self.used
        return min(self.keep_alive, _FOR_EVER) - since


class Memory:
    """What is resident in a box.

    Attributes:
        resident: by name.
        loads: how often each model was loaded.
        evictions: how often each was pushed out for another.
        history: what happened, oldest first: `at` (Unix seconds), `what` (`loaded`, `failed`, `aborted`, `evicted`,
            `reloaded`, `expired`, `unloaded`), `model`.
        pending: calls for a model that is not ready.
    """

    def __init__(self, box: Box) -> None:
        self._box = box
        self.resident: dict[str, Resident] = {}
        self.loads: Counter[str] = Counter()
        self.evictions: Counter[str] = Counter()
        self.history: deque[dict[str, Any]] = deque(maxlen=_HISTORY)
        self.pending = 0
        self._tries: Counter[str] = Counter()
        self._turn = asyncio.Lock()
        self._loading = asyncio.Lock()

    async def hold(self, name: str, window: int, keep_alive: float | None) -> Resident:
        """Have a model in memory until it is released; it is loaded where it has to be.

        Raises:
            LoadError: it cannot be loaded, or too many wait.
        """
        if self.pending >= self._box.most_waiting:
            raise LoadError(503, "server busy, please try again.  maximum pending requests exceeded")
        self.pending += 1
        try:
            while True:
                resident, is_new = await self._seat(name, window)
                if keep_alive is not None:
                    resident.keep_alive = keep_alive
                try:
                    if is_new:
                        await self._load(resident)
                    await resident.settled.wait()
                except BaseException:
                    self.release(resident)
                    raise
                if not resident.is_gone:
                    return resident
                self.release(resident)  # whoever loaded it has left
        finally:
            self.pending -= 1

    def release(self, resident: Resident) -> None:
        """A call is over; the last one starts the time that the model is kept for."""
        resident.users -= 1
        resident.used = time.monotonic()
        if resident.users:
            return
        resident.idle.set()
        if resident.is_gone:
            return
        if resident.keep_alive <= 0:
            self._drop(resident, "unloaded")
        elif resident.keep_alive < math.inf:
            loop = asyncio.get_running_loop()
            resident.timer = loop.call_later(resident.keep_alive, self._drop, resident, "expired")

    def unload(self, name: str) -> None:
        """Let a model go as soon as no call has it."""
        if (resident := self.resident.get(name)) is not None:
            resident.keep_alive = 0.0
            if not resident.users:
                self._drop(resident, "unloaded")

    def close(self) -> None:
        """Nothing expires any more."""
        for resident in self.resident.values():
            if resident.timer is not None:
                resident.timer.cancel()

    async def _seat(self, name: str, window: int) -> tuple[Resident, bool]:
        """The model's place in memory, and whether it is new there and has to be loaded."""
        async with self._turn:
            resident = self.resident.get(name)
            if resident is not None and resident.window != window:
                await self._clear(resident, "reloaded")
                resident = None
            is_new = resident is None
            if resident is None:
                resident = await self._placed(name, window)
            resident.users += 1
            resident.used = time.monotonic()
            resident.idle.clear()
            if resident.timer is not None:
                resident.timer.cancel()
                resident.timer = None
            return resident, is_new

    async def _placed(self, name: str, window: int) -> Resident:
        box, model = self._box, self._box.models[name]
        size = model.size_with(window, box.slots)
        self._tries[name] += 1
        if self._tries[name] <= model.failing_loads or (box.memory is not None and size > box.memory):
            self._note("failed", name)
            there = (box.memory or 0) / 2**30
            needed = f"{size / 2**30:.1f} GiB) than is available ({there:.1f} GiB)"
            raise LoadError(500, f"model requires more system memory ({needed}")
        while not self._has_room_for(size):
            victims = sorted(self.resident.values(), key=lambda each: (each.users > 0, each.used))
            await self._clear(victims[0], "evicted")
        resident = Resident(name, window, size, Slots(box.slots), box.keep_alive)
        self.resident[name] = resident
        return resident

    def _has_room_for(self, size: int) -> bool:
        box = self._box
        taken = sum(each.size for each in self.resident.values())
        fits = box.memory is None or taken + size <= box.memory
        return fits and (box.most_models is None or len(self.resident) < box.most_models)

    async def _clear(self, resident: Resident, why: str) -> None:
        """Push a model out, once it has no calls; those that wait for its places go first."""
        while resident.users:
            await resident.idle.wait()
        self._drop(resident, why)

    async def _load(self, resident: Resident) -> None:
        """Load it, as long as the client stays."""
        try:
            async with self._loading:
                await asyncio.sleep(self._box.models[resident.name].load_seconds)
        except BaseException:
            self._drop(resident, "aborted")
            raise
        resident.is_loaded = True
        self.loads[resident.name] += 1
        self._note("loaded", resident.name)
        resident.settled.set()

    def _drop(self, resident: Resident, why: str) -> None:
        if resident.is_gone:
            return
        resident.is_gone = True
        resident.settled.set()
        if resident.timer is not None:
            resident.timer.cancel()
        del self.resident[resident.name]
        self.evictions[resident.name] += why == "evicted"
        self._note(why, resident.name)

    def _note(self, what: str, model: str) -> None:
        self.history.append({"at": time.time(), "what": what, "model": model})


def seconds_of(keep_alive: Any) -> float | None:
    """A `keep_alive` in seconds, infinite where it is below 0; None: none was said.  `"1h30m"`, `300` and `"-1"` are."""
    if keep_alive is None:
        return None
    if isinstance(keep_alive, str):
        try:
            seconds = float(keep_alive)
        except ValueError:
            pieces = re.findall(r"([\d.]+)(ms|h|m|s)", keep_alive)
            seconds = sum(float(number) * _UNITS[unit] for number, unit in pieces)
            seconds = -seconds if keep_alive.startswith("-") else seconds
    else:
        seconds = float(keep_alive)
    return math.inf if seconds < 0 else seconds
