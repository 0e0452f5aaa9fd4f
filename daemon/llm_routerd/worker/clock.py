"""The Redis server's clock, as this worker knows it."""

from __future__ import annotations

import asyncio
import time


class ServerClock:
    """Unix time of the Redis server, carried on by the local monotonic clock between two looks at it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._offset_ms = (time.time() - self._loop.time()) * 1000  # until the server has been asked

    def set(self, server_ms: int) -> None:
        """The server has just said what time it is."""
        self._offset_ms = server_ms - self._loop.time() * 1000

    def server_ms(self) -> float:
        """Unix time in milliseconds."""
        return self._loop.time() * 1000 + self._offset_ms

    def waited_ms(self, entry: str) -> float:
        """How long an entry of this ID has waited since its XADD; below 0: its ID lies ahead."""
        return self.server_ms() - int(entry.partition("-")[0])
