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
- When the time is over, exactly one call is let through, the probe.  Its first token opens the deployment to
  all again, as an answer may take minutes to end; its failure doubles the time, up to a bound; a probe
  without a verdict leaves its place to the next call.  Only a success makes the doubling forget.
- A server that says when it wants to be asked again (Retry-After) is left alone until then, at most for the
  longest cooldown, and needs no probe afterwards: it told us, we did not guess.
- The verdict on a call that began before the last cooldown says nothing about the time after it.  Else the
  many calls that a dying server takes along would double its cooldown once each.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from llm_routerd.core.outcome import AttemptCode

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Collection, Mapping

    from llm_routerd.core.outcome import Rejection

_UNREACHABLE_AFTER: Final = 2
_HOPELESS_AFTER: Final = 1
_JITTER: Final = 0.25
_TTFT_WEIGHT: Final = 0.3
# Optimistic on purpose: a deployment that nobody has measured looks fast, is asked, and so is measured.
_UNMEASURED_TTFT_SECONDS: Final = 0.05

FAILURES: Final = frozenset(
    {
        AttemptCode.CONNECT,
        AttemptCode.AUTH,
        AttemptCode.NOT_FOUND,
        AttemptCode.RATE_LIMITED,
        AttemptCode.UPSTREAM,
        AttemptCode.TRUNCATED,
        AttemptCode.TIMEOUT,
        AttemptCode.FIRST_TOKEN_TIMEOUT,
        AttemptCode.IDLE_TIMEOUT,
    }
)
_TIMEOUTS: Final = frozenset({AttemptCode.TIMEOUT, AttemptCode.FIRST_TOKEN_TIMEOUT, AttemptCode.IDLE_TIMEOUT})


class State(StrEnum):
    """Whether a deployment is asked: by everyone, by no one, by the one call that finds out."""

    HEALTHY = "healthy"
    COOLING = "cooling"
    PROBING = "probing"


@dataclass(frozen=True, slots=True, kw_only=True)
class StateChange:
    """A deployment's state changed; worth a line in the log.

    Attributes:
        deployment: its name.
        before, after: never the same.
        code: the failure that it cools down for; None where it recovers.
        cooldown_seconds: how long it cools down; 0 where it does not.
    """

    deployment: str
    before: State
    after: State
    code: AttemptCode | None = None
    cooldown_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentHealth:
    """What is known of one deployment at one moment, for logs and metrics.

    Attributes:
        state: as seen by a request that comes now.
        cooldown_seconds: until it may be asked again; 0: it may be asked, or is being probed.
        code: the last failure that counted; None: there was none since the last success.
        failures: in a row.
        in_flight: permits without a verdict.
        ttft_seconds: moving average of the time to first token; None: not measured yet.
    """

    state: State
    cooldown_seconds: float
    code: AttemptCode | None
    failures: int
    in_flight: int
    ttft_seconds: float | None


class _Entry:
    """What `Health` remembers of one deployment.

    `until` is when the cooldown ends.  `tripped` says that it ends through a probe only, `probe_out` that the
    probe is under way.  `era` counts the cooldowns, so that a verdict from before one can be told.
    """

    __slots__ = (
        "code",
        "cooldowns",
        "era",
        "failures",
        "in_flight",
        "name",
        "probe_out",
        "state",
        "tripped",
        "ttft_seconds",
        "until",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.state = State.HEALTHY
        self.code: AttemptCode | None = None
        self.failures = 0
        self.cooldowns = 0
        self.until = float("-inf")
        self.tripped = False
        self.probe_out = False
        self.era = 0
        self.in_flight = 0
        self.ttft_seconds: float | None = None

    def state_at(self, now: float) -> State:
        if self.probe_out:
            return State.PROBING
        return State.COOLING if self.tripped or now < self.until else State.HEALTHY


@dataclass(frozen=True, slots=True)
class Permit:
    """The right to call one deployment once; owed one verdict."""

    entry: _Entry
    era: int
    probe: bool


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
        self._rng = rng
        self._cooldown_after = cooldown_after
        self._first_seconds = cooldown_first_seconds
        self._max_seconds = cooldown_max_seconds
        self._on_change = on_change
        self._entries: dict[str, _Entry] = {}

    def available(self, name: str, at: float) -> bool:
        """Whether `admit` would let a call of the time `at` through."""
        entry = self._entries.get(name)
        return entry is None or (at >= entry.until and not entry.probe_out)

    def admit(self, name: str, at: float) -> Permit | None:
        """Let one call through that begins at `at`, which may lie ahead; None: the deployment cools down."""
        if not self.available(name, at):
            return None
        entry = self._entries.get(name)
        if entry is None:
            entry = self._entries[name] = _Entry(name)
        if entry.tripped:
            entry.probe_out = True
            self._note(entry, State.PROBING)
        elif entry.state is not State.HEALTHY:
            self._note(entry, State.HEALTHY)  # a Retry-After has run out
        entry.in_flight += 1
        return Permit(entry, entry.era, entry.tripped)

    def first_token(self, permit: Permit, ttft_seconds: float) -> None:
        """The call's first token came after `ttft_seconds`, not counting its wait for a turn."""
        entry = permit.entry
        self._sample(entry, ttft_seconds)
        if permit.probe and entry.probe_out and permit.era == entry.era:
            self._reopen(entry)

    def succeeded(self, permit: Permit) -> None:
        """The deployment answered; also where the answer was not acceptable."""
        entry = permit.entry
        entry.in_flight -= 1
        if permit.era != entry.era:
            return
        entry.failures = entry.cooldowns = 0
        entry.code = None
        if permit.probe and entry.probe_out:
            self._reopen(entry)

    def abandoned(self, permit: Permit) -> None:
        """The call ended for a reason of ours, and showed nothing of the deployment."""
        entry = permit.entry
        entry.in_flight -= 1
        if permit.probe and entry.probe_out and permit.era == entry.era:
            entry.probe_out = False
            self._note(entry, State.COOLING, code=entry.code)

    def rejected(self, permit: Permit, rejection: Rejection, now: float, elapsed_seconds: float) -> None:
        """The call came to nothing, `elapsed_seconds` after it began, not counting its wait for a turn."""
        code = rejection.code
        if code in _TIMEOUTS:
            self._sample(permit.entry, elapsed_seconds)
        if code is AttemptCode.CANCELLED or (code is AttemptCode.UPSTREAM and not rejection.retryable):
            self.abandoned(permit)
        elif code in FAILURES:
            self._failed(permit, rejection, now)
        else:
            self.succeeded(permit)

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

    def cooldown(self, name: str, now: float) -> tuple[AttemptCode | None, float]:
        """What a deployment cools down for, and for how many seconds more; 0: a request is probing it."""
        entry = self._entries.get(name)
        return (None, 0.0) if entry is None else (entry.code, max(0.0, entry.until - now))

    def states(self, now: float) -> Mapping[str, DeploymentHealth]:
        """Every deployment that was ever asked, by name."""
        return {
            name: DeploymentHealth(
                state=entry.state_at(now),
                cooldown_seconds=max(0.0, entry.until - now),
                code=entry.code,
                failures=entry.failures,
                in_flight=entry.in_flight,
                ttft_seconds=entry.ttft_seconds,
            )
            for name, entry in self._entries.items()
        }

    def _failed(self, permit: Permit, rejection: Rejection, now: float) -> None:
        entry = permit.entry
        entry.in_flight -= 1
        if permit.era != entry.era:
            return
        if permit.probe:
            entry.probe_out = False
        entry.code = rejection.code
        asked_for = rejection.retry_after_seconds
        if asked_for is not None and asked_for > 0:
            self._cool(entry, now, min(asked_for, self._max_seconds))
            return
        entry.failures += 1
        # After a cooldown a deployment has no credit until it has succeeded once, opened by its probe or not.
        if entry.cooldowns or entry.failures >= self._tolerance(rejection.code):
            longest = min(self._first_seconds * 2.0 ** min(entry.cooldowns, 32), self._max_seconds)
            entry.cooldowns += 1
            entry.tripped = True
            entry.era += 1
            self._cool(entry, now, longest * self._rng.uniform(1 - _JITTER, 1))

    def _tolerance(self, code: AttemptCode) -> int:
        if code is AttemptCode.CONNECT:
            return min(_UNREACHABLE_AFTER, self._cooldown_after)
        if code in {AttemptCode.AUTH, AttemptCode.NOT_FOUND}:
            return _HOPELESS_AFTER
        return self._cooldown_after

    def _cool(self, entry: _Entry, now: float, seconds: float) -> None:
        entry.until = max(entry.until, now + seconds)
        self._note(entry, State.COOLING, code=entry.code, cooldown_seconds=seconds)

    def _reopen(self, entry: _Entry) -> None:
        entry.tripped = entry.probe_out = False
        entry.until = float("-inf")
        self._note(entry, State.HEALTHY)

    def _sample(self, entry: _Entry, seconds: float) -> None:
        known = entry.ttft_seconds
        entry.ttft_seconds = seconds if known is None else known + _TTFT_WEIGHT * (seconds - known)

    def _note(
        self, entry: _Entry, after: State, *, code: AttemptCode | None = None, cooldown_seconds: float = 0.0
    ) -> None:
        before, entry.state = entry.state, after
        if before is not after and self._on_change is not None:
            self._on_change(
                StateChange(
                    deployment=entry.name,
                    before=before,
                    after=after,
                    code=code,
                    cooldown_seconds=cooldown_seconds,
                )
            )
