"""What whoever waits for a local box is told of it: not everything, and not all the time.

Between two events whoever reads them counts the estimate down by himself, so that there is something to tell only where
things go otherwise.  An event is lost, and never a request, when it cannot be told.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from llm_routerd.fleet.waits import Wait, Why
from llm_routerd.jsonschema.path import printable
from llm_routerd.logs import get_logger
from llm_routerd.protocol.events import Queued
from llm_routerd.running.boxes import resident_name

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator, Sequence

    from llm_routerd.config.tree import Deployment

log = get_logger()

FIRST_SECONDS: Final = 0.25  # what waits no longer is told nothing
EVERY_SECONDS: Final = 1.0  # at most one event in so many seconds,
EVERY_SHARE: Final = 1 / 60  # or in this part of what has been waited: some hundred in a night, and not thousands
_NEWS_SECONDS: Final = 2.0  # by which an estimate must differ from what was told,
_NEWS_SHARE: Final = 0.2  # and by this part of it
_LOOK_SECONDS: Final = 0.25  # so often a load is looked at
_LONGEST_SECONDS: Final = 1e7  # nobody knows more of what is estimated to take longer
_MOST_REASON, _MOST_NAME = 200, 128  # characters


class Pace:
    """When the next event is due, of all waits of one request; pure."""

    def __init__(self) -> None:
        self._first = math.inf  # when it began to wait
        self._began = math.inf  # when this wait began
        self._at = -math.inf  # when something was told last
        self._told: Wait | None = None  # of this wait

    def begins(self, now: float) -> None:
        """Another wait: of what was told of the one before nothing holds."""
        self._first = min(self._first, now)
        self._began, self._told = now, None

    def is_due(self, wait: Wait, now: float) -> bool:
        """Whether that is worth an event by now."""
        if now < self._began + FIRST_SECONDS:
            return False
        if now < self._at + max(EVERY_SECONDS, (now - self._first) * EVERY_SHARE):
            return False
        return self._told is None or _is_news(self._told, wait, now - self._at)

    def told(self, wait: Wait, now: float) -> None:
        """It has been told."""
        self._told, self._at = wait, now


def _is_news(told: Wait, wait: Wait, elapsed_seconds: float) -> bool:
    """Whether somebody who was told the one so many seconds ago does not expect the other."""
    if (told.reason, told.before, told.box) != (wait.reason, wait.before, wait.box):
        return True
    before, seconds = _estimate(told), _estimate(wait)
    if before is None or seconds is None:
        return before is not seconds
    expected = max(0.0, before - elapsed_seconds)
    return abs(seconds - expected) > max(_NEWS_SECONDS, expected * _NEWS_SHARE)


def _estimate(wait: Wait) -> float | None:
    """Seconds until it begins; None: nobody knows, as of a box that is down, which says when it is looked at again."""
    if wait.why is Why.DOWN or not math.isfinite(wait.seconds) or wait.seconds > _LONGEST_SECONDS:
        return None
    return max(0.0, wait.seconds)


def event_of(wait: Wait, deployment: Deployment | None) -> Queued:
    """What is told of a wait; `deployment`: that will be asked there, as things are."""
    seconds = _estimate(wait)
    return Queued(
        position=max(0, wait.before),
        reason=_line(wait.reason, _MOST_REASON) or wait.why.value,
        estimated_wait_ms=None if seconds is None else round(seconds * 1000),
        box=_line(wait.box, _MOST_NAME) or None,
        deployment=None if deployment is None else _line(deployment.name, _MOST_NAME),
        model=None if deployment is None else _line(deployment.model, _MOST_NAME),
    )


def _line(text: str, most: int) -> str:
    """On one line, and no longer: names of models are what a server calls them."""
    text = printable(text[: most + 1])
    return text if len(text) <= most else f"{text[: most - 1]}…"


class WaitNotice:
    """Tells whoever reads one request's events what it waits for.

    Args:
        emit: takes an event; False: not now.
        loop: whose time it goes by.
        is_wanted: somebody reads them.
    """

    def __init__(self, emit: Callable[[Queued], bool], loop: asyncio.AbstractEventLoop, *, is_wanted: bool) -> None:
        self._emit = emit
        self._loop = loop
        self._is_wanted = is_wanted
        self._pace = Pace()

    def of_slot(self, members: Sequence[Deployment]) -> Callable[[Wait], None]:
        """A wait for a slot of one of these begins: what each plan says of it is to be handed in."""
        if not self._is_wanted:
            return _untold
        by_box = {each.box or "": each for each in members}
        self._pace.begins(self._loop.time())
        return lambda wait: self._tell(wait, by_box.get(wait.box))

    @contextmanager
    def of_loading(self, deployment: Deployment, seconds: float | None) -> Iterator[None]:
        """The deployment's model is loaded on its box within the block.

        Args:
            deployment: one without a box is nothing to be told of.
            seconds: what that is expected to take; None: nobody knows.
        """
        if deployment.box is None or not self._is_wanted:
            yield
            return
        ends = self._loop.time() + (math.inf if seconds is None else seconds)
        self._pace.begins(self._loop.time())
        timer: asyncio.TimerHandle

        def look() -> None:
            nonlocal timer
            left = ends - self._loop.time()
            self._tell(_loading(deployment, left if left > 0 else math.inf), deployment)
            timer = self._loop.call_later(_LOOK_SECONDS, look)

        timer = self._loop.call_later(_LOOK_SECONDS, look)
        try:
            yield
        finally:
            timer.cancel()

    def _tell(self, wait: Wait, deployment: Deployment | None) -> None:
        now = self._loop.time()
        if not (self._is_wanted and self._pace.is_due(wait, now)):
            return
        try:
            if self._emit(event_of(wait, deployment)):
                self._pace.told(wait, now)
        except Exception:  # a bug of ours costs an event, and neither this request nor the others that wait
            log.exception("queued_not_told")


def _untold(_wait: Wait) -> None:
    """Nobody reads it."""


def _loading(deployment: Deployment, seconds: float) -> Wait:
    return Wait(
        token="",
        worker="",
        seconds=seconds,
        why=Why.LOADING,
        box=deployment.box or "",
        model=resident_name(deployment),
    )
