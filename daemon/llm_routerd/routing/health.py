"""How the deployments are doing: cooldowns, calls in flight, time to first token; shared by all requests.

Whoever wants to call a deployment asks for a permit (`admit`) and owes it exactly one verdict: `succeeded`, `rejected`
or `abandoned`.  From permit to verdict the call is in flight, waiting for its turn included.  When a deployment is left
alone, and by whom, is told in `deployment_breaker`, for how long and how it comes back in `breaker`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from llm_routerd.routing.breaker import CooldownPolicy
from llm_routerd.routing.deployment_breaker import DeploymentBreaker, Permit
from llm_routerd.routing.load import Load

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Collection, Mapping

    from llm_routerd.protocol.codes import AttemptCode
    from llm_routerd.protocol.outcome import Rejection
    from llm_routerd.routing.breaker import BreakerChange, State


class StateChange(Struct, frozen=True, kw_only=True):
    """A deployment's state changed; worth a line in the log.

    Attributes:
        deployment: its name.
        tenant: for whose requests alone; None: for all, "": for those that name no tenant.
        change: from what to what.
    """

    deployment: str
    tenant: str | None
    change: BreakerChange


class DeploymentHealth(Struct, frozen=True, kw_only=True):
    """What is known of one deployment at one moment, for logs and metrics.

    Attributes:
        state: as seen by a request without a tenant that comes now.
        cooldown_seconds: until such a one may ask it again; 0: it may, or it is being probed.
        code: the last failure that counted; None: there was none since the last success.
        failures: in a row.
        in_flight: permits without a verdict.
        ttft_seconds: moving average of the time to first token; None: not measured yet.
        tenants_kept_away: how many are, by their own failures alone.
    """

    state: State
    cooldown_seconds: float
    code: AttemptCode | None
    failures: int
    in_flight: int
    ttft_seconds: float | None
    tenants_kept_away: int


class _Record(Struct, frozen=True):
    """What is remembered of one deployment."""

    breaker: DeploymentBreaker
    load: Load


class Health:
    """Remembers how each deployment has been doing and says which may be asked.

    Times are seconds of one monotonic clock.  An unknown name is a healthy deployment that nobody has
    measured.

    Args:
        rng: for the jitter, so that the workers of several machines do not probe in step.
        cooldown_after: failures in a row before a deployment cools down, `connect`, `auth` and `not_found`
            apart.
        cooldown_first_seconds: the first cooldown; each further one without a success between is twice as
            long.
        cooldown_max_seconds: the longest one.
        on_change: is told each change of a state; must not call back.
    """

    def __init__(
        self,
        *,
        rng: random.Random,
        cooldown_after: int = 3,
        cooldown_first_seconds: float = 5.0,
        cooldown_max_seconds: float = 60.0,
        on_change: Callable[[StateChange], object] | None = None,
    ) -> None:
        self._policy = CooldownPolicy(
            rng=rng,
            after=cooldown_after,
            first_seconds=cooldown_first_seconds,
            max_seconds=cooldown_max_seconds,
        )
        self._on_change = on_change
        self._records: dict[str, _Record] = {}

    def available(self, name: str, at: float, tenant: str = "") -> bool:
        """Whether `admit` would let a tenant's call of the time `at` through."""
        record = self._records.get(name)
        return record is None or record.breaker.available(at, tenant)

    def admit(self, name: str, at: float, tenant: str = "") -> Permit | None:
        """Let one call through that begins at `at`, which may lie ahead; None: the deployment cools down."""
        record = self._records.get(name) or self._remember(name)
        if not record.breaker.available(at, tenant):
            return None
        record.load.in_flight += 1
        return Permit(breaker=record.breaker, load=record.load, tenant=tenant, passes=record.breaker.enter(tenant))

    def first_token(self, permit: Permit, ttft_seconds: float) -> None:
        """The call's first token came after `ttft_seconds`, not counting its wait for a turn."""
        permit.load.sample(ttft_seconds)
        permit.breaker.first_token(permit)

    def succeeded(self, permit: Permit) -> None:
        """The deployment answered; also where the answer was not acceptable."""
        permit.load.in_flight -= 1
        permit.breaker.succeeded(permit)

    def abandoned(self, permit: Permit) -> None:
        """The call ended for a reason of ours, and showed nothing of the deployment."""
        permit.load.in_flight -= 1
        permit.breaker.abandoned(permit)

    def rejected(
        self, permit: Permit, rejection: Rejection, now: float, elapsed_seconds: float, likeness: int | None = None
    ) -> None:
        """The call came to nothing.

        Args:
            permit: its own.
            rejection: why.
            now: when.
            elapsed_seconds: since it began, not counting its wait for a turn.
            likeness: a hash of what was asked; None: like nothing else.
        """
        permit.load.in_flight -= 1
        if rejection.code.traits.samples_ttft:
            permit.load.sample(elapsed_seconds)
        permit.breaker.rejected(permit, rejection, now, likeness)

    def examinable(self, name: str, now: float, tenant: str = "") -> bool:
        """Whether a probe of our own may end a tenant's wait for a deployment; once in each cooldown."""
        record = self._records.get(name)
        return record is not None and record.breaker.examinable(now, tenant)

    def examined(self, name: str, tenant: str = "", *, answers: bool) -> None:
        """What a probe of our own has found."""
        record = self._records.get(name)
        if record is not None:
            record.breaker.examined(tenant, answers=answers)

    def restarted(self, name: str) -> None:
        """Its machine was off and is up again: how it did before is forgotten."""
        record = self._records.get(name)
        if record is not None:
            record.breaker.restarted()

    def score(self, name: str) -> float:
        """How long a first token may take, weighed with the calls in flight; the smaller, the better."""
        record = self._records.get(name)
        return (Load() if record is None else record.load).score

    def retain(self, names: Collection[str]) -> None:
        """Forget all but these deployments: after a reload, those that are still configured as they were."""
        self._records = {name: record for name, record in self._records.items() if name in names}

    def cooldown(self, name: str, now: float, tenant: str = "") -> tuple[AttemptCode | None, float]:
        """What a deployment cools down for, and for how many seconds more; 0: a request is probing it."""
        record = self._records.get(name)
        if record is None:
            return None, 0.0
        breaker = record.breaker.worst(now, tenant)
        return breaker.code, max(0.0, breaker.until - now)

    def states(self, now: float) -> Mapping[str, DeploymentHealth]:
        """Every deployment that was ever asked, by name."""
        return {name: _health(record, now) for name, record in self._records.items()}

    def _remember(self, name: str) -> _Record:
        def on_change(tenant: str | None, change: BreakerChange) -> None:
            if self._on_change is not None:
                self._on_change(StateChange(deployment=name, tenant=tenant, change=change))

        record = self._records[name] = _Record(DeploymentBreaker(self._policy, on_change), Load())
        return record


def _health(record: _Record, now: float) -> DeploymentHealth:
    breaker = record.breaker.worst(now, "")
    return DeploymentHealth(
        state=breaker.state_at(now),
        cooldown_seconds=max(0.0, breaker.until - now),
        code=breaker.code,
        failures=record.breaker.failures(""),
        in_flight=record.load.in_flight,
        ttft_seconds=record.load.ttft_seconds,
        tenants_kept_away=record.breaker.tenants_kept_away(now),
    )
