"""The places of a worker: how many requests it takes at once, and whether any are free."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from llm_routerd.worker.inflight import InFlightTable

IDLE_SECONDS = 0.2  # a read that takes longer waits for new requests


class Places:
    """The places of one worker.

    Args:
        in_flight: what takes them up.
        concurrency: how many there are; a reload may change it.
        shortage: what this process lacks for a call; None: nothing.

    Attributes:
        is_closed: nothing more is taken.
    """

    def __init__(
        self, in_flight: InFlightTable, *, concurrency: int, shortage: Callable[[], str | None] = lambda: None
    ) -> None:
        self._in_flight = in_flight
        self._shortage = shortage
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._reading_since: float | None = None  # loop time
        self.concurrency = concurrency
        self.is_closed = False

    def room(self) -> int:
        """How many more requests there is room for; below 0: there are too many."""
        return 0 if self.is_closed else self.concurrency - len(self._in_flight)

    def free(self) -> int:
        """How many to take: none while those that are here wait for what this process lacks."""
        return 0 if self._shortage() is not None else self.room()

    def changed(self) -> None:
        """A place is free, or kept, or there are more or fewer of them."""
        self._changed.set()

    async def change(self) -> None:
        """Wait until something has changed from now on."""
        self._changed.clear()
        await self._changed.wait()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """New requests are read, or waited for."""
        self._reading_since = self._loop.time()
        try:
            yield
        finally:
            self._reading_since = None

    def is_idle(self) -> bool:
        """Whether the reader waits: a read that finds new requests does not take so long."""
        since = self._reading_since
        return since is not None and self._loop.time() - since > IDLE_SECONDS
