"""What the connections to one server tell each other: whichever reaches it ends the waiting of the others.

Each connection tries again after a pause of its own, and a try may hang for as long as its bound allows.  Without this
the first request after an outage waits for whichever of them is the slower.
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

SHORTEST_PAUSE_SECONDS = 0.05  # so that two connections that come and go do not chase each other
HANGING_SECONDS = 0.5  # what may still take that long once another connection has come back


class Reach:
    """The pauses and the tries of the connections to one server."""

    def __init__(self) -> None:
        self._reached = asyncio.Event()
        self._bounds: set[asyncio.Timeout] = set()

    def reached(self) -> None:
        """The server has answered after it had not: who waits tries again, who hangs does so soon."""
        self._reached.set()
        self._reached = asyncio.Event()
        due = asyncio.get_running_loop().time() + HANGING_SECONDS
        for bound in self._bounds:
            if not bound.expired():
                bound.reschedule(due)

    async def pause(self, seconds: float) -> None:
        """Wait before the next try, or until the server has been reached."""
        reached, least = self._reached, min(seconds, SHORTEST_PAUSE_SECONDS)
        await asyncio.sleep(least)
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds - least):
                await reached.wait()

    @contextmanager
    def hurries(self, bound: asyncio.Timeout) -> Iterator[None]:
        """Within the block, `bound` is brought forward when another connection reaches the server."""
        self._bounds.add(bound)
        try:
            yield
        finally:
            self._bounds.discard(bound)
