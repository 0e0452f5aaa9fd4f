"""The places of a worker: how many requests it takes at once, and whether any are free.

All shards that a worker serves share them.  A shard may read what is free beyond what others are reading just now;
while it waits, for requests or for its Redis, it keeps nothing from them, so that one may have all places.  Shards that
find nothing free queue up, and each place that becomes free is the turn of one: a busy shard does not keep the places
from the others.  Should several that wait be given requests at once, some of these are kept until there is a place for
them, and the others handed back.

A request that waits for a slot of a local box takes no place: a batch for one box keeps nobody from the others, nor
from a cloud.  Of each lane there may wait so as many as there are places; then no more of that lane are read.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING

from llm_routerd.protocol.keys import LANES, Lane

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

IDLE_SECONDS = 0.2  # a read that takes longer waits for new requests


class Capacity:
    """All places of one worker.

    Args:
        concurrency: how many there are; a reload may change it.
        taken: how many of them are taken up.
        waiting: how many requests of a lane wait for a slot of a box, and take none.
        shortage: what this process lacks for a call; None: nothing.

    Attributes:
        is_closed: nothing more is taken.
        reading: how many the shards may be given by reads that are under way.
        queue: the shards that wait until they may read, in their order.
        shards: how many there are.
    """

    def __init__(
        self,
        *,
        concurrency: int,
        taken: Callable[[], int],
        waiting: Callable[[Lane], int] = lambda _lane: 0,
        shortage: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._taken = taken
        self._waiting = waiting
        self._shortage = shortage
        self._changed = asyncio.Event()
        self.concurrency = concurrency
        self.is_closed = False
        self.reading = 0
        self.queue: list[Places] = []
        self.shards = 0
        self._kept: dict[asyncio.Future[None], None] = {}  # in their order
        self._due: deque[Callable[[], None]] = deque()  # what starts those that were here before, and rest

    def shut(self) -> tuple[Lane, ...]:
        """Lanes of which no more are to be read."""
        return tuple(lane for lane in LANES if self._waiting(lane) >= self.concurrency)

    def room(self) -> int:
        """How many more requests there is room for; below 0: there are too many."""
        return 0 if self.is_closed else self.concurrency - self._taken()

    def free(self) -> int:
        """How many to take: none while those that are here wait for what this process lacks."""
        return 0 if self._shortage() is not None else self.room() - len(self._due)

    def keep(self) -> asyncio.Future[None] | None:
        """What a request that there is no place for waits for; None: so many wait that it is handed back.

        One of each lane of each other shard may wait.
        """
        if len(self._kept) >= len(LANES) * (self.shards - 1):
            return None
        place = asyncio.get_running_loop().create_future()
        place.add_done_callback(self._let_go)
        self._kept[place] = None
        return place

    def want(self, start: Callable[[], None]) -> None:
        """Call `start`, which takes a place, as soon as there is one: before anything new is taken."""
        self._due.append(start)
        self.changed()

    def changed(self) -> None:
        """A place is free, or kept, or there are more or fewer of them."""
        while self._due and self.room() > 0:
            self._due.popleft()()
        self._changed.set()
        for place in tuple(self._kept)[: max(0, self.concurrency + len(self._kept) - self._taken())]:
            self._let_go(place)
            if not place.done():
                place.set_result(None)

    def _let_go(self, place: asyncio.Future[None]) -> None:
        self._kept.pop(place, None)

    async def change(self) -> None:
        """Wait until something has changed from now on."""
        self._changed.clear()
        await self._changed.wait()


class Places:
    """The same as one shard sees them."""

    def __init__(self, capacity: Capacity) -> None:
        self._capacity = capacity
        capacity.shards += 1
        self._loop = asyncio.get_running_loop()
        self._reading = 0
        self._reading_since: float | None = None  # loop time

    @property
    def is_closed(self) -> bool:
        """Whether nothing more is taken."""
        return self._capacity.is_closed

    def room(self) -> int:
        """How many more requests there is room for; below 0: there are too many."""
        return self._capacity.room()

    def free(self) -> int:
        """How many there is room for, whoever is about to take them."""
        return self._capacity.free()

    def free_to_read(self) -> int:
        """How many this shard may read now; those before it in the queue have a place each."""
        capacity, queue = self._capacity, self._capacity.queue
        before = queue.index(self) if self in queue else len(queue)
        return capacity.free() - capacity.reading - before

    def shut(self) -> tuple[Lane, ...]:
        """See `Capacity.shut`."""
        return self._capacity.shut()

    def share(self) -> int:
        """How many new requests this shard may wait for at once, and all others as well."""
        return max(1, self._capacity.concurrency // self._capacity.shards)

    def keep(self) -> asyncio.Future[None] | None:
        """See `Capacity.keep`."""
        return self._capacity.keep()

    def want(self, start: Callable[[], None]) -> None:
        """See `Capacity.want`."""
        self._capacity.want(start)

    async def turn(self) -> None:
        """Queue up, and wait until something has changed."""
        if self not in self._capacity.queue:
            self._capacity.queue.append(self)
        await self._capacity.change()

    def pass_over(self) -> None:
        """This shard cannot read now, though it might: the others need not wait for it."""
        if self in self._capacity.queue:
            self._capacity.queue.remove(self)
            self._capacity.changed()

    def changed(self) -> None:
        """See `Capacity.changed`."""
        self._capacity.changed()

    @contextmanager
    def reads(self, most: int) -> Iterator[None]:
        """Up to so many new requests are read, or waited for."""
        if self in self._capacity.queue:
            self._capacity.queue.remove(self)
        self._reading_since = self._loop.time()
        self._reading = most
        self._capacity.reading += most
        bound = self._loop.call_later(IDLE_SECONDS, self.waits)  # Redis may stand still
        try:
            yield
        finally:
            bound.cancel()
            self.waits()
            self._reading_since = None

    def waits(self) -> None:
        """There are no new requests, or no Redis: what is waited for is kept from nobody."""
        if self._reading:
            self._capacity.reading -= self._reading
            self._reading = 0
            self._capacity.changed()

    def is_idle(self) -> bool:
        """Whether the reader waits: a read that finds new requests does not take so long."""
        since = self._reading_since
        return since is not None and self._loop.time() - since > IDLE_SECONDS
