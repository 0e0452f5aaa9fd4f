"""What a worker has in flight: one record for each entry, from its delivery to its end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Literal

from msgspec import Struct
from msgspec.structs import replace

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from llm_routerd.protocol.request import Request
    from llm_routerd.queue.deliveries import Delivery
    from llm_routerd.queue.outbox import Transcript
    from llm_routerd.worker.rest import Rest

StopReason = Literal["sealed", "lost", "drain"]


class InFlight(Struct, eq=False):
    """One delivery that this worker is busy with, and what is known of it so far.

    Attributes:
        delivery: as Redis gave it.
        events_key, request_id: of the entry's own ID until the request is known.
        request: once it has been read.
        queue_ms: how long the entry waited before it was picked up; None: not known.
        transcript: its events stream, once an attempt of ours stands there.
        task: that brings it to its end.
        stopped: why that was cancelled.
        is_ending: its end is being written, and must not be cancelled any more.
        gives_way: it is handed back, so that it may be delivered again before it is done with.
        again: that delivery.
        rest: what the run waits for while it takes no place; None: it has one.
    """

    delivery: Delivery
    events_key: str
    request_id: str
    request: Request | None = None
    queue_ms: int | None = None
    transcript: Transcript | None = None
    task: asyncio.Task[None] | None = None
    stopped: StopReason | None = None
    is_ending: bool = False
    gives_way: bool = False
    again: Delivery | None = None
    rest: Rest | None = None

    def sleeps(self, rest: Rest) -> None:
        """It waits, and all that can be read again is let go."""
        self.rest, self.task, self.request, self.transcript = rest, None, None, None
        self.is_ending = False
        self.delivery = replace(self.delivery, fields=())

    def read(self, request: Request, events_key: str) -> None:
        """It holds this request."""
        self.request, self.request_id, self.events_key = request, request.id, events_key

    def stop(self, why: StopReason) -> None:
        """Cancel the attempt under way, once; a request whose final event is being written is let be.

        So is a run without a place that has been ended: no model works for it, and whoever looks at it finds that out.
        """
        if why == "sealed" and self.rest is not None:
            return
        if self.stopped is None and not self.is_ending and self.task is not None:
            self.stopped = why
            self.task.cancel()

    def fenced(self, why: str) -> None:
        """Its events stream shows that it has been ended ("sealed") or taken over ("overtaken") by somebody else."""
        if asyncio.current_task() is not self.task:  # else this very task has found it out, and goes on to say so
            self.stop("sealed" if why == "sealed" else "lost")

    def absorbs_cancellation(self) -> bool:
        """Take a CancelledError in its task for the one of `stop`: the task goes on; False: it is somebody else's."""
        task = asyncio.current_task()
        return self.stopped is not None and task is not None and task.uncancel() <= 0

    def held(self) -> tuple[Delivery, str]:
        """As lease renewal needs it."""
        return self.delivery, self.events_key


class InFlightTable:
    """All deliveries in flight, by lane and entry; `len` is of those that take a place."""

    def __init__(self) -> None:
        self._items: dict[tuple[str, str], InFlight] = {}
        self._busy: set[InFlight] = set()
        self._empty = asyncio.Event()
        self._empty.set()

    def __len__(self) -> int:
        return len(self._busy)

    def has(self, item: InFlight) -> bool:
        """Whether it is there still."""
        return self._items.get((item.delivery.lane, item.delivery.entry)) is item

    def __iter__(self) -> Iterator[InFlight]:
        return iter(tuple(self._items.values()))

    def __contains__(self, delivery: Delivery) -> bool:
        return (delivery.lane, delivery.entry) in self._items

    def add(self, delivery: Delivery, events_key: str) -> InFlight:
        """A delivery is being handled."""
        item = self._items[delivery.lane, delivery.entry] = InFlight(delivery, events_key, delivery.entry)
        self.has_place(item)
        return item

    def has_place(self, item: InFlight) -> None:
        """It takes a place from now on."""
        item.rest = None
        self._busy.add(item)
        self._empty.clear()

    def rests(self, item: InFlight, rest: Rest) -> None:
        """It takes none from now on."""
        item.sleeps(rest)
        self._frees(item)

    def _frees(self, item: InFlight) -> None:
        self._busy.discard(item)
        if not self._busy:
            self._empty.set()

    def came_again(self, delivery: Delivery) -> None:
        """What is being handled was delivered again: the group was made again, or a reply was lost; or it gave way."""
        item = self._items[delivery.lane, delivery.entry]
        if item.gives_way:
            item.again = delivery

    def remove(self, item: InFlight) -> None:
        """It is done with, in whatever way."""
        if self.has(item):
            del self._items[item.delivery.lane, item.delivery.entry]
        self._frees(item)

    async def empty(self) -> None:
        """Wait until nothing takes a place."""
        await self._empty.wait()

    def stop(self, items: Sequence[InFlight], positions: Sequence[int], why: StopReason) -> None:
        """Stop those at `positions`."""
        for position in positions:
            item = items[position]
            if item.rest is not None and item.task is None and why == "lost":
                self.remove(item)  # nothing of it is under way here
            item.stop(why)
