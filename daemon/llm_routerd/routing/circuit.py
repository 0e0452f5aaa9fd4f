"""One circuit breaker: closed to all for a time after failures in a row, and then open to one call, the probe."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Hashable

    from llm_routerd.protocol.codes import AttemptCode

_JITTER: Final = 0.25


class State(StrEnum):
    """Whether a deployment is asked: by everyone, by no one, by the one call that finds out."""

    HEALTHY = "healthy"
    COOLING = "cooling"
    PROBING = "probing"


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitChange:
    """A circuit's state changed.

    Attributes:
        before, after: never the same.
        code: the failure that it cools down for; None where it recovers.
        cooldown_seconds: how long it cools down; 0 where it does not.
    """

    before: State
    after: State
    code: AttemptCode | None = None
    cooldown_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CooldownPolicy:
    """When circuits open, and for how long; see `Health` for the arguments."""

    rng: random.Random
    after: int
    first_seconds: float
    max_seconds: float

    def tolerance(self, code: AttemptCode) -> int:
        """How many failures in a row make a cooldown, the last being of this code."""
        return min(code.traits.trips_after or self.after, self.after)

    def seconds(self, cooldowns: int) -> float:
        """The length of a cooldown after so many without a success."""
        longest = min(self.first_seconds * 2.0 ** min(cooldowns, 32), self.max_seconds)
        return longest * self.rng.uniform(1 - _JITTER, 1)


class Circuit:
    """A breaker.  Whether a verdict is of its time, and whether its call was the probe, its user keeps.

    Attributes:
        code: the last failure that counted; None: there was none since the last success.
        failures: that counted, in a row.
        cooldowns: without a success between.
        until: when it may be entered again.
        tripped: it opens through a probe only; else, if it is closed, at the time that a server has named.
        since: the number of the last cooldown, by its user's count; verdicts on earlier calls say nothing.
        examined: a probe of our own has failed in this cooldown.
    """

    __slots__ = (
        "_asked_until",
        "_on_change",
        "_policy",
        "_probe_out",
        "_row",
        "_state",
        "_witnesses",
        "code",
        "cooldowns",
        "examined",
        "failures",
        "since",
        "tripped",
        "until",
    )

    def __init__(self, policy: CooldownPolicy, on_change: Callable[[CircuitChange], object]) -> None:
        self._policy = policy
        self._on_change = on_change
        self._state = State.HEALTHY
        self._witnesses: set[Hashable] = set()
        self._probe_out = False
        self._asked_until = float("-inf")
        self._row = 0  # of failures since the last cooldown or success
        self.code: AttemptCode | None = None
        self.failures = 0
        self.cooldowns = 0
        self.until = float("-inf")
        self.tripped = False
        self.since = 0
        self.examined = False

    def state_at(self, now: float) -> State:
        """As seen by a call that comes now."""
        if self._probe_out:
            return State.PROBING
        return State.COOLING if self.tripped or now < self.until else State.HEALTHY

    def available(self, at: float) -> bool:
        """Whether a call of the time `at` may enter."""
        return at >= self.until and not self._probe_out

    def examinable(self, now: float) -> bool:
        """Whether a probe of our own may tell more: it cools down by our guess and not by its server's wish."""
        return self.tripped and not self.examined and now >= self._asked_until

    def enter(self) -> bool:
        """Let one call in; returns whether it is the probe."""
        if self.tripped:
            self._probe_out = True
            self._note(State.PROBING)
        elif self._state is not State.HEALTHY:
            self._note(State.HEALTHY)  # a Retry-After has run out
        return self.tripped

    def first_token(self, *, is_probe: bool) -> None:
        """A call's first token came: it opens the circuit, and forgets nothing yet."""
        if is_probe and self._probe_out:
            self._reopen()

    def succeeded(self, *, is_probe: bool) -> None:
        """A call was answered."""
        self._witnesses.clear()
        self.failures = self.cooldowns = self._row = 0
        self.code = None
        self.first_token(is_probe=is_probe)

    def abandoned(self, *, is_probe: bool) -> None:
        """A call showed nothing."""
        if is_probe and self._probe_out:
            self._probe_out = False
            self._note(State.COOLING, code=self.code)

    def recovered(self) -> None:
        """A probe of our own was answered."""
        self.succeeded(is_probe=False)
        self._reopen()

    def told_to_wait(self, code: AttemptCode, seconds: float, now: float, *, is_probe: bool) -> None:
        """The server said when it wants to be asked again."""
        if is_probe:
            self._probe_out = False
        self.code = code
        seconds = min(seconds, self._policy.max_seconds)
        self._asked_until = max(self._asked_until, now + seconds)
        self._cool(now, seconds)

    def failed(
        self, code: AttemptCode, now: float, *, is_probe: bool, tolerance: int, witness: Hashable = None
    ) -> bool:
        """A call failed; returns whether the circuit cools down for it.

        Args:
            code: how.
            now: when.
            is_probe: the call was the probe.
            tolerance: so many failures in a row, since the last cooldown, make another one.
            witness: what may have caused it other than the deployment; the same one counts once, until a success or a
                cooldown.  None: the deployment itself.
        """
        if witness is not None:
            if witness in self._witnesses:
                self.abandoned(is_probe=is_probe)
                return False
            self._witnesses.add(witness)
        if is_probe:
            self._probe_out = False
        self.code = code
        self.failures += 1
        self._row += 1
        if self._row < tolerance:
            return False
        self._row = 0
        self._witnesses.clear()
        seconds = self._policy.seconds(self.cooldowns)
        self.cooldowns += 1
        self.tripped = True
        self.examined = False
        self._cool(now, seconds)
        return True

    def _cool(self, now: float, seconds: float) -> None:
        self.until = max(self.until, now + seconds)
        self._note(State.COOLING, code=self.code, cooldown_seconds=seconds)

    def _reopen(self) -> None:
        self.tripped = self._probe_out = False
        self.until = self._asked_until
        self._note(State.HEALTHY)

    def _note(self, after: State, *, code: AttemptCode | None = None, cooldown_seconds: float = 0.0) -> None:
        before, self._state = self._state, after
        if before is not after:
            self._on_change(CircuitChange(before=before, after=after, code=code, cooldown_seconds=cooldown_seconds))
