"""How long an attempt may take: to its first token, from one to the next, in all."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

from msgspec import Struct

from llm_routerd.protocol.codes import AttemptCode
from llm_routerd.protocol.outcome import Rejection

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from llm_routerd.config.tree import Deployment

LOOK_SECONDS = 0.05  # a bound may be passed by so much
_REASONS = {
    AttemptCode.FIRST_TOKEN_TIMEOUT: "no token within {:g} s",
    AttemptCode.IDLE_TIMEOUT: "no token for {:g} s",
    AttemptCode.TIMEOUT: "no whole answer within {:g} s",
}


class Bounds(Struct, kw_only=True):
    """How long an attempt may take, in seconds.

    `first_token_seconds` is None where only the whole answer is bounded; `deadline` is a loop time.
    """

    first_token_seconds: float | None
    idle_seconds: float
    total_seconds: float
    deadline: float | None

    @classmethod
    def of(cls, deployment: Deployment, *, streams: bool, deadline: float | None) -> Bounds:
        """The bounds that the configuration sets for a request that streams, or does not."""
        return cls(
            first_token_seconds=deployment.timeout if streams else None,
            idle_seconds=deployment.idle_timeout,
            total_seconds=deployment.stream_timeout if streams else deployment.timeout,
            deadline=deadline,
        )


class Clocks:
    """Looks at all clocks that run, some twenty times a second, and not at all while none does.

    One timer for all of them: a timer and an `asyncio.timeout` for each took 8 of the 190 us of a short request.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._clocks: set[AttemptClock] = set()
        self._timer: asyncio.TimerHandle | None = None

    def clock(self, bounds: Bounds) -> AttemptClock:
        """A clock that does not run yet."""
        return AttemptClock(self, self._loop, bounds)

    def add(self, clock: AttemptClock) -> None:
        """This clock runs now."""
        self._clocks.add(clock)
        if self._timer is None:
            self._timer = self._loop.call_later(LOOK_SECONDS, self._look)

    def remove(self, clock: AttemptClock) -> None:
        """It runs no longer."""
        self._clocks.discard(clock)

    def close(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        self._timer = self._loop.call_later(LOOK_SECONDS, self._look) if self._clocks else None
        now = self._loop.time()
        for clock in tuple(self._clocks):
            clock.check(now)


class AttemptClock:
    """Ends the block when the first token, the next token or the whole answer is late; `rejection` tells which.

    Like `asyncio.timeout`, it cancels the task and turns that into a TimeoutError.
    Time in `paused` (Redis has no room) is not the model's, and not counted; the request's deadline goes on.
    """

    __slots__ = (
        "_bounds", "_cancelling", "_clocks", "_due", "_is_paused", "_last", "_loop", "_paused_seconds", "_started",
        "_task", "rejection", "ttft_seconds",
    )  # fmt: skip

    def __init__(self, clocks: Clocks, loop: asyncio.AbstractEventLoop, bounds: Bounds) -> None:
        self._clocks = clocks
        self._loop = loop
        self._bounds = bounds
        self._task: asyncio.Task[object] | None = None
        self._cancelling = 0
        self._started = self._last = loop.time()
        self._due = 0.0  # not due before; 0: not known
        self._paused_seconds = 0.0
        self._is_paused = False
        self.ttft_seconds: float | None = None
        self.rejection: Rejection | None = None

    def __enter__(self) -> Self:
        self._task = task = asyncio.current_task(self._loop)
        if task is None:
            raise RuntimeError("a clock bounds a task")
        self._cancelling = task.cancelling()
        self._started = self._last = self._loop.time()
        self._clocks.add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._clocks.remove(self)
        if self.rejection is None or self._task is None:
            return
        # A cancellation from elsewhere that came at the same time stays one.
        if self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error

    @property
    def elapsed_seconds(self) -> float:
        """Since the attempt began, without what was paused."""
        return self._loop.time() - self._started - self._paused_seconds

    def touch(self) -> bool:
        """The model has said something; True the first time."""
        self._last = self._loop.time()
        if self.ttft_seconds is not None:
            return False
        self.ttft_seconds = self._last - self._started
        self._due = 0.0  # the bound of the gap may be nearer
        return True

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The model waits for us."""
        began = self._loop.time()
        self._is_paused = True
        try:
            yield
        finally:
            self._is_paused = False
            self._last = self._loop.time()
            self._paused_seconds += self._last - began

    def end(self, rejection: Rejection) -> None:
        """End the block now, for this reason."""
        if self.rejection is None and self._task is not None:
            self.rejection = rejection
            self._task.cancel()

    def check(self, now: float) -> None:
        """Cancel the task if a bound has been passed."""
        if now < self._due or self.rejection is not None or self._task is None:
            return
        self._due, code, seconds = min(self._bounds_in_force(now))
        if now >= self._due:
            reason = _REASONS[code].format(seconds) if seconds else "the request's deadline came"
            self.rejection = Rejection(code=code, reason=reason, retryable=True)
            self._task.cancel()

    def _bounds_in_force(self, now: float) -> list[tuple[float, AttemptCode, float]]:
        """When each of the bounds is due that count now, its code, and its length in seconds (0: the deadline)."""
        bounds, began = self._bounds, self._started + self._paused_seconds
        if self._is_paused:
            late = [(now + bounds.idle_seconds, AttemptCode.IDLE_TIMEOUT, bounds.idle_seconds)]  # look again then
        elif self.ttft_seconds is None and bounds.first_token_seconds is not None:
            seconds = bounds.first_token_seconds
            late = [(began + seconds, AttemptCode.FIRST_TOKEN_TIMEOUT, seconds)]
        else:
            late = [(began + bounds.total_seconds, AttemptCode.TIMEOUT, bounds.total_seconds)]
            if self.ttft_seconds is not None:
                late.append((self._last + bounds.idle_seconds, AttemptCode.IDLE_TIMEOUT, bounds.idle_seconds))
        if bounds.deadline is not None:
            late.append((bounds.deadline, AttemptCode.TIMEOUT, 0.0))
        return late
