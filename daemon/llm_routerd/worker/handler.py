"""One delivery from its entry to its end, in one walk.

    read -> (no request) --------------------------------------------.
         -> gates -> (refused; or passed on to another worker) ------+-> ending -> settle
         -> run   -> (answered; given up; ended by somebody else) ---'

Whatever happens, exactly one of these is true at the end: the final event stands and the entry is gone, or the entry
is still pending, for this worker or another to take up.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from msgspec.structs import replace

from llm_routerd.accounting.tally import Tally
from llm_routerd.logs import get_logger
from llm_routerd.protocol.codes import ErrorCode
from llm_routerd.protocol.events import Failed
from llm_routerd.protocol.outcome import told
from llm_routerd.protocol.request import RequestError
from llm_routerd.queue.passing import pass_on
from llm_routerd.routing.chains import resolve
from llm_routerd.running.ending import NOTHING, Answered, Withdrawn
from llm_routerd.running.run import Run
from llm_routerd.worker.committing import UNWRITABLE
from llm_routerd.worker.ending import Buried, Cancelled
from llm_routerd.worker.sink import QueueSink

if TYPE_CHECKING:
    from collections.abc import Callable

    from llm_routerd.accounting.metrics import Metrics
    from llm_routerd.protocol.request import Request
    from llm_routerd.queue.broker import Broker
    from llm_routerd.queue.deliveries import BeginVerdict
    from llm_routerd.running.ending import Spent, Unanswered
    from llm_routerd.running.resources import Resources
    from llm_routerd.worker.admission import Admission
    from llm_routerd.worker.clock import ServerClock
    from llm_routerd.worker.ending import Ending
    from llm_routerd.worker.gates import Refusal
    from llm_routerd.worker.inflight import InFlight
    from llm_routerd.worker.mending import Mending
    from llm_routerd.worker.placement import Placement
    from llm_routerd.worker.settling import Settler

log = get_logger()

_COLLISION = "another lane has an entry of the same ID, which is this one's id too: set `id`"


class Handler:
    """Brings deliveries to their ends, one task each.

    Args:
        admission: of the configuration in force.
        placement: the shard that they are of.
        broker: this worker's side of the queue.
        settler: settles endings.
        mending: of lanes that run ahead of the clock.
        metrics: counts what is passed on.
        clock: the server's.
        knows_others: whether every living worker has been able to tell of itself.
    """

    def __init__(
        self,
        admission: Admission,
        *,
        placement: Placement,
        broker: Broker,
        settler: Settler,
        mending: Mending,
        metrics: Metrics,
        clock: ServerClock,
        knows_others: Callable[[], bool],
    ) -> None:
        self._admission = admission
        self._placement = placement
        self._broker = broker
        self._settler = settler
        self._mending = mending
        self._metrics = metrics
        self._clock = clock
        self._knows_others = knows_others

    @property
    def admission(self) -> Admission:
        """That of the configuration in force."""
        return self._admission

    def use(self, admission: Admission) -> None:
        """From now on; what has begun keeps what it began with."""
        self._admission = admission

    async def handle(self, item: InFlight) -> None:
        """Bring one delivery to its end, or leave it to others."""
        waited_ms = self._clock.waited_ms(item.delivery.entry)
        item.queue_ms = max(0, round(waited_ms))
        if waited_ms < -self._mending.ahead_ms and await self._mending.give_way(item):
            return
        ending = await self._ending_of(item, self._admission)
        if ending is not None:
            await self._settler.settle(item, ending)

    async def give_up(self, item: InFlight, what: str = "a fault in llm-routerd") -> None:
        """End a request on which this program has failed, or Redis, with no model asked."""
        event = Failed(request_id=item.request_id, code=ErrorCode.INTERNAL, message=f"{what}; its log has more")
        await self._settler.settle(item, Buried(event=event, streams=(event.request_id,)))

    async def _ending_of(self, item: InFlight, admission: Admission) -> Ending | None:
        """None: another worker has it now, or will."""
        request = admission.read(item.delivery)
        if isinstance(request, RequestError):
            return self._refused(item, request)
        item.read(request, self._broker.keys.events(request.id))
        refusal = admission.refusal_of(request, item.delivery, self._placement)
        if refusal is None:
            return await self._run(item, request, admission.resources)
        if refusal.elsewhere and not await self._is_unknown_everywhere(item, request):
            return None
        return await self._refuse(item, request, refusal)

    def _refused(self, item: InFlight, error: RequestError) -> Ending:
        """An entry that is no request, or may be none, is answered under whatever id it has, and its own."""
        entry = item.delivery.entry
        event = Failed.of(error, instead=entry)
        log.info("request_refused", entry=entry, code=error.code.value)
        return Buried(event=event, streams=tuple(dict.fromkeys((event.request_id, entry))))

    async def _refuse(self, item: InFlight, request: Request, refusal: Refusal) -> Ending:
        item.is_ending = True
        delivery = item.delivery
        error = RequestError(id=request.id, code=refusal.code, message=refusal.message, metadata=request.metadata)
        if not refusal.was_begun:
            return await self._ended_before(item, request) or self._refused(item, error)
        log.warning("request_poisoned", id=request.id, entry=delivery.entry, deliveries=delivery.deliveries)
        history = await self._broker.history(request.id)
        return Buried(event=Failed.of(error), streams=(request.id,), history=history)

    async def _is_unknown_everywhere(self, item: InFlight, request: Request) -> bool:
        """Pass a request on whose model this worker does not know, and another may; true: none does."""
        item.is_ending = True
        verdict = await pass_on(
            self._broker,
            item.delivery,
            request.model,
            server_ms=self._clock.server_ms(),
            is_complete=self._knows_others(),
        )
        if verdict == "unknown":
            return True
        if verdict == "passed":
            self._metrics.count(Tally.PASSED_ON)
        log.info("request_passed_on", id=request.id, entry=item.delivery.entry, verdict=verdict)
        return False

    async def _ended_before(self, item: InFlight, request: Request) -> Ending | None:
        """Be done with a copy of a request that has its final event already; None: it has none."""
        final_type = await self._broker.final_type(request.id)
        if final_type is None:
            return None
        log.info("request_withdrawn", id=request.id, entry=item.delivery.entry, why="sealed")
        return await self._leave(item, request, final_type, NOTHING)

    async def _run(self, item: InFlight, request: Request, resources: Resources) -> Ending:
        """Ask the chain, until it is done or Redis or the worker says stop."""
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
            deadline=self._deadline(request),
            deliveries=item.delivery.deliveries,
            queue_ms=item.queue_ms,
        )
        try:
            ending = await run.until_done()
        except asyncio.CancelledError:
            if not item.absorbs_cancellation():
                raise
            transcript.abandon()
            return await self._stopped(item, request, run.spent())
        if isinstance(ending, Withdrawn):
            transcript.abandon()
            return await self._withdrawn(item, request, sink.verdict, ending.spent)
        if sink.begun:
            item.transcript = transcript
        return _counted_on(ending, transcript.attempt)

    async def _stopped(self, item: InFlight, request: Request, spent: Spent) -> Ending:
        """The attempt was cancelled from outside; the connection to the model is closed."""
        log.info("request_stopped", id=request.id, why=item.stopped)
        if item.stopped != "sealed":
            return Withdrawn(spent=spent)  # whoever ends it knows nothing of the calls that were made here
        item.is_ending = True
        final_type = await self._broker.final_type(request.id)
        if final_type is None:  # what somebody else wrote leaves no place for an end
            return _unwritable(request, UNWRITABLE, spent)
        return await self._leave(item, request, final_type, spent)

    async def _withdrawn(self, item: InFlight, request: Request, verdict: BeginVerdict | None, spent: Spent) -> Ending:
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
                return await self._leave(item, request, final_type, spent)
            case _:
                return Withdrawn()

    async def _leave(self, item: InFlight, request: Request, final_type: str, spent: Spent) -> Ending:
        """Somebody else has ended the request: be done with its entry."""
        await self._broker.acknowledge(item.delivery, request.id)
        return _ended_as(final_type, spent)

    def _deadline(self, request: Request) -> float | None:
        """The loop time at which the request's answer is no longer wanted; None: whenever it comes."""
        left = request.seconds_left(self._clock.server_ms())
        return None if left is None else asyncio.get_running_loop().time() + left


def _ended_as(final_type: str | None, spent: Spent) -> Ending:
    """What is to be accounted for of a request that somebody else has ended."""
    return Cancelled(spent=spent) if final_type == "cancelled" else Withdrawn(spent=spent)


def _counted_on(ending: Answered | Unanswered, attempt: int) -> Ending:
    """The ending with its attempt's number in the events stream, which counts from where an earlier worker ended."""
    if isinstance(ending, Answered) and ending.event.attempt != attempt:
        return replace(ending, event=replace(ending.event, attempt=attempt))
    return ending


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
