"""What a worker has in flight, and its leases."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Literal

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from llm_routerd.queue.deliveries import Delivery

StopReason = Literal["sealed", "lost", "drain"]


class InFlight(Struct, eq=False):
    """One delivery that this worker is busy with.

    `request_id` and `events_key` are those of the entry's own ID until the request has been parsed.
    `queue_ms` is how long the entry waited before it was picked up.
    `stopped` tells the handler why it was cancelled; `ending` that the final event is being written, and it must not
    be cancelled any more.
    `gives_way` that it is handed back, so that it may be delivered again before it is done with; that is `again` then.
    """

    delivery: Delivery
    events_key: str
    request_id: str
    queue_ms: int = 0
    task: asyncio.Task[None] | None = None
    stopped: StopReason | None = None
    ending: bool = False
    gives_way: bool = False
    again: Delivery | None = None

    def stop(self, why: StopReason) -> None:
        """Cancel the attempt under way, once; a request whose final event is being written is let be."""
        if self.stopped is None and not self.ending and self.task is not None:
            self.stopped = why
            self.task.cancel()

    def held(self) -> tuple[Delivery, str]:
        """As lease renewal needs it."""
        return self.delivery, self.events_key


class InFlightTable:
    """All deliveries in flight, by lane and entry."""

    def __init__(self) -> None:
        self._items: dict[tuple[str, str], InFlight] = {}
        self._empty = asyncio.Event()
        self._empty.set()

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[InFlight]:
        return iter(tuple(self._items.values()))

    def __contains__(self, delivery: Delivery) -> bool:
        return (delivery.lane, delivery.entry) in self._items

    def add(self, delivery: Delivery, events_key: str) -> InFlight:
        """A delivery is being handled."""
        item = self._items[delivery.lane, delivery.entry] = InFlight(delivery, events_key, delivery.entry)
        self._empty.clear()
        return item

    def came_again(self, delivery: Delivery) -> None:
        """What is being handled was delivered again: the group was made again, or a reply was lost; or it gave way."""
        item = self._items[delivery.lane, delivery.entry]
        if item.gives_way:
            item.again = delivery

    def remove(self, item: InFlight) -> None:
        """It is done with, in whatever way."""
        self._items.pop((item.delivery.lane, item.delivery.entry), None)
        if not self._items:
            self._empty.set()

    async def empty(self) -> None:
        """Wait until nothing is in flight."""
        await self._empty.wait()

    def stop(self, items: Sequence[InFlight], positions: Sequence[int], why: StopReason) -> None:
        """Stop those at `positions`."""
        for position in positions:
            items[position].stop(why)
