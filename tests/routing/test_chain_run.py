from __future__ import annotations

import random

import pytest
from msgspec.structs import replace

from llm_routerd.config.tree import Deployment
from llm_routerd.protocol.codes import AttemptCode, ErrorCode
from llm_routerd.protocol.outcome import Rejection
from llm_routerd.routing.eligibility import Need
from llm_routerd.routing.health import Health
from tests.routing.routes import HAIKU, LOCAL, SONNET, config, start

NEVER_RETRIED = [
    AttemptCode.AUTH,
    AttemptCode.NOT_FOUND,
    AttemptCode.CONTEXT_WINDOW,
    AttemptCode.LENGTH,
    AttemptCode.REFUSAL,
    AttemptCode.INVALID_JSON,
    AttemptCode.SCHEMA_VIOLATION,
    AttemptCode.CANCELLED,
]
RETRIED = [
    AttemptCode.CONNECT,
    AttemptCode.RATE_LIMITED,
    AttemptCode.UPSTREAM,
    AttemptCode.TRUNCATED,
    AttemptCode.TIMEOUT,
    AttemptCode.FIRST_TOKEN_TIMEOUT,
    AttemptCode.IDLE_TIMEOUT,
]


# What may be asked


def test_disabled_deployments_are_passed_over_without_a_record() -> None:
    """A key that is missing is a matter of the configuration, not of this request."""
    setting = start(config(replace(HAIKU, key_missing="ANTHROPIC_API_KEY"), LOCAL))
    decision = setting.ask()
    assert decision.deployment is LOCAL
    assert decision.passed == ()


def test_chain_with_nothing_to_ask_ends_at_once_and_says_why() -> None:
    """One reason for several deployments is said once."""
    tree = config(
        replace(HAIKU, key_missing="ANTHROPIC_API_KEY"),
        replace(SONNET, key_missing="ANTHROPIC_API_KEY"),
        replace(LOCAL, key_missing="LOCAL_KEY"),
    )
    end = start(tree).end()
    assert end.code is ErrorCode.CHAIN_EXHAUSTED
    assert end.message == "haiku, sonnet: no ANTHROPIC_API_KEY; local: no LOCAL_KEY"


def test_local_only_ends_rather_than_asking_a_cloud() -> None:
    """Neither the chain's own nor its fallback's."""
    tree = config(LOCAL, HAIKU, SONNET, c={"deployments": ("local", "haiku"), "fallback": ("d",)}, d={})
    setting = start(tree, need=Need(local_only=True))
    assert setting.ask().deployment is LOCAL
    setting.reject(AttemptCode.TIMEOUT)
    end = setting.end()
    assert end.code is ErrorCode.LOCAL_EXHAUSTED
    assert end.message == "haiku, sonnet: not local; local: rejected (timeout)"


# Order


def test_ordered_chain_asks_each_deployment_in_order() -> None:
    """Once each."""
    assert start(config(LOCAL, HAIKU, SONNET)).asked() == ["local", "haiku", "sonnet", "chain_exhausted"]


def test_deployment_named_twice_is_asked_once() -> None:
    """A slip in the configuration costs nothing."""
    assert start(config(LOCAL, c={"deployments": ("local", "local")})).asked() == ["local", "chain_exhausted"]


def test_fallbacks_are_tried_depth_first_and_each_deployment_once() -> None:
    """`b`'s own fallback comes before `c`'s second one."""
    names = "vwxyz"
    tree = config(
        *[Deployment(name=name, model=f"openai/{name}") for name in names],
        a={"deployments": ("v",), "fallback": ("b", "d")},
        b={"deployments": ("w", "v"), "fallback": ("c",)},
        c={"deployments": ("x",)},
        d={"deployments": ("y", "x", "z")},
    )
    assert start(tree, "a").asked() == ["v", "w", "x", "y", "z", "chain_exhausted"]


def test_cycle_of_fallbacks_ends() -> None:
    """The configuration forbids it; the machine does not rely on that."""
    tree = config(
        LOCAL,
        HAIKU,
        a={"deployments": ("local",), "fallback": ("b", "a")},
        b={"deployments": ("haiku",), "fallback": ("a", "b")},
    )
    assert start(tree, "a").asked() == ["local", "haiku", "chain_exhausted"]


def test_message_of_the_end_tells_each_deployments_fate() -> None:
    """In the order in which they were settled."""
    setting = start(config(LOCAL, HAIKU))
    setting.ask()
    setting.reject(AttemptCode.TIMEOUT)
    setting.ask()
    setting.reject(AttemptCode.INVALID_JSON)
    assert setting.end().message == "local: rejected (timeout); haiku: invalid (invalid_json)"


# Retries


@pytest.mark.parametrize("code", RETRIED)
def test_failure_that_may_pass_is_retried_after_a_backoff(code: AttemptCode) -> None:
    """The same deployment first, as `ordered` promises."""
    setting = start(config(LOCAL, HAIKU, c={"retries": 1}))
    assert setting.ask().wait_seconds == 0
    setting.reject(code)
    again = setting.ask()
    assert again.deployment is LOCAL
    assert 0 < again.wait_seconds <= 0.5
    assert again.repair is None
    setting.reject(code)
    assert setting.ask().deployment is HAIKU


@pytest.mark.parametrize("code", NEVER_RETRIED)
def test_failure_that_stays_is_not_retried(code: AttemptCode) -> None:
    """Whatever the backend thinks of it."""
    setting = start(config(LOCAL, HAIKU, c={"retries": 3}))
    setting.ask()
    setting.reject(code)
    assert setting.ask().deployment is HAIKU


def test_failure_that_the_backend_calls_final_is_not_retried() -> None:
    """A 400 comes back as a 400."""
    setting = start(config(LOCAL, HAIKU, c={"retries": 3}))
    setting.ask()
    setting.run.rejected(Rejection(code=AttemptCode.UPSTREAM, reason="400"), 0.0, 0.1)
    assert setting.ask().deployment is HAIKU


def test_backoff_grows_up_to_a_bound() -> None:
    """Full jitter: anything from nothing to the bound of its turn."""
    waits: list[list[float]] = [[] for _ in range(7)]
    for seed in range(50):
        health = Health(rng=random.Random(seed), cooldown_after=100)
        setting = start(config(HAIKU, c={"retries": 7}), seed=seed, health=health)
        setting.ask()
        for turn in waits:
            setting.reject(AttemptCode.UPSTREAM)
            turn.append(setting.ask().wait_seconds)
    for turn, bound in zip(waits, [0.5, 1, 2, 4, 8, 8, 8], strict=True):
        assert bound * 0.8 < max(turn) <= bound
        assert min(turn) < bound * 0.2


def test_retry_waits_as_long_as_the_server_asks() -> None:
    """Never shorter, and at the end of it the deployment may be asked."""
    setting = start(config(HAIKU, SONNET, c={"retries": 1}), deadline=30.0)
    setting.ask()
    setting.reject(AttemptCode.RATE_LIMITED, 1.0, after=5.0)
    again = setting.ask(1.0)
    assert again.deployment is HAIKU
    assert 5.0 <= again.wait_seconds <= 5.5


@pytest.mark.parametrize(("deadline", "after"), [(10.0, 6.0), (None, 61.0), (1000.0, 61.0), (10.0, float("inf"))])
def test_retry_that_would_wait_too_long_is_not_made(deadline: float | None, after: float) -> None:
    """The next deployment is asked at once instead."""
    setting = start(config(HAIKU, SONNET, c={"retries": 1}), deadline=deadline)
    setting.ask()
    setting.reject(AttemptCode.RATE_LIMITED, after=after)
    decision = setting.ask()
    assert decision.deployment is SONNET
    assert decision.wait_seconds == 0


def test_retry_is_not_made_once_the_deployment_cools_down() -> None:
    """Two failures to connect are enough; it has its line in `attempts` already."""
    setting = start(config(LOCAL, HAIKU, c={"retries": 5}))
    for _ in range(2):
        assert setting.ask().deployment is LOCAL
        setting.reject(AttemptCode.CONNECT)
    decision = setting.ask()
    assert decision.deployment is HAIKU
    assert decision.passed == ()


# Repair


@pytest.mark.parametrize("code", [AttemptCode.INVALID_JSON, AttemptCode.SCHEMA_VIOLATION])
@pytest.mark.parametrize("strategy", ["ordered", "latency"])
def test_invalid_answer_is_repaired_by_the_same_deployment(code: AttemptCode, strategy: str) -> None:
    """Once per `repair`, at once, with the error."""
    setting = start(config(LOCAL, HAIKU, c={"repair": 1, "strategy": strategy}))
    first = setting.ask()
    setting.reject(code)
    repair = setting.ask()
    assert repair.deployment is first.deployment
    assert repair.wait_seconds == 0
    assert repair.repair == f"why {code}"
    setting.reject(code)
    other = setting.ask()
    assert other.deployment is not first.deployment
    assert other.repair is None


def test_retry_of_a_repair_still_carries_the_error() -> None:
    """A dropped connection does not turn it back into the first question."""
    setting = start(config(LOCAL, c={"repair": 1, "retries": 1}))
    setting.ask()
    setting.reject(AttemptCode.INVALID_JSON)
    setting.ask()
    setting.reject(AttemptCode.TRUNCATED)
    assert setting.ask().repair == "why invalid_json"


# Time


def test_deadline_that_passed_before_anything_was_asked_is_the_end() -> None:
    """Its own code, and it says so."""
    end = start(config(LOCAL), deadline=5.0).end(5.0)
    assert end.code is ErrorCode.DEADLINE_EXCEEDED
    assert end.message == "the deadline passed before any deployment was asked"


def test_deadline_beats_retry_repair_and_fallback() -> None:
    """Nothing more is asked."""
    tree = config(LOCAL, HAIKU, c={"deployments": ("local",), "retries": 1, "repair": 1, "fallback": ("d",)}, d={})
    setting = start(tree, deadline=5.0, need=Need(local_only=True))
    setting.ask(1.0)
    setting.reject(AttemptCode.TIMEOUT, 5.0)
    end = setting.end(5.0)
    assert end.code is ErrorCode.DEADLINE_EXCEEDED
    assert end.message == "the deadline has passed; local: rejected (timeout)"
