from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_routerd.protocol.codes import AttemptCode
from llm_routerd.protocol.outcome import Rejection
from llm_routerd.routing.breaker import State
from llm_routerd.routing.health import Health, StateChange

if TYPE_CHECKING:
    from llm_routerd.routing.deployment_breaker import Permit

BOX = "box"
NO_FAILURE = [
    AttemptCode.REFUSAL,
    AttemptCode.LENGTH,
    AttemptCode.INVALID_JSON,
    AttemptCode.SCHEMA_VIOLATION,
    AttemptCode.CONTEXT_WINDOW,
]
TRANSIENT_FAILURE = [
    AttemptCode.RATE_LIMITED,
    AttemptCode.UPSTREAM,
    AttemptCode.TRUNCATED,
    AttemptCode.TIMEOUT,
    AttemptCode.FIRST_TOKEN_TIMEOUT,
    AttemptCode.IDLE_TIMEOUT,
]


def rejection(code: AttemptCode, *, retry_after_seconds: float | None = None, retryable: bool = True) -> Rejection:
    """A verdict, retryable unless told otherwise."""
    return Rejection(code=code, reason="r", retryable=retryable, retry_after_seconds=retry_after_seconds)


def admitted(health: Health, now: float = 0.0) -> Permit:
    """A permit, which must be granted."""
    permit = health.admit(BOX, now)
    assert permit is not None
    return permit


def fail(health: Health, code: AttemptCode, now: float = 0.0, *, times: int = 1) -> None:
    """So many calls, each of which fails."""
    for _ in range(times):
        health.rejected(admitted(health, now), rejection(code), now, 0.1)


@pytest.fixture
def changes() -> list[StateChange]:
    """The changes that were told."""
    return []


@pytest.fixture
def health(changes: list[StateChange]) -> Health:
    """Three failures, 10 s, at most 80 s."""
    return Health(
        rng=random.Random(1),
        cooldown_after=3,
        cooldown_first_seconds=10.0,
        cooldown_max_seconds=80.0,
        on_change=changes.append,
    )


def remaining(health: Health, now: float = 0.0) -> float:
    """Seconds of cooldown to come."""
    return health.states(now)[BOX].cooldown_seconds


@pytest.mark.parametrize("code", TRANSIENT_FAILURE)
def test_third_failure_in_a_row_makes_a_deployment_cool_down(health: Health, code: AttemptCode) -> None:
    """Two failures are forgiven, the third is not."""
    fail(health, code, times=2)
    assert health.available(BOX, 0.0)
    fail(health, code)
    assert not health.available(BOX, 0.0)
    assert 7.5 <= remaining(health) <= 10.0


@pytest.mark.parametrize(
    ("code", "failures"), [(AttemptCode.CONNECT, 2), (AttemptCode.AUTH, 1), (AttemptCode.NOT_FOUND, 1)]
)
def test_unreachable_or_misconfigured_deployment_cools_down_sooner(
    health: Health, code: AttemptCode, failures: int
) -> None:
    """A switched-off box costs two requests their connect timeout, a wrong key costs one call."""
    fail(health, code, times=failures - 1)
    assert health.available(BOX, 0.0)
    fail(health, code)
    assert not health.available(BOX, 0.0)


@pytest.mark.parametrize("code", NO_FAILURE)
def test_unacceptable_answer_is_no_failure_and_ends_a_row_of_them(health: Health, code: AttemptCode) -> None:
    """A deployment that answers badly works."""
    fail(health, AttemptCode.UPSTREAM, times=2)
    fail(health, code, times=5)
    fail(health, AttemptCode.UPSTREAM, times=2)
    assert health.available(BOX, 0.0)


@pytest.mark.parametrize(
    "verdict",
    [rejection(AttemptCode.CANCELLED), rejection(AttemptCode.UPSTREAM, retryable=False)],
    ids=["cancelled", "bad request"],
)
def test_what_shows_nothing_of_the_deployment_changes_nothing(health: Health, verdict: Rejection) -> None:
    """Neither does it count as a failure, nor does it end a row of them."""
    fail(health, AttemptCode.UPSTREAM, times=2)
    for _ in range(5):
        health.rejected(admitted(health), verdict, 0.0, 0.1)
    assert health.available(BOX, 0.0)
    fail(health, AttemptCode.UPSTREAM)
    assert not health.available(BOX, 0.0)


def test_success_ends_a_row_of_failures(health: Health) -> None:
    """Failures count in a row only."""
    fail(health, AttemptCode.UPSTREAM, times=2)
    health.succeeded(admitted(health))
    fail(health, AttemptCode.UPSTREAM, times=2)
    assert health.available(BOX, 0.0)


def test_exactly_one_probe_is_let_through_after_the_cooldown(health: Health) -> None:
    """The others wait for what it finds."""
    fail(health, AttemptCode.UPSTREAM, times=3)
    assert health.admit(BOX, 7.4) is None
    probe = health.admit(BOX, 10.0)
    assert probe is not None
    assert health.admit(BOX, 10.0) is None
    assert health.states(10.0)[BOX].state is State.PROBING
    health.succeeded(probe)
    assert health.admit(BOX, 10.0) is not None
    assert health.admit(BOX, 10.0) is not None


def test_abandoned_probe_leaves_its_place_to_the_next_call(health: Health) -> None:
    """A user's Ctrl-C does not lock a deployment away."""
    fail(health, AttemptCode.UPSTREAM, times=3)
    health.abandoned(admitted(health, 10.0))
    assert health.states(10.0)[BOX].state is State.COOLING
    assert health.admit(BOX, 10.0) is not None
    assert health.admit(BOX, 10.0) is None


def test_failed_probes_double_the_cooldown_up_to_the_bound(health: Health) -> None:
    """10, 20, 40, 80, 80 seconds, each shortened by at most a quarter, and 10 again after a success."""
    fail(health, AttemptCode.UPSTREAM, times=3)
    now = 0.0
    for longest in (10.0, 20.0, 40.0, 80.0, 80.0):
        assert longest * 0.75 <= remaining(health, now) <= longest
        now += remaining(health, now)
        fail(health, AttemptCode.UPSTREAM, now)
    now += remaining(health, now)
    health.succeeded(admitted(health, now))
    fail(health, AttemptCode.UPSTREAM, now, times=3)
    assert remaining(health, now) <= 10.0


def test_cooldowns_of_several_workers_do_not_end_in_step() -> None:
    """Else a server that comes back meets all their probes at once."""
    ends = set()
    for seed in range(10):
        health = Health(rng=random.Random(seed))
        fail(health, AttemptCode.AUTH)
        ends.add(remaining(health))
    assert len(ends) == 10


def test_first_token_of_the_probe_opens_the_deployment(health: Health) -> None:
    """Nobody waits for the end of a long answer."""
    fail(health, AttemptCode.UPSTREAM, times=3)
    probe = admitted(health, 10.0)
    health.first_token(probe, 0.2)
    assert health.admit(BOX, 10.0) is not None
    assert health.states(10.0)[BOX].state is State.HEALTHY


@pytest.mark.parametrize("first", [AttemptCode.AUTH, AttemptCode.UPSTREAM])
def test_probe_that_fails_after_its_first_token_doubles_the_cooldown(health: Health, first: AttemptCode) -> None:
    """A deployment that stalls in every answer does not get three more chances each time."""
    fail(health, first, times=1 if first is AttemptCode.AUTH else 3)
    probe = admitted(health, 10.0)
    health.first_token(probe, 0.2)
    health.rejected(probe, rejection(AttemptCode.IDLE_TIMEOUT), 11.0, 1.0)
    assert 15.0 <= remaining(health, 11.0) <= 20.0


def test_late_verdicts_of_calls_before_the_cooldown_change_nothing(health: Health) -> None:
    """64 calls that die with their server are one cooldown, and their answers do not end it."""
    early = [admitted(health) for _ in range(10)]
    fail(health, AttemptCode.CONNECT, times=2)
    before = remaining(health)
    for permit in early[:8]:
        health.rejected(permit, rejection(AttemptCode.TRUNCATED), 0.0, 1.0)
    health.succeeded(early[8])
    assert remaining(health) == before
    probe = admitted(health, 10.0)
    health.abandoned(early[9])
    assert health.admit(BOX, 10.0) is None
    health.rejected(probe, rejection(AttemptCode.CONNECT), 10.0, 1.0)
    assert 15.0 <= remaining(health, 10.0) <= 20.0
    assert health.states(10.0)[BOX].in_flight == 0


def test_retry_after_is_a_cooldown_without_a_probe(health: Health) -> None:
    """The server said when it is to be asked again, and then it is, by all."""
    health.rejected(admitted(health), rejection(AttemptCode.RATE_LIMITED, retry_after_seconds=3.0), 0.0, 0.1)
    assert not health.available(BOX, 2.9)
    assert health.states(2.9)[BOX].state is State.COOLING
    assert health.states(3.0)[BOX].state is State.HEALTHY
    assert health.admit(BOX, 3.0) is not None
    assert health.admit(BOX, 3.0) is not None


def test_retry_after_is_bounded_by_the_longest_cooldown(health: Health) -> None:
    """A server that says "tomorrow" is looked at before."""
    health.rejected(admitted(health), rejection(AttemptCode.UPSTREAM, retry_after_seconds=86_400.0), 0.0, 0.1)
    assert remaining(health) == 80.0


@pytest.mark.parametrize("senseless", [0.0, -5.0, float("nan")])
def test_senseless_retry_after_is_an_ordinary_failure(health: Health, senseless: float) -> None:
    """It counts towards the row."""
    for _ in range(3):
        assert health.available(BOX, 0.0)
        verdict = rejection(AttemptCode.RATE_LIMITED, retry_after_seconds=senseless)
        health.rejected(admitted(health), verdict, 0.0, 0.1)
    assert 7.5 <= remaining(health) <= 10.0


def test_shorter_retry_after_does_not_shorten_a_cooldown(health: Health, changes: list[StateChange]) -> None:
    """Two calls in flight are told 5 s and 1 s; the second is no change."""
    slow, quick = admitted(health), admitted(health)
    health.rejected(slow, rejection(AttemptCode.RATE_LIMITED, retry_after_seconds=5.0), 0.0, 0.1)
    health.rejected(quick, rejection(AttemptCode.RATE_LIMITED, retry_after_seconds=1.0), 0.0, 0.1)
    assert remaining(health) == 5.0
    assert len(changes) == 1


def test_probe_that_is_told_when_to_come_back_is_followed_by_another_probe(health: Health) -> None:
    """A Retry-After does not prove that the deployment works again."""
    fail(health, AttemptCode.UPSTREAM, times=3)
    probe = admitted(health, 10.0)
    health.rejected(probe, rejection(AttemptCode.RATE_LIMITED, retry_after_seconds=2.0), 10.0, 0.1)
    assert health.admit(BOX, 11.9) is None
    assert health.admit(BOX, 12.0) is not None
    assert health.admit(BOX, 12.0) is None


def test_finished_probe_does_not_end_a_later_retry_after(health: Health) -> None:
    """The probe's stream goes on while others are told to stay away."""
    fail(health, AttemptCode.UPSTREAM, times=3)
    probe = admitted(health, 10.0)
    health.first_token(probe, 0.2)
    health.rejected(admitted(health, 10.0), rejection(AttemptCode.RATE_LIMITED, retry_after_seconds=5.0), 10.0, 0.1)
    health.succeeded(probe)
    assert not health.available(BOX, 14.9)


def test_each_change_is_told_once(health: Health, changes: list[StateChange]) -> None:
    """Healthy, cooling, probing, cooling, probing, healthy; a failure more while it cools is no change."""
    fail(health, AttemptCode.CONNECT)
    late = admitted(health)
    fail(health, AttemptCode.CONNECT)
    health.rejected(late, rejection(AttemptCode.CONNECT), 0.0, 0.1)
    fail(health, AttemptCode.CONNECT, 10.0)
    health.succeeded(admitted(health, 30.0))
    assert [told.change.after for told in changes] == ["cooling", "probing", "cooling", "probing", "healthy"]
    assert [told.change.before for told in changes] == ["healthy", "cooling", "probing", "cooling", "probing"]
    assert changes[0].change.code is AttemptCode.CONNECT
    assert 7.5 <= changes[0].change.cooldown_seconds <= 10.0
    assert changes[-1].change.code is None


def test_end_of_a_retry_after_is_told_when_the_deployment_is_next_asked(
    health: Health, changes: list[StateChange]
) -> None:
    """There is no timer behind it."""
    health.rejected(admitted(health), rejection(AttemptCode.RATE_LIMITED, retry_after_seconds=3.0), 0.0, 0.1)
    admitted(health, 3.0)
    assert [told.change.after for told in changes] == ["cooling", "healthy"]


def test_score_weighs_the_average_time_to_first_token_with_calls_in_flight(health: Health) -> None:
    """Each call in flight makes the next one as much later again."""
    permit = admitted(health)
    health.first_token(permit, 0.4)
    assert health.score(BOX) == pytest.approx(0.8)
    health.succeeded(permit)
    assert health.score(BOX) == pytest.approx(0.4)
    permit = admitted(health)
    health.first_token(permit, 1.4)
    health.succeeded(permit)
    assert 0.4 < health.score(BOX) < 1.4


@pytest.mark.parametrize("code", [AttemptCode.TIMEOUT, AttemptCode.FIRST_TOKEN_TIMEOUT, AttemptCode.IDLE_TIMEOUT])
def test_timeout_is_a_sample_of_the_time_that_it_took(health: Health, code: AttemptCode) -> None:
    """A deployment that costs 8 s for nothing is not a fast one."""
    health.rejected(admitted(health), rejection(code), 8.0, 8.0)
    assert health.score(BOX) == pytest.approx(8.0)


def test_quick_failure_is_no_sample(health: Health) -> None:
    """A refused connection takes a millisecond and says nothing of the time to first token."""
    fail(health, AttemptCode.CONNECT)
    assert health.states(0.0)[BOX].ttft_seconds is None


def test_unmeasured_deployment_looks_faster_than_a_measured_one(health: Health) -> None:
    """So it gets measured."""
    health.first_token(admitted(health), 0.3)
    assert health.score("new") < health.score(BOX)


def test_retain_forgets_removed_deployments_even_with_calls_in_flight(health: Health) -> None:
    """The verdict of a forgotten call is harmless, and the name starts anew."""
    fail(health, AttemptCode.AUTH)
    probe = admitted(health, 10.0)
    health.retain({"other"})
    assert health.states(0.0) == {}
    health.rejected(probe, rejection(AttemptCode.AUTH), 10.0, 0.1)
    assert health.available(BOX, 0.0)
    assert health.states(0.0) == {}


class _Calls:
    """Random calls to one deployment and their verdicts."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.health = Health(rng=self.rng, cooldown_first_seconds=1.0, cooldown_max_seconds=8.0)
        self.open: list[Permit] = []
        self.now = 0.0

    def step(self) -> None:
        self.now += self.rng.uniform(0, 2)
        if self.rng.random() < 0.5:
            permit = self.health.admit(BOX, self.now)
            if permit is not None:
                self.open.append(permit)
        elif self.open:
            self.end(self.open.pop(self.rng.randrange(len(self.open))))

    def end(self, permit: Permit) -> None:
        if self.rng.random() < 0.3:
            self.health.first_token(permit, 0.1)
        match self.rng.randrange(6):
            case 0:
                self.health.succeeded(permit)
            case 1:
                self.health.abandoned(permit)
            case _:
                after = self.rng.choice([None, None, 0.5, 100.0])
                verdict = rejection(self.rng.choice(list(AttemptCode)), retry_after_seconds=after)
                self.health.rejected(permit, verdict, self.now, 0.1)


@given(seed=st.integers(0, 2**32), steps=st.integers(1, 60))
def test_no_history_locks_a_deployment_away(seed: int, steps: int) -> None:
    """Once every call has its verdict, none is in flight, and after the longest cooldown one is let through."""
    calls = _Calls(seed)
    for _ in range(steps):
        calls.step()
    while calls.open:
        calls.end(calls.open.pop())
    for state in calls.health.states(calls.now).values():
        assert state.in_flight == 0
        assert state.cooldown_seconds <= 8.0 + 1e-9
        assert state.state is not State.PROBING
    assert calls.health.admit(BOX, calls.now + 8.0) is not None


@pytest.mark.parametrize("code", [AttemptCode.CONNECT, AttemptCode.TRUNCATED, AttemptCode.TIMEOUT])
def test_machine_that_is_up_again_is_asked_at_once(code: AttemptCode) -> None:
    """By all, whatever it cooled down for; what began before it was off says nothing of it."""
    health = Health(rng=random.Random(1))
    old = [health.admit(BOX, 0.0, tenant) for tenant in ("t", "u", "v", "w")]
    for number, permit in enumerate(old[:3]):
        assert permit is not None
        health.rejected(permit, rejection(code), 1.0, 0.5, likeness=number)
    assert not health.available(BOX, 2.0, "t")
    health.restarted(BOX)
    health.restarted("nobody asked it yet")
    assert health.states(2.0)[BOX].state is State.HEALTHY
    assert all(health.available(BOX, 2.0, tenant) for tenant in ("t", "u", "x"))
    late = old[3]
    assert late is not None
    health.rejected(late, rejection(code), 2.0, 0.5)
    assert health.states(2.0)[BOX].failures == 0
    for tenant in ("t", "u"):
        permit = health.admit(BOX, 3.0, tenant)
        assert permit is not None
        health.rejected(permit, rejection(AttemptCode.CONNECT), 3.0, 0.5)
    assert not health.available(BOX, 3.5, "t"), "it may go down again"


def test_machine_that_is_up_again_keeps_what_its_server_asked_for() -> None:
    """A Retry-After is a wish of its own, and no guess of ours."""
    health = Health(rng=random.Random(1))
    permit = health.admit(BOX, 0.0)
    assert permit is not None
    health.rejected(permit, rejection(AttemptCode.RATE_LIMITED, retry_after_seconds=30.0), 0.0, 0.5)
    health.restarted(BOX)
    assert not health.available(BOX, 29.0)
    assert health.available(BOX, 31.0)
