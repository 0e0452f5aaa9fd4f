"""What one worker has done since it started: its counters, and the metrics event of each request.

The rules:

- One instance per worker, fed by `finished` once per request, whatever its end.  Nothing here is a global.
- A deployment that was passed over as it cools down was not asked: it has no call and no error in the
  counters by model and by deployment.  An attempt that was cancelled is nobody's error.
- `success` counts the answers of a model, `fallback` those among them that came after another deployment's
  turn: one that had been asked, or passed over as it cooled down.
- Tokens and costs are those of all attempts, rejected ones included; only `usage` is the answering call's
  alone.
- What an attempt that was ended early has saved is an estimate: the time that the deployment's answers have taken
  on average since the start, less the time that this attempt took; unknown before its first answer.
- What callers choose freely is bounded: of the tenants the last 1,000 are kept, and one that comes back later
  starts at nothing.  For the same reason a tenant is never a Prometheus label.
- No prompt, no answer and no key goes out.  Reasons are the one thing that could hold a piece of an answer: where an
  answer is not the JSON that was asked for, the code stands in their place.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from llm_routerd.core.circuit import State
from llm_routerd.core.exposition import Family, Histogram, render
from llm_routerd.core.outcome import AttemptCode, Outcome
from llm_routerd.core.value import value

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from llm_routerd.core.health import DeploymentHealth
    from llm_routerd.core.outcome import AttemptRecord, ErrorCode, Usage

MAX_TENANTS: Final = 1000
_DURATION_BOUNDS: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_TTFT_BOUNDS: Final = (0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


@value
class Finished:
    """One request that has its final event.

    Attributes:
        type: which final event it was.
        code: of an `error`; None: it was another event.
        model_used, deployment: who answered; None: nobody.
        latency_ms: from pick-up to the final event.
        queue_ms: from XADD to pick-up, where known.
        ttft_ms: from pick-up to the answer's first token.
        usage: of the call that answered.
        cost_usd: of all attempts.
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
    cost_usd: float = 0.0
    saved_usd: float = 0.0
    attempts: Sequence[AttemptRecord] = ()
    local_only: bool = False
    stream: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Gauges:
    """What the worker knows at the moment of a scrape.

    Attributes:
        in_flight: requests.
        lag_by_lane: entries that no worker has read yet; a lane whose lag Redis cannot tell is left out.
        loop_lag_seconds: how late the event loop runs.
        deployments: from `Health.states`.
    """

    in_flight: int = 0
    lag_by_lane: Mapping[str, int] | None = None
    loop_lag_seconds: float | None = None
    deployments: Mapping[str, DeploymentHealth] | None = None


class _Totals:
    """Calls (of a deployment) or requests (of a tenant), their tokens and their cost."""

    __slots__ = ("completion_tokens", "cost_usd", "number", "prompt_tokens")

    def __init__(self) -> None:
        self.number = 0
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.cost_usd = 0.0

    def add(self, record: AttemptRecord) -> None:
        usage = record.usage
        if usage is not None:
            self.prompt_tokens += usage.prompt_tokens
            self.completion_tokens += usage.completion_tokens
        self.cost_usd += record.cost_usd


class _Answers:
    """How long the answers of one deployment have taken."""

    __slots__ = ("early_stops", "number", "saved_ms", "total_ms")

    def __init__(self) -> None:
        self.number = 0
        self.total_ms = 0
        self.early_stops = 0
        self.saved_ms = 0

    def stopped_early(self, after_ms: int) -> int | None:
        """Count an attempt that was ended; returns the estimate of what that saved, in milliseconds."""
        self.early_stops += 1
        if not self.number:
            return None
        saved_ms = max(0, round(self.total_ms / self.number) - after_ms)
        self.saved_ms += saved_ms
        return saved_ms


class Metrics:
    """The counters of one worker since it started."""

    def __init__(self, *, max_tenants: int = MAX_TENANTS) -> None:
        self._max_tenants = max_tenants
        self._models: dict[str, dict[str, int]] = {}
        self._tenants: OrderedDict[str | None, _Totals] = OrderedDict()
        self._deployments: dict[str, _Totals] = {}
        self._answers: dict[str, _Answers] = {}
        self._requests: Counter[tuple[str, str]] = Counter()
        self._attempts: Counter[tuple[str, str, str]] = Counter()
        self._saved_usd = 0.0
        self._orphans = 0
        self._dropped_letters = 0
        self._duration = Histogram(_DURATION_BOUNDS)
        self._ttft = Histogram(_TTFT_BOUNDS)

    def count_dropped_letters(self, number: int) -> None:
        """So many dead letters went, since there were too many or they took too much room."""
        self._dropped_letters += number

    def count_orphans(self, number: int) -> None:
        """So many requests were taken up that nobody owned."""
        self._orphans += number

    def finished(self, finished: Finished) -> dict[str, Any]:
        """Count a request and make its metrics event, as `schemas/metrics.schema.json` has it."""
        code = None if finished.code is None else finished.code.value
        tenant = self._tenant(finished.tenant_id)
        tenant.number += 1
        by_deployment: dict[str, _Totals] = {}
        early_stops: list[dict[str, Any]] = []
        for record in finished.attempts:
            tenant.add(record)
            self._count_attempt(record, by_deployment, early_stops)
        self._count_ending(finished, code)
        return {
            "id": finished.id,
            "tenant_id": finished.tenant_id,
            "context": finished.context,
            "chain": finished.chain,
            "type": finished.type,
            "code": code,
            "model_used": finished.model_used or "none",
            "deployment": finished.deployment,
            "latency_ms": finished.latency_ms,
            "queue_ms": finished.queue_ms,
            "ttft_ms": finished.ttft_ms,
            "attempts": [_told(record) for record in finished.attempts],
            "usage": None if finished.usage is None else finished.usage.to_wire(),
            "cost_usd": finished.cost_usd,
            "saved_usd": finished.saved_usd,
            "usage_by_deployment": {
                name: {
                    "calls": totals.number,
                    "prompt_tokens": totals.prompt_tokens,
                    "completion_tokens": totals.completion_tokens,
                    "total_tokens": totals.prompt_tokens + totals.completion_tokens,
                    "cost_usd": totals.cost_usd,
                }
                for name, totals in by_deployment.items()
            },
            "tenant_totals": {
                "requests": tenant.number,
                "prompt_tokens": tenant.prompt_tokens,
                "completion_tokens": tenant.completion_tokens,
                "cost_usd": tenant.cost_usd,
            },
            "early_stops": early_stops,
            "local_only": finished.local_only,
            "stream": finished.stream,
            "consumer": finished.consumer,
            "metrics_snapshot": {model: counts.copy() for model, counts in self._models.items()},
            "timestamp": finished.timestamp,
        }

    def render_prometheus(self, gauges: Gauges) -> str:
        """Everything as Prometheus' text exposition format 0.0.4."""
        return render([*self._counter_families(), *self._histogram_families(), *_gauge_families(gauges)])

    def _tenant(self, tenant_id: str | None) -> _Totals:
        tenant = self._tenants.get(tenant_id)
        if tenant is None:
            tenant = self._tenants[tenant_id] = _Totals()
            if len(self._tenants) > self._max_tenants:
                self._tenants.popitem(last=False)
        else:
            self._tenants.move_to_end(tenant_id)
        return tenant

    def _count_attempt(
        self, record: AttemptRecord, by_deployment: dict[str, _Totals], early_stops: list[dict[str, Any]]
    ) -> None:
        name, code = record.deployment, record.code
        code_name = "" if code is None else code.value
        self._attempts[name, record.outcome.value, code_name] += 1
        if code is AttemptCode.COOLDOWN:
            return
        for deployments in (self._deployments, by_deployment):
            totals = deployments.get(name)
            if totals is None:
                totals = deployments[name] = _Totals()
            totals.number += 1
            totals.add(record)
        answers = self._answers.get(name)
        if answers is None:
            answers = self._answers[name] = _Answers()
        if record.outcome is Outcome.SUCCESS:
            answers.number += 1
            answers.total_ms += record.latency_ms
        elif code is not AttemptCode.CANCELLED:
            self._model(record.model)["error"] += 1
        if record.early:
            saved_ms = answers.stopped_early(record.latency_ms)
            stop = {"deployment": name, "code": code_name, "after_ms": record.latency_ms, "saved_ms": saved_ms}
            early_stops.append(stop)

    def _count_ending(self, finished: Finished, code: str | None) -> None:
        self._requests[finished.type, code or ""] += 1
        self._saved_usd += finished.saved_usd
        self._duration.observe(finished.latency_ms / 1000)
        if finished.ttft_ms is not None:
            self._ttft.observe(finished.ttft_ms / 1000)
        if finished.type == "result" and finished.model_used is not None:
            counts = self._model(finished.model_used)
            counts["success"] += 1
            if finished.attempts and finished.attempts[0].deployment != finished.deployment:
                counts["fallback"] += 1

    def _model(self, model: str) -> dict[str, int]:
        counts = self._models.get(model)
        if counts is None:
            counts = self._models[model] = {"success": 0, "fallback": 0, "error": 0}
        return counts

    def _counter_families(self) -> Iterator[Family]:
        requests = Family("requests_total", "counter", "Requests that have their final event.")
        for (kind, code), number in self._requests.items():
            requests.add(number, type=kind, code=code)
        attempts = Family("attempts_total", "counter", "Turns of deployments, those passed over included.")
        for (deployment, outcome, code), number in self._attempts.items():
            attempts.add(number, deployment=deployment, outcome=outcome, code=code)
        tokens = Family("tokens_total", "counter", "Tokens of all calls, rejected ones included.")
        costs = Family("cost_usd_total", "counter", "What all calls cost, rejected ones included.")
        for deployment, totals in self._deployments.items():
            tokens.add(totals.prompt_tokens, deployment=deployment, kind="prompt")
            tokens.add(totals.completion_tokens, deployment=deployment, kind="completion")
            costs.add(totals.cost_usd, deployment=deployment)
        saved = Family("saved_usd_total", "counter", "What local answers would have cost in the cloud.")
        saved.add(self._saved_usd)
        stops = Family("early_stops_total", "counter", "Attempts that were ended before their model had finished.")
        saved_time = Family("early_stops_saved_seconds_total", "counter", "Estimate of the time that this saved.")
        for deployment, answers in self._answers.items():
            stops.add(answers.early_stops, deployment=deployment)
            saved_time.add(answers.saved_ms / 1000, deployment=deployment)
        orphans = Family("orphans_total", "counter", "Requests that nobody owned any more, and that were taken up.")
        orphans.add(self._orphans)
        dropped = Family("dead_letters_dropped_total", "counter", "Dead letters that went for newer ones.")
        dropped.add(self._dropped_letters)
        yield from (requests, attempts, tokens, costs, saved, stops, saved_time, orphans, dropped)

    def _histogram_families(self) -> Iterator[Family]:
        duration = Family("request_duration_seconds", "histogram", "From pick-up to the final event.")
        duration.add_histogram(self._duration)
        ttft = Family("time_to_first_token_seconds", "histogram", "From pick-up to the answer's first token.")
        ttft.add_histogram(self._ttft)
        yield from (duration, ttft)


def _told(record: AttemptRecord) -> dict[str, Any]:
    """An attempt as the metrics tell it: why an answer is not the JSON asked for may quote it, and stays out."""
    told = record.to_wire()
    if record.outcome is Outcome.INVALID:
        told["reason"] = told["code"]
    return told


def _gauge_families(gauges: Gauges) -> Iterator[Family]:
    in_flight = Family("in_flight", "gauge", "Requests being worked on.")
    in_flight.add(gauges.in_flight)
    lag = Family("lane_lag", "gauge", "Entries of a lane that no worker has read yet.")
    for lane, entries in (gauges.lag_by_lane or {}).items():
        lag.add(entries, lane=lane)
    loop_lag = Family("loop_lag_seconds", "gauge", "How late the event loop runs.")
    if gauges.loop_lag_seconds is not None:
        loop_lag.add(gauges.loop_lag_seconds)
    state = Family("deployment_state", "gauge", "1 for the state that a deployment is in, 0 for the others.")
    calls = Family("deployment_in_flight", "gauge", "Calls to a deployment, waiting for their turn included.")
    ttft = Family("deployment_ttft_seconds", "gauge", "Moving average of a deployment's time to first token.")
    kept_away = Family(
        "deployment_tenants_kept_away", "gauge", "Tenants whose own failures alone keep them from a deployment."
    )
    for name, health in (gauges.deployments or {}).items():
        for each in State:
            state.add(int(health.state is each), deployment=name, state=each.value)
        calls.add(health.in_flight, deployment=name)
        kept_away.add(health.tenants_kept_away, deployment=name)
        if health.ttft_seconds is not None:
            ttft.add(health.ttft_seconds, deployment=name)
    yield from (in_flight, lag, loop_lag, state, calls, kept_away, ttft)
