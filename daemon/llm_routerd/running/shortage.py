"""What this process lacks itself (files, memory, a way to an address): calls wait for it, and it is told once."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Protocol, TypeVar

from llm_routerd.logs import get_logger
from llm_routerd.protocol.codes import Lack
from llm_routerd.protocol.outcome import Rejection

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

log = get_logger()

FIRST_PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 1.0


class _Tried(Protocol):
    """What came of asking; `verdict` is a `Rejection` with its `lack` where we could not ask.

    `called`: the deployment was to be asked, and not only made ready.
    """

    @property
    def verdict(self) -> object: ...

    @property
    def called(self) -> bool: ...


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
        self._unreachable: set[str] = set()  # deployments to which no call finds a way, for want of ours
        self.on_change: Callable[[], None] = lambda: None

    async def until_able(
        self, deployment: str, ask: Callable[[], Awaitable[_T]], *, deadline: float | None, route_seconds: float
    ) -> _T:
        """Ask, again and again while what comes is that we lack something; returns what came last.

        Args:
            deployment: its name, for the log.
            ask: makes a call, or says what it lacks for it; such a call has asked nobody.
            deadline: loop time at which waiting ends; None: it takes as long as it takes.
            route_seconds: longest time to wait for a way to this address, which another deployment may not need.
        """
        tried = await ask()
        if _without_asking(tried.verdict) is not None:
            tried = await self._wait(deployment, ask, tried, deadline=deadline, route_seconds=route_seconds)
        if self._unreachable and tried.called and _without_asking(tried.verdict) is None:
            self._found_way(deployment)
        return tried

    async def _wait(
        self,
        deployment: str,
        ask: Callable[[], Awaitable[_T]],
        tried: _T,
        *,
        deadline: float | None,
        route_seconds: float,
    ) -> _T:
        """Ask again and again, after what was `tried`."""
        loop = asyncio.get_running_loop()
        last = math.inf if deadline is None else deadline
        last_for_route = min(last, loop.time() + route_seconds)
        pause, is_counted = FIRST_PAUSE_SECONDS, False
        try:
            while (rejection := _without_asking(tried.verdict)) is not None:
                give_up = last if rejection.lack is Lack.RESOURCES else last_for_route
                if rejection.lack is Lack.ROUTE:
                    self._no_way(deployment, rejection.reason)
                elif not is_counted:
                    self._begin(rejection.reason)
                    is_counted = True
                if loop.time() >= give_up:
                    break
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

    def _no_way(self, deployment: str, why: str) -> None:
        if deployment not in self._unreachable:
            self._unreachable.add(deployment)
            log.error("no_way_to_deployment", deployment=deployment, why=why)

    def _found_way(self, deployment: str) -> None:
        if deployment in self._unreachable:
            self._unreachable.discard(deployment)
            log.info("way_to_deployment_found", deployment=deployment)


def _without_asking(verdict: object) -> Rejection | None:
    """The verdict, if nobody has been asked for lack of something that comes back by itself."""
    return verdict if isinstance(verdict, Rejection) and verdict.lack is not None else None
