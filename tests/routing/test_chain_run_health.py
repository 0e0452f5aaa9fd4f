from __future__ import annotations

import random
from collections import Counter

import pytest

from llm_routerd.config.tree import Config, Deployment
from llm_routerd.protocol.codes import AttemptCode, ErrorCode
from llm_routerd.protocol.outcome import Outcome
from llm_routerd.routing.decisions import Ask, Examine, GiveUp
from llm_routerd.routing.eligibility import Need
from llm_routerd.routing.health import Health
from tests.routing.routes import HAIKU, LOCAL, config, cool, rejection, start

# Cooldown


def test_cooling_deployment_is_passed_over_with_a_record() -> None:
    """Code `cooldown`, no latency, before the attempt that it made way for."""
    health = Health(rng=random.Random(2))
    cool(health, "local")
    decision = start(config(LOCAL, HAIKU), health=health).ask()
    assert decision.deployment is HAIKU
    (record,) = decision.passed
    assert (record.deployment, record.model) == ("local", LOCAL.model)
    assert (record.outcome, record.code, record.latency_ms) == (Outcome.REJECTED, AttemptCode.COOLDOWN, 0)
    assert record.reason is not None
    assert record.reason.startswith("cooling down (auth), ")


def test_lone_deployment_that_is_switched_off_costs_later_requests_nothing() -> None:
    """The first two pay the timeout, one causes a probe; the next ones end at once, and are told why."""
    health = Health(rng=random.Random(2))
    for _ in range(2):
        assert start(config(LOCAL), health=health).asked(AttemptCode.CONNECT) == ["local", "chain_exhausted"]
    first = start(config(LOCAL), health=health, need=Need(local_only=True))
    assert isinstance(first.run.decide(0.0), Examine)
    first.run.examined(LOCAL, answers=False)
    assert first.end().code is ErrorCode.LOCAL_EXHAUSTED
    end = start(config(LOCAL), health=health, need=Need(local_only=True)).end()
    assert end.code is ErrorCode.LOCAL_EXHAUSTED
    assert end.message.startswith("local: cooling down (connect), ")
    assert [record.code for record in end.passed] == [AttemptCode.COOLDOWN]


def test_one_request_probes_after_the_cooldown_while_the_others_pass() -> None:
    """And when it was cancelled, the next one does."""
    health = Health(rng=random.Random(2), cooldown_first_seconds=5.0)
    cool(health, "local")
    probing = start(config(LOCAL, HAIKU), health=health)
    assert probing.ask(5.0).deployment is LOCAL
    other = start(config(LOCAL, HAIKU), health=health).ask(5.0)
    assert other.deployment is HAIKU
    assert other.passed[0].reason == "cooling down (auth), being probed"
    probing.run.abandoned()
    assert start(config(LOCAL, HAIKU), health=health).ask(5.0).deployment is LOCAL


def test_deployment_that_was_passed_over_is_looked_at_again_by_a_fallback() -> None:
    """It is asked when its cooldown is over by then, and recorded once when it is not."""
    tree = config(LOCAL, HAIKU, c={"fallback": ("d",)}, d={"deployments": ("local",)})
    for later, expected in [(60.0, "local"), (0.0, None)]:
        health = Health(rng=random.Random(2))
        cool(health, "local")
        setting = start(tree, health=health)
        assert len(setting.ask().passed) == 1
        setting.reject(AttemptCode.LENGTH)
        decision = setting.run.decide(later)
        assert isinstance(decision, Ask | GiveUp)
        assert decision.passed == ()
        assert (decision.deployment.name if isinstance(decision, Ask) else None) == expected


def test_deployment_that_was_passed_over_is_looked_at_again_before_the_end() -> None:
    """The others took their time to fail, and its cooldown is over."""
    health = Health(rng=random.Random(2))
    cool(health, "local")
    setting = start(config(LOCAL, HAIKU), health=health)
    assert setting.ask().deployment is HAIKU
    setting.reject(AttemptCode.TIMEOUT, 30.0)
    decision = setting.ask(30.0)
    assert decision.deployment is LOCAL
    assert decision.passed == ()
    setting.reject(AttemptCode.TIMEOUT, 60.0)
    assert setting.end(60.0).message == "local, haiku: rejected (timeout)"


def test_call_that_never_began_does_not_count_against_its_deployment() -> None:
    """It waited for a slot in vain: we are too busy, the deployment is not ill."""
    health = Health(rng=random.Random(2))
    for _ in range(10):
        setting = start(config(LOCAL), health=health)
        setting.ask()
        setting.run.rejected(rejection(AttemptCode.TIMEOUT), 0.0, None)
    assert health.available("local", 0.0)
    assert health.states(0.0)["local"].ttft_seconds is None


@pytest.mark.parametrize("code", [AttemptCode.TIMEOUT, AttemptCode.FIRST_TOKEN_TIMEOUT, AttemptCode.CONNECT])
def test_hasty_requests_do_not_count_against_a_deployment(code: AttemptCode) -> None:
    """Their own deadline broke them off after a tenth of a second."""
    health = Health(rng=random.Random(2))
    for _ in range(10):
        setting = start(config(LOCAL), health=health, deadline=0.1)
        setting.ask()
        setting.run.rejected(rejection(code), 0.1, 0.1)
    assert health.available("local", 0.1)


@pytest.mark.parametrize(("elapsed_seconds", "deadline"), [(20.0, 20.0), (0.1, 20.0), (0.1, None)])
def test_timeout_that_the_deadline_does_not_explain_counts(elapsed_seconds: float, deadline: float | None) -> None:
    """It had time enough, or was broken off long before the deadline."""
    health = Health(rng=random.Random(2))
    for _ in range(3):
        setting = start(config(LOCAL), health=health, deadline=deadline)
        setting.ask()
        setting.run.rejected(rejection(AttemptCode.TIMEOUT), elapsed_seconds, elapsed_seconds)
    assert not health.available("local", elapsed_seconds)


# Verdicts


@pytest.mark.parametrize("verdict", ["answered", "abandoned"])
def test_each_verdict_gives_the_permit_back(verdict: str) -> None:
    """Nothing stays in flight."""
    setting = start(config(LOCAL))
    setting.ask()
    setting.run.first_token(0.3)
    assert setting.health.states(0.0)["local"].in_flight == 1
    getattr(setting.run, verdict)()
    assert setting.health.states(0.0)["local"].in_flight == 0
    assert setting.health.states(0.0)["local"].ttft_seconds == 0.3


def test_decision_without_a_verdict_on_the_last_try_is_a_bug() -> None:
    """Else a permit would be lost."""
    setting = start(config(LOCAL, HAIKU))
    setting.ask()
    with pytest.raises(RuntimeError, match="verdict"):
        setting.run.decide(0.0)


def test_second_verdict_is_a_bug() -> None:
    """Else a call would end twice."""
    setting = start(config(LOCAL))
    setting.ask()
    setting.run.answered()
    with pytest.raises(RuntimeError, match="Ask"):
        setting.run.abandoned()


# Latency

QUICK = Deployment(name="quick", model="openai/q")
SLOW = Deployment(name="slow", model="openai/s")


def measured(**ttft_seconds: float) -> Health:
    """Deployments with one measured call each."""
    health = Health(rng=random.Random(2))
    for name, seconds in ttft_seconds.items():
        permit = health.admit(name, 0.0)
        assert permit is not None
        health.first_token(permit, seconds)
        health.succeeded(permit)
    return health


def first_choices(tree: Config, health: Health, runs: int = 400) -> Counter[str]:
    """Whom so many requests ask first, one after the other."""
    counter: Counter[str] = Counter()
    for seed in range(runs):
        setting = start(tree, health=health, seed=seed)
        counter[setting.ask().deployment.name] += 1
        setting.run.abandoned()
    return counter


def test_latency_prefers_the_quicker_and_now_and_then_explores() -> None:
    """Whatever the order in the configuration."""
    tree = config(SLOW, QUICK, c={"strategy": "latency"})
    choices = first_choices(tree, measured(quick=0.2, slow=2.0))
    assert choices["quick"] > 370
    assert 0 < choices["slow"] < 30


def test_latency_asks_unmeasured_deployments() -> None:
    """Else they would never be measured."""
    choices = first_choices(config(QUICK, SLOW, c={"strategy": "latency"}), measured(quick=0.2))
    assert choices["slow"] > 300


def test_latency_counts_the_calls_in_flight() -> None:
    """The quicker one with many calls loses against the slower one with none."""
    health = measured(quick=0.2, slow=0.5)
    for _ in range(3):
        health.admit("quick", 0.0)
    choices = first_choices(config(QUICK, SLOW, c={"strategy": "latency"}), health)
    assert choices["slow"] > 370


def test_latency_with_three_never_prefers_the_slowest() -> None:
    """Two are drawn, and it loses against either."""
    tree = config(SLOW, QUICK, HAIKU, c={"strategy": "latency"})
    choices = first_choices(tree, measured(quick=0.2, haiku=0.3, slow=2.0))
    assert choices["quick"] > choices["haiku"] > choices["slow"]


def test_latency_does_not_choose_what_cools_down() -> None:
    """However quick it was; it is recorded when nothing else is left."""
    health = measured(quick=0.2, slow=2.0)
    cool(health, "quick")
    setting = start(config(QUICK, SLOW, c={"strategy": "latency"}), health=health)
    decision = setting.ask()
    assert decision.deployment is SLOW
    assert decision.passed == ()
    setting.reject(AttemptCode.LENGTH)
    assert [record.deployment for record in setting.end().passed] == ["quick"]


def test_latency_retries_elsewhere_before_it_comes_back() -> None:
    """Two retries are two more calls to each, in rounds."""
    health = Health(rng=random.Random(2), cooldown_after=100)
    setting = start(config(QUICK, SLOW, c={"strategy": "latency", "retries": 2}), health=health)
    tries: list[Ask] = []
    while isinstance(decision := setting.run.decide(0.0), Ask):
        tries.append(decision)
        setting.reject()
    names = [decision.deployment.name for decision in tries]
    assert [sorted(names[i : i + 2]) for i in (0, 2, 4)] == [["quick", "slow"]] * 3
    assert len(names) == 6
    assert [decision.wait_seconds > 0 for decision in tries] == [False, False, True, True, True, True]


def test_latency_does_not_come_back_where_a_retry_is_no_use() -> None:
    """A refusal is final, a dropped connection is not."""
    setting = start(config(QUICK, SLOW, c={"strategy": "latency", "retries": 1}))
    first = setting.ask()
    setting.reject(AttemptCode.REFUSAL)
    second = setting.ask()
    setting.reject(AttemptCode.TRUNCATED)
    third = setting.ask()
    assert first.deployment is not second.deployment
    assert third.deployment is second.deployment
