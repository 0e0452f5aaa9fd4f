"""The places among the calls of a deployment."""

from __future__ import annotations

import asyncio


class Slots:
    """The calls that one deployment takes at once; more wait in turn."""

    def __init__(self, limit: int) -> None:
        self._semaphore = asyncio.Semaphore(limit)

    async def acquire(self, seconds: float) -> bool:
        """Wait for a place; False: none became free in time."""
        if not self._semaphore.locked():
            return await self._semaphore.acquire()  # does not wait
        try:
            async with asyncio.timeout(seconds):
                return await self._semaphore.acquire()
        except TimeoutError:
            return False

    def release(self) -> None:
        """Give the place to the next."""
        self._semaphore.release()
