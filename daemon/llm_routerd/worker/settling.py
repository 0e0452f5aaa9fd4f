"""One ending, settled: event and metrics event made, committed, and counted once it is certain what stands.

ending -> book -> commit -> (stands: observers) | (somebody else's stands: its cancellation, or our calls alone)
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Literal, Protocol

from msgspec.structs import replace

from llm_routerd.accounting.metrics import Finished
from llm_routerd.accounting.tally import Tally
from llm_routerd.logs import get_logger
from llm_routerd.protocol.codes import ErrorCode
from llm_routerd.protocol.events import Failed, Result
from llm_routerd.protocol.request import StreamMode
from llm_routerd.protocol.wire import encode
from llm_routerd.queue.deliveries import Commitment
from llm_routerd.queue.marks import counts_cancellation
from llm_routerd.running.ending import Withdrawn
from llm_routerd.worker.committing import Committer
from llm_routerd.worker.dead_letters import dead_letter
from llm_routerd.worker.ending import Buried, Cancelled
from llm_routerd.worker.runs.taking_back import take_back

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from llm_routerd.accounting.metrics import Metrics
    from llm_routerd.protocol.outcome import AttemptRecord
    from llm_routerd.queue.broker import Broker
    from llm_routerd.queue.deliveries import Committed, Delivery
    from llm_routerd.running.ending import Answered, Spent, Unanswered
    from llm_routerd.worker.auditing import Auditor
    from llm_routerd.worker.clock import ServerClock
    from llm_routerd.worker.ending import Ending
    from llm_routerd.worker.inflight import InFlight

log = get_logger()


class Observer(Protocol):
    """Is told what became of requests, once that is certain.  Returns at once and raises nothing: the end stands."""

    def settled(self, finished: Finished) -> None:
        """The end of a request stands, and this worker accounts for it."""
        ...

    def called(self, attempts: Sequence[AttemptRecord]) -> None:
        """Attempts were made and paid for, and somebody else has ended the request."""
        ...


class Settler:
    """Settles endings.

    Args:
        broker: this worker's side of the queue.
        metrics: the counters of this worker, which also make the metrics events.
        auditor: makes the entries of the audit that a commit carries, and writes those that none does.
        observers: who else is told.
        clock: the server's.
        max_letter_bytes: of a request that is longer, a dead letter has the beginnings of its fields only.
        on_trouble: told why no final event can be written, and None when they can be again.
    """

    def __init__(
        self,
        *,
        broker: Broker,
        metrics: Metrics,
        auditor: Auditor,
        observers: Sequence[Observer] = (),
        clock: ServerClock,
        max_letter_bytes: int = 1_048_576,
        on_trouble: Callable[[str | None], object] = lambda _why: None,
    ) -> None:
        self._broker = broker
        self._metrics = metrics
        self._auditor = auditor
        self._observers: tuple[Observer, ...] = (metrics, *observers)
        self._clock = clock
        self._max_letter_bytes = max_letter_bytes
        self._committer = Committer(broker, self._letter, on_trouble)

    async def settle(self, item: InFlight, ending: Ending) -> Committed | None:
        """Do what an ending asks for; returns what came of the commit, where there was one to make."""
        match ending:
            case Withdrawn(spent=spent):
                self._called(spent.attempts)
                self._auditor.write(self._auditor.calls(item.request, spent.attempts))
                return None
            case Cancelled(spent=spent):
                await self._account_cancelled(item, item.request_id, spent)
                return None
            case _:
                return await self._commit(item, ending)

    async def _commit(self, item: InFlight, ending: Answered | Unanswered | Buried) -> Committed:
        item.is_ending = True
        event, spent = ending.event, ending.spent
        finished = self._finished(item, event.request_id, event.type, spent, event)
        turn = event.turns if isinstance(event, Result) else None
        audit = self._auditor.calls(item.request, spent.attempts, turn=turn)
        commitment = replace(await self._commitment(item, ending), audit=audit)
        booking = self._metrics.book(finished)
        try:
            committed = await self._committer.commit(replace(commitment, metrics=encode(booking.event)))
        except BaseException:
            booking.falls()
            raise
        self._metrics.count(Tally.LETTERS_DROPPED, committed.letters_dropped)
        if committed.verdict == "committed":
            self._settled(finished)
            self._auditor.written(len(audit), committed.unaudited)
            if _may_have_calls(item, ending):
                await take_back(self._broker, event.request_id)
            return committed
        booking.falls()
        if committed.sealed_by == "cancelled":  # in the last moment
            await self._account_cancelled(item, event.request_id, spent)
        else:  # another worker's answer stands, and that worker has counted it
            self._called(spent.attempts)
            self._auditor.write(audit)
        return committed

    async def _commitment(self, item: InFlight, ending: Answered | Unanswered | Buried) -> Commitment:
        event = ending.event
        publish = item.request is not None and item.request.publish
        if not isinstance(ending, Buried):
            return Commitment(
                delivery=item.delivery,
                event=event,
                request_ids=(event.request_id,),
                transcript=item.transcript,
                publish=publish,
            )
        if ending.event.code is ErrorCode.REQUEST_TOO_LARGE:
            letter = await asyncio.to_thread(self._letter, item.delivery, ending.event)  # hashes all of it
        else:
            letter = self._letter(item.delivery, ending.event, ending.history)
        return Commitment(
            delivery=item.delivery,
            event=event,
            request_ids=ending.streams,
            publish=publish or ending.publish,
            dead_letter=letter,
        )

    async def _account_cancelled(self, item: InFlight, request_id: str, spent: Spent) -> None:
        """Account for a request that its producer has ended, once among all workers and copies."""
        self._auditor.write(self._auditor.calls(item.request, spent.attempts))  # these are nobody else's
        if not await counts_cancellation(self._broker, item.delivery, request_id):
            self._called(spent.attempts)
            return
        finished = self._finished(item, request_id, "cancelled", replace(spent, ttft_ms=None, saved_usd=0.0))
        booking = self._metrics.book(finished)
        self._settled(finished)
        await self._committer.tell_metrics(encode(booking.event))

    def _settled(self, finished: Finished) -> None:
        self._tell(lambda observer: observer.settled(finished))

    def _called(self, attempts: Sequence[AttemptRecord]) -> None:
        self._tell(lambda observer: observer.called(attempts))

    def _tell(self, tell: Callable[[Observer], None]) -> None:
        """Tell every observer; one that fails is in nobody's way, for what it is told of stands."""
        for observer in self._observers:
            try:
                tell(observer)
            except Exception:
                log.exception("observer_failed", observer=type(observer).__name__)

    def _finished(
        self,
        item: InFlight,
        request_id: str,
        kind: Literal["result", "error", "cancelled"],
        spent: Spent,
        event: Result | Failed | None = None,
    ) -> Finished:
        """What is told of a request's end; `event` where it is of this worker's making."""
        request, earlier = item.request, spent.earlier
        answer = event if isinstance(event, Result) else None
        more: dict[str, Any] = {}
        if earlier is not None:
            more = {
                "turns": earlier.turns,
                "tool_calls": earlier.tool_calls,
                "earlier_attempts": earlier.attempts,
                "earlier_cost_usd": earlier.cost_usd,
                "earlier_cost_estimated": earlier.is_estimated,
            }
        return Finished(
            **more,
            id=request_id,
            chain="" if request is None else request.model,
            type=kind,
            timestamp=time.time(),
            latency_ms=spent.latency_ms,
            consumer=self._broker.consumer,
            tenant_id=None if request is None else request.tenant_id,
            context=None if request is None else request.context,
            code=event.code if isinstance(event, Failed) else None,
            model_used=None if answer is None else answer.model_used,
            deployment=None if answer is None else answer.deployment,
            usage=None if answer is None else answer.usage,
            queue_ms=item.queue_ms,
            ttft_ms=spent.ttft_ms,
            cost_usd=spent.cost_usd,
            saved_usd=spent.saved_usd,
            attempts=spent.attempts,
            local_only=request is not None and request.local_only,
            stream=request is not None and request.stream is not StreamMode.OFF,
        )

    def _letter(self, delivery: Delivery, event: Failed, history: Sequence[object] = ()) -> list[bytes | str]:
        """The dead letter of an entry that this worker gives up now."""
        return dead_letter(
            delivery,
            event,
            consumer=self._broker.consumer,
            at_ms=self._clock.server_ms(),
            history=history,
            most_bytes=self._max_letter_bytes,
        )


def _may_have_calls(item: InFlight, ending: Ending) -> bool:
    """Whether calls of tools may wait for nobody now: of a run that was given up, and not by itself."""
    if not isinstance(ending, Buried):
        return False
    return bool(ending.history) if item.request is None else item.request.agent is not None
