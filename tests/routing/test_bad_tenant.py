"""One tenant whose requests fail, whatever the cause, takes nothing from the others; a server that fails does."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from llm_routerd.protocol.codes import AttemptCode as Code
from llm_routerd.protocol.codes import ErrorCode
from llm_routerd.routing.breaker import State
from llm_routerd.routing.chain_run import ChainRun
from llm_routerd.routing.decisions import Ask, Examine, GiveUp
from llm_routerd.routing.eligibility import Need
from llm_routerd.routing.health import Health, StateChange
from tests.routing.routes import HAIKU, LOCAL, cool, rejection, start
from tests.routing.routes import config as tree

if TYPE_CHECKING:
    from collections.abc import Callable

BAD = "t0"
TENANTS = [f"t{number}" for number in range(10)]
OTHERS = TENANTS[1:]
Fault = tuple[Code, float]  # how a call fails, and after how many seconds


@dataclass
class House:
    """Ten tenants on one local deployment and one clock; each event is a step of one request."""

    rng: random.Random
    fault_of: Callable[[str, float], Fault | None]
    message_of: Callable[[str, int], str]
    chain: dict[str, object] = field(default_factory=dict)
    need: Need = field(default_factory=Need)
    has_cloud: bool = False
    is_nameless: bool = False
    now: float = 0.0
    answers: Counter[tuple[str, str]] = field(default_factory=Counter)  # by tenant and deployment
    ends: Counter[tuple[str, str]] = field(default_factory=Counter)  # by tenant and error code
    calls: Counter[str] = field(default_factory=Counter)  # to the local deployment, by tenant

    def __post_init__(self) -> None:
        self.health = Health(rng=self.rng)
        self.config = tree(*((LOCAL, HAIKU) if self.has_cloud else (LOCAL,)), c=self.chain)
        self._numbers = itertools.count()
        self._coming: list[tuple[float, int, Callable[[], None]]] = []

    def live(self, until: float, *, interval: float = 1.0) -> None:
        """Each tenant asks every so many seconds, the bad one ten times as often."""
        for tenant in TENANTS:
            at = self.now
            while (at := at + self.rng.expovariate((10 if tenant == BAD else 1) / interval)) < until:
                self._at(at, lambda tenant=tenant: self._begin(tenant))  # type: ignore[misc]
        while self._coming:
            self.now, _, step = heapq.heappop(self._coming)
            step()
        assert all(state.in_flight == 0 for state in self.health.states(self.now).values())

    def _at(self, when: float, step: Callable[[], None]) -> None:
        heapq.heappush(self._coming, (when, next(self._numbers), step))

    def _begin(self, tenant: str) -> None:
        run = ChainRun(
            config=self.config,
            chain=self.config.chains["c"],
            health=self.health,
            need=self.need,
            deadline=None,
            rng=self.rng,
            tenant=None if self.is_nameless else tenant,
            messages=({"role": "user", "content": self.message_of(tenant, next(self._numbers))},),
        )
        self._go_on(run, tenant)

    def _go_on(self, run: ChainRun, tenant: str) -> None:
        match run.decide(self.now):
            case GiveUp(code=code):
                self.ends[tenant, code] += 1
            case Examine(deployment=deployment):
                answers = self.fault_of("", self.now) is None
                run.examined(deployment, answers=answers)
                self._go_on(run, tenant)
            case Ask(deployment=deployment, wait_seconds=wait):
                fault = None if deployment is HAIKU else self.fault_of(tenant, self.now)
                self.calls[tenant] += deployment is LOCAL
                began = self.now + wait
                seconds = self.rng.uniform(0.1, 2.0) if fault is None else fault[1]
                self._at(began + seconds, lambda: self._end(run, tenant, deployment.name, fault))

    def _end(self, run: ChainRun, tenant: str, deployment: str, fault: Fault | None) -> None:
        if fault is None:
            self.answers[tenant, deployment] += 1
            run.answered()
        else:
            run.rejected(rejection(fault[0]), self.now, fault[1])
            self._go_on(run, tenant)


QUICK = (Code.UPSTREAM, 0.01)
SLOW = (Code.TIMEOUT, 8.0)
CUT = (Code.TRUNCATED, 3.0)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("chain", [{}, {"retries": 2}, {"strategy": "latency", "retries": 1}])
@pytest.mark.parametrize("faults", [[QUICK], [SLOW], [CUT], [QUICK, SLOW, CUT, None]])
@pytest.mark.parametrize("local_only", [False, True])
@pytest.mark.parametrize("same", [False, True])
def test_bad_tenant_takes_no_answer_from_any_other(
    faults: list[Fault | None], chain: dict[str, object], seed: int, *, local_only: bool, same: bool
) -> None:
    """Be its messages all alike or none, be its calls refused at once or ended by their timeout."""
    rng = random.Random(seed)
    house = House(
        rng=rng,
        fault_of=lambda tenant, _: rng.choice(faults) if tenant == BAD else None,
        message_of=lambda _, number: "alike" if same else str(number),
        chain=chain,
        need=Need(local_only=local_only),
    )
    house.live(120.0)
    assert not any(tenant != BAD for tenant, _ in house.ends), house.ends
    assert all(house.answers[tenant, "local"] > 50 for tenant in OTHERS)


def test_bad_tenant_shuts_itself_out() -> None:
    """Its requests do not cost the local machine a call each."""
    house = House(
        rng=random.Random(1),
        fault_of=lambda tenant, _: SLOW if tenant == BAD else None,
        message_of=lambda _, number: str(number),
        has_cloud=True,
    )
    house.live(300.0)
    asked = house.answers[BAD, "haiku"]
    assert asked > 2000
    assert house.calls[BAD] < asked / 10
    assert not any(house.answers[tenant, "haiku"] for tenant in OTHERS)


@pytest.mark.parametrize("fault", [SLOW, QUICK, (Code.CONNECT, 0.01)])
@pytest.mark.parametrize("whom", ["all", "one", "nameless"])
def test_server_that_fails_is_left_alone(fault: Fault, whom: str) -> None:
    """By ten tenants, by its only one, by those that name none; and is asked again when it has recovered."""

    def fault_of(tenant: str, now: float) -> Fault | None:
        return fault if 60.0 <= now < 180.0 and (whom != "one" or tenant == BAD) else None

    house = House(
        rng=random.Random(1),
        fault_of=fault_of,
        message_of=lambda _, number: str(number),
        has_cloud=True,
        is_nameless=whom == "nameless",
    )
    house.live(60.0)
    before = house.calls.copy()
    house.live(180.0)
    called = house.calls[BAD] - before[BAD]
    assert called < 120, called  # of 1200
    if whom != "one":
        assert sum((house.calls - before).values()) < 240  # of 2280
    house.live(300.0)
    after = house.answers[BAD, "local"]
    house.live(360.0)
    assert house.answers[BAD, "local"] - after > 400  # of 600


def failed(
    health: Health, tenant: str, code: Code = Code.TIMEOUT, now: float = 0.0, likeness: int | None = None
) -> None:
    """A call of the tenant's fails."""
    permit = health.admit(LOCAL.name, now, tenant)
    assert permit is not None
    health.rejected(permit, rejection(code), now, 1.0, likeness)


def test_same_messages_count_once() -> None:
    """Three times the same request are one witness; three others are three."""
    health = Health(rng=random.Random(1))
    for _ in range(5):
        failed(health, "a", likeness=1)
    assert health.available(LOCAL.name, 0.0, "a")
    failed(health, "a", likeness=2)
    failed(health, "a", likeness=3)
    assert not health.available(LOCAL.name, 0.0, "a")
    assert health.available(LOCAL.name, 0.0, "b")
    assert health.states(0.0)[LOCAL.name].tenants_kept_away == 1
    assert health.states(0.0)[LOCAL.name].state is State.HEALTHY


def test_three_tenants_take_it_away_from_everyone() -> None:
    """And what they were told of it alone is forgotten."""
    changes: list[StateChange] = []
    health = Health(rng=random.Random(1), on_change=changes.append)
    for tenant in ("a", "a", "a", "b"):
        failed(health, tenant)
    assert health.available(LOCAL.name, 0.0, "c")
    failed(health, "c")
    assert not health.available(LOCAL.name, 0.0, "d")
    assert [(told.tenant, told.change.after) for told in changes] == [("a", State.COOLING), (None, State.COOLING)]
    probe = health.admit(LOCAL.name, 5.0, "a")
    assert probe is not None
    health.succeeded(probe)
    assert all(health.available(LOCAL.name, 5.0, tenant) for tenant in "abcd")


@pytest.mark.parametrize("code", [Code.CONNECT, Code.AUTH, Code.NOT_FOUND, Code.RATE_LIMITED])
def test_what_no_message_brings_about_counts_whoever_asks(code: Code) -> None:
    """One tenant is witness enough of a server that is not there."""
    health = Health(rng=random.Random(1))
    for _ in range(3):
        if health.available(LOCAL.name, 0.0, "a"):
            failed(health, "a", code, likeness=1)
    assert not health.available(LOCAL.name, 0.0, "b")


def test_tenant_that_has_failed_before_does_not_prolong_the_cooldown_of_all() -> None:
    """Its call leaves the probe's place to the next, and shuts out itself."""
    health = Health(rng=random.Random(1))
    for tenant in "abc":
        failed(health, tenant)
    failed(health, "a", now=5.0)
    assert not health.available(LOCAL.name, 5.0, "a")
    probe = health.admit(LOCAL.name, 5.0, "d")
    assert probe is not None
    health.succeeded(probe)
    assert health.available(LOCAL.name, 5.0, "e")


def test_tenants_with_failures_of_their_own_are_bounded() -> None:
    """A caller who makes up names does not fill the memory."""
    health = Health(rng=random.Random(1), cooldown_after=10_000)
    for number in range(1000):
        failed(health, str(number))
    (record,) = health._records.values()
    assert record.breaker.tenants <= 256


def test_calls_that_fail_together_make_one_cooldown_of_their_tenant() -> None:
    """Those that were under way before it say nothing of the time after it, whatever the tenant had then."""
    health = Health(rng=random.Random(1))
    permits = [health.admit(LOCAL.name, 0.0, "a") for _ in range(9)]
    for permit in permits:
        assert permit is not None
        health.rejected(permit, rejection(Code.TIMEOUT), 1.0, 1.0)
    assert health.available(LOCAL.name, 1.0, "b")
    assert 0 < health.cooldown(LOCAL.name, 1.0, "a")[1] <= 5


# A probe of our own


def test_local_only_request_is_sent_away_only_after_a_probe() -> None:
    """Which may end the cooldown; where it does not, the next request is told at once."""
    local_only = Need(local_only=True)
    for answers in (True, False):
        health = Health(rng=random.Random(1))
        cool(health, "local")
        setting = start(tree(LOCAL, HAIKU), need=local_only, health=health)
        decision = setting.run.decide(0.0)
        assert isinstance(decision, Examine)
        assert decision.deployment is LOCAL
        setting.run.examined(LOCAL, answers=answers)
        if answers:
            assert setting.ask().deployment is LOCAL
            assert health.available("local", 0.0)
        else:
            assert setting.end().code is ErrorCode.LOCAL_EXHAUSTED
            assert start(tree(LOCAL), need=local_only, health=health).end().code is ErrorCode.LOCAL_EXHAUSTED


def test_server_that_said_when_to_come_back_is_not_probed() -> None:
    """It has told us all there is to know."""
    health = Health(rng=random.Random(1))
    permit = health.admit("local", 0.0)
    assert permit is not None
    health.rejected(permit, rejection(Code.RATE_LIMITED, after=20.0), 0.0, 0.1)
    assert start(tree(LOCAL), need=Need(local_only=True), health=health).end().code is ErrorCode.LOCAL_EXHAUSTED


def test_request_that_may_go_elsewhere_causes_no_probe() -> None:
    """A cloud deployment that cools down is not asked: it would cost money."""
    health = Health(rng=random.Random(1))
    cool(health, "local")
    assert start(tree(LOCAL), health=health).end().code is ErrorCode.CHAIN_EXHAUSTED


@pytest.mark.parametrize("tenants", [1, 2, 10, 50])
def test_dead_server_is_asked_as_rarely_by_many_as_by_few(tenants: int) -> None:
    """Some two calls a minute, once the cooldowns have grown."""
    health, calls = Health(rng=random.Random(1)), 0
    for second in range(3600):
        for tenant in range(tenants):
            permit = health.admit(LOCAL.name, float(second), str(tenant))
            if permit is not None:
                calls += 1
                health.rejected(permit, rejection(Code.UPSTREAM), float(second), 0.01)
    assert calls < 250, calls


def test_one_tenant_does_not_prolong_what_all_have_suffered() -> None:
    """After an outage that all have seen, the bad one's calls come first each time, and the others go on at once."""
    health = Health(rng=random.Random(1))
    for tenant in "abc":
        failed(health, tenant)
    for second in (5.0, 6.0, 7.0):
        permit = health.admit(LOCAL.name, second, "bad")
        if permit is not None:
            health.rejected(permit, rejection(Code.UPSTREAM), second, 0.01)
        assert health.available(LOCAL.name, second, "a")
