"""The books of runs with tools: each attempt counted once, though turns count as they end."""

from __future__ import annotations

import json

import jsonschema
from msgspec.structs import replace

from llm_routerd.accounting.gauges import Gauges
from llm_routerd.accounting.metrics import Finished, Metrics
from llm_routerd.accounting.tally import Tally
from llm_routerd.protocol.codes import AttemptCode
from llm_routerd.protocol.outcome import AttemptRecord, Outcome, Usage
from llm_routerd.protocol.schema_files import load_schema
from tests.support.accounts import counted, scraped
from tests.support.schemas import closed

USAGE = Usage(prompt_tokens=100, completion_tokens=10)
GOOD = AttemptRecord(
    deployment="haiku", model="anthropic/h", outcome=Outcome.SUCCESS, latency_ms=500, usage=USAGE, cost_usd=0.25
)
LATE = AttemptRecord(
    deployment="local", model="ollama/q", outcome=Outcome.REJECTED, code=AttemptCode.TIMEOUT, latency_ms=8000
)
RUN = Finished(
    id="r1",
    chain="default",
    type="result",
    timestamp=1_790_000_000.0,
    latency_ms=9500,
    tenant_id="ada",
    model_used="anthropic/h",
    deployment="haiku",
    usage=USAGE,
    cost_usd=0.25,
    attempts=(GOOD,),
    turns=2,
    tool_calls=1,
    earlier_attempts=(LATE, GOOD),
    earlier_cost_usd=0.25,
)


def test_every_attempt_of_a_run_is_counted_once() -> None:
    """Those of the first turn when it ends, those of the last with the request."""
    metrics = Metrics()
    metrics.turn_ended("ada", (LATE, GOOD))
    event = counted(metrics, RUN)
    totals = event["tenant_totals"]
    assert (totals["requests"], totals["prompt_tokens"], totals["cost_usd"]) == (1, 200, 0.5)
    assert event["metrics_snapshot"] == {
        "ollama/q": {"success": 0, "fallback": 1, "error": 0},
        "anthropic/h": {"success": 2, "fallback": 0, "error": 0},
    }
    samples = scraped(metrics)
    assert samples['attempts_total{deployment="haiku",outcome="success",code=""}'] == 2
    assert samples['cost_usd_total{deployment="haiku"}'] == 0.5
    assert samples['fallback_answers_total{deployment="haiku"}'] == 1
    assert samples['requests_total{type="result",code=""}'] == 1


def test_the_event_of_a_run_tells_what_the_whole_of_it_took() -> None:
    """Its turns, its calls, and every attempt, whoever made it."""
    event = counted(Metrics(), RUN)
    jsonschema.Draft202012Validator(closed(load_schema("metrics"))).validate(json.loads(json.dumps(event)))
    assert (event["turns"], event["tool_calls"], event["cost_usd"], event["cost_estimated"]) == (2, 1, 0.5, False)
    assert [attempt["outcome"] for attempt in event["attempts"]] == ["rejected", "success", "success"]
    assert event["usage_by_deployment"]["haiku"]["calls"] == 2
    assert event["tenant_totals"]["prompt_tokens"] == 100  # of this worker, which made the last turn


def test_a_run_whose_earlier_turns_have_no_known_price_has_none() -> None:
    """And an estimate in them is one in the sum."""
    assert counted(Metrics(), replace(RUN, earlier_cost_usd=None))["cost_usd"] is None
    assert counted(Metrics(), replace(RUN, earlier_cost_estimated=True))["cost_estimated"] is True


def test_a_request_that_is_no_run_has_neither_turns_nor_tool_calls() -> None:
    """What readers of the event know of before is as it was."""
    event = counted(Metrics(), replace(RUN, turns=None, tool_calls=None))
    assert not {"turns", "tool_calls"} & event.keys()


def test_an_end_that_falls_takes_back_no_turn_that_stands() -> None:
    """Only what was booked with it."""
    metrics = Metrics()
    metrics.turn_ended("ada", (LATE, GOOD))
    metrics.book(RUN).falls()
    assert counted(metrics, RUN)["tenant_totals"]["prompt_tokens"] == 200


def test_runs_tool_calls_and_confirmations_are_scraped() -> None:
    """By end, by tool and outcome, by what a person said."""
    metrics = Metrics()
    metrics.run_ended("result", 3)
    metrics.run_ended("turns_exhausted", 20)
    metrics.tool_called("weather", "result")
    metrics.tool_called("lights.switch", "unknown_outcome")
    metrics.confirmation("expired")
    metrics.count(Tally.TOOL_ANSWERS_IGNORED)
    samples = scraped(metrics, Gauges(runs_waiting_tool=4, runs_waiting_person=5000))
    expected = {
        'runs_total{end="result"}': 1,
        'runs_total{end="turns_exhausted"}': 1,
        'run_turns_bucket{le="3"}': 1,
        'run_turns_bucket{le="20"}': 2,
        "run_turns_sum": 23,
        'tool_calls_total{tool="weather",outcome="result"}': 1,
        'tool_calls_total{tool="lights.switch",outcome="unknown_outcome"}': 1,
        'confirmations_total{outcome="expired"}': 1,
        "tool_answers_ignored_total": 1,
        'runs_waiting{for="tool"}': 4,
        'runs_waiting{for="person"}': 5000,
    }
    assert {name: samples.get(name) for name in expected} == expected


def test_tools_beyond_the_first_hundred_are_counted_as_others() -> None:
    """Whoever registers tools chooses their names, and a label for each would be without bound."""
    metrics = Metrics()
    for number in range(1000):
        metrics.tool_called(f"tool-{number}", "result")
    metrics.tool_called("tool-7", "error")
    calls = {name: value for name, value in scraped(metrics).items() if name.startswith("tool_calls_total")}
    assert len(calls) == 102
    assert calls['tool_calls_total{tool="other",outcome="result"}'] == 900
    assert calls['tool_calls_total{tool="tool-7",outcome="error"}'] == 1
