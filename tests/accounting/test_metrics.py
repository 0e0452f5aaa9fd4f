from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import pytest
from msgspec.structs import replace

from llm_routerd.accounting.exposition import Family, Histogram, render
from llm_routerd.accounting.gauges import Gauges
from llm_routerd.accounting.metrics import Finished, Metrics
from llm_routerd.protocol.codes import AttemptCode, ErrorCode
from llm_routerd.protocol.outcome import AttemptRecord, Outcome, Usage
from llm_routerd.protocol.schema_files import load_schema
from llm_routerd.routing.breaker import State
from llm_routerd.routing.health import DeploymentHealth
from tests.support.accounts import counted, scraped
from tests.support.schemas import closed

USAGE = Usage(prompt_tokens=10, completion_tokens=4, cached_tokens=3)
TIMED_OUT = AttemptRecord(
    deployment="local",
    model="ollama/q",
    outcome=Outcome.REJECTED,
    code=AttemptCode.TIMEOUT,
    reason="no whole answer within 8 s",
    latency_ms=8000,
)
PASSED = replace(TIMED_OUT, code=AttemptCode.COOLDOWN, latency_ms=0)
BROKEN = AttemptRecord(
    deployment="haiku",
    model="anthropic/h",
    outcome=Outcome.INVALID,
    code=AttemptCode.INVALID_JSON,
    reason="$: not JSON",
    usage=Usage(prompt_tokens=10, completion_tokens=1),
    cost_usd=0.25,
    early=True,
)
GOOD = AttemptRecord(
    deployment="haiku",
    model="anthropic/h",
    outcome=Outcome.SUCCESS,
    latency_ms=900,
    usage=USAGE,
    cost_usd=0.5,
)
ANSWERED = Finished(
    id="r1",
    chain="default",
    type="result",
    timestamp=1_790_000_000.5,
    latency_ms=8900,
    consumer="box-1",
    tenant_id="kitchen",
    context="recipes",
    model_used="anthropic/h",
    deployment="haiku",
    queue_ms=3,
    ttft_ms=8200,
    usage=USAGE,
    cost_usd=0.75,
    attempts=(TIMED_OUT, BROKEN, GOOD),
    stream=True,
)
FAILED = Finished(
    id="r2",
    chain="local",
    type="error",
    code=ErrorCode.LOCAL_EXHAUSTED,
    timestamp=1_790_000_001.0,
    latency_ms=8000,
    attempts=(TIMED_OUT,),
    local_only=True,
)
CANCELLED = Finished(id="r3", chain="local", type="cancelled", timestamp=1_790_000_002.0, latency_ms=40)


def snapshot(*attempts: AttemptRecord, **changes: Any) -> dict[str, dict[str, int]]:
    """The snapshot after one request with these attempts."""
    event = counted(Metrics(), replace(ANSWERED, attempts=attempts, **changes))
    counts: dict[str, dict[str, int]] = event["metrics_snapshot"]
    return counts


# The event


@pytest.mark.parametrize("finished", [ANSWERED, FAILED, CANCELLED], ids=lambda finished: finished.type)
def test_event_satisfies_its_schema(finished: Finished) -> None:
    """Whatever the request's end."""
    schema = closed(load_schema("metrics"))
    event = json.loads(json.dumps(counted(Metrics(), finished)))
    jsonschema.Draft202012Validator(schema).validate(event)


def test_event_of_an_answer_says_who_answered_and_what_it_took() -> None:
    """All values as they were given."""
    event = counted(Metrics(), ANSWERED)
    expected = {
        "id": "r1",
        "tenant_id": "kitchen",
        "context": "recipes",
        "chain": "default",
        "type": "result",
        "code": None,
        "model_used": "anthropic/h",
        "deployment": "haiku",
        "latency_ms": 8900,
        "queue_ms": 3,
        "ttft_ms": 8200,
        "usage": {"prompt_tokens": 10, "completion_tokens": 4, "total_tokens": 14, "cached_tokens": 3},
        "cost_usd": 0.75,
        "saved_usd": 0.0,
        "local_only": False,
        "stream": True,
        "consumer": "box-1",
        "timestamp": 1_790_000_000.5,
    }
    assert {key: event[key] for key in expected} == expected
    assert [attempt["outcome"] for attempt in event["attempts"]] == ["rejected", "invalid", "success"]


def test_event_of_a_failure_names_no_model() -> None:
    """`none`, and the code of the error."""
    event = counted(Metrics(), FAILED)
    assert (event["model_used"], event["deployment"], event["code"]) == ("none", None, "local_exhausted")
    assert event["usage"] is None


def test_usage_by_deployment_includes_rejected_attempts_and_no_deployment_passed_over() -> None:
    """Who pays for tokens pays for those, too."""
    attempts = (PASSED, BROKEN, GOOD)
    event = counted(Metrics(), replace(ANSWERED, attempts=attempts))
    assert event["usage_by_deployment"] == {
        "haiku": {
            "calls": 2,
            "prompt_tokens": 20,
            "completion_tokens": 5,
            "total_tokens": 25,
            "cost_usd": 0.75,
            "estimated_calls": 0,
            "unpriced_calls": 0,
        }
    }


def test_early_stops_name_deployment_code_and_an_estimate_of_what_they_saved() -> None:
    """Only attempts that were ended before their model had finished; unknown before the deployment's first answer."""
    metrics = Metrics()
    stopped = replace(BROKEN, latency_ms=200)
    first = counted(metrics, replace(ANSWERED, attempts=(stopped, GOOD)))
    assert first["early_stops"] == [{"deployment": "haiku", "code": "invalid_json", "after_ms": 200, "saved_ms": None}]
    counted(metrics, replace(ANSWERED, attempts=(replace(GOOD, latency_ms=1100),)))
    third = counted(metrics, replace(ANSWERED, attempts=(stopped, GOOD)))
    assert third["early_stops"][0]["saved_ms"] == (900 + 1100) // 2 - 200
    late = counted(metrics, replace(ANSWERED, attempts=(replace(BROKEN, latency_ms=5000), GOOD)))
    assert late["early_stops"][0]["saved_ms"] == 0
    assert 'llm_routerd_early_stops_saved_seconds_total{deployment="haiku"} 0.8' in metrics.render_prometheus(Gauges())


# Counters by model


def test_attempt_that_failed_and_was_followed_by_another_models_turn_is_its_fallback() -> None:
    """The answer is the next one's success, and nobody's error."""
    assert snapshot(TIMED_OUT, GOOD) == {
        "ollama/q": {"success": 0, "fallback": 1, "error": 0},
        "anthropic/h": {"success": 1, "fallback": 0, "error": 0},
    }


def test_attempt_that_failed_and_was_the_last_is_an_error() -> None:
    """Those before it fell back; one that was passed over afterwards had no turn."""
    unanswered = {"type": "error", "model_used": None, "deployment": None}
    assert snapshot(TIMED_OUT, BROKEN, PASSED, **unanswered) == {
        "ollama/q": {"success": 0, "fallback": 1, "error": 0},
        "anthropic/h": {"success": 0, "fallback": 0, "error": 1},
    }


def test_answer_in_place_of_a_cooling_deployment_is_a_success_alone() -> None:
    """Nobody asked the one that cools down."""
    assert snapshot(PASSED, GOOD) == {"anthropic/h": {"success": 1, "fallback": 0, "error": 0}}


@pytest.mark.parametrize(
    ("attempts", "kind", "changes"),
    [
        ((BROKEN, GOOD), "success", {}),
        ((BROKEN, BROKEN), "error", {"type": "error", "model_used": None, "deployment": None}),
    ],
)
def test_repeats_by_the_same_deployment_are_one_turn(
    attempts: tuple[AttemptRecord, ...], kind: str, changes: dict[str, Any]
) -> None:
    """As where the repeats were made beneath what counted."""
    assert snapshot(*attempts, **changes) == {"anthropic/h": {"success": 0, "fallback": 0, "error": 0} | {kind: 1}}


def test_answers_after_another_deployments_turn_have_a_counter_of_their_own() -> None:
    """A turn that was passed over included, a repeat not."""
    metrics = Metrics()
    for attempts in ((TIMED_OUT, GOOD), (PASSED, GOOD), (BROKEN, GOOD)):
        counted(metrics, replace(ANSWERED, attempts=attempts))
    assert scraped(metrics)['fallback_answers_total{deployment="haiku"}'] == 2


def test_cancelled_attempt_is_nobodys_error() -> None:
    """Nor is it anybody's answer."""
    attempt = replace(TIMED_OUT, code=AttemptCode.CANCELLED)
    assert snapshot(attempt, type="cancelled", model_used=None, deployment=None) == {}


def test_snapshot_of_an_event_does_not_change_afterwards() -> None:
    """It may be written later."""
    metrics = Metrics()
    first = counted(metrics, ANSWERED)
    second = counted(metrics, ANSWERED)
    assert first["metrics_snapshot"]["anthropic/h"]["success"] == 1
    assert second["metrics_snapshot"]["anthropic/h"]["success"] == 2


# What stands


def test_request_that_is_booked_is_not_counted_until_it_stands() -> None:
    """Its event tells it; a scrape does not, before its final event stands."""
    metrics = Metrics()
    booking = metrics.book(ANSWERED)
    assert booking.event.metrics_snapshot["anthropic/h"]["success"] == 1
    assert not any(name.startswith(("requests_total", "attempts_total")) for name in scraped(metrics))
    metrics.settled(ANSWERED)
    assert scraped(metrics)['requests_total{type="result",code=""}'] == 1


def test_request_that_fell_leaves_no_trace_in_the_next_ones_event() -> None:
    """Neither by model nor by tenant."""
    metrics = Metrics()
    metrics.book(ANSWERED).falls()
    event, fresh = counted(metrics, ANSWERED), counted(Metrics(), ANSWERED)
    assert event["metrics_snapshot"] == fresh["metrics_snapshot"]
    assert event["tenant_totals"] == fresh["tenant_totals"]


def test_calls_of_a_request_that_another_has_ended_are_counted_alone() -> None:
    """They were paid for; the request is the other's."""
    metrics = Metrics()
    metrics.called(ANSWERED.attempts)
    samples = scraped(metrics)
    assert samples['cost_usd_total{deployment="haiku"}'] == 0.75
    assert not any(name.startswith("requests_total") for name in samples)


# Estimates


def test_estimates_are_marked_in_event_and_scrape() -> None:
    """How many calls, and how much of the cost."""
    metrics = Metrics()
    guessed = replace(BROKEN, usage=Usage(prompt_tokens=10, completion_tokens=1, estimated=True))
    event = counted(metrics, replace(ANSWERED, attempts=(guessed, GOOD)))
    assert event["cost_estimated"] is True
    assert event["usage_by_deployment"]["haiku"]["estimated_calls"] == 1
    assert event["tenant_totals"]["estimated_calls"] == 1
    samples = scraped(metrics)
    assert samples['estimated_calls_total{deployment="haiku"}'] == 1
    assert samples['estimated_cost_usd_total{deployment="haiku"}'] == 0.25
    assert counted(metrics, ANSWERED)["cost_estimated"] is False


# Tenants


def test_tenant_totals_add_up_over_requests_of_the_same_tenant() -> None:
    """Rejected attempts included; requests without a tenant are kept apart."""
    metrics = Metrics()
    counted(metrics, ANSWERED)
    counted(metrics, replace(ANSWERED, tenant_id=None))
    event = counted(metrics, ANSWERED)
    assert event["tenant_totals"] == {
        "requests": 2,
        "prompt_tokens": 40,
        "completion_tokens": 10,
        "cost_usd": 1.5,
        "estimated_calls": 0,
        "unpriced_calls": 0,
    }


def test_only_the_latest_tenants_are_kept() -> None:
    """A producer that makes tenants up costs bounded memory, and none of those who are active their totals."""
    metrics = Metrics(max_tenants=3)
    for i in range(10):
        counted(metrics, ANSWERED)
        counted(metrics, replace(ANSWERED, tenant_id=f"made-up-{i}"))
    assert counted(metrics, ANSWERED)["tenant_totals"]["requests"] == 11
    assert counted(metrics, replace(ANSWERED, tenant_id="made-up-0"))["tenant_totals"]["requests"] == 1


# Prometheus


def test_counters_are_scraped_with_their_labels() -> None:
    """One request of each kind."""
    metrics = Metrics()
    for finished in (ANSWERED, FAILED, CANCELLED):
        counted(metrics, finished)
    samples = scraped(metrics)
    assert samples['requests_total{type="result",code=""}'] == 1
    assert samples['requests_total{type="error",code="local_exhausted"}'] == 1
    assert samples['requests_total{type="cancelled",code=""}'] == 1
    assert samples['attempts_total{deployment="local",outcome="rejected",code="timeout"}'] == 2
    assert samples['attempts_total{deployment="haiku",outcome="success",code=""}'] == 1
    assert samples['tokens_total{deployment="haiku",kind="prompt"}'] == 20
    assert samples['tokens_total{deployment="haiku",kind="completion"}'] == 5
    assert samples['cost_usd_total{deployment="haiku"}'] == 0.75
    assert samples["saved_usd_total"] == 0


@pytest.mark.parametrize("code", [AttemptCode.COOLDOWN, AttemptCode.BUSY])
def test_deployment_passed_over_is_counted_as_an_attempt_only(code: AttemptCode) -> None:
    """There was no call that could have cost anything."""
    metrics = Metrics()
    event = counted(metrics, replace(ANSWERED, attempts=(replace(PASSED, code=code),)))
    samples = scraped(metrics)
    assert event["usage_by_deployment"] == {}
    assert samples[f'attempts_total{{deployment="local",outcome="rejected",code="{code.value}"}}'] == 1
    assert not any(name.startswith("tokens_total") for name in samples)


def test_savings_add_up() -> None:
    """Over all requests."""
    metrics = Metrics()
    counted(metrics, replace(ANSWERED, saved_usd=0.5))
    counted(metrics, replace(ANSWERED, saved_usd=0.25))
    assert scraped(metrics)["saved_usd_total"] == 0.75


def test_durations_are_scraped_in_cumulated_buckets_of_seconds() -> None:
    """A bound belongs to its bucket; a request without a first token has no time to it."""
    metrics = Metrics()
    for latency_ms, ttft_ms in [(50, 25), (51, None), (999_000, 26)]:
        counted(metrics, replace(ANSWERED, latency_ms=latency_ms, ttft_ms=ttft_ms))
    samples = scraped(metrics)
    assert samples['request_duration_seconds_bucket{le="0.05"}'] == 1
    assert samples['request_duration_seconds_bucket{le="0.1"}'] == 2
    assert samples['request_duration_seconds_bucket{le="300.0"}'] == 2
    assert samples['request_duration_seconds_bucket{le="+Inf"}'] == 3
    assert samples["request_duration_seconds_count"] == 3
    assert samples["request_duration_seconds_sum"] == pytest.approx(999.101)
    assert samples["time_to_first_token_seconds_count"] == 2
    assert samples['time_to_first_token_seconds_bucket{le="0.025"}'] == 1


def test_gauges_are_scraped_as_given() -> None:
    """Exactly one state of a deployment is 1."""
    health = DeploymentHealth(
        state=State.COOLING,
        cooldown_seconds=3.0,
        code=None,
        failures=3,
        in_flight=2,
        ttft_seconds=0.25,
        tenants_kept_away=1,
    )
    samples = scraped(
        Metrics(),
        Gauges(
            in_flight=7,
            held_up=3,
            lag_by_lane={"high": 0, "normal": 12},
            handed_back_by_lane={"low": 3},
            loop_lag_seconds=0.002,
            deployments={"local": health, "new": replace(health, state=State.HEALTHY, ttft_seconds=None)},
        ),
    )
    assert samples["in_flight"] == 7
    assert samples["calls_held_up"] == 3
    assert samples['lane_lag{lane="high"}'] == 0
    assert samples['lane_lag{lane="normal"}'] == 12
    assert samples['lane_handed_back{lane="low"}'] == 3
    assert samples["loop_lag_seconds"] == 0.002
    states = [samples[f'deployment_state{{deployment="local",state="{state.value}"}}'] for state in State]
    assert states == [0, 1, 0]
    assert samples['deployment_in_flight{deployment="local"}'] == 2
    assert samples['deployment_tenants_kept_away{deployment="local"}'] == 1
    assert samples['deployment_ttft_seconds{deployment="local"}'] == 0.25
    assert 'deployment_ttft_seconds{deployment="new"}' not in samples


def test_tenants_requests_and_reasons_are_not_scraped() -> None:
    """They would be labels without a bound, or tell what is nobody's business."""
    metrics = Metrics()
    counted(metrics, ANSWERED)
    page = metrics.render_prometheus(Gauges())
    assert not re.search("kitchen|recipes|r1|within 8 s", page)


# The text format


def test_label_values_are_escaped() -> None:
    """Backslash, quote and newline, in an order that does not escape twice."""
    family = Family("x", "gauge", "X.")
    family.add(1, label='a\\b"c\nd')
    assert family.render().splitlines()[2] == 'llm_routerd_x{label="a\\\\b\\"c\\nd"} 1'


def test_page_has_help_and_type_once_per_metric_and_ends_with_a_newline() -> None:
    """A metric without a sample is left out."""
    one, none = Family("one", "counter", "One."), Family("none", "gauge", "None.")
    one.add(1.5)
    one.add(2, a="b", c="d")
    assert render([one, none]) == (
        "# HELP llm_routerd_one One.\n"
        "# TYPE llm_routerd_one counter\n"
        "llm_routerd_one 1.5\n"
        'llm_routerd_one{a="b",c="d"} 2\n'
    )


def test_empty_histogram_is_scraped_as_zeros() -> None:
    """So that rates are known from the first scrape on."""
    family = Family("h", "histogram", "H.")
    family.add_histogram(Histogram((1.0,)))
    assert family.render().splitlines()[2:] == [
        'llm_routerd_h_bucket{le="1.0"} 0',
        'llm_routerd_h_bucket{le="+Inf"} 0',
        "llm_routerd_h_sum 0.0",
        "llm_routerd_h_count 0",
    ]


def test_sums_are_of_what_is_known_and_say_what_they_leave_out() -> None:
    """A call whose price is not known costs nobody 0."""
    metrics = Metrics()
    unpriced = replace(BROKEN, usage=Usage(prompt_tokens=10, completion_tokens=1), cost_usd=None)
    event = counted(metrics, replace(ANSWERED, attempts=(unpriced, GOOD), cost_usd=None))
    assert event["cost_usd"] is None
    assert event["cost_estimated"] is False
    assert event["usage_by_deployment"][unpriced.deployment]["unpriced_calls"] == 1
    assert event["tenant_totals"]["unpriced_calls"] == 1
    assert event["tenant_totals"]["cost_usd"] == GOOD.cost_usd
    page = metrics.render_prometheus(Gauges())
    assert f'llm_routerd_unpriced_calls_total{{deployment="{unpriced.deployment}"}} 1' in page
