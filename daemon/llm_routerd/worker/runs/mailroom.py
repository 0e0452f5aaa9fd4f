"""The runs of one shard that rest, and what wakes them.

- Once a second all of them are looked at, in one script for each page: whether a request has been ended by somebody
  else, or something stands in its inbox or its consent stream.  What has been observed is deleted there, so whatever
  stands is news.
- Those that began to rest last are heard at once: one blocking read has all their streams, on a connection that is only
  there while something rests.  Nothing depends on it but how soon.
- The time at which each is to be looked at in any case is kept in one heap.
- So many that wake are under way at once: the others wait their turn, and cost no more than those that rest.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING

from llm_routerd.logs import get_logger
from llm_routerd.queue.connection import Backoff, RedisError, ResponseError, describe, is_wrong_type

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from llm_routerd.queue.broker import Broker
    from llm_routerd.queue.hearer import Hearer
    from llm_routerd.worker.clock import ServerClock
    from llm_routerd.worker.inflight import InFlight, InFlightTable
    from llm_routerd.worker.supervisor import Supervisor

log = get_logger()

LOOK_SECONDS = 1.0
PAGE = 500  # runs in one script
MOST_HOT = 128  # that are heard at once
MOST_AWAKE = 64
KEPT_SECONDS = 10.0  # the connection, while nothing rests
_SPARE_TIMERS = 1000
_SLACK_SECONDS = 0.002  # the server's clock is asked again


class Mailroom:
    """Keeps what rests, and wakes it.

    Args:
        broker: this worker's side of the queue.
        hearer: the blocking read.
        in_flight: what this worker has; what is not in there any more is forgotten.
        clock: the server's.
        tasks: of the worker.
        wake: starts a run that has been woken; with `rests` or `leaves` it is told when that is over.
    """

    def __init__(
        self,
        *,
        broker: Broker,
        hearer: Hearer,
        in_flight: InFlightTable,
        clock: ServerClock,
        tasks: Supervisor,
        wake: Callable[[InFlight], None],
    ) -> None:
        self._broker = broker
        self._hearer = hearer
        self._in_flight = in_flight
        self._clock = clock
        self._tasks = tasks
        self._wake = wake
        self._loop = asyncio.get_running_loop()
        self._resting: dict[int, InFlight] = {}  # by a number that each rest has of its own
        self._number_of: dict[InFlight, int] = {}
        self._numbers = count()
        self._timers: list[tuple[float, int]] = []
        self._hot: dict[str, InFlight] = {}  # by key, the latest last
        self._woken: deque[InFlight] = deque()
        self._awake: set[InFlight] = set()
        self._has_timer = asyncio.Event()  # a sooner one, maybe
        self._has_resting = asyncio.Event()
        self._has_hot = asyncio.Event()
        self._is_unblocking = False

    @property
    def waiting(self) -> tuple[int, int]:
        """How many runs wait for tools, and how many for people."""
        people = sum(item.rest is not None and item.rest.for_people for item in self._resting.values())
        return len(self._resting) - people, people

    # ------------------------------------------------------------------ what rests

    def rests(self, item: InFlight) -> None:
        """A run rests from now on, as its `rest` says."""
        self.leaves(item)
        rest = item.rest
        if rest is None:
            return
        number = next(self._numbers)
        self._resting[number], self._number_of[item] = item, number
        self._has_resting.set()
        seconds = max(0.0, (rest.until_ms - self._clock.server_ms()) / 1000) + _SLACK_SECONDS
        self._set_timer(self._loop.time() + seconds, number)
        for ear in rest.ears:
            self._hot[ear] = item
        while len(self._hot) > MOST_HOT:
            del self._hot[next(iter(self._hot))]
        if rest.ears:
            self._has_hot.set()
            self._begin_anew()

    def leaves(self, item: InFlight) -> None:
        """It is no longer awake, or it is gone."""
        self._forget(item)
        if item in self._awake:
            self._awake.discard(item)
            self._start_woken()

    def _forget(self, item: InFlight) -> None:
        """It does not rest any more."""
        number = self._number_of.pop(item, None)
        if number is not None:
            del self._resting[number]
        for ear in item.rest.ears if item.rest is not None else ():
            if self._hot.get(ear) is item:
                del self._hot[ear]

    def _set_timer(self, at: float, number: int) -> None:
        if len(self._timers) > 2 * len(self._resting) + _SPARE_TIMERS:  # of rests that ended before their time
            self._timers = [timer for timer in self._timers if timer[1] in self._resting]
            heapq.heapify(self._timers)
        heapq.heappush(self._timers, (at, number))
        if self._timers[0][1] == number:
            self._has_timer.set()

    def _wakes(self, items: Iterable[InFlight]) -> None:
        for item in items:
            if item in self._number_of:
                self._forget(item)
                if self._in_flight.has(item):  # else it was lost to another worker
                    self._woken.append(item)
        self._start_woken()

    def _start_woken(self) -> None:
        while self._woken and len(self._awake) < MOST_AWAKE:
            item = self._woken.popleft()
            self._awake.add(item)
            self._wake(item)

    # ------------------------------------------------------------------ what wakes it

    async def look_on(self) -> None:
        """Look at all of them once a second, until cancelled."""
        while True:
            if not self._resting:
                self._has_resting.clear()
                await self._has_resting.wait()
            await asyncio.sleep(LOOK_SECONDS)
            await self._broker.pipe.ready()
            try:
                await self.look()
            except ResponseError as error:
                log.warning("runs_not_looked_at", why=describe(error))

    async def look(self) -> None:
        """Wake those that have been ended, or answered; those that were lost to another worker are forgotten."""
        for item in [each for each in self._resting.values() if not self._in_flight.has(each)]:
            self._forget(item)
        resting = list(self._resting.values())
        for at in range(0, len(resting), PAGE):
            page = resting[at : at + PAGE]
            ears = [(ear, item) for item in page if item.rest is not None for ear in item.rest.ears]
            ended, answered = await self._broker.news([item.events_key for item in page], [ear for ear, _ in ears])
            self._wakes([*(page[position] for position in ended), *(ears[position][1] for position in answered)])

    async def time_on(self) -> None:
        """Wake those whose time has come, until cancelled."""
        while True:
            self._has_timer.clear()
            now = self._loop.time()
            while self._timers and self._timers[0][0] <= now:
                item = self._resting.get(heapq.heappop(self._timers)[1])
                if item is not None:
                    self._wakes((item,))
            pause = self._timers[0][0] - now if self._timers else None
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._has_timer.wait()

    async def hear_on(self) -> None:
        """Hear those that began to rest last, until cancelled."""
        backoff = Backoff()
        try:
            while True:
                if not await self._until_hot(KEPT_SECONDS):
                    await self._hearer.aclose()
                    await self._until_hot(None)
                try:
                    keys = await self._hearer.hear(tuple(self._hot))
                    self._wakes([item for key in keys if (item := self._hot.get(key)) is not None])
                    backoff.reset()
                except ResponseError as error:
                    # One of the keys is no stream, a right is missing, or the shard has moved.
                    log.warning("runs_not_heard_at_once", why=describe(error))
                    if is_wrong_type(error):
                        await self._pass_over_strangers()
                    else:
                        await asyncio.sleep(backoff.next_seconds())
                except (RedisError, OSError, TimeoutError):
                    await asyncio.sleep(backoff.next_seconds())
        finally:
            await self._hearer.aclose()

    async def _pass_over_strangers(self) -> None:
        """Keys that somebody has made another type cannot be heard, and nothing else is while they are asked for."""
        keys = tuple(self._hot)
        try:
            types = await asyncio.gather(*(self._broker.pipe.call("TYPE", key) for key in keys))
        except ResponseError:  # a right is missing: then they are looked at once a second, as all are
            self._hot.clear()
            return
        for key, kind in zip(keys, types, strict=True):
            if kind not in {b"stream", b"none"}:
                self._hot.pop(key, None)

    async def _until_hot(self, seconds: float | None) -> bool:
        """Wait until there is something to be heard; False: not in time."""
        if self._hot:
            return True
        self._has_hot.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._has_hot.wait()
                return True
        return False

    def _begin_anew(self) -> None:
        """The read that is under way does not hear what has just begun to rest."""
        if self._hearer.is_hearing and not self._is_unblocking:
            self._is_unblocking = True
            self._tasks.helper(self._unblock(), "hear-more")

    async def _unblock(self) -> None:
        await asyncio.sleep(0)  # what begins to rest at the same time is heard by the same read
        self._is_unblocking = False
        await self._hearer.begin_anew()
