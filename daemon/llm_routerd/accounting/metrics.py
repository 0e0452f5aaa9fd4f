"""What one worker has done since it started: its counters, and the metrics event of each request.

The rules:

- One instance per worker.  Each request is booked once per try to end it, whatever the end, and counted only where that
  end stands (`Booking`); its attempts count in any case, since they were made.  Nothing here is a global.
- A deployment that cooled down or had no free place was not asked: it has no call and no error in the
  counters by model and by deployment.  An attempt that was cancelled is nobody's error.
- By model, as the system that this carries on counted: `success` an answer; `fallback` a turn that failed and was
  followed by another deployment's; `error` one that failed and was the last.  Repeats by one deployment are one turn.
  Answers after another deployment's turn are a counter of Prometheus' alone, `fallback_answers_total`.
- Tokens and costs are those of all attempts, rejected ones included, estimates too and marked so; only `usage`
  is the answering call's alone.
- A run with tools is one request.  Its turns count as they end (`turn_ended`), each where it was made; its metrics
  event tells what the whole of it took.
- What an attempt that was ended early has saved is an estimate: the time that the deployment's answers have taken
  on average since the start, less the time that this attempt took; unknown before its first answer.
- What callers choose freely is bounded: of the tenants the last 1,000 are kept, and one that comes back later
  starts at nothing.  For the same reason a tenant is never a Prometheus label, and of the tools the first hundred are.
- No prompt, no answer and no key goes out.  Reasons are the one thing that could hold a piece of an answer: where an
  answer is not the JSON that was asked for, the code stands in their place.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import zip_longest
from typing import TYPE_CHECKING, Final, Literal

from msgspec import Struct

from llm_routerd.accounting.counters import Counters
from llm_routerd.accounting.exposition import render
from llm_routerd.accounting.families import families
from llm_routerd.accounting.totals import Totals, usage_by_deployment
from llm_routerd.protocol.codes import Fault
from llm_routerd.protocol.metrics_event import EarlyStop, MetricsEvent, ModelCounts
from llm_routerd.protocol.outcome import told

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from llm_routerd.accounting.gauges import Gauges
    from llm_routerd.accounting.tally import Tally
    from llm_routerd.protocol.audit import ConfirmationOutcome, ToolOutcome
    from llm_routerd.protocol.codes import ErrorCode
    from llm_routerd.protocol.outcome import AttemptRecord, Usage

MAX_TENANTS: Final = 1000


class Finished(Struct, frozen=True, kw_only=True):
    """One request that has its final event.

    Attributes:
        type: which final event it was.
        code: of an `error`; None: it was another event.
        model_used, deployment: who answered; None: nobody.
        latency_ms: from pick-up to the final event.
        queue_ms: from XADD to pick-up, where known.
        ttft_ms: from pick-up to the answer's first token.
        usage: of the call that answered.
        cost_usd: of all `attempts`; None: not known.
        saved_usd: from `Pricing.saved_usd`.
        timestamp: Unix time in seconds.
        attempts: those that are to be counted: of a run with tools of its last turn.
        turns, tool_calls: of a run with tools, of the whole of it; None: it is none.
        earlier_attempts: of its turns before, as far as they are known; they have been counted (`Metrics.turn_ended`),
            and are only told.
        earlier_cost_usd: of its turns before, whoever made them; None: not known.
        earlier_cost_estimated: whether a part of that is an estimate.
    """

    id: str
    chain: str
    type: Literal["result", "error", "cancelled"]
    timestamp: float
    latency_ms: int
    consumer: str = ""
    tenant_id: str | None = None
    context: str | None = None
    code: ErrorCode | None = None
    model_used: str | None = None
    deployment: str | None = None
    queue_ms: int | None = None
    ttft_ms: int | None = None
    usage: Usage | None = None
    cost_usd: float | None = 0.0
    saved_usd: float = 0.0
    attempts: Sequence[AttemptRecord] = ()
    local_only: bool = False
    stream: bool = False
    turns: int | None = None
    tool_calls: int | None = None
    earlier_attempts: Sequence[AttemptRecord] = ()
    earlier_cost_usd: float | None = 0.0
    earlier_cost_estimated: bool = False

    @property
    def answered_by(self) -> str | None:
        """The model that answered; None: nobody."""
        return self.model_used if self.type == "result" else None

    @property
    def all_attempts(self) -> tuple[AttemptRecord, ...]:
        """Those of all turns."""
        return (*self.earlier_attempts, *self.attempts)

    @property
    def whole_cost_usd(self) -> float | None:
        """Of all turns."""
        if self.cost_usd is None or self.earlier_cost_usd is None:
            return None
        return self.earlier_cost_usd + self.cost_usd


class Booking:
    """The metrics event of one request while it is open whether its final event stands.

    Events tell totals since the start, and are made before the commit that carries them: each counts those before it as
    if they stood.  One that does not is taken back; only Prometheus' counters wait for the certainty.

    Attributes:
        event: what is told of it.
    """

    __slots__ = ("_finished", "_metrics", "_tenant", "event")

    def __init__(self, metrics: Metrics, tenant: Totals, finished: Finished) -> None:
        self._metrics = metrics
        self._tenant = tenant
        self._finished = finished
        tenant.number += 1
        metrics.book_attempts(tenant, finished.attempts, finished.answered_by, 1)
        self.event = self._make_event()

    def falls(self) -> None:
        """It does not: take back what the event has told."""
        self._tenant.number -= 1
        self._metrics.book_attempts(self._tenant, self._finished.attempts, self._finished.answered_by, -1)

    def _make_event(self) -> MetricsEvent:
        finished, attempts = self._finished, self._finished.all_attempts
        return MetricsEvent(
            id=finished.id,
            tenant_id=finished.tenant_id,
            context=finished.context,
            chain=finished.chain,
            type=finished.type,
            code=finished.code,
            model_used=finished.model_used or "none",
            deployment=finished.deployment,
            latency_ms=finished.latency_ms,
            queue_ms=finished.queue_ms,
            ttft_ms=finished.ttft_ms,
            attempts=told(attempts, is_quotable=False),
            usage=finished.usage,
            cost_usd=finished.whole_cost_usd,
            cost_estimated=finished.earlier_cost_estimated or any(record.is_estimated_cost for record in attempts),
            saved_usd=finished.saved_usd,
            usage_by_deployment=usage_by_deployment(attempts),
            tenant_totals=self._tenant.of_tenant(),
            early_stops=self._early_stops(),
            local_only=finished.local_only,
            stream=finished.stream,
            consumer=finished.consumer,
            metrics_snapshot=self._metrics.snapshot(),
            timestamp=finished.timestamp,
            turns=finished.turns,
            tool_calls=finished.tool_calls,
        )

    def _early_stops(self) -> tuple[EarlyStop, ...]:
        return tuple(
            [
                EarlyStop(
                    deployment=record.deployment,
                    code=record.code,
                    after_ms=record.latency_ms,
                    saved_ms=self._metrics.saved_ms(record),
                )
                for record in self._finished.all_attempts
                if record.early and record.code is not None
            ]
        )


class Metrics:
    """The counters of one worker since it started."""

    def __init__(self, *, max_tenants: int = MAX_TENANTS) -> None:
        self._max_tenants = max_tenants
        self._models: dict[str, ModelCounts] = {}
        self._tenants: OrderedDict[str | None, Totals] = OrderedDict()
        self._counters = Counters()

    def count(self, tally: Tally, number: int = 1) -> None:
        """So often it happened."""
        self._counters.tallies[tally] += number

    def book(self, finished: Finished) -> Booking:
        """Make the metrics event of a request, for a commit that may stand or not: the caller says which it did."""
        tenant = self._tenant(finished.tenant_id)
        return Booking(self, tenant, finished)

    def settled(self, finished: Finished) -> None:
        """Count a request whose final event stands."""
        self.called(finished.attempts)
        counters = self._counters
        counters.requests[finished.type, "" if finished.code is None else finished.code.value] += 1
        if finished.deployment is not None and finished.attempts:
            counters.count_answer(finished.deployment, finished.attempts)
        if finished.turns is not None:
            self.run_ended(finished.type if finished.code is None else finished.code.value, finished.turns)
        counters.saved_usd += finished.saved_usd
        counters.duration.observe(finished.latency_ms / 1000)
        if finished.ttft_ms is not None:
            counters.ttft.observe(finished.ttft_ms / 1000)

    def turn_ended(self, tenant_id: str | None, records: Sequence[AttemptRecord], *, saved_usd: float = 0.0) -> None:
        """Count the attempts of a turn that stands, of a run that goes on: the last one is a model's answer.

        Whoever ends the run counts the last turn's with that (`Finished.attempts`), so that each is counted once.
        """
        answer = records[-1]
        self.book_attempts(self._tenant(tenant_id), records, answer.model, 1)
        self.called(records)
        self._counters.count_answer(answer.deployment, records)
        self._counters.saved_usd += saved_usd

    def run_ended(self, end: str, turns: int) -> None:
        """Count a run with tools whose final event stands: `result`, `cancelled`, or the code of its error."""
        self._counters.runs[end] += 1
        self._counters.turns.observe(turns)

    def tool_called(self, tool: str, outcome: ToolOutcome) -> None:
        """Count a call of a tool that has come to its end."""
        self._counters.count_tool_call(tool, outcome)

    def confirmation(self, outcome: ConfirmationOutcome) -> None:
        """Count what came of a call that waited for a person."""
        self._counters.confirmations[outcome] += 1

    def called(self, attempts: Sequence[AttemptRecord]) -> None:
        """Count a request's attempts alone: they were made and paid for, whoever has ended the request."""
        for record in attempts:
            self._counters.count_attempt(record)

    def saved_ms(self, record: AttemptRecord) -> int | None:
        """Estimate of what ending this attempt early has saved; None: its deployment has not answered yet."""
        return self._counters.saved_ms(record)

    def book_attempts(
        self, tenant: Totals, records: Sequence[AttemptRecord], answered_by: str | None, step: int
    ) -> None:
        """Count attempts for their tenant and by model; a `step` of -1 takes them back."""
        for record in records:
            tenant.add(record, step)
        for model, kind in _by_model(records, answered_by):
            counts = self._models.get(model)
            if counts is None:
                counts = self._models[model] = {"success": 0, "fallback": 0, "error": 0}
            counts[kind] += step

    def snapshot(self) -> dict[str, ModelCounts]:
        """The counters by model, as they are now."""
        return {model: counts.copy() for model, counts in self._models.items()}

    def render_prometheus(self, gauges: Gauges) -> str:
        """Everything as Prometheus' text exposition format 0.0.4."""
        return render(families(self._counters, gauges))

    def _tenant(self, tenant_id: str | None) -> Totals:
        tenant = self._tenants.get(tenant_id)
        if tenant is None:
            tenant = self._tenants[tenant_id] = Totals()
            if len(self._tenants) > self._max_tenants:
                self._tenants.popitem(last=False)
        else:
            self._tenants.move_to_end(tenant_id)
        return tenant


def _by_model(
    records: Sequence[AttemptRecord], answered_by: str | None
) -> Iterator[tuple[str, Literal["success", "fallback", "error"]]]:
    """How attempts count by model, as (model, counter); consecutive ones of one deployment are one turn."""
    asked = [record for record in records if record.was_asked]
    for record, following in zip_longest(asked, asked[1:]):
        if following is not None and following.deployment == record.deployment:
            continue
        if record.code is not None and record.code.traits.fault is not Fault.NOBODY:
            yield record.model, "error" if following is None else "fallback"
    if answered_by is not None:
        yield answered_by, "success"
