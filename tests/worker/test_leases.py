"""Who takes over from whom, and when: the leases on a broker that does as it is told."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from llm_routerd.protocol.keys import HANDED_BACK
from llm_routerd.queue.connection import PipeState
from llm_routerd.queue.deliveries import Claim, Delivery, Renewal
from llm_routerd.worker.clock import ServerClock
from llm_routerd.worker.inflight import InFlightTable
from llm_routerd.worker.leases import Leases
from llm_routerd.worker.places import Capacity, Places

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_routerd.queue.broker import Broker

LEASE_SECONDS = 0.4
LOST = Delivery(lane="normal", entry="1-0", fields=(), deliveries=2, claimed=True)
GIVEN = Delivery(lane="normal", entry="2-0", fields=(), claimed=True)
OURS = Delivery(lane="normal", entry="3-0", fields=())


@dataclass
class FakePipe:
    """A connection that stands."""

    generation: int = 1
    state: PipeState = PipeState.READY

    async def reachable(self) -> None:
        """At once."""


@dataclass
class FakeBroker:
    """One entry whose worker is silent, one that was handed back, one that is ours and that we do not know of."""

    pipe: FakePipe = field(default_factory=FakePipe)
    consumer: str = "w1"
    renewed: list[list[str]] = field(default_factory=list)
    renewal_seconds: float = 0.0
    is_late: bool = False

    async def create_groups(self) -> None:
        """They stand."""

    async def renew(self, in_flight: Sequence[tuple[Delivery, str]]) -> Renewal:
        """Take as long as told."""
        self.renewed.append([delivery.entry for delivery, _ in in_flight])
        await asyncio.sleep(self.renewal_seconds)
        return Renewal(lost=(), sealed=(), server_ms=round(asyncio.get_running_loop().time() * 1000))

    async def sealed(self, events_keys: Sequence[str]) -> Sequence[int]:
        """None are."""
        return ()

    async def claim(self, *, room: int, server_ms: float, before_new: bool) -> Claim:
        """The silent worker's."""
        del room, server_ms, before_new
        return Claim(deliveries=() if self.is_late else (LOST,), gone=(), late=self.is_late)

    async def claim_of(self, owner: str, *, count: int, before_new: bool = False) -> Claim:
        """What was handed back, or ours."""
        del before_new
        return Claim(deliveries={HANDED_BACK: [GIVEN], self.consumer: [OURS]}[owner], gone=())


class Fixture:
    """Leases on a fake broker; `received` is what they took."""

    def __init__(self) -> None:
        self.broker = FakeBroker()
        self.in_flight = InFlightTable()
        self.received: list[Delivery] = []
        self.leases = Leases(
            broker=cast("Broker", self.broker),
            in_flight=self.in_flight,
            clock=ServerClock(),
            lease_seconds=LEASE_SECONDS,
            places=Places(Capacity(concurrency=8, taken=lambda: len(self.in_flight))),
            receive=lambda claim: self.received.extend(claim.deliveries),
            rng=random.Random(1),
        )

    async def tick(self) -> list[Delivery]:
        """What one tick brings."""
        self.received.clear()
        await self.leases.tick()
        return list(self.received)

    async def steady(self) -> None:
        """Tick until a silent worker's entry is taken over."""
        async with asyncio.timeout(10):
            while True:
                if LOST in await self.tick():
                    return
                await asyncio.sleep(LEASE_SECONDS / 20)


async def test_new_worker_takes_at_once_only_what_was_handed_back() -> None:
    """Redis may just have come back, and those whose leases ran out may be on their way to renew them."""
    fixture = Fixture()
    began = asyncio.get_running_loop().time()
    assert GIVEN in await fixture.tick()
    assert LOST not in fixture.received
    await fixture.steady()
    assert asyncio.get_running_loop().time() - began >= LEASE_SECONDS / 2


async def test_new_connection_takes_up_ones_own_and_begins_to_be_steady_anew() -> None:
    """A reply was lost perhaps; and the others may have lost their connections, too."""
    fixture = Fixture()
    await fixture.steady()
    fixture.broker.pipe.generation += 1
    assert await fixture.tick() == [OURS, GIVEN]


async def test_answer_that_took_long_puts_off_the_taking_over() -> None:
    """The server stood still: the renewals of the living stood with it."""
    fixture = Fixture()
    await fixture.steady()
    fixture.broker.renewal_seconds = LEASE_SECONDS * 0.3
    await asyncio.sleep(LEASE_SECONDS / 3)  # the next renewal is due
    assert await fixture.tick() == [GIVEN]


async def test_claim_that_got_there_late_puts_off_the_taking_over() -> None:
    """It was this command that waited for the server."""
    fixture = Fixture()
    await fixture.steady()
    fixture.broker.is_late = True
    assert await fixture.tick() == []
    fixture.broker.is_late = False
    assert await fixture.tick() == [GIVEN]


async def test_nothing_is_taken_over_out_of_memory() -> None:
    """It could not be begun."""
    fixture = Fixture()
    await fixture.steady()
    fixture.broker.pipe.state = PipeState.OUT_OF_MEMORY
    assert await fixture.tick() == []


async def test_lease_of_what_is_being_stopped_is_not_renewed() -> None:
    """Each renewal of a lost one would take another crash of its new owner back."""
    fixture = Fixture()
    kept = fixture.in_flight.add(OURS, "llm:events:3-0")
    stopped = fixture.in_flight.add(LOST, "llm:events:1-0")
    for item in (kept, stopped):
        item.task = asyncio.create_task(asyncio.sleep(60))
    stopped.stop("lost")
    await fixture.tick()
    assert fixture.broker.renewed == [["3-0"]]
    assert kept.task is not None
    kept.task.cancel()
