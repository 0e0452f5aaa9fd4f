"""The breaker of one deployment, which tells what is the deployment's fault from what may be a caller's.

The rules:

- Only a rejection that is the deployment's own fault counts as a failure.  An answer that was refused, cut at
  its length or not the JSON that was asked for shows that the deployment works, and counts as a success.  A
  call that we cancelled, or a bad request (`upstream`, not retryable), shows nothing: else one tenant's odd
  parameters would take a deployment away from all others.
- Failures in a row make it cool down: three, or two where nobody answers (`connect`), or one where nothing
  but a new configuration helps (`auth`, `not_found`).
- A failure that the caller's messages may have caused (`Fault.PERHAPS_CALLER`) is a witness, and only witnesses that
  are unlike each other take a deployment away from everyone: one tenant counts once between two successes.  His
  failures count in full in a breaker of his own, which keeps only him away; there the same messages count once.
  So a tenant whose messages break the model's template shuts out himself, and a server that hangs is left alone
  by its only tenant as well as by ten.  Requests without a tenant are one tenant's.
- After a cooldown there is no credit until a call has succeeded, ended by its probe or not: one failure makes the
  next, or two of tenants unlike each other where each may be its caller's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, assert_never

from msgspec import Struct

from llm_routerd.protocol.codes import Fault
from llm_routerd.routing.breaker import Breaker, State

if TYPE_CHECKING:
    from collections.abc import Callable

    from llm_routerd.protocol.codes import AttemptCode
    from llm_routerd.protocol.outcome import Rejection
    from llm_routerd.routing.breaker import BreakerChange, CooldownPolicy, Pass
    from llm_routerd.routing.load import Load

_UNLIKE: Final = 2  # tenants whose failures prolong a cooldown of all
_MAX_TENANTS: Final = 256  # with breakers of their own; the oldest is forgotten


class Permit(Struct, frozen=True, kw_only=True):
    """The right to call one deployment once; owed one verdict.

    Attributes:
        breaker, load: of the deployment.
        tenant: whose call it is.
        passes: of the breakers that it came through: everyone's, and its tenant's if he had one then.
    """

    breaker: DeploymentBreaker
    load: Load
    tenant: str
    passes: tuple[Pass, ...]

    def through(self, breaker: Breaker) -> Pass:
        """Its pass of one of these breakers, which may have been made since."""
        for passed in self.passes:
            if passed.breaker is breaker:
                return passed
        return breaker.unseen()


class DeploymentBreaker:
    """A breaker for everyone, and one for each tenant who had failures here.

    Args:
        policy: when they trip.
        on_change: is told each change of one, and whose that is; None: everyone's.
    """

    __slots__ = ("_everyones", "_of_tenant", "_on_change", "_policy")

    def __init__(self, policy: CooldownPolicy, on_change: Callable[[str | None, BreakerChange], object]) -> None:
        self._policy = policy
        self._on_change = on_change
        self._everyones = self._make(None)
        self._of_tenant: dict[str, Breaker] = {}

    def available(self, at: float, tenant: str) -> bool:
        """Whether a tenant's call of the time `at` would be let through."""
        own = self._of_tenant.get(tenant)
        return self._everyones.available(at) and (own is None or own.available(at))

    def enter(self, tenant: str) -> tuple[Pass, ...]:
        """Let a tenant's call through, which must be available."""
        own = self._of_tenant.get(tenant)
        return (self._everyones.enter(),) if own is None else (self._everyones.enter(), own.enter())

    def first_token(self, permit: Permit) -> None:
        """The call's first token came."""
        for passed in permit.passes:
            passed.breaker.first_token(passed)

    def succeeded(self, permit: Permit) -> None:
        """The deployment answered."""
        for breaker in self._in_the_way_of(permit.tenant):
            breaker.succeeded(permit.through(breaker))

    def abandoned(self, permit: Permit) -> None:
        """The call showed nothing."""
        for passed in permit.passes:
            passed.breaker.abandoned(passed)

    def rejected(self, permit: Permit, rejection: Rejection, now: float, likeness: int | None) -> None:
        """The call came to nothing; see `Health.rejected`."""
        match rejection.fault:
            case Fault.DEPLOYMENT | Fault.PERHAPS_CALLER:
                self._failed(permit, rejection, now, likeness)
            case Fault.ANSWER:
                self.succeeded(permit)
            case Fault.CALL | Fault.OURS | Fault.NOBODY:
                self.abandoned(permit)
            case fault:
                assert_never(fault)

    def examinable(self, now: float, tenant: str) -> bool:
        """Whether a probe of our own may end a tenant's wait; once in each cooldown."""
        shut = [each for each in self._in_the_way_of(tenant) if each.state_at(now) is not State.HEALTHY]
        return bool(shut) and all(each.examinable(now) for each in shut)

    def examined(self, tenant: str, *, answers: bool) -> None:
        """What it has found."""
        for each in self._in_the_way_of(tenant):
            each.examined(answers=answers)

    def restarted(self) -> None:
        """Its machine is up again."""
        for each in (self._everyones, *self._of_tenant.values()):
            each.restarted()

    def worst(self, now: float, tenant: str) -> Breaker:
        """The one that keeps a tenant away, if any does."""
        return max(self._in_the_way_of(tenant), key=lambda each: (each.state_at(now) is not State.HEALTHY, each.until))

    def failures(self, tenant: str) -> int:
        """So many in a row counted against a tenant."""
        return max(each.failures for each in self._in_the_way_of(tenant))

    def tenants_kept_away(self, now: float) -> int:
        """How many are, by their own failures alone."""
        return sum(each.state_at(now) is not State.HEALTHY for each in self._of_tenant.values())

    @property
    def tenants(self) -> int:
        """How many have a breaker of their own."""
        return len(self._of_tenant)

    def _failed(self, permit: Permit, rejection: Rejection, now: float, likeness: int | None) -> None:
        everyones, code = self._everyones, rejection.code
        passed = permit.through(everyones)
        if not everyones.is_of_now(passed):
            return
        asked_for = rejection.retry_after_seconds
        if asked_for is not None and asked_for > 0:
            everyones.told_to_wait(passed, code, asked_for, now)
            for own in permit.passes[1:]:
                own.breaker.abandoned(own)
            return
        is_callers = rejection.fault is Fault.PERHAPS_CALLER
        tolerance = self._policy.tolerance(code)
        if everyones.cooldowns:
            tolerance = min(tolerance, _UNLIKE if is_callers else 1)
        witness = permit.tenant if is_callers else None
        if everyones.failed(passed, code, now, tolerance=tolerance, witness=witness):
            self._of_tenant.clear()
        else:
            self._failed_for(permit, code, now, likeness if is_callers else None)

    def _failed_for(self, permit: Permit, code: AttemptCode, now: float, likeness: int | None) -> None:
        """Count a failure in its tenant's own breaker."""
        own = self._of_tenant.get(permit.tenant) or self._make_for(permit.tenant)
        passed = permit.through(own)
        if not own.is_of_now(passed):
            return
        own.cooldowns = max(own.cooldowns, self._everyones.cooldowns)  # no credit here either
        witness = None if own.cooldowns else likeness
        tolerance = 1 if own.cooldowns else self._policy.tolerance(code)
        own.failed(passed, code, now, tolerance=tolerance, witness=witness)

    def _in_the_way_of(self, tenant: str) -> tuple[Breaker, ...]:
        """The breakers that a tenant's call passes, everyone's first."""
        own = self._of_tenant.get(tenant)
        return (self._everyones,) if own is None else (self._everyones, own)

    def _make_for(self, tenant: str) -> Breaker:
        if len(self._of_tenant) >= _MAX_TENANTS:
            del self._of_tenant[next(iter(self._of_tenant))]
        own = self._of_tenant[tenant] = self._make(tenant)
        return own

    def _make(self, tenant: str | None) -> Breaker:
        on_change = self._on_change
        return Breaker(self._policy, lambda change: on_change(tenant, change))
