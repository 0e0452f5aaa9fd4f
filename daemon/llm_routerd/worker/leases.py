"""The leases of what is in flight, and the taking over of what other workers have let go.

One tick a second (six in a lease, if that is short):
- requests that somebody else has ended (a cancellation) are stopped;
- every third of a lease, all leases are renewed in one script, and what was lost is stopped at once;
- entries whose worker has not renewed its lease are taken over, as far as there is room; those of them that somebody
  has trimmed away go to whoever ends them.

When Redis was away, or stood still, everybody's leases have run out, and their owners are as alive as we are.  So only
a worker that has heard from Redis without a gap, for as long as it takes every other one to come back and renew, takes
over from the living: half a lease.  What was handed back is taken at any time.
Workers may differ in their leases, as they do in a rolling restart: the longest one of the living holds for all.
A tick that comes very late (the machine slept, the process was stopped) renews before anything else.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from llm_routerd.logs import get_logger
from llm_routerd.queue.broker import OWN_PENDING
from llm_routerd.queue.connection import ResponseError, describe
from llm_routerd.queue.keys import HANDED_BACK
from llm_routerd.queue.pipe import PipeState

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from llm_routerd.queue.broker import Broker
    from llm_routerd.queue.deliveries import Claim
    from llm_routerd.worker.clock import ServerClock
    from llm_routerd.worker.inflight import InFlight, InFlightTable

log = get_logger()

TICK_SECONDS = 1.0
TICKS_PER_LEASE = 6
RETIRE_SECONDS = 600.0


class Leases:
    """Keeps what is ours, lets go of what is not, takes what is nobody's.

    Args:
        broker: this worker's side of the queue.
        in_flight: what this worker is busy with.
        clock: set with every renewal.
        lease_seconds: how long an entry stays ours without renewal.
        free: how many more requests this worker may take.
        receive: starts deliveries, or gives them back; ends the requests of entries that are gone.
        on_trouble: told why Redis refuses a tick, and None when it does not.
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
        receive: Callable[[Claim], None],
        on_trouble: Callable[[str | None], None] = lambda _why: None,
        rng: random.Random,
    ) -> None:
        self._broker = broker
        self._in_flight = in_flight
        self._clock = clock
        self._tick_seconds = min(TICK_SECONDS, lease_seconds / TICKS_PER_LEASE)
        self._renew_seconds = lease_seconds / 3
        self._gap_seconds = lease_seconds / 4
        self.longest_seconds = lease_seconds  # of all living workers
        self._free = free
        self._receive = receive
        self._on_trouble = on_trouble
        self._own_seconds = lease_seconds
        self._rng = rng
        self._loop = asyncio.get_running_loop()
        self._renewed_at = self._retired_at = self._loop.time()
        self._heard_at = self._steady_since = self._loop.time()
        self._generation = 0

    async def run(self) -> None:
        """Tick until cancelled."""
        while True:
            await asyncio.sleep(self._tick_seconds * self._rng.uniform(0.8, 1.0))
            try:
                await self.tick()
            except ResponseError as error:
                self._on_trouble(describe(error))
            else:
                self._on_trouble(None)

    @property
    def is_steady(self) -> bool:
        """Redis has been heard without a gap for so long that every living worker has renewed."""
        return self._loop.time() - self._steady_since >= self.longest_seconds / 2

    def renew_soon(self) -> None:
        """What the others are told of this worker has changed: the next tick renews."""
        self._renewed_at = float("-inf")

    async def tick(self) -> None:
        """One round; waits as long as Redis is away."""
        await self._broker.pipe.reachable()
        if self._broker.pipe.generation != self._generation:
            await self._reconnected()
        now = self._loop.time()
        # What has been stopped already is on its way out, and needs no lease.
        items = [item for item in self._in_flight if item.stopped is None]
        if now - self._renewed_at >= self._renew_seconds:
            await self._renew(items)
        elif items:
            sealed = await self._broker.sealed([item.held() for item in items])
            self._heard()
            self._in_flight.stop(items, sealed, "sealed")
        if self._broker.pipe.state is PipeState.READY:
            await self._claim()
        if now - self._retired_at >= RETIRE_SECONDS:
            self._retired_at = now
            await self._broker.retire(oneself=False)

    async def _reconnected(self) -> None:
        is_first = not self._generation
        self._generation = self._broker.pipe.generation
        await self._broker.create_groups()
        await self._renew([item for item in self._in_flight if item.stopped is None])
        self._steady_since = self._loop.time()
        if is_first:
            return
        # The reply to a claim may have been lost with the old connection.
        self._receive(await self._broker.claim_of(self._broker.consumer, count=OWN_PENDING))

    def _heard(self) -> None:
        """Redis has answered; if that took long, others may not have been able to renew."""
        now = self._loop.time()
        if now - self._heard_at > self._gap_seconds:
            self._steady_since = now
        self._heard_at = now

    async def _renew(self, items: list[InFlight]) -> None:
        self._renewed_at = self._loop.time()
        renewal = await self._broker.renew([item.held() for item in items])
        self._heard()
        self._clock.set(renewal.server_ms)
        longest_seconds = max(self._own_seconds, renewal.longest_lease_ms / 1000)
        # While Redis was away the registrations have run out, but not those who had longer leases.
        if self.is_steady or longest_seconds > self.longest_seconds:
            self.longest_seconds = longest_seconds
        self._in_flight.stop(items, renewal.sealed, "sealed")
        self._in_flight.stop(items, renewal.lost, "lost")
        if renewal.lost:
            log.warning("leases_lost", count=len(renewal.lost))

    async def _claim(self) -> None:
        room = self._free()
        if room <= 0:
            return
        if not self.is_steady:
            self._receive(await self._broker.claim_of(HANDED_BACK, count=room))
            self._heard()
            return
        claim = await self._broker.claim(room=room, server_ms=self._clock.server_ms())
        self._heard()
        if claim.late:
            self._steady_since = self._loop.time()
        for delivery in claim.deliveries:
            log.info("request_claimed", entry=delivery.entry, lane=delivery.lane, deliveries=delivery.deliveries)
        self._receive(claim)
