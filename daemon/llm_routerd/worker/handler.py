"""One delivery from its entry to its final event.

    parse -> (invalid: error and dead letter) -> poisoned? -> run the chain -> commit -> metrics

Whatever happens, exactly one of these is true at the end: the final event stands and the entry is gone, or the entry
is still pending, for this worker or another to take up.
"""

from __future__ import annotations

import asyncio
import base64
import difflib
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import orjson

from llm_routerd.core.chain import resolve
from llm_routerd.core.events import Failed, Result
from llm_routerd.core.metrics import Finished
from llm_routerd.core.outcome import ErrorCode
from llm_routerd.core.request import RequestError, StreamMode
from llm_routerd.logs import get_logger
from llm_routerd.worker.sink import QueueSink

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_routerd.config.tree import Chain
    from llm_routerd.core.metrics import Metrics
    from llm_routerd.core.parsing import RequestParser
    from llm_routerd.core.request import Request
    from llm_routerd.executor import Executor
    from llm_routerd.queue.broker import Broker, Delivery
    from llm_routerd.queue.outbox import Transcript
    from llm_routerd.request_run import Ending
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
    ) -> None:
        self._broker = broker
        self.parser = parser
        self.executor = executor
        self._metrics = metrics
        self._clock = clock
        self.max_deliveries = max_deliveries
        self._loop = asyncio.get_running_loop()

    async def handle(self, item: InFlight) -> None:
        """Bring one delivery to its end; a bug in here becomes a final `internal` error, and a line in the log."""
        delivery = item.delivery
        item.queue_ms = self.queue_ms(delivery)
        request = self.parser.parse(delivery.entry, delivery.fields)
        if isinstance(request, RequestError):
            await self._refuse(item, request)
            return
        item.request_id, item.events_key = request.id, self._broker.keys.events(request.id)
        chain = resolve(self.executor.config, request.model)
        if chain is None:
            await self._refuse(item, self._unknown_model(request), request)
        elif delivery.deliveries > self.max_deliveries:
            await self._bury(item, request)
        else:
            await _One(self, item, request, chain).run()

    def _unknown_model(self, request: Request) -> RequestError:
        config = self.executor.config
        names = list(dict.fromkeys((*config.chains, *config.deployments)))
        near = difflib.get_close_matches(request.model, names, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(names)}"
        message = f"$.model: no chain or deployment has this name; {hint}"
        return RequestError(id=request.id, code=ErrorCode.UNKNOWN_MODEL, message=message, metadata=request.metadata)

    async def _refuse(self, item: InFlight, error: RequestError, request: Request | None = None) -> None:
        """Answer an entry that is no request, and keep a copy of it."""
        delivery = item.delivery
        event = Failed(id=error.id or delivery.entry, code=error.code, message=error.message, metadata=error.metadata)
        finished = self._finished(event, item, request=request)
        await self._end(
            item,
            event,
            request_ids=dict.fromkeys((error.id or delivery.entry, delivery.entry)),
            metrics=finished,
            dead_letter=dead_letter(delivery, event, consumer=self._broker.consumer, at_ms=self._clock.server_ms()),
        )
        log.info("request_refused", entry=delivery.entry, code=error.code.value)

    async def _bury(self, item: InFlight, request: Request) -> None:
        """A request that has brought down its worker time and again is not tried once more."""
        delivery = item.delivery
        event = Failed(
            id=request.id,
            code=ErrorCode.POISONED,
            message=f"{delivery.deliveries - 1} workers died while they had this request",
            metadata=request.metadata,
        )
        history = await self._broker.history(request.id)
        await self._end(
            item,
            event,
            request_ids=(request.id,),
            publish=request.publish,
            metrics=self._finished(event, item, request=request),
            dead_letter=dead_letter(
                delivery,
                event,
                consumer=self._broker.consumer,
                at_ms=self._clock.server_ms(),
                history=history,
            ),
        )
        log.warning("request_poisoned", id=request.id, entry=delivery.entry, deliveries=delivery.deliveries)

    async def give_up(self, item: InFlight) -> None:
        """End a request on which this program has failed."""
        event = Failed(id=item.request_id, code=ErrorCode.INTERNAL, message="a fault in llm-routerd; its log has more")
        letter = dead_letter(item.delivery, event, consumer=self._broker.consumer, at_ms=self._clock.server_ms())
        await self._end(
            item,
            event,
            request_ids=(item.request_id,),
            metrics=self._finished(event, item),
            dead_letter=letter,
        )

    async def _end(
        self,
        item: InFlight,
        event: Result | Failed,
        *,
        request_ids: Sequence[str] | dict[str, None],
        metrics: Finished,
        transcript: Transcript | None = None,
        publish: bool = False,
        dead_letter: Sequence[bytes | str] = (),
    ) -> None:
        """Commit; and where somebody else has ended the request, account for that instead."""
        item.ending = True
        committed = await self._broker.commit(
            item.delivery,
            event,
            transcript=transcript,
            request_ids=tuple(request_ids),
            publish=publish,
            metrics=orjson.dumps(self._metrics.finished(metrics)),
            dead_letter=dead_letter,
        )
        if committed.sealed_by == "cancelled":  # in the last moment: the cancellation was first
            await self.account_cancelled(metrics)

    async def account_cancelled(self, finished: Finished) -> None:
        """Account for a request that its producer has ended; `finished` is what it would have been."""
        cancelled = replace(
            finished,
            type="cancelled",
            code=None,
            model_used=None,
            deployment=None,
            usage=None,
            ttft_ms=None,
            cost_usd=0.0,
            saved_usd=0.0,
            attempts=(),
        )
        await self._broker.emit_metrics(orjson.dumps(self._metrics.finished(cancelled)))

    def _finished(
        self,
        event: Result | Failed,
        item: InFlight,
        *,
        request: Request | None = None,
        ending: Ending | None = None,
    ) -> Finished:
        """What the metrics event tells of a request."""
        answered = event if isinstance(event, Result) else None
        return Finished(
            id=event.id,
            chain="" if request is None else request.model,
            type=event.type,
            timestamp=time.time(),
            latency_ms=0 if ending is None else ending.latency_ms,
            consumer=self._broker.consumer,
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
            attempts=event.attempts,
            local_only=request is not None and request.local_only,
            stream=request is not None and request.stream is not StreamMode.OFF,
        )

    def queue_ms(self, delivery: Delivery) -> int:
        """How long an entry has waited since its XADD, by the server's clock."""
        added_ms = int(delivery.entry.partition("-")[0])
        return max(0, round(self._clock.server_ms() - added_ms))

    def deadline(self, request: Request) -> float | None:
        """The loop time at which the request's answer is no longer wanted; None: whenever it comes."""
        left = request.seconds_left(self._clock.server_ms())
        return None if left is None else self._loop.time() + left


class _One:
    """One well-formed request under way."""

    def __init__(self, handler: Handler, item: InFlight, request: Request, chain: Chain) -> None:
        self._handler = handler
        self._broker = handler._broker  # noqa: SLF001 - one module
        self._item = item
        self._request = request
        self._chain = chain
        self._transcript = self._broker.transcript(request.id, publish=request.publish, fenced=self._fenced)
        self._sink = QueueSink(self._broker, item.delivery, request, self._transcript)

    def _fenced(self, why: str) -> None:
        self._item.stop("sealed" if why == "sealed" else "lost")

    async def run(self) -> None:
        item, request, handler = self._item, self._request, self._handler
        try:
            ending = await handler.executor.run(
                request,
                self._chain,
                self._sink,
                deadline=handler.deadline(request),
                delivery=item.delivery.deliveries,
                queue_ms=item.queue_ms,
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
        handler, request = self._handler, self._request
        await handler._end(  # noqa: SLF001
            self._item,
            ending.event,
            request_ids=(request.id,),
            transcript=self._transcript if self._sink.begun else None,
            publish=request.publish,
            metrics=handler._finished(ending.event, self._item, request=request, ending=ending),  # noqa: SLF001
        )
        log.debug("request_finished", id=request.id, type=ending.event.type, latency_ms=ending.latency_ms)

    async def _stopped(self) -> None:
        """The attempt was cancelled from outside; the connection to the model is closed."""
        self._transcript.abandon()
        if self._item.stopped == "sealed":
            await self._broker.acknowledge(self._item.delivery, self._request.id)
            await self._cancelled()
        log.info("request_stopped", id=self._request.id, why=self._item.stopped)

    async def _withdrawn(self) -> None:
        """The begin script said that there is nothing to do here."""
        self._item.ending = True
        verdict, delivery = self._sink.verdict, self._item.delivery
        self._transcript.abandon()
        if verdict == "sealed":
            await self._cancelled()
        elif verdict == "collision":
            event = Failed(
                id=delivery.entry,
                code=ErrorCode.INVALID_REQUEST,
                message="another lane has an entry of the same ID, which is this one's id too: set `id`",
                metadata=self._request.metadata,
            )
            await self._broker.commit(
                delivery,
                event,
                transcript=None,
                request_ids=(),
                dead_letter=dead_letter(
                    delivery,
                    event,
                    consumer=self._broker.consumer,
                    at_ms=self._handler._clock.server_ms(),  # noqa: SLF001
                ),
            )
        log.info("request_withdrawn", id=self._request.id, entry=delivery.entry, why=verdict)

    async def _cancelled(self) -> None:
        """Account for a cancellation, if that is what ended the request (and not an earlier answer)."""
        if await self._broker.final_type(self._request.id) == "cancelled":
            event = Failed(id=self._request.id, code=ErrorCode.INTERNAL, message="")
            finished = self._handler._finished(event, self._item, request=self._request)  # noqa: SLF001
            await self._handler.account_cancelled(finished)


def dead_letter(
    delivery: Delivery, event: Failed, *, consumer: str, at_ms: float, history: Sequence[Any] = ()
) -> list[bytes | str]:
    """The fields of an entry of `P:dead`, flat; see `schemas/dead-letter.schema.json`."""
    fields = {}
    for name, value in zip(delivery.fields[::2], delivery.fields[1::2], strict=False):
        fields[name.decode("utf-8", "backslashreplace")] = _text_or_base64(value)
    letter = {
        "entry": delivery.entry,
        "lane": delivery.lane,
        "id": event.id,
        "reason": event.code.value,
        "message": event.message,
        "deliveries": str(delivery.deliveries),
        "consumer": consumer,
        "at_ms": str(round(at_ms)),
        "data": orjson.dumps({"fields": fields, "history": list(history)}),
    }
    return [part for pair in letter.items() for part in pair]


def _text_or_base64(value: bytes) -> str | dict[str, str]:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value).decode()}
