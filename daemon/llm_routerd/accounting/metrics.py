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
- What an attempt that was ended early has saved is an estimate: the time that the deployment's answers have taken
  on average since the start, less the time that this attempt took; unknown before its first answer.
- What callers choose freely is bounded: of the tenants the last 1,000 are kept, and one that comes back later
  starts at nothing.  For the same reason a tenant is never a Prometheus label.
- No prompt, no answer and no key goes out.  Reasons are the one thing that could hold a piece of an answer: where an
  answer is not the JSON that was asked for, the code stands in their place.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from itertools import zip_longest
from typing import TYPE_CHECKING, Final, Literal

from msgspec import Struct

from llm_routerd.accounting.exposition import Family, Histogram, render
from llm_routerd.accounting.gauges import gauge_families
from llm_routerd.accounting.totals import NOT_ASKED, Answers, Totals, usage_by_deployment
from llm_routerd.protocol.codes import AttemptCode
from llm_routerd.protocol.metrics_event import EarlyStop, MetricsEvent, ModelCounts
from llm_routerd.protocol.outcome import Outcome, told

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from llm_routerd.accounting.gauges import Gauges
    from llm_routerd.protocol.codes import ErrorCode
    from llm_routerd.protocol.outcome import AttemptRecord, Usage

MAX_TENANTS: Final = 1000
_DURATION_BOUNDS: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_TTFT_BOUNDS: Final = (0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


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
        cost_usd: of all attempts; None: not known.
        saved_usd: from `Pricing.saved_usd`.
        timestamp: Unix time in seconds.
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
        for record in finished.attempts:
            tenant.add(record)
        metrics.count_models(finished, 1)
        self.event = self._make_event()

    def stands(self) -> None:
        """The final event stands."""
        self._metrics.stood(self._finished)

    def falls(self) -> None:
        """It does not: take back what the event has told."""
        self._tenant.number -= 1
        for record in self._finished.attempts:
            self._tenant.add(record, -1)
        self._metrics.count_models(self._finished, -1)

    def _make_event(self) -> MetricsEvent:
        finished = self._finished
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
            attempts=told(finished.attempts, is_quotable=False),
            usage=finished.usage,
            cost_usd=finished.cost_usd,
            cost_estimated=any(record.is_estimated_cost for record in finished.attempts),
            saved_usd=finished.saved_usd,
            usage_by_deployment=usage_by_deployment(finished.attempts),
            tenant_totals=self._tenant.of_tenant(),
            early_stops=self._early_stops(),
            local_only=finished.local_only,
            stream=finished.stream,
            consumer=finished.consumer,
            metrics_snapshot=self._metrics.snapshot(),
            timestamp=finished.timestamp,
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
                for record in self._finished.attempts
                if record.early and record.code is not None
            ]
        )


class Metrics:
    """The counters of one worker since it started."""

    def __init__(self, *, max_tenants: int = MAX_TENANTS) -> None:
        self._max_tenants = max_tenants
        self._models: dict[str, ModelCounts] = {}
        self._tenants: OrderedDict[str | None, Totals] = OrderedDict()
        self._deployments: dict[str, Totals] = {}
        self._answers: dict[str, Answers] = {}
        self._requests: Counter[tuple[str, str]] = Counter()
        self._attempts: Counter[tuple[str, str, str]] = Counter()
        self._fallback_answers: Counter[str] = Counter()
        self._saved_usd = 0.0
        self._orphans = 0
        self._passed_on = 0
        self._mended = 0
        self._dropped_letters = 0
        self._duration = Histogram(_DURATION_BOUNDS)
        self._ttft = Histogram(_TTFT_BOUNDS)

    def count_dropped_letters(self, number: int) -> None:
        """So many dead letters went, since there were too many or they took too much room."""
        self._dropped_letters += number

    def count_orphans(self, number: int) -> None:
        """So many requests were taken up that nobody owned."""
        self._orphans += number

    def count_passed_on(self) -> None:
        """A request was handed back because another worker knows its model."""
        self._passed_on += 1

    def count_mended(self) -> None:
        """A stream whose IDs ran ahead of the clock was made anew."""
        self._mended += 1

    def book(self, finished: Finished) -> Booking:
        """Make the metrics event of a request, for a commit that may stand or not: the caller says which it did."""
        tenant = self._tenant(finished.tenant_id)
        return Booking(self, tenant, finished)

    def stood(self, finished: Finished) -> None:
        """Count a request whose final event stands."""
        self.called(finished)
        self._requests[finished.type, "" if finished.code is None else finished.code.value] += 1
        if finished.deployment is not None and finished.attempts:
            fell_back = finished.attempts[0].deployment != finished.deployment
            self._fallback_answers[finished.deployment] += fell_back
        self._saved_usd += finished.saved_usd
        self._duration.observe(finished.latency_ms / 1000)
        if finished.ttft_ms is not None:
            self._ttft.observe(finished.ttft_ms / 1000)

    def called(self, finished: Finished) -> None:
        """Count a request's attempts alone: they were made and paid for, whoever has ended the request."""
        for record in finished.attempts:
            self._count_attempt(record)

    def saved_ms(self, record: AttemptRecord) -> int | None:
        """Estimate of what ending this attempt early has saved; None: its deployment has not answered yet."""
        answers = self._answers.get(record.deployment)
        return None if answers is None else answers.saved_ms_after(record.latency_ms)

    def count_models(self, finished: Finished, step: int) -> None:
        """Count a request by model; a `step` of -1 takes it back."""
        for model, kind in _by_model(finished):
            counts = self._models.get(model)
            if counts is None:
                counts = self._models[model] = {"success": 0, "fallback": 0, "error": 0}
            counts[kind] += step

    def snapshot(self) -> dict[str, ModelCounts]:
        """The counters by model, as they are now."""
        return {model: counts.copy() for model, counts in self._models.items()}

    def render_prometheus(self, gauges: Gauges) -> str:
        """Everything as Prometheus' text exposition format 0.0.4."""
        return render([*self._counter_families(), *self._histogram_families(), *gauge_families(gauges)])

    def _tenant(self, tenant_id: str | None) -> Totals:
        tenant = self._tenants.get(tenant_id)
        if tenant is None:
            tenant = self._tenants[tenant_id] = Totals()
            if len(self._tenants) > self._max_tenants:
                self._tenants.popitem(last=False)
        else:
            self._tenants.move_to_end(tenant_id)
        return tenant

    def _count_attempt(self, record: AttemptRecord) -> None:
        name, code = record.deployment, record.code
        self._attempts[name, record.outcome.value, "" if code is None else code.value] += 1
        if code in NOT_ASKED:
            return
        totals = self._deployments.get(name)
        if totals is None:
            totals = self._deployments[name] = Totals()
        totals.number += 1
        totals.add(record)
        answers = self._answers.get(name)
        if answers is None:
            answers = self._answers[name] = Answers()
        if record.early:
            answers.early_stops += 1
            answers.saved_ms += answers.saved_ms_after(record.latency_ms) or 0
        if record.outcome is Outcome.SUCCESS:
            answers.number += 1
            answers.total_ms += record.latency_ms

    def _counter_families(self) -> Iterator[Family]:
        requests = Family("requests_total", "counter", "Requests that have their final event.")
        for (kind, code), number in self._requests.items():
            requests.add(number, type=kind, code=code)
        attempts = Family("attempts_total", "counter", "Turns of deployments, those passed over included.")
        for (deployment, outcome, code), number in self._attempts.items():
            attempts.add(number, deployment=deployment, outcome=outcome, code=code)
        fallbacks = Family("fallback_answers_total", "counter", "Answers after another deployment's turn.")
        for deployment, number in self._fallback_answers.items():
            fallbacks.add(number, deployment=deployment)
        tokens = Family("tokens_total", "counter", "Tokens of all calls, rejected ones included.")
        costs = Family("cost_usd_total", "counter", "What all calls cost, rejected ones included.")
        estimates = Family("estimated_calls_total", "counter", "Calls whose tokens are an estimate.")
        unpriced = Family("unpriced_calls_total", "counter", "Calls that have a price which is not known.")
        estimated_costs = Family("estimated_cost_usd_total", "counter", "The part of the cost that is an estimate.")
        for deployment, totals in self._deployments.items():
            tokens.add(totals.prompt_tokens, deployment=deployment, kind="prompt")
            tokens.add(totals.completion_tokens, deployment=deployment, kind="completion")
            costs.add(totals.cost_usd, deployment=deployment)
            estimates.add(totals.estimated_calls, deployment=deployment)
            estimated_costs.add(totals.estimated_cost_usd, deployment=deployment)
            unpriced.add(totals.unpriced_calls, deployment=deployment)
        saved = Family("saved_usd_total", "counter", "What local answers would have cost in the cloud.")
        saved.add(self._saved_usd)
        stops = Family("early_stops_total", "counter", "Attempts that were ended before their model had finished.")
        saved_time = Family("early_stops_saved_seconds_total", "counter", "Estimate of the time that this saved.")
        for deployment, answers in self._answers.items():
            stops.add(answers.early_stops, deployment=deployment)
            saved_time.add(answers.saved_ms / 1000, deployment=deployment)
        orphans = Family("orphans_total", "counter", "Requests that nobody owned any more, and that were taken up.")
        orphans.add(self._orphans)
        passed_on = Family("passed_on_total", "counter", "Requests handed back for a worker that knows their model.")
        passed_on.add(self._passed_on)
        dropped = Family("dead_letters_dropped_total", "counter", "Dead letters that went for newer ones.")
        dropped.add(self._dropped_letters)
        yield from (requests, attempts, fallbacks, tokens, costs, estimates, estimated_costs, unpriced)
        yield from (saved, stops, saved_time)
        mended = Family("streams_mended_total", "counter", "Streams made anew since their IDs ran ahead of the clock.")
        mended.add(self._mended)
        yield from (orphans, passed_on, dropped, mended)

    def _histogram_families(self) -> Iterator[Family]:
        duration = Family("request_duration_seconds", "histogram", "From pick-up to the final event.")
        duration.add_histogram(self._duration)
        ttft = Family("time_to_first_token_seconds", "histogram", "From pick-up to the answer's first token.")
        ttft.add_histogram(self._ttft)
        yield from (duration, ttft)


def _by_model(finished: Finished) -> Iterator[tuple[str, Literal["success", "fallback", "error"]]]:
    """How a request counts by model, as (model, counter); consecutive attempts of one deployment are one turn."""
    asked = [record for record in finished.attempts if record.code not in NOT_ASKED]
    for record, following in zip_longest(asked, asked[1:]):
        if following is not None and following.deployment == record.deployment:
            continue
        if record.outcome is not Outcome.SUCCESS and record.code is not AttemptCode.CANCELLED:
            yield record.model, "error" if following is None else "fallback"
    if finished.type == "result" and finished.model_used is not None:
        yield finished.model_used, "success"
