"""How the deployments are doing: cooldowns, calls in flight, time to first token; shared by all requests.

The rules:

- Whoever wants to call a deployment asks for a permit (`admit`) and owes it exactly one verdict: `succeeded`,
  `rejected` or `abandoned`.  From permit to verdict the call is in flight, waiting for its turn included.
- Only a rejection that is the deployment's own fault counts as a failure.  An answer that was refused, cut at
  its length or not the JSON that was asked for shows that the deployment works, and counts as a success.  A
  call that we cancelled, or a bad request (`upstream`, not retryable), shows nothing: else one tenant's odd
  parameters would take a deployment away from all others.
- Failures in a row make it cool down: three, or two where nobody answers (`connect`), or one where nothing
  but a new configuration helps (`auth`, `not_found`).
- A failure that the caller's messages may have caused (`Fault.PERHAPS_CALLER`) is a witness, and only witnesses that
  are unlike each other take a deployment away from everyone: one tenant counts once between two successes.  His
  failures count in full in a circuit of his own, which keeps only him away; there the same messages count once.
  So a tenant whose messages break the model's template shuts out himself, and a server that hangs is left alone
  by its only tenant as well as by ten.  Requests without a tenant are one tenant's.
- After a cooldown there is no credit until a call has succeeded, opened by its probe or not: one failure makes the
  next, or two of tenants unlike each other where each may be its caller's.
- When the time is over, exactly one call is let through, the probe.  Its first token opens the deployment to
  all again, as an answer may take minutes to end; its failure doubles the time, up to a bound; a probe
  without a verdict leaves its place to the next call.  Only a success makes the doubling forget.
- A server that says when it wants to be asked again (Retry-After) is left alone until then, at most for the
  longest cooldown, and needs no probe afterwards: it told us, we did not guess.
- The verdict on a call that began before the last cooldown says nothing about the time after it.  Else the
  many calls that a dying server takes along would double its cooldown once each.
- Where a request has nobody else to ask, a probe of our own (`examinable`, `examined`) may end a cooldown, once
  in each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, assert_never

from msgspec import Struct

from llm_routerd.protocol.codes import Fault
from llm_routerd.routing.circuit import Circuit, CooldownPolicy, State

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Collection, Mapping

    from llm_routerd.protocol.codes import AttemptCode
    from llm_routerd.protocol.outcome import Rejection
    from llm_routerd.routing.circuit import CircuitChange

_TTFT_WEIGHT: Final = 0.3
# Optimistic on purpose: a deployment that nobody has measured looks fast, is asked, and so is measured.
_UNMEASURED_TTFT_SECONDS: Final = 0.05
_UNLIKE: Final = 2  # tenants whose failures prolong a cooldown of all
_MAX_TENANTS: Final = 256  # with circuits of their own at one deployment; the oldest is forgotten


class StateChange(Struct, frozen=True, kw_only=True):
    """A deployment's state changed; worth a line in the log.

    Attributes:
        deployment: its name.
        tenant: for whose requests alone; None: for all, "": for those that name no tenant.
        change: from what to what.
    """

    deployment: str
    tenant: str | None
    change: CircuitChange


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


class _Entry:
    """What `Health` remembers of one deployment: its circuit, and those of tenants who had failures there."""

    __slots__ = ("cooldowns", "everyones", "in_flight", "name", "of_tenant", "ttft_seconds")

    def __init__(self, name: str, everyones: Circuit) -> None:
        self.name = name
        self.everyones = everyones
        self.of_tenant: dict[str, Circuit] = {}
        self.cooldowns = 0  # counts all, so that a verdict from before one can be told
        self.in_flight = 0
        self.ttft_seconds: float | None = None

    def circuits(self, tenant: str) -> tuple[Circuit, ...]:
        """Those that a tenant's call passes."""
        own = self.of_tenant.get(tenant)
        return (self.everyones,) if own is None else (self.everyones, own)

    def worst(self, tenant: str, now: float) -> Circuit:
        """The one of them that is in his way, if any is."""
        return max(self.circuits(tenant), key=lambda each: (each.state_at(now) is not State.HEALTHY, each.until))


class Permit(Struct, frozen=True, kw_only=True):
    """The right to call one deployment once; owed one verdict.

    Attributes:
        entry: what is remembered of the deployment.
        tenant: whose call it is.
        cooldowns: how many the deployment had when the call was let through.
        is_probe: of everyone's circuit.
        own: the circuit of its tenant, if there was one then, and whether the call is the probe of it.
    """

    entry: _Entry
    tenant: str
    cooldowns: int
    is_probe: bool
    own: Circuit | None
    is_own_probe: bool

    def passed(self) -> tuple[tuple[Circuit, bool], ...]:
        """The circuits on its way, and of which of them it is the probe."""
        everyones = (self.entry.everyones, self.is_probe)
        return (everyones,) if self.own is None else (everyones, (self.own, self.is_own_probe))

    def is_of_now(self, circuit: Circuit) -> bool:
        """Whether the call began after the circuit's last cooldown."""
        return self.cooldowns >= circuit.since

    def is_probe_of(self, own: Circuit) -> bool:
        """Whether it was let through to find out, for its tenant; his circuit may have been made anew since."""
        return own is self.own and self.is_own_probe


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
        self._entries: dict[str, _Entry] = {}

    def available(self, name: str, at: float, tenant: str = "") -> bool:
        """Whether `admit` would let a tenant's call of the time `at` through."""
        entry = self._entries.get(name)
        if entry is None:
            return True
        own = entry.of_tenant.get(tenant)
        return entry.everyones.available(at) and (own is None or own.available(at))

    def admit(self, name: str, at: float, tenant: str = "") -> Permit | None:
        """Let one call through that begins at `at`, which may lie ahead; None: the deployment cools down."""
        if not self.available(name, at, tenant):
            return None
        entry = self._entries.get(name)
        if entry is None:
            entry = self._entries[name] = _Entry(name, self._circuit(name, None))
        entry.in_flight += 1
        own = entry.of_tenant.get(tenant)
        return Permit(
            entry=entry,
            tenant=tenant,
            cooldowns=entry.cooldowns,
            is_probe=entry.everyones.enter(),
            own=own,
            is_own_probe=own is not None and own.enter(),
        )

    def first_token(self, permit: Permit, ttft_seconds: float) -> None:
        """The call's first token came after `ttft_seconds`, not counting its wait for a turn."""
        self._sample(permit.entry, ttft_seconds)
        for circuit, is_probe in permit.passed():
            if permit.is_of_now(circuit):
                circuit.first_token(is_probe=is_probe)

    def succeeded(self, permit: Permit) -> None:
        """The deployment answered; also where the answer was not acceptable."""
        entry = permit.entry
        entry.in_flight -= 1
        if permit.is_of_now(entry.everyones):
            entry.everyones.succeeded(is_probe=permit.is_probe)
        own = entry.of_tenant.get(permit.tenant)
        if own is not None and permit.is_of_now(own):
            own.succeeded(is_probe=permit.is_probe_of(own))

    def abandoned(self, permit: Permit) -> None:
        """The call ended for a reason of ours, and showed nothing of the deployment."""
        permit.entry.in_flight -= 1
        for circuit, is_probe in permit.passed():
            if permit.is_of_now(circuit):
                circuit.abandoned(is_probe=is_probe)

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
        if rejection.code.traits.samples_ttft:
            self._sample(permit.entry, elapsed_seconds)
        match rejection.fault:
            case Fault.DEPLOYMENT | Fault.PERHAPS_CALLER:
                permit.entry.in_flight -= 1
                self._failed(permit, rejection, now, likeness)
            case Fault.ANSWER:
                self.succeeded(permit)
            case Fault.CALL | Fault.OURS | Fault.NOBODY:
                self.abandoned(permit)
            case fault:
                assert_never(fault)

    def examinable(self, name: str, now: float, tenant: str = "") -> bool:
        """Whether a probe of our own may end a tenant's wait for a deployment; once in each cooldown."""
        entry = self._entries.get(name)
        if entry is None:
            return False
        shut = [circuit for circuit in entry.circuits(tenant) if circuit.state_at(now) is not State.HEALTHY]
        return bool(shut) and all(circuit.examinable(now) for circuit in shut)

    def examined(self, name: str, tenant: str = "", *, answers: bool) -> None:
        """What a probe of our own has found."""
        entry = self._entries.get(name)
        for circuit in () if entry is None else entry.circuits(tenant):
            if not answers:
                circuit.examined = True
            elif circuit.tripped:
                circuit.recovered()

    def score(self, name: str) -> float:
        """How long a first token may take, weighed with the calls in flight; the smaller, the better."""
        entry = self._entries.get(name)
        if entry is None:
            return _UNMEASURED_TTFT_SECONDS
        ttft = _UNMEASURED_TTFT_SECONDS if entry.ttft_seconds is None else entry.ttft_seconds
        return ttft * (1 + entry.in_flight)

    def retain(self, names: Collection[str]) -> None:
        """Forget all but these deployments: after a reload, those that are still configured as they were."""
        self._entries = {name: entry for name, entry in self._entries.items() if name in names}

    def cooldown(self, name: str, now: float, tenant: str = "") -> tuple[AttemptCode | None, float]:
        """What a deployment cools down for, and for how many seconds more; 0: a request is probing it."""
        entry = self._entries.get(name)
        if entry is None:
            return None, 0.0
        circuit = entry.worst(tenant, now)
        return circuit.code, max(0.0, circuit.until - now)

    def states(self, now: float) -> Mapping[str, DeploymentHealth]:
        """Every deployment that was ever asked, by name."""
        return {name: _health(entry, now) for name, entry in self._entries.items()}

    def _failed(self, permit: Permit, rejection: Rejection, now: float, likeness: int | None) -> None:
        entry, tenant, code = permit.entry, permit.tenant, rejection.code
        everyones = entry.everyones
        if not permit.is_of_now(everyones):
            return
        asked_for = rejection.retry_after_seconds
        if asked_for is not None and asked_for > 0:
            for circuit, is_probe in permit.passed():
                if circuit is everyones:
                    circuit.told_to_wait(code, asked_for, now, is_probe=is_probe)
                elif permit.is_of_now(circuit):
                    circuit.abandoned(is_probe=is_probe)
            return
        is_callers = rejection.fault is Fault.PERHAPS_CALLER
        is_probe = permit.is_probe
        witness = tenant if is_callers else None
        tolerance = self._policy.tolerance(code)
        if everyones.cooldowns:
            tolerance = min(tolerance, _UNLIKE if is_callers else 1)
        if everyones.failed(code, now, is_probe=is_probe, tolerance=tolerance, witness=witness):
            entry.of_tenant.clear()
            _count_cooldown(entry, everyones)
        else:
            self._failed_for(permit, code, now, likeness if is_callers else None)

    def _failed_for(self, permit: Permit, code: AttemptCode, now: float, likeness: int | None) -> None:
        """Count a failure in its tenant's own circuit."""
        entry, tenant = permit.entry, permit.tenant
        own = entry.of_tenant.get(tenant) or self._new_circuit(entry, tenant)
        if not permit.is_of_now(own):
            return
        own.cooldowns = max(own.cooldowns, entry.everyones.cooldowns)  # no credit here either
        is_probe = permit.is_probe_of(own)
        witness = None if own.cooldowns else likeness
        tolerance = 1 if own.cooldowns else self._policy.tolerance(code)
        if own.failed(code, now, is_probe=is_probe, tolerance=tolerance, witness=witness):
            _count_cooldown(entry, own)

    def _new_circuit(self, entry: _Entry, tenant: str) -> Circuit:
        if len(entry.of_tenant) >= _MAX_TENANTS:
            del entry.of_tenant[next(iter(entry.of_tenant))]
        own = entry.of_tenant[tenant] = self._circuit(entry.name, tenant)
        return own

    def _circuit(self, name: str, tenant: str | None) -> Circuit:
        def on_change(change: CircuitChange) -> None:
            if self._on_change is not None:
                self._on_change(StateChange(deployment=name, tenant=tenant, change=change))

        return Circuit(self._policy, on_change)

    def _sample(self, entry: _Entry, seconds: float) -> None:
        known = entry.ttft_seconds
        entry.ttft_seconds = seconds if known is None else known + _TTFT_WEIGHT * (seconds - known)


def _count_cooldown(entry: _Entry, circuit: Circuit) -> None:
    entry.cooldowns += 1
    circuit.since = entry.cooldowns


def _health(entry: _Entry, now: float) -> DeploymentHealth:
    circuit = entry.worst("", now)
    return DeploymentHealth(
        state=circuit.state_at(now),
        cooldown_seconds=max(0.0, circuit.until - now),
        code=circuit.code,
        failures=max(each.failures for each in entry.circuits("")),
        in_flight=entry.in_flight,
        ttft_seconds=entry.ttft_seconds,
        tenants_kept_away=sum(each.state_at(now) is not State.HEALTHY for each in entry.of_tenant.values()),
    )
