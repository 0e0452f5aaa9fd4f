"""What this process lacks itself (files, memory, ports): calls wait for it, and it is said once for all of them."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Protocol, TypeVar

from llm_routerd.core.outcome import Lack, Rejection
from llm_routerd.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

log = get_logger()

FIRST_PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 1.0


class _Tried(Protocol):
    """What came of asking; `verdict` is a `Rejection` with its `lack` where we could not ask."""

    @property
    def verdict(self) -> object: ...


_T = TypeVar("_T", bound=_Tried)


class Shortage:
    """The calls of a process that wait for something that it lacks.

    Attributes:
        why: what is lacking, in one line; None: nothing.
        waiting: how many calls wait for it.
        on_change: called when `why` has become None, or is None no longer.
    """

    def __init__(self) -> None:
        self.why: str | None = None
        self.waiting = 0
        self.on_change: Callable[[], None] = lambda: None

    async def until_able(
        self, ask: Callable[[], Awaitable[_T]], *, deadline: float | None, look_up_seconds: float
    ) -> _T:
        """Ask, again and again while what comes is that we lack something; returns what came last.

        Args:
            ask: makes a call, or says what it lacks for it; such a call has asked nobody.
            deadline: loop time at which waiting ends; None: it takes as long as it takes.
            look_up_seconds: longest time to wait for a DNS resolver, which another deployment may do without.
        """
        loop = asyncio.get_running_loop()
        last = math.inf if deadline is None else deadline
        last_look_up = min(last, loop.time() + look_up_seconds)
        pause, is_counted = FIRST_PAUSE_SECONDS, False
        tried = await ask()
        try:
            while (rejection := _without_asking(tried.verdict)) is not None:
                give_up = last if rejection.lack is Lack.RESOURCES else last_look_up
                if loop.time() >= give_up:
                    break
                if rejection.lack is Lack.RESOURCES and not is_counted:
                    self._begin(rejection.reason)
                    is_counted = True
                await asyncio.sleep(min(pause, give_up - loop.time()))
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
                if loop.time() < give_up:
                    tried = await ask()
        finally:
            if is_counted:
                self._end()
        return tried

    def _begin(self, why: str) -> None:
        self.waiting += 1
        if self.why is None:
            self.why = why
            log.error("no_call_possible", why=why)
            self.on_change()

    def _end(self) -> None:
        self.waiting -= 1
        if not self.waiting:
            self.why = None
            log.info("calls_possible_again")
            self.on_change()


def _without_asking(verdict: object) -> Rejection | None:
    """The verdict, if nobody has been asked for lack of something that comes back by itself."""
    return verdict if isinstance(verdict, Rejection) and verdict.lack is not None else None
