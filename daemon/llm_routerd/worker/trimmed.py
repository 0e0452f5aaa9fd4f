"""Requests whose worker died, and whose entry somebody trimmed away before another could take it over.

Nobody can answer them any more, for what was asked is gone; that they have an end can be seen to.  The entry stays
among the pending ones until the final event stands: should this worker die meanwhile, the next one finds it there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_routerd.logs import get_logger
from llm_routerd.protocol.codes import ErrorCode
from llm_routerd.protocol.events import Failed
from llm_routerd.queue.connection import ResponseError, describe
from llm_routerd.queue.search import find_requests
from llm_routerd.worker.ending import Buried
from llm_routerd.worker.inflight import InFlight

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence

    from llm_routerd.queue.broker import Broker
    from llm_routerd.queue.deliveries import Delivery
    from llm_routerd.queue.search import Found
    from llm_routerd.worker.inflight import InFlightTable
    from llm_routerd.worker.settling import Settler
    from llm_routerd.worker.supervisor import Supervisor

log = get_logger()

MESSAGE = "its worker died, and its entry was trimmed from the requests stream before another worker could take it over"


class Trimmed:
    """Ends such requests, in a task of its own: to find the events stream of one may take long.

    Args:
        broker: this worker's side of the queue.
        settler: settles their ends.
        in_flight: what this worker is busy with, and so is not dead.
        tasks: of the worker.
    """

    def __init__(self, broker: Broker, settler: Settler, in_flight: InFlightTable, tasks: Supervisor) -> None:
        self._broker = broker
        self._settler = settler
        self._in_flight = in_flight
        self._tasks = tasks
        self._known: set[tuple[str, str]] = set()  # those that wait here, are being ended, or cannot be
        self._waiting: list[Delivery] = []
        self._task: asyncio.Task[None] | None = None

    def receive(self, gone: Sequence[Delivery]) -> None:
        """Such entries were seen; most of them have been before."""
        fresh = [each for each in gone if each not in self._in_flight and (each.lane, each.entry) not in self._known]
        if not fresh:
            return
        self._known.update((each.lane, each.entry) for each in fresh)
        self._waiting += fresh
        if self._task is None or self._task.done():
            self._task = self._tasks.helper(self._run(), "end-trimmed")

    async def _run(self) -> None:
        while self._waiting:
            entries, self._waiting = self._waiting, []
            try:
                found = await find_requests(self._broker, entries)
                for delivery in entries:
                    await self._end(delivery, found)
                    self._known.discard((delivery.lane, delivery.entry))
            except ResponseError as error:  # what is left stays pending, and is not tried again before a restart
                log.warning("trimmed_requests_not_ended", count=len(entries), why=describe(error))

    async def _end(self, delivery: Delivery, found: Found) -> None:
        request_id = found.ids.get((delivery.lane, delivery.entry))
        event = Failed(request_id=request_id or delivery.entry, code=ErrorCode.INTERNAL, message=MESSAGE)
        history = () if request_id is None else await self._broker.history(request_id)
        item = InFlight(delivery, self._broker.keys.events(event.request_id), event.request_id)
        # Whether it was to be published is not known any more.
        ending = Buried(event=event, streams=(event.request_id,), publish=True, history=history)
        committed = await self._settler.settle(item, ending)
        verdict = None if committed is None else committed.verdict
        told = log.bind(entry=delivery.entry, lane=delivery.lane, id=event.request_id, verdict=verdict)
        if request_id is None:
            # The id is the entry's own, and all is well; or the producer gave one, and waits in vain.
            told.warning("trimmed_request_ended_under_its_entry", why=found.why_not or "no events stream names it")
        else:
            told.warning("trimmed_request_ended")
