"""One request that is followed among many: what is heard of it, joined by event IDs with what stands in its stream."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol, Self

from llm_routerd.client.events import check_stream_id
from llm_routerd.protocol.events import FINAL_ID

if TYPE_CHECKING:
    from collections.abc import Iterable
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType

    from llm_routerd.client.shard import Shard
    from llm_routerd.protocol.reading import SeenEvent

Placed = tuple[tuple[int, int], "SeenEvent"]  # an event, and its place among the others of its request

MOST_PENDING_BYTES = 262_144
_PAGE_EVENTS = 100


class Hears(Protocol):
    """What hears for many."""

    async def join(self, following: Following) -> None:
        """Have it hear what is published from the return of this on."""

    def leave(self, following: Following) -> None:
        """Have it hear nothing more."""

    def turn(self) -> AbstractAsyncContextManager[None]:
        """A turn to read what was missed, for which others may wait; raises `BrokerError`: it has not come in time."""


class Following:
    """The events of a request after some ID, in order, each once; ends after the final one.

    What comes faster than it is taken is dropped here and read from the stream when there is room again: whoever is
    slow costs nothing.  Enter it before it is read.

    Attributes:
        known_homes: where it may stand.
        is_new: nobody knew of it before it was followed.
        position: the ID of the last event that was taken.
        is_published: something was heard of it: there is no need to look into the stream often.
    """

    def __init__(self, hears: Hears, request_id: str, homes: tuple[Shard, ...], *, after: str, is_new: bool) -> None:
        self.request_id = request_id
        self.known_homes = homes
        self._homes = homes
        self.position = after
        self.is_new = self.is_published = is_new
        self._hears = hears
        self._is_behind = not is_new  # there may be events in the stream that are not pending here
        self._is_over = check_stream_id(after) >= check_stream_id(FINAL_ID)
        self._order = order_of(after)
        self._pending: list[Placed] = []
        self._pending_bytes = 0
        self._waiter: asyncio.Future[None] | None = None
        self.idle_at = 0.0  # loop time at which a wait ends though nothing has come
        self.polled_at = 0.0  # loop time at which the stream was last looked at, or something heard
        self.poll_seconds = 0.0

    @property
    def is_waiting(self) -> bool:
        """Nothing is known of that could be taken."""
        return self._waiter is not None and not self._waiter.done()

    @property
    def is_over(self) -> bool:
        """The final event has been taken."""
        return self._is_over

    @property
    def is_behind(self) -> bool:
        """There may be events in the stream that can be taken at once."""
        return self._is_behind

    async def __aenter__(self) -> Self:
        await self._hears.join(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._hears.leave(self)

    def hear(self, event: Placed, size: int) -> None:
        """An event has come that was published."""
        self.is_published = True
        if self._is_behind:  # it will be read with all that is missing
            return
        if self._pending_bytes + size > MOST_PENDING_BYTES and not event[1].is_final:
            self.fall_behind()
            return
        self._pending.append(event)
        self._pending_bytes += size
        self._wake()

    def fall_behind(self) -> None:
        """Something may stand in the stream that was not heard."""
        self._is_behind = True
        self._pending, self._pending_bytes = [], 0
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def tick(self, now: float) -> None:
        """Time goes by."""
        if now >= self.idle_at:
            self._wake()

    async def next(self, idle_seconds: float) -> list[SeenEvent]:
        """What has come since, as soon as there is something; nothing: that long there was none, or it is over.

        The time is kept to within a second.

        Raises:
            BrokerError: Redis stays away, or refuses.
        """
        loop = asyncio.get_running_loop()
        self.idle_at = loop.time() + idle_seconds
        while not self._is_over:
            if self._is_behind:
                events = self._taken(await self._catch_up(), is_whole=True)
            else:
                pending, self._pending, self._pending_bytes = self._pending, [], 0
                events = self._taken(pending, is_whole=False)
            if events:
                return events
            if self._is_behind or self._pending:
                continue
            if loop.time() >= self.idle_at:
                return []
            self._waiter = loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return []

    def _taken(self, events: Iterable[Placed], *, is_whole: bool) -> list[SeenEvent]:
        """Those that have not been taken, which they are now; not `is_whole`: up to where one is missing."""
        found: list[SeenEvent] = []
        for order, event in events:
            if order <= self._order:
                continue
            if not (is_whole or event.is_final or follows(self._order, order)):
                self.fall_behind()
                break
            self._order = order
            found.append(event)
        if found:
            self.position = found[-1].stream_id
            self._is_over = found[-1].is_final
        return found

    async def _catch_up(self) -> list[Placed]:
        """The next events in the stream; what is heard meanwhile is pending after them."""
        self._is_behind = False  # before it is read: what falls behind meanwhile is to be read again
        self._pending, self._pending_bytes = [], 0
        for shard in self._homes:
            async with self._hears.turn():
                events = await shard.read(self.request_id, self.position, None, count=_PAGE_EVENTS)
            if events:
                self._homes = (shard,)
                if len(events) == _PAGE_EVENTS:
                    self._is_behind = True
                return [(order_of(event.stream_id), event) for event in events]
        return []


def order_of(stream_id: str) -> tuple[int, int]:
    """By which events are ordered.

    Raises:
        ValueError: that is no ID.
    """
    attempt, _, seq = stream_id.partition("-")
    return int(attempt), int(seq or 0)


def follows(last: tuple[int, int], order: tuple[int, int]) -> bool:
    """Whether nothing is missing between two events: a daemon counts those of an attempt, and begins each with 0."""
    return order == (last[0], last[1] + 1) or (order[0] > last[0] and not order[1])
