"""How long a server may be silent before its connection counts as dead, or as that of another server."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Self

from llm_routerd.queue.connection.factory import RedisError

if TYPE_CHECKING:
    from types import TracebackType

    from llm_routerd.queue.connection.whereabouts import Whereabouts

ASK_WHERE_SECONDS = 1.0  # after so long a silence it is asked whether the server has moved, and so often at any time


class Silence:
    """Bounds how long the server may be silent within the block; TimeoutError when it was for longer.

    Where it may have moved, that is asked once a second, and ends the block too.
    One timer, moved only when it fires: a batch costs no more than noting the time.

    Attributes:
        has_moved: that is how it ended.
    """

    def __init__(self, seconds: float, whereabouts: Whereabouts, connection: Any) -> None:
        self._seconds = seconds
        self._whereabouts = whereabouts
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._since: float | None = None  # None: nothing is asked of the server
        self._timeout = asyncio.timeout(None)
        self._timer: asyncio.TimerHandle
        self._asking: asyncio.Task[None] | None = None
        self.has_moved = False

    async def __aenter__(self) -> Self:
        await self._timeout.__aenter__()
        self._look(asks=False)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._timer.cancel()
        if self._asking is not None:
            self._asking.cancel()
        await self._timeout.__aexit__(kind, error, traceback)

    def begins(self) -> None:
        """An answer is expected from now on, or a part of it has come."""
        self._since = self._loop.time()

    def ends(self) -> None:
        """The answer is there."""
        self._since = None

    def break_off(self) -> None:
        """The block is over, whatever the server says."""
        if not self._timeout.expired():
            self._timeout.reschedule(self._loop.time())

    def _look(self, *, asks: bool = True) -> None:
        now = self._loop.time()
        due = (now if self._since is None else self._since) + self._seconds
        if now >= due:
            self._timeout.reschedule(now)
            return
        may_move = self._whereabouts.may_move
        self._timer = self._loop.call_at(min(due, now + ASK_WHERE_SECONDS) if may_move else due, self._look)
        if may_move and asks:
            self._ask(is_silent=self._since is not None and now >= self._since + ASK_WHERE_SECONDS)

    def _ask(self, *, is_silent: bool) -> None:
        asking = self._asking
        if asking is not None and not asking.done():
            return
        self._asking = self._loop.create_task(self._ask_where(is_silent=is_silent), name="ask-where")
        if asking is not None:
            asking.result()

    async def _ask_where(self, *, is_silent: bool) -> None:
        whereabouts, connection = self._whereabouts, self._connection
        try:
            if not await (whereabouts.moved() if is_silent else whereabouts.glance()):
                place = await whereabouts.find()  # which another connection may have found anew before
                if place is None or place == (connection.host, connection.port):
                    return
        except RedisError:  # nobody tells: it is as good as ever
            return
        self.has_moved = True
        self.break_off()
