"""The books of one request: what became of each turn, what that cost, and the ending that follows from it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_routerd.protocol.events import Failed, Result
from llm_routerd.protocol.outcome import AttemptRecord, Outcome, Rejection, Usage, told, total_cost
from llm_routerd.running.ending import Answered, Spent, Unanswered
from llm_routerd.running.faults import fault

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from llm_routerd.config.tree import Chain, Deployment
    from llm_routerd.judging.judge import Accepted
    from llm_routerd.protocol.request import Request
    from llm_routerd.routing.decisions import GiveUp
    from llm_routerd.running.caller import Turn
    from llm_routerd.running.resources import Resources


class Ledger:
    """The records of one request, in the order of its turns.

    Args:
        request: whose.
        chain: whom it asks.
        resources: that know what calls cost.
        now: the time in seconds, of any clock.
    """

    def __init__(self, request: Request, chain: Chain, resources: Resources, now: Callable[[], float]) -> None:
        self._request = request
        self._chain = chain
        self._resources = resources
        self._now = now
        self._began = now()
        self._records: list[AttemptRecord] = []

    def passed_over(self, records: Iterable[AttemptRecord]) -> None:
        """Deployments that had no turn, and why."""
        self._records += records

    def enter(self, deployment: Deployment, turn: Turn) -> None:
        """A turn is over."""
        if turn.verdict is None:
            return
        rejection = turn.verdict if isinstance(turn.verdict, Rejection) else None
        cost: float | None = 0.0
        if usage := turn.usage:
            cost = self._priced(deployment, lambda: self._resources.cost_usd(deployment, usage))
        self._records.append(
            AttemptRecord(
                deployment=deployment.name,
                model=deployment.model,
                outcome=Outcome.SUCCESS if rejection is None else rejection.outcome,
                code=None if rejection is None else rejection.code,
                reason=None if rejection is None else rejection.reason,
                latency_ms=as_ms(turn.elapsed_seconds),
                ttft_ms=None if turn.ttft_seconds is None else as_ms(turn.ttft_seconds),
                usage=usage,
                cost_usd=cost,
                early=rejection is not None and rejection.early,
                attempt=turn.attempt,
                ended=self._now(),
                prompt_sha256=turn.prompt_sha256,
            )
        )

    def so_far(self) -> Spent:
        """What the turns have taken that are over."""
        return Spent.on(self._records)

    def answered(
        self, deployment: Deployment, turn: Turn, accepted: Accepted, *, attempt: int, queue_ms: int | None
    ) -> Answered:
        """The answer of `deployment` ends it."""
        request, records, now = self._request, tuple(self._records), self._now()
        usage, answer = turn.usage or Usage(), accepted.answer
        ttft_ms = None
        if turn.ttft_seconds is not None:
            ttft_ms = as_ms(now - self._began - turn.elapsed_seconds + turn.ttft_seconds)
        cost = total_cost(records)
        event = Result(
            request_id=request.id,
            content=answer.content,
            raw_text=answer.raw_text,
            finish_reason=answer.finish_reason,
            tool_calls=answer.tool_calls,
            model_used=deployment.model,
            deployment=deployment.name,
            attempts=told(records),
            usage=usage,
            cost_usd=cost,
            attempt=attempt,
            cost_estimated=any(record.is_estimated_cost for record in records),
            latency_ms=as_ms(now - self._began),
            ttft_ms=ttft_ms,
            queue_ms=queue_ms,
            tenant_id=request.tenant_id,
            context=request.context,
            metadata=request.metadata,
        )
        saved = None
        if deployment.local and cost is not None:
            saved = self._priced(deployment, lambda: self._resources.saved_usd(self._chain, usage, spent_usd=cost))
        spent = Spent(
            attempts=records, latency_ms=event.latency_ms, ttft_ms=ttft_ms, cost_usd=cost, saved_usd=saved or 0.0
        )
        return Answered(event=event, spent=spent)

    def gave_up(self, decision: GiveUp) -> Unanswered:
        """Nobody is left to ask."""
        request, records = self._request, tuple(self._records)
        event = Failed(
            request_id=request.id,
            code=decision.code,
            message=decision.message,
            attempts=told(records),
            metadata=request.metadata,
        )
        latency_ms = as_ms(self._now() - self._began)
        return Unanswered(
            event=event, spent=Spent(attempts=records, latency_ms=latency_ms, cost_usd=total_cost(records))
        )

    def _priced(self, deployment: Deployment, price: Callable[[], float | None]) -> float | None:
        """A price, None where it is not known; a fault in working it out loses no answer."""
        try:
            return price()
        except Exception as error:  # noqa: BLE001 - see `fault`
            fault(self._request.id, deployment, error)
            return None


def as_ms(seconds: float) -> int:
    """Whole milliseconds."""
    return round(seconds * 1000)
