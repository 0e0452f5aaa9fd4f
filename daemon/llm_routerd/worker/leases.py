"""The leases of what is in flight, and the taking over of what other workers have let go.

One tick a second (six in a lease, if that is short):
- requests that somebody else has ended (a cancellation) are stopped;
- every third of a lease (20 s at most), all leases are renewed in one script, and what was lost is stopped at once;
- entries whose worker has not renewed its lease are taken over, as far as there is room; those of them that somebody
  has trimmed away go to whoever ends them.

Under a backlog there is no room: whatever place becomes free, new requests fill it.  So a tick without room looks, and
as long as there is something to be taken over, every other place that becomes free is kept for that (of several at once
half): neither what waits for a new worker nor what is new keeps the other waiting.
Lanes go before age: where new requests wait in a lane, nothing is taken over from a less urgent one.

When Redis was away, or stood still, everybody's leases have run out, and their owners are as alive as we are.  So only
a worker that has heard from Redis without a gap, for as long as it takes every other one to come back and renew, takes
over from the living: half a lease.  What was handed back is taken at any time.
Workers may differ in their leases, as they do in a rolling restart: the longest one of the living holds for all.
A tick that comes very late (the machine slept, the process was stopped) renews before anything else.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from llm_routerd.logs import get_logger
from llm_routerd.protocol.keys import HANDED_BACK
from llm_routerd.queue.broker import OWN_PENDING
from llm_routerd.queue.connection import PipeState, ResponseError, describe

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from llm_routerd.queue.broker import Broker
    from llm_routerd.queue.deliveries import Claim
    from llm_routerd.worker.clock import ServerClock
    from llm_routerd.worker.inflight import InFlight, InFlightTable
    from llm_routerd.worker.places import Places

log = get_logger()

TICK_SECONDS = 1.0
TICKS_PER_LEASE = 6
RETIRE_SECONDS = 600.0
SEEN_SECONDS = 20.0  # before Redis 7.2 an idle worker is seen by its renewals alone; `check` wants a sign in 30 s


class Leases:
    """Keeps what is ours, lets go of what is not, takes what is nobody's.

    Args:
        broker: this worker's side of the queue.
        in_flight: what this worker is busy with.
        clock: set with every renewal.
        lease_seconds: how long an entry stays ours without renewal.
        places: of this worker, as far as they are free.
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
        places: Places,
        receive: Callable[[Claim], None],
        on_trouble: Callable[[str | None], None] = lambda _why: None,
        rng: random.Random,
    ) -> None:
        self._broker = broker
        self._in_flight = in_flight
        self._clock = clock
        self._tick_seconds = min(TICK_SECONDS, lease_seconds / TICKS_PER_LEASE)
        self._renew_seconds = min(lease_seconds / 3, SEEN_SECONDS)
        self._gap_seconds = lease_seconds / 4
        self.longest_seconds = lease_seconds  # of all living workers
        self._places = places
        self._receive = receive
        self._more = False  # there is something to be taken over, and no room
        self._is_readers_turn = False
        self._reads = 0
        self._place_freed = asyncio.Event()
        self._on_trouble = on_trouble
        self._own_seconds = lease_seconds
        self._rng = rng
        self._loop = asyncio.get_running_loop()
        self._renewed_at = self._retired_at = self._loop.time()
        self._heard_at = self._steady_since = self._loop.time()
        self._generation = 0
        self._had_gap = False

    async def run(self) -> None:
        """Tick until cancelled; between two ticks, take over as places become free."""
        while True:
            next_tick = self._loop.time() + self._tick_seconds * self._rng.uniform(0.8, 1.0)
            try:
                while await self._has_turn(next_tick):
                    await self._claim(
                        self._places.free() if self._places.is_idle() else self.reserved(self._places.free())
                    )
                await self.tick()
            except ResponseError as error:
                self._note_more(is_more=False)
                self._on_trouble(describe(error))
            else:
                self._on_trouble(None)

    async def _has_turn(self, until: float) -> bool:
        """Wait until a place is free for what is to be taken over; False: not in time."""
        with suppress(TimeoutError):
            async with asyncio.timeout_at(until):
                while not self._may_take():
                    self._place_freed.clear()
                    await self._place_freed.wait()
                return True
        return False

    def _may_take(self) -> bool:
        is_ready = self._more and self._places.free() > 0 and self._broker.pipe.state is PipeState.READY
        return is_ready and (not self._is_readers_turn or self._places.is_idle())

    def reserved(self, free: int) -> int:
        """How many of so many free places are not for new requests: the greater half, at its turn."""
        return (free + 1) // 2 if self._more and not self._is_readers_turn else 0

    def place_freed(self) -> None:
        """A request has ended."""
        if self._more:
            self._place_freed.set()

    def reader_had_its_turn(self) -> None:
        """New requests were read, or there are none."""
        self._reads += 1
        self._is_readers_turn = False
        self.place_freed()

    def _note_more(self, *, is_more: bool) -> None:
        self._more = is_more
        self._places.changed()

    @property
    def is_steady(self) -> bool:
        """Redis has been heard without a gap for so long that every living worker has renewed."""
        now = self._loop.time()
        is_heard = now - self._heard_at <= self._gap_seconds
        return is_heard and now - self._steady_since >= self.longest_seconds / 2

    @property
    def knows_others(self) -> bool:
        """Whether every living worker has been able to tell of itself; one that has just begun finds what they told."""
        is_new = self._generation <= 1 and not self._had_gap and self._broker.pipe.generation <= 1
        return self.is_steady or (is_new and self._loop.time() - self._heard_at <= self._gap_seconds)

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
        elif awake := [item for item in items if item.rest is None]:  # of what rests the mailroom knows
            sealed = await self._broker.sealed([item.events_key for item in awake])
            self._heard()
            self._in_flight.stop(awake, sealed, "sealed")
        if self._broker.pipe.state is PipeState.READY:
            await self._claim(max(0, self._places.free()))
        if now - self._retired_at >= RETIRE_SECONDS:
            self._retired_at = now
            await self._broker.retire(oneself=False)

    async def _reconnected(self) -> None:
        is_first = not self._generation
        self._generation = self._broker.pipe.generation
        if not is_first:  # before the groups: to make one may have to wait for memory
            await self._renew([item for item in self._in_flight if item.stopped is None])
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
            self._begin_anew()
        self._heard_at = now

    def _begin_anew(self) -> None:
        self._steady_since = self._loop.time()
        self._had_gap = True

    async def _renew(self, items: list[InFlight]) -> None:
        self._renewed_at = self._loop.time()
        renewal = await self._broker.renew([item.held() for item in items])
        self._heard()
        if abs(renewal.server_ms - self._clock.server_ms()) > self._gap_seconds * 1000:
            self._begin_anew()  # its clock has jumped, and what others have told of themselves counts no more
        self._clock.set(renewal.server_ms)
        longest_seconds = max(self._own_seconds, renewal.longest_lease_ms / 1000)
        # While Redis was away the registrations have run out, but not those who had longer leases.
        if self.is_steady or longest_seconds > self.longest_seconds:
            self.longest_seconds = longest_seconds
        self._in_flight.stop(items, renewal.sealed, "sealed")
        self._in_flight.stop(items, renewal.lost, "lost")
        if renewal.lost:
            log.warning("leases_lost", count=len(renewal.lost))

    async def _claim(self, room: int) -> None:
        """Take over up to so many; with no room, look."""
        before_new, reads = not self._places.is_idle(), self._reads
        if self.is_steady:
            claim = await self._broker.claim(room=room, server_ms=self._clock.server_ms(), before_new=before_new)
        else:
            claim = await self._broker.claim_of(HANDED_BACK, count=room, before_new=before_new)
        self._heard()
        if claim.late:
            self._begin_anew()
        for delivery in claim.deliveries:
            log.info("request_claimed", entry=delivery.entry, lane=delivery.lane, deliveries=delivery.deliveries)
        self._receive(claim)
        if claim.deliveries:
            self._is_readers_turn = reads == self._reads  # else it had its turn meanwhile
        self._note_more(is_more=claim.more)
