"""One well-formed request under way on this worker, whoever ends it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from msgspec.structs import replace

from llm_routerd.logs import get_logger
from llm_routerd.protocol.codes import ErrorCode
from llm_routerd.protocol.events import Failed, Result
from llm_routerd.protocol.outcome import told, total_cost
from llm_routerd.worker.committing import UNWRITABLE
from llm_routerd.worker.sink import QueueSink

if TYPE_CHECKING:
    from llm_routerd.accounting.metrics import Finished
    from llm_routerd.config.tree import Chain
    from llm_routerd.protocol.outcome import AttemptRecord
    from llm_routerd.protocol.request import Request
    from llm_routerd.running.run import Ending
    from llm_routerd.worker.handler import Handler
    from llm_routerd.worker.inflight import InFlight

log = get_logger()

_COLLISION = "another lane has an entry of the same ID, which is this one's id too: set `id`"


class Running:
    """One well-formed request under way."""

    def __init__(self, handler: Handler, item: InFlight, request: Request, chain: Chain) -> None:
        self._handler = handler
        self._broker = handler.broker
        self._item = item
        self._request = request
        self._chain = chain
        self._records: list[AttemptRecord] = []
        self._transcript = self._broker.transcript(request.id, publish=request.publish, fenced=self._fenced)
        self._sink = QueueSink(self._broker, item.delivery, request, self._transcript)

    def _fenced(self, why: str) -> None:
        if asyncio.current_task() is not self._item.task:  # else this very task has found it out, and goes on to say so
            self._item.stop("sealed" if why == "sealed" else "lost")

    async def run(self) -> None:
        """Ask the chain and commit what comes of it; or leave it, if Redis or the worker says so."""
        item, request, handler = self._item, self._request, self._handler
        try:
            ending = await handler.executor.run(
                request,
                self._chain,
                self._sink,
                deadline=handler.deadline(request),
                delivery=item.delivery.deliveries,
                queue_ms=item.queue_ms,
                records=self._records,
            )
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if item.stopped is None or task is None or task.uncancel() > 0:
                raise
            await self._stopped()
            return
        if ending is None:
            await self._withdrawn()
            return
        await self._commit(ending)

    async def _commit(self, ending: Ending) -> None:
        handler, request, event = self._handler, self._request, ending.event
        begun = self._transcript.attempt
        if isinstance(event, Result) and event.attempt != begun:  # it counts from where an earlier worker ended
            event = replace(event, attempt=begun)
        await handler.end(
            self._item,
            event,
            request_ids=(request.id,),
            transcript=self._transcript if self._sink.begun else None,
            publish=request.publish,
            metrics=handler.finished(event, self._item, request=request, ending=ending),
        )
        log.debug("request_finished", id=request.id, type=event.type, latency_ms=ending.latency_ms)

    async def _stopped(self) -> None:
        """The attempt was cancelled from outside; the connection to the model is closed."""
        self._transcript.abandon()
        if self._item.stopped == "sealed":
            await self._sealed()
        else:  # whoever ends it knows nothing of the calls that were made here
            self._called()
        log.info("request_stopped", id=self._request.id, why=self._item.stopped)

    async def _withdrawn(self) -> None:
        """Redis said, before a call, that the request is not ours to answer."""
        self._item.ending = True
        verdict = self._sink.verdict
        self._transcript.abandon()
        if verdict == "collision":
            await self._bury(_COLLISION)
        elif verdict == "unwritable":  # no attempt can be; the final event may be, as it is beyond all attempts
            await self._bury(UNWRITABLE, (self._request.id,))
        elif verdict == "sealed":
            await self._cancelled()
        elif verdict == "begun":  # between two attempts it was ended, or another worker took it over
            if await self._broker.final_type(self._request.id) is None:
                verdict = "lost"
                self._called()
            else:
                await self._sealed()
        log.info("request_withdrawn", id=self._request.id, entry=self._item.delivery.entry, why=verdict)

    async def _sealed(self) -> None:
        """Somebody else has ended the request, or what he wrote leaves no place for an end."""
        self._item.ending = True
        if await self._broker.final_type(self._request.id) is None:
            await self._bury(UNWRITABLE)
        else:
            await self._broker.acknowledge(self._item.delivery, self._request.id)
            await self._cancelled()

    async def _bury(self, message: str, request_ids: tuple[str, ...] = ()) -> None:
        """There is no events stream for this request, so only a dead letter can tell."""
        delivery, handler = self._item.delivery, self._handler
        event = Failed(
            request_id=self._request.id,
            code=ErrorCode.INVALID_REQUEST,
            message=message,
            attempts=told(self._records),
            metadata=self._request.metadata,
        )
        await handler.end(
            self._item,
            event,
            request_ids=request_ids,
            metrics=handler.finished(event, self._item, request=self._request, records=self._records),
            dead_letter=handler.dead_letter(delivery, event),
        )

    async def _cancelled(self) -> None:
        """Account for a cancellation, if that is what ended the request; of another's answer only calls are ours."""
        if await self._broker.final_type(self._request.id) == "cancelled":
            finished = self._finished()
            cost = total_cost(self._records)
            latency = sum(record.latency_ms for record in self._records)
            await self._handler.account_cancelled(self._item, replace(finished, cost_usd=cost, latency_ms=latency))
        else:
            self._called()

    def _called(self) -> None:
        """Account for the calls of a request that is not ended here: they were made and paid for."""
        self._handler.metrics.called(self._finished())

    def _finished(self) -> Finished:
        event = Failed(request_id=self._request.id, code=ErrorCode.INTERNAL, message="")
        return self._handler.finished(event, self._item, request=self._request, records=self._records)
