"""Every metric that Prometheus is shown, a row each: its name, its help text, its labels, and where its numbers stand.

One without numbers is left out of the page.  What callers choose freely, a tenant say, is never a label.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Generic, Literal, TypeVar

from llm_routerd.accounting.counters import Counters
from llm_routerd.accounting.exposition import Family
from llm_routerd.accounting.gauges import Gauges
from llm_routerd.accounting.tally import Tally
from llm_routerd.routing.breaker import State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from llm_routerd.accounting.exposition import Histogram
    from llm_routerd.accounting.totals import Answers, Totals
    from llm_routerd.routing.health import DeploymentHealth

    Samples = Iterable[tuple[tuple[str, ...], float]]  # each: the labels' values, and a number

_Source = TypeVar("_Source", Counters, Gauges)
_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class _Metric(Generic[_Source]):
    """A row."""

    name: str
    labels: tuple[str, ...]
    samples: Callable[[_Source], Samples]
    help_text: str

    def family(self, kind: Literal["counter", "gauge"], source: _Source) -> Family:
        """What is shown."""
        family = Family(self.name, kind, self.help_text)
        for values, number in self.samples(source):
            family.add(number, **dict(zip(self.labels, values, strict=True)))
        return family


def _alone(number: float | None) -> Samples:
    return () if number is None else (((), number),)


def _each(values: Mapping[str, _Value] | None, number: Callable[[_Value], float | None]) -> Samples:
    """The number of each by its name, where it has one."""
    return [((name,), told) for name, value in (values or {}).items() if (told := number(value)) is not None]


def _calls(name: str, number: Callable[[Totals], float], help_text: str) -> _Metric[Counters]:
    return _Metric(name, ("deployment",), lambda of: _each(of.deployments, number), help_text)


def _answers(name: str, number: Callable[[Answers], float], help_text: str) -> _Metric[Counters]:
    return _Metric(name, ("deployment",), lambda of: _each(of.answers, number), help_text)


def _tally(tally: Tally) -> _Metric[Counters]:
    name, help_text = tally.value
    return _Metric(name, (), lambda of: _alone(of.tallies[tally]), help_text)


def _health(name: str, number: Callable[[DeploymentHealth], float | None], help_text: str) -> _Metric[Gauges]:
    return _Metric(name, ("deployment",), lambda of: _each(of.deployments, number), help_text)


def _tokens(of: Counters) -> Samples:
    for name, totals in of.deployments.items():
        yield (name, "prompt"), totals.prompt_tokens
        yield (name, "completion"), totals.completion_tokens


def _waiting(of: Gauges) -> Samples:
    return (("tool",), of.runs_waiting_tool), (("person",), of.runs_waiting_person)


def _states(of: Gauges) -> Samples:
    for name, health in (of.deployments or {}).items():
        yield from (((name, state.value), int(health.state is state)) for state in State)


# fmt: off
_COUNTERS: Final[tuple[_Metric[Counters], ...]] = (
    _Metric("requests_total", ("type", "code"), lambda of: of.requests.items(),
        "Requests that have their final event."),
    _Metric("attempts_total", ("deployment", "outcome", "code"), lambda of: of.attempts.items(),
        "Turns of deployments, those passed over included."),
    _Metric("fallback_answers_total", ("deployment",), lambda of: _each(of.fallback_answers, int),
        "Answers after another deployment's turn."),
    _Metric("tokens_total", ("deployment", "kind"), _tokens,
        "Tokens of all calls, rejected ones included."),
    _calls("cost_usd_total", lambda totals: totals.cost_usd,
        "What all calls cost, rejected ones included."),
    _calls("estimated_calls_total", lambda totals: totals.estimated_calls,
        "Calls whose tokens are an estimate."),
    _calls("estimated_cost_usd_total", lambda totals: totals.estimated_cost_usd,
        "The part of the cost that is an estimate."),
    _calls("unpriced_calls_total", lambda totals: totals.unpriced_calls,
        "Calls whose price is not known."),
    _Metric("saved_usd_total", (), lambda of: _alone(of.saved_usd),
        "What local answers would have cost in the cloud."),
    _Metric("runs_total", ("end",), lambda of: _each(of.runs, int),
        "Runs with tools, by their end."),
    _Metric("tool_calls_total", ("tool", "outcome"), lambda of: of.tool_calls.items(),
        "Calls of tools, by what came of them."),
    _Metric("confirmations_total", ("outcome",), lambda of: _each(of.confirmations, int),
        "Calls that waited for a person, by what came of it."),
    _answers("early_stops_total", lambda answers: answers.early_stops,
        "Attempts that were ended before their model had finished."),
    _answers("early_stops_saved_seconds_total", lambda answers: answers.saved_ms / 1000,
        "Estimate of the time that this saved."),
    *map(_tally, Tally),
)
_HISTOGRAMS: Final[tuple[tuple[str, Callable[[Counters], Histogram], str], ...]] = (
    ("request_duration_seconds", lambda of: of.duration,
        "From pick-up to the final event."),
    ("time_to_first_token_seconds", lambda of: of.ttft,
        "From pick-up to the answer's first token."),
    ("run_turns", lambda of: of.turns,
        "Calls to a model that a run with tools took."),
)
_GAUGES: Final[tuple[_Metric[Gauges], ...]] = (
    _Metric("in_flight", (), lambda of: _alone(of.in_flight),
        "Requests being worked on."),
    _Metric("calls_held_up", (), lambda of: _alone(of.held_up),
        "Calls that wait for files or memory that llm-routerd lacks."),
    _Metric("runs_waiting", ("for",), _waiting,
        "Runs with tools that wait, and for whom."),
    _Metric("lane_lag", ("lane",), lambda of: _each(of.lag_by_lane, int),
        "Entries of a lane that no worker has read yet."),
    _Metric("lane_handed_back", ("lane",), lambda of: _each(of.handed_back_by_lane, int),
        "Entries of a lane that a worker has handed back and that none has taken up yet."),
    _Metric("loop_lag_seconds", (), lambda of: _alone(of.loop_lag_seconds),
        "How late the event loop runs."),
    _Metric("deployment_state", ("deployment", "state"), _states,
        "1 for the state that a deployment is in, 0 for the others."),
    _health("deployment_in_flight", lambda health: health.in_flight,
        "Calls to a deployment, waiting for their turn included."),
    _health("deployment_tenants_kept_away", lambda health: health.tenants_kept_away,
        "Tenants whose own failures alone keep them from a deployment."),
    _health("deployment_ttft_seconds", lambda health: health.ttft_seconds,
        "Moving average of a deployment's time to first token."),
    _Metric("chain_usable", ("chain",), lambda of: _each(of.chains, int),
        "0 for a chain of which no deployment can ever answer (keys, providers)."),
)
# fmt: on


def families(counters: Counters, gauges: Gauges) -> Iterator[Family]:
    """Everything, with its numbers."""
    yield from (metric.family("counter", counters) for metric in _COUNTERS)
    for name, of, help_text in _HISTOGRAMS:
        family = Family(name, "histogram", help_text)
        family.add_histogram(of(counters))
        yield family
    yield from (metric.family("gauge", gauges) for metric in _GAUGES)
