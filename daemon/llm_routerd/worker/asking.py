"""Asking a chain for one delivery, until it is done or Redis or the worker says stop.

Whatever comes of it is an ending: an answer, none, or that somebody else has ended the request, or will.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from llm_routerd.logs import get_logger
from llm_routerd.protocol.codes import ErrorCode
from llm_routerd.protocol.events import Failed
from llm_routerd.protocol.outcome import told
from llm_routerd.routing.chains import resolve
from llm_routerd.running.caller import Arrival
from llm_routerd.running.ending import Withdrawn
from llm_routerd.running.run import Run
from llm_routerd.worker.committing import UNWRITABLE
from llm_routerd.worker.ending import Buried, Cancelled
from llm_routerd.worker.sink import QueueSink

if TYPE_CHECKING:
    from llm_routerd.protocol.request import Request
    from llm_routerd.queue.broker import Broker
    from llm_routerd.queue.deliveries import BeginVerdict
    from llm_routerd.running.caller import TurnRules
    from llm_routerd.running.ending import Spent
    from llm_routerd.running.resources import Resources
    from llm_routerd.worker.ending import Ending
    from llm_routerd.worker.inflight import InFlight

log = get_logger()

_COLLISION = "another lane has an entry of the same ID, which is this one's id too: set `id`"


class Asking:
    """Asks chains for deliveries, one task each.

    Args:
        broker: this worker's side of the queue.
    """

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    async def ask(
        self,
        item: InFlight,
        request: Request,
        resources: Resources,
        *,
        deadline: float | None,
        rules: TurnRules | None = None,
    ) -> Ending:
        """Ask the chain, and keep the transcript of what was begun in the item; `deadline` is loop time."""
        item.transcript = None
        transcript = self._broker.transcript(request.id, publish=request.publish, fenced=item.fenced)
        sink = QueueSink(self._broker, item.delivery, transcript, publish=request.publish)
        chain = resolve(resources.config, request.model)
        if chain is None:
            raise LookupError("a gate has let a model pass that nobody knows")
        run = Run(
            resources,
            request,
            chain,
            sink,
            deadline=deadline,
            arrival=Arrival(lane=item.delivery.lane, deliveries=item.delivery.deliveries, queue_ms=item.queue_ms),
            rules=rules,
        )
        try:
            ending = await run.until_done()
        except asyncio.CancelledError:
            if not item.absorbs_cancellation():
                raise
            transcript.abandon()
            return await self.stopped(item, request, run.spent())
        if isinstance(ending, Withdrawn):
            transcript.abandon()
            return await self.withdrawn(item, request, sink.verdict, ending.spent)
        if sink.begun:
            item.transcript = transcript
        return ending

    async def stopped(self, item: InFlight, request: Request, spent: Spent) -> Ending:
        """What was under way was cancelled from outside; a connection to a model is closed."""
        log.info("request_stopped", id=request.id, why=item.stopped)
        if item.stopped != "sealed":
            return Withdrawn(spent=spent)  # whoever ends it knows nothing of the calls that were made here
        item.is_ending = True
        final_type = await self._broker.final_type(request.id)
        if final_type is None:  # what somebody else wrote leaves no place for an end
            return _unwritable(request, UNWRITABLE, spent)
        return await self.leave(item, request, final_type, spent)

    async def withdrawn(self, item: InFlight, request: Request, verdict: BeginVerdict | None, spent: Spent) -> Ending:
        """Redis said, before a call, that the request is not ours to answer."""
        item.is_ending = True
        log.info("request_withdrawn", id=request.id, entry=item.delivery.entry, why=verdict)
        match verdict:
            case "collision":
                return _unwritable(request, _COLLISION, spent)
            case "unwritable":  # no attempt can be; the final event may be, as it is beyond all attempts
                return _unwritable(request, UNWRITABLE, spent, (request.id,))
            case "sealed":  # and acknowledged by the script
                return _ended_as(await self._broker.final_type(request.id), spent)
            case "begun":  # between two attempts it was ended, or another worker took it over
                final_type = await self._broker.final_type(request.id)
                if final_type is None:
                    return Withdrawn(spent=spent)
                return await self.leave(item, request, final_type, spent)
            case _:
                return Withdrawn()

    async def leave(self, item: InFlight, request: Request, final_type: str, spent: Spent) -> Ending:
        """Somebody else has ended the request: be done with its entry."""
        await self._broker.acknowledge(item.delivery, request.id)
        return _ended_as(final_type, spent)


def _ended_as(final_type: str | None, spent: Spent) -> Ending:
    """What is to be accounted for of a request that somebody else has ended."""
    return Cancelled(spent=spent) if final_type == "cancelled" else Withdrawn(spent=spent)


def _unwritable(request: Request, message: str, spent: Spent, streams: tuple[str, ...] = ()) -> Buried:
    """There is no events stream for this request, so only a dead letter can tell."""
    event = Failed(
        request_id=request.id,
        code=ErrorCode.INVALID_REQUEST,
        message=message,
        attempts=told(spent.attempts),
        metadata=request.metadata,
    )
    return Buried(event=event, streams=streams, spent=spent)
