"""One delivery from its entry to its end, in one walk.

    read -> (no request) --------------------------------------------.
         -> gates -> (refused; or passed on to another worker) ------+-> ending -> settle
         -> ask   -> (answered; given up; ended by somebody else) ---+
         -> walk  -> (a run with tools: rests; or ends) -------------'

Whatever happens, exactly one of these is true at the end: the final event stands and the entry is gone, or the entry
is still pending, for this worker or another to take up.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from llm_routerd.accounting.tally import Tally
from llm_routerd.logs import get_logger
from llm_routerd.protocol.codes import ErrorCode
from llm_routerd.protocol.events import Failed
from llm_routerd.protocol.request import RequestError
from llm_routerd.queue.passing import pass_on
from llm_routerd.running.ending import NOTHING
from llm_routerd.worker.ending import Buried
from llm_routerd.worker.rest import Rest

if TYPE_CHECKING:
    from collections.abc import Callable

    from llm_routerd.accounting.metrics import Metrics
    from llm_routerd.protocol.request import Request
    from llm_routerd.queue.broker import Broker
    from llm_routerd.worker.admission import Admission
    from llm_routerd.worker.asking import Asking
    from llm_routerd.worker.clock import ServerClock
    from llm_routerd.worker.ending import Ending
    from llm_routerd.worker.gates import Refusal
    from llm_routerd.worker.inflight import InFlight
    from llm_routerd.worker.mending import Mending
    from llm_routerd.worker.placement import Placement
    from llm_routerd.worker.runs.walk import RunWalk
    from llm_routerd.worker.settling import Settler

log = get_logger()


class Handler:
    """Brings deliveries to their ends, one task each.

    Args:
        admission: of the configuration in force.
        placement: the shard that they are of.
        broker: this worker's side of the queue.
        walk: goes on with runs with tools.
        asking: asks for all others.
        settler: settles endings.
        mending: of lanes that run ahead of the clock.
        metrics: counts what is passed on.
        clock: the server's.
        knows_others: whether every living worker has been able to tell of itself.
    """

    def __init__(  # noqa: PLR0913 - all by name
        self,
        admission: Admission,
        *,
        placement: Placement,
        broker: Broker,
        walk: RunWalk,
        asking: Asking,
        settler: Settler,
        mending: Mending,
        metrics: Metrics,
        clock: ServerClock,
        knows_others: Callable[[], bool],
    ) -> None:
        self._admission = admission
        self._placement = placement
        self._broker = broker
        self._walk = walk
        self._asking = asking
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

    async def handle(self, item: InFlight) -> Rest | None:
        """Bring one delivery to its end, or leave it to others; a run may rest before."""
        waited_ms = self._clock.waited_ms(item.delivery.entry)
        if item.queue_ms is None:
            item.queue_ms = max(0, round(waited_ms))
        if waited_ms < -self._mending.ahead_ms and await self._mending.give_way(item):
            return None
        ending = await self._ending_of(item, self._admission)
        if isinstance(ending, Rest):
            return ending
        if ending is not None:
            await self._settler.settle(item, ending)
        return None

    async def give_up(self, item: InFlight, what: str = "a fault in llm-routerd") -> None:
        """End a request on which this program has failed, or Redis, with no model asked."""
        event = Failed(request_id=item.request_id, code=ErrorCode.INTERNAL, message=f"{what}; its log has more")
        await self._settler.settle(item, Buried(event=event, streams=(event.request_id,)))

    async def _ending_of(self, item: InFlight, admission: Admission) -> Ending | Rest | None:
        """None: another worker has it now, or will."""
        request = admission.read(item.delivery)
        if isinstance(request, RequestError):
            return self._refused(item, request)
        item.read(request, self._broker.keys.events(request.id))
        refusal = admission.refusal_of(request, item.delivery, self._placement)
        if refusal is None and request.agent is not None:
            return await self._walk.walk(item, request, admission)
        if refusal is None:
            return await self._asking.ask(item, request, admission.resources, deadline=self._deadline(request))
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
        return await self._asking.leave(item, request, final_type, NOTHING)

    def _deadline(self, request: Request) -> float | None:
        """The loop time at which the request's answer is no longer wanted; None: whenever it comes."""
        left = request.seconds_left(self._clock.server_ms())
        return None if left is None else asyncio.get_running_loop().time() + left
