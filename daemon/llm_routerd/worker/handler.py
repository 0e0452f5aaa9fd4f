"""One delivery from its entry to its final event.

    parse -> (invalid: error and dead letter) -> poisoned? -> run the chain -> commit -> metrics

Whatever happens, exactly one of these is true at the end: the final event stands and the entry is gone, or the entry
is still pending, for this worker or another to take up.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Protocol

from msgspec.structs import replace

from llm_routerd.accounting.metrics import Finished
from llm_routerd.logs import get_logger
from llm_routerd.protocol.codes import ErrorCode
from llm_routerd.protocol.events import Failed, Result
from llm_routerd.protocol.request import RequestError, StreamMode
from llm_routerd.protocol.wire import encode
from llm_routerd.queue.marks import counts_cancellation
from llm_routerd.queue.passing import pass_on
from llm_routerd.routing.chain import resolve
from llm_routerd.routing.unknown_model import unknown_model
from llm_routerd.worker.committing import Commitment, Committer
from llm_routerd.worker.dead_letters import dead_letter
from llm_routerd.worker.mending import Mending
from llm_routerd.worker.running import Running

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from llm_routerd.accounting.metrics import Metrics
    from llm_routerd.protocol.outcome import AttemptRecord
    from llm_routerd.protocol.parsing import RequestParser
    from llm_routerd.protocol.request import Request
    from llm_routerd.queue.broker import Broker
    from llm_routerd.queue.deliveries import Committed, Delivery
    from llm_routerd.queue.outbox import Transcript
    from llm_routerd.running.resources import Executor
    from llm_routerd.running.run import Ending
    from llm_routerd.worker.inflight import InFlight

log = get_logger()


class Clock(Protocol):
    """The Redis server's clock, as far as this worker knows it."""

    def server_ms(self) -> float:
        """Unix time in milliseconds."""
        ...


class Handler:
    """Handles deliveries, one task each.

    Args:
        broker: this worker's side of the queue.
        parser: of requests.
        executor: of the configuration in force; requests that have begun keep theirs.
        metrics: the counters of this worker.
        clock: the server's.
        max_deliveries: after so many crashes of a worker, a request is dead.
        max_letter_bytes: of a request that is longer, a dead letter has the beginnings of its fields only.
        on_trouble: told why no final event can be written, and None when they can be again.
    """

    def __init__(
        self,
        *,
        broker: Broker,
        parser: RequestParser,
        executor: Executor,
        metrics: Metrics,
        clock: Clock,
        max_deliveries: int,
        max_letter_bytes: int = 1_048_576,
        on_trouble: Callable[[str | None], object] = lambda _why: None,
    ) -> None:
        self.broker = broker
        self.parser = parser
        self.executor = executor
        self.metrics = metrics
        self.clock = clock
        self.max_deliveries = max_deliveries
        self.mending = Mending(broker=broker, metrics=metrics)
        self.max_letter_bytes = max_letter_bytes
        self._committer = Committer(broker, self.dead_letter, on_trouble)
        self._loop = asyncio.get_running_loop()

    async def handle(self, item: InFlight) -> None:
        """Bring one delivery to its end; a bug in here becomes a final `internal` error, and a line in the log."""
        delivery = item.delivery
        waited_ms = self.waited_ms(delivery)
        item.queue_ms = max(0, round(waited_ms))
        if waited_ms < -self.mending.ahead_ms and await self.mending.give_way(item):
            return
        request = self.parser.parse(delivery.entry, delivery.fields)
        if isinstance(request, RequestError):
            await self._refuse(item, request)
            return
        item.request_id, item.events_key = request.id, self.broker.keys.events(request.id)
        chain = resolve(self.executor.config, request.model)
        if chain is None:
            await self._pass_on(item, request)
        elif delivery.deliveries > self.max_deliveries:
            await self._bury(item, request)
        else:
            await Running(self, item, request, chain).run()

    async def _pass_on(self, item: InFlight, request: Request) -> None:
        """A model that this worker does not know: another may."""
        item.ending = True
        verdict = await pass_on(
            self.broker,
            item.delivery,
            request.model,
            server_ms=self.clock.server_ms(),
            is_complete=self.broker.knows_others(),
        )
        if verdict == "unknown":
            await self._refuse(item, unknown_model(self.executor.config, request), request)
            return
        if verdict == "passed":
            self.metrics.count_passed_on()
        log.info("request_passed_on", id=request.id, entry=item.delivery.entry, verdict=verdict)

    async def _refuse(self, item: InFlight, error: RequestError, request: Request | None = None) -> None:
        """Answer an entry that is no request, and keep a copy of it; what asks for no known model may have been one."""
        delivery = item.delivery
        if request is not None and await self._has_ended(item, request):
            return
        event = Failed.of(error, instead=delivery.entry)
        if error.code is ErrorCode.REQUEST_TOO_LARGE:
            letter = await asyncio.to_thread(self.dead_letter, delivery, event)  # hashes all of it
        else:
            letter = self.dead_letter(delivery, event)
        await self.end(
            item,
            event,
            request_ids=dict.fromkeys((error.id or delivery.entry, delivery.entry)),
            metrics=self.finished(event, item, request=request),
            dead_letter=letter,
        )
        log.info("request_refused", entry=delivery.entry, code=error.code.value)

    async def _has_ended(self, item: InFlight, request: Request) -> bool:
        """Be done with a copy of a request that has its final event already; false: it has none."""
        final_type = await self.broker.final_type(request.id)
        if final_type is None:
            return False
        await self.broker.acknowledge(item.delivery, request.id)
        if final_type == "cancelled":
            event = Failed(request_id=request.id, code=ErrorCode.UNKNOWN_MODEL, message="")
            await self.account_cancelled(item, self.finished(event, item, request=request))
        log.info("request_withdrawn", id=request.id, entry=item.delivery.entry, why="sealed")
        return True

    async def _bury(self, item: InFlight, request: Request) -> None:
        """A request that has brought down its worker time and again is not tried once more."""
        delivery = item.delivery
        event = Failed(
            request_id=request.id,
            code=ErrorCode.POISONED,
            message=f"{delivery.deliveries - 1} workers died while they had this request",
            metadata=request.metadata,
        )
        history = await self.broker.history(request.id)
        await self.end(
            item,
            event,
            request_ids=(request.id,),
            publish=request.publish,
            metrics=self.finished(event, item, request=request),
            dead_letter=self.dead_letter(delivery, event, history),
        )
        log.warning("request_poisoned", id=request.id, entry=delivery.entry, deliveries=delivery.deliveries)

    async def give_up(self, item: InFlight, what: str = "a fault in llm-routerd") -> None:
        """End a request on which this program has failed, or Redis, with no model asked."""
        event = Failed(request_id=item.request_id, code=ErrorCode.INTERNAL, message=f"{what}; its log has more")
        await self.end(
            item,
            event,
            request_ids=(item.request_id,),
            metrics=self.finished(event, item),
            dead_letter=self.dead_letter(item.delivery, event),
        )

    async def end(
        self,
        item: InFlight,
        event: Result | Failed,
        *,
        request_ids: Sequence[str] | dict[str, None],
        metrics: Finished,
        transcript: Transcript | None = None,
        publish: bool = False,
        dead_letter: Sequence[bytes | str] = (),
    ) -> Committed:
        """Commit; and where somebody else has ended the request, account for that instead."""
        item.ending = True
        booking = self.metrics.book(metrics)
        try:
            committed = await self._committer.commit(
                Commitment(
                    delivery=item.delivery,
                    event=event,
                    transcript=transcript,
                    request_ids=tuple(request_ids),
                    publish=publish,
                    metrics=encode(booking.event),
                    dead_letter=dead_letter,
                )
            )
        except BaseException:
            booking.falls()
            raise
        self.metrics.count_dropped_letters(committed.letters_dropped)
        if committed.verdict == "committed":
            booking.stands()
            return committed
        booking.falls()
        if committed.sealed_by == "cancelled":  # in the last moment
            await self.account_cancelled(item, metrics)
        else:  # another worker's answer stands, and that worker has counted it
            self.metrics.called(metrics)
        return committed

    async def account_cancelled(self, item: InFlight, finished: Finished) -> None:
        """Account for a request that its producer has ended, once; `finished` is what it would have been."""
        if not await counts_cancellation(self.broker, item.delivery, finished.id):
            self.metrics.called(finished)
            return
        no_answer = replace(finished, code=None, model_used=None, deployment=None, usage=None, ttft_ms=None)
        booking = self.metrics.book(replace(no_answer, type="cancelled", saved_usd=0.0))
        booking.stands()
        await self._committer.tell_metrics(encode(booking.event))

    def finished(
        self,
        event: Result | Failed,
        item: InFlight,
        *,
        request: Request | None = None,
        ending: Ending | None = None,
        records: Sequence[AttemptRecord] = (),
    ) -> Finished:
        """What the metrics event tells of a request; `records`: its attempts, where it has no `ending`."""
        answered = event if isinstance(event, Result) else None
        return Finished(
            id=event.request_id,
            chain="" if request is None else request.model,
            type=event.type,
            timestamp=time.time(),
            latency_ms=0 if ending is None else ending.latency_ms,
            consumer=self.broker.consumer,
            tenant_id=None if request is None else request.tenant_id,
            context=None if request is None else request.context,
            code=event.code if isinstance(event, Failed) else None,
            model_used=None if answered is None else answered.model_used,
            deployment=None if answered is None else answered.deployment,
            usage=None if answered is None else answered.usage,
            queue_ms=item.queue_ms,
            ttft_ms=None if ending is None else ending.ttft_ms,
            cost_usd=0.0 if ending is None else ending.cost_usd,
            saved_usd=0.0 if ending is None else ending.saved_usd,
            attempts=tuple(records) if ending is None else ending.records,
            local_only=request is not None and request.local_only,
            stream=request is not None and request.stream is not StreamMode.OFF,
        )

    def dead_letter(self, delivery: Delivery, event: Failed, history: Sequence[Any] = ()) -> list[bytes | str]:
        """The dead letter of an entry that this worker gives up now."""
        at_ms = self.clock.server_ms()
        return dead_letter(
            delivery,
            event,
            consumer=self.broker.consumer,
            at_ms=at_ms,
            history=history,
            most_bytes=self.max_letter_bytes,
        )

    def waited_ms(self, delivery: Delivery) -> float:
        """How long an entry has waited since its XADD, by the server's clock; below 0: its ID lies ahead."""
        return self.clock.server_ms() - int(delivery.entry.partition("-")[0])

    def deadline(self, request: Request) -> float | None:
        """The loop time at which the request's answer is no longer wanted; None: whenever it comes."""
        left = request.seconds_left(self.clock.server_ms())
        return None if left is None else self._loop.time() + left
