"""Entries that Redis has delivered and that nobody owns are found, and taken up.

An operator removes a dead worker's consumer, or makes the group at `$`: Redis delivers what that one had, or what stood
before, to nobody any more.  An orphan that is seen is left alone for a lease first, the longest of all living workers:
its worker may be one, and has it back with its next renewal, which it must have been able to make.
Those for which there is no room here are handed back, for whoever has some first.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from llm_routerd.accounting.tally import Tally
from llm_routerd.logs import get_logger
from llm_routerd.protocol.keys import HANDED_BACK, LANES
from llm_routerd.queue.connection import ResponseError, describe
from llm_routerd.worker.leases import TICK_SECONDS, TICKS_PER_LEASE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from llm_routerd.accounting.metrics import Metrics
    from llm_routerd.protocol.keys import Lane
    from llm_routerd.queue.broker import Broker
    from llm_routerd.queue.deliveries import Delivery
    from llm_routerd.worker.clock import ServerClock

log = get_logger()

LEASES_PER_SWEEP = 2  # a minute, with leases as they are by default


class Orphans:
    """Sweeps the lanes every two leases: one look at lengths each, where there are none.

    Args:
        broker: this worker's side of the queue.
        metrics: counts them.
        lease_seconds: this worker's own.
        longest_seconds: the longest lease of all living workers; so long is an orphan left alone.
        free: how many more requests this worker may take.
        receive: starts deliveries, or gives them back.
        is_steady: whether every living worker has been able to renew its leases of late.
        clock: the server's.
    """

    def __init__(
        self,
        *,
        broker: Broker,
        metrics: Metrics,
        lease_seconds: float,
        longest_seconds: Callable[[], float],
        free: Callable[[], int],
        receive: Callable[[Sequence[Delivery]], None],
        is_steady: Callable[[], bool],
        clock: ServerClock,
    ) -> None:
        self._broker = broker
        self._metrics = metrics
        self._lease_seconds = lease_seconds
        self._longest_seconds = longest_seconds
        self._tick_seconds = min(TICK_SECONDS, lease_seconds / TICKS_PER_LEASE)
        self._free = free
        self._receive = receive
        self._is_steady = is_steady
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._look_at = self._loop.time()
        self._take_at = float("inf")
        self._seen: dict[Lane, list[str]] = {}
        self._seen_at = self._loop.time()

    async def run(self) -> None:
        """Sweep until cancelled; what Redis refuses here is told once, and done without."""
        is_told = False
        while True:
            await self._broker.pipe.ready()
            try:
                await self.tick()
            except ResponseError as error:
                if not is_told:
                    is_told = True
                    log.warning("orphans_not_sought", why=describe(error))
            await asyncio.sleep(self._tick_seconds)

    async def tick(self) -> None:
        """Look, or take, if it is time for that."""
        now = self._loop.time()
        if now >= self._take_at:
            if self._is_steady():
                self._take_at = float("inf")
                await self._take()
        elif now >= self._look_at:
            self._look_at = now + LEASES_PER_SWEEP * self._lease_seconds
            self._seen = {lane: await self._broker.find_orphans(lane) for lane in LANES}
            self._seen_at = self._loop.time()
            if any(self._seen.values()):
                self._take_at = self._seen_at + self._longest_seconds()

    async def _take(self) -> None:
        seen_for_ms = round((self._loop.time() - self._seen_at) * 1000)

        async def take(lane: Lane, entries: list[str], owner: str | None = None) -> list[Delivery]:
            if not entries:
                return []
            server_ms = self._clock.server_ms()
            taken = await self._broker.take_orphans(
                lane, entries, seen_for_ms=seen_for_ms, server_ms=server_ms, owner=owner
            )
            if taken:
                self._metrics.count(Tally.ORPHANS, len(taken))
                log.warning("orphans_taken", lane=lane, count=len(taken))
            return taken

        for lane, entries in self._seen.items():
            room = max(0, self._free())
            self._receive(await take(lane, entries[:room]))
            await take(lane, entries[room:], HANDED_BACK)
        self._seen = {}
