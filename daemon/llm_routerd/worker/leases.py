"""The leases of what is in flight, and the taking over of what other workers have let go.

One tick a second:
- requests that somebody else has ended (a cancellation) are stopped;
- every third of a lease, all leases are renewed in one script, and what was lost is stopped at once;
- entries whose worker has not renewed its lease are taken over, as far as there is room.

After a new connection one's own leases come first and the taking over waits for as long as a renewal takes to come
round: when Redis was away, everybody's leases have run out, and their owners are as alive as we are.
A tick that comes very late (the machine slept, the process was stopped) renews before anything else.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from llm_routerd.logs import get_logger

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from llm_routerd.queue.broker import Broker, Delivery
    from llm_routerd.worker.clock import ServerClock
    from llm_routerd.worker.inflight import InFlight, InFlightTable

log = get_logger()

TICK_SECONDS = 1.0
RETIRE_SECONDS = 600.0


class Leases:
    """Keeps what is ours, lets go of what is not, takes what is nobody's.

    Args:
        broker: this worker's side of the queue.
        in_flight: what this worker is busy with.
        clock: set with every renewal.
        lease_seconds: how long an entry stays ours without renewal.
        free: how many more requests this worker may take.
        take: starts a delivery.
        rng: for jitter.
    """

    def __init__(
        self,
        *,
        broker: Broker,
        in_flight: InFlightTable,
        clock: ServerClock,
        lease_seconds: float,
        free: Callable[[], int],
        take: Callable[[Delivery], None],
        rng: random.Random,
    ) -> None:
        self._broker = broker
        self._in_flight = in_flight
        self._clock = clock
        self._renew_seconds = lease_seconds / 3
        self._free = free
        self._take = take
        self._rng = rng
        self._loop = asyncio.get_running_loop()
        self._renewed_at = self._retired_at = self._loop.time()
        self._claim_from = float("-inf")
        self._generation = 0

    async def run(self) -> None:
        """Tick until cancelled."""
        while True:
            await asyncio.sleep(TICK_SECONDS * self._rng.uniform(0.8, 1.0))
            await self.tick()

    async def tick(self) -> None:
        """One round; waits as long as Redis is away."""
        await self._broker.pipe.reachable()
        if self._broker.pipe.generation != self._generation:
            await self._reconnected()
        now = self._loop.time()
        items = list(self._in_flight)
        if now - self._renewed_at >= self._renew_seconds:
            await self._renew(items)
        elif items:
            sealed = await self._broker.sealed([item.held() for item in items])
            self._in_flight.stop(items, sealed, "sealed")
        if now >= self._claim_from:
            await self._claim()
        if now - self._retired_at >= RETIRE_SECONDS:
            self._retired_at = now
            await self._broker.retire(oneself=False)

    async def _reconnected(self) -> None:
        first, self._generation = self._generation == 0, self._broker.pipe.generation
        await self._broker.create_groups()
        await self._renew(list(self._in_flight))
        if not first:
            self._claim_from = self._loop.time() + self._renew_seconds

    async def _renew(self, items: list[InFlight]) -> None:
        self._renewed_at = self._loop.time()
        renewal = await self._broker.renew([item.held() for item in items])
        self._clock.set(renewal.server_ms)
        self._in_flight.stop(items, renewal.sealed, "sealed")
        self._in_flight.stop(items, renewal.lost, "lost")
        if renewal.lost:
            log.warning("leases_lost", count=len(renewal.lost))

    async def _claim(self) -> None:
        room = self._free()
        if room <= 0:
            return
        claim = await self._broker.claim(room=room)
        for delivery in claim.deliveries:
            log.info("request_claimed", entry=delivery.entry, lane=delivery.lane, deliveries=delivery.deliveries)
            self._take(delivery)
        if claim.gone:
            log.warning("entries_trimmed", entries=claim.gone)
