"""What Redis has handed to this worker, one task each; what there is no room for is given back."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from llm_routerd.logs import get_logger
from llm_routerd.queue.connection import ResponseError, describe

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from llm_routerd.queue.broker import Broker
    from llm_routerd.queue.deliveries import Claim, Delivery
    from llm_routerd.worker.handler import Handler
    from llm_routerd.worker.inflight import InFlight, InFlightTable
    from llm_routerd.worker.places import Places
    from llm_routerd.worker.rest import Rest
    from llm_routerd.worker.runs.mailroom import Mailroom
    from llm_routerd.worker.supervisor import Supervisor
    from llm_routerd.worker.trimmed import Trimmed

log = get_logger()

OVERSHOOT = 2  # entries that a read and a claim that crossed may bring above the limit


class Intake:
    """Starts deliveries.

    Args:
        broker: this worker's side of the queue.
        handler: brings each to its end.
        trimmed: ends those of which nothing is left.
        mailroom: keeps those that rest.
        in_flight: where they stand meanwhile.
        places: that they take up.
        tasks: of the worker.
        on_freed: called when one has ended.
    """

    def __init__(
        self,
        *,
        broker: Broker,
        handler: Handler,
        trimmed: Trimmed,
        mailroom: Mailroom,
        in_flight: InFlightTable,
        places: Places,
        tasks: Supervisor,
        on_freed: Callable[[], None],
    ) -> None:
        self._broker = broker
        self._handler = handler
        self._trimmed = trimmed
        self._mailroom = mailroom
        self._in_flight = in_flight
        self._places = places
        self._tasks = tasks
        self._on_freed = on_freed

    def receive(self, deliveries: Sequence[Delivery]) -> None:
        """Start them, keep some that there is no place for, and give back what there is no room for."""
        refused = []
        for delivery in deliveries:
            if delivery in self._in_flight:
                self._in_flight.came_again(delivery)
            elif self._places.room() > -OVERSHOOT:
                self._start(delivery)
            elif (place := self._places.keep()) is not None:
                self._start(delivery, place)
            else:
                refused.append(delivery)
        if refused:
            self._tasks.helper(self._give_back(refused), "give-back")

    def receive_claim(self, claim: Claim) -> None:
        """Start what was taken over; end the requests of those whose entries are gone."""
        self.receive(claim.deliveries)
        self._trimmed.receive(claim.gone)

    def wake(self, item: InFlight) -> None:
        """Go on with a run that rests, as far as it needs no place."""
        self._begin(item, self._go_on(item), f"run-{item.delivery.entry}")

    def _resume(self, item: InFlight) -> None:
        """Go on with a run that has been given a place."""
        if not self._in_flight.has(item):
            return
        self._in_flight.has_place(item)
        self.wake(item)

    async def _go_on(self, item: InFlight) -> None:
        """Read what was let go when it began to rest, and handle it again."""
        delivery = item.delivery
        try:
            fields = await self._broker.request_of(delivery)
            is_trimmed = fields is None and await self._broker.is_ours(delivery)
        except ResponseError as error:  # it stays pending, and is taken up again when its lease has run out
            log.warning("redis_refused", entry=delivery.entry, lane=delivery.lane, why=describe(error))
            fields, is_trimmed = None, False
        if fields is None:
            self._over(item)
            if is_trimmed:  # else it is another worker's by now, or done with
                self._trimmed.receive((delivery,))
            return
        # It has been begun, and does not give way where the clock was set back: made anew under another ID, it would
        # ask its models and tell its tools once more.
        item.delivery = replace(delivery, fields=fields, claimed=True)
        await self._handle(item, None)

    def _start(self, delivery: Delivery, place: asyncio.Future[None] | None = None) -> None:
        item = self._in_flight.add(delivery, self._broker.keys.events(delivery.entry))
        self._begin(item, self._handle(item, place), f"request-{delivery.entry}")

    def _begin(self, item: InFlight, work: Coroutine[Any, Any, None], name: str) -> None:
        item.task = self._tasks.helper(work, name)
        item.task.add_done_callback(partial(self._ended, item))

    def _ended(self, item: InFlight, task: asyncio.Task[None]) -> None:
        """A task that is cancelled before its first step does nothing of what it does at its end."""
        if task.cancelled() and item.task is task and self._in_flight.has(item):
            self._over(item)

    async def _handle(self, item: InFlight, place: asyncio.Future[None] | None) -> None:
        rest: Rest | None = None
        try:
            if place is not None:
                await place
            rest = await self._handler.handle(item)
        except asyncio.CancelledError:
            raise
        except ResponseError as error:  # before a model was asked; what comes after is the committer's
            log.warning("redis_refused", entry=item.delivery.entry, lane=item.delivery.lane, why=describe(error))
            await self._handler.give_up(item, "Redis refuses llm-routerd a command")
        except Exception:
            log.exception("request_failed", entry=item.delivery.entry, lane=item.delivery.lane)
            await self._handler.give_up(item)
        finally:
            if rest is not None and self._in_flight.has(item):
                self._rests(item, rest)
            else:
                self._over(item)
            if item.gives_way and item.again is not None and not self._places.is_closed:
                self._start(item.again)

    def _rests(self, item: InFlight, rest: Rest) -> None:
        self._in_flight.rests(item, rest)
        if rest.is_due:
            self._mailroom.leaves(item)
            self._places.want(partial(self._resume, item))
        else:
            self._mailroom.rests(item)
        self._on_freed()

    def _over(self, item: InFlight) -> None:
        self._in_flight.remove(item)
        self._mailroom.leaves(item)
        self._on_freed()

    async def _give_back(self, deliveries: list[Delivery]) -> None:
        await self._broker.hand_back(deliveries)
