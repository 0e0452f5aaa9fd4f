"""One circuit breaker: lets nobody through for a time after failures in a row, and then one call, the probe.

The rules:

- When the time is over, exactly one call is let through.  Its first token lets all through again, as an answer may take
  minutes to end; its failure doubles the time, up to a bound; a probe without a verdict leaves its place to the next
  call.  Only a success makes the doubling forget.
- A server that says when it wants to be asked again (Retry-After) is left alone until then, at most for the longest
  cooldown, and needs no probe afterwards: it told us, we did not guess.
- The verdict on a call that began before the last cooldown says nothing about the time after it.  Else the many calls
  that a dying server takes along would double its cooldown once each.
- A probe of our own (`examinable`, `examined`) may end a cooldown, once in each; that its machine was off and is up
  again (`restarted`) ends any.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from msgspec import Struct

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
class BreakerChange:
    """A breaker's state changed.

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
    """When breakers trip, and for how long; see `Health` for the arguments."""

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


class Pass(Struct, frozen=True, kw_only=True):
    """One call that a breaker let through.

    Attributes:
        breaker: which.
        trips: how often it had tripped by then, so that a verdict from before a cooldown can be told.
        is_probe: the call is the one that finds out.
    """

    breaker: Breaker
    trips: int
    is_probe: bool = False


class Breaker:
    """A breaker.  Verdicts come with the pass of their call; one from before the last cooldown changes nothing.

    Attributes:
        code: the last failure that counted; None: there was none since the last success.
        failures: that counted, in a row.
        cooldowns: without a success between.
        until: when it lets a call through again.
        tripped: it recovers by a probe only; else, if it cools down, at the time that a server has named.
    """

    __slots__ = (
        "_asked_until",
        "_on_change",
        "_policy",
        "_probe_out",
        "_row",
        "_state",
        "_trips",
        "_was_examined",
        "_witnesses",
        "code",
        "cooldowns",
        "failures",
        "tripped",
        "until",
    )

    def __init__(self, policy: CooldownPolicy, on_change: Callable[[BreakerChange], object]) -> None:
        self._policy = policy
        self._on_change = on_change
        self._state = State.HEALTHY
        self._witnesses: set[Hashable] = set()
        self._probe_out = False
        self._asked_until = float("-inf")
        self._row = 0  # of failures since the last cooldown or success
        self._trips = 0
        self.code: AttemptCode | None = None
        self.failures = 0
        self.cooldowns = 0
        self.until = float("-inf")
        self.tripped = False
        self._was_examined = False  # by a probe of our own, in this cooldown

    def state_at(self, now: float) -> State:
        """As seen by a call that comes now."""
        if self._probe_out:
            return State.PROBING
        return State.COOLING if self.tripped or now < self.until else State.HEALTHY

    def available(self, at: float) -> bool:
        """Whether a call of the time `at` would be let through."""
        return at >= self.until and not self._probe_out

    def examinable(self, now: float) -> bool:
        """Whether a probe of our own may tell more: it cools down by our guess and not by its server's wish."""
        return self.tripped and not self._was_examined and now >= self._asked_until

    def enter(self) -> Pass:
        """Let one call through, which must be available."""
        if self.tripped:
            self._probe_out = True
            self._note(State.PROBING)
        elif self._state is not State.HEALTHY:
            self._note(State.HEALTHY)  # a Retry-After has run out
        return Pass(breaker=self, trips=self._trips, is_probe=self.tripped)

    def unseen(self) -> Pass:
        """For a call that was under way when this breaker was made."""
        return Pass(breaker=self, trips=0)

    def is_of_now(self, passed: Pass) -> bool:
        """Whether the call began after the last cooldown."""
        return passed.trips == self._trips

    def first_token(self, passed: Pass) -> None:
        """A call's first token came: if it was the probe, all may come again, and nothing is forgotten yet."""
        if self.is_of_now(passed) and passed.is_probe and self._probe_out:
            self._recover()

    def succeeded(self, passed: Pass) -> None:
        """A call was answered."""
        if self.is_of_now(passed):
            self._forget()
            self.first_token(passed)

    def abandoned(self, passed: Pass) -> None:
        """A call showed nothing."""
        if self.is_of_now(passed) and passed.is_probe and self._probe_out:
            self._probe_out = False
            self._note(State.COOLING, code=self.code)

    def examined(self, *, answers: bool) -> None:
        """A probe of our own was answered, or was not."""
        if not answers:
            self._was_examined = True
        elif self.tripped:
            self._forget()
            self._recover()

    def restarted(self) -> None:
        """Its machine is up again: no failure from before says anything of it, nor does a call that began before."""
        self._forget()
        self._trips += 1
        if self.tripped:
            self._recover()

    def told_to_wait(self, passed: Pass, code: AttemptCode, seconds: float, now: float) -> None:
        """The server said when it wants to be asked again."""
        if not self.is_of_now(passed):
            return
        if passed.is_probe:
            self._probe_out = False
        self.code = code
        seconds = min(seconds, self._policy.max_seconds)
        self._asked_until = max(self._asked_until, now + seconds)
        self._cool(now, seconds)

    def failed(self, passed: Pass, code: AttemptCode, now: float, *, tolerance: int, witness: Hashable = None) -> bool:
        """A call failed; returns whether the breaker trips for it.

        Args:
            passed: the call's.
            code: how.
            now: when.
            tolerance: so many failures in a row, since the last cooldown, make another one.
            witness: what may have caused it other than the deployment; the same one counts once, until a success or a
                cooldown.  None: the deployment itself.
        """
        if not self.is_of_now(passed):
            return False
        if witness is not None:
            if witness in self._witnesses:
                self.abandoned(passed)
                return False
            self._witnesses.add(witness)
        if passed.is_probe:
            self._probe_out = False
        self.code = code
        self.failures += 1
        self._row += 1
        if self._row < tolerance:
            return False
        self._trip(now)
        return True

    def _trip(self, now: float) -> None:
        self._row = 0
        self._witnesses.clear()
        seconds = self._policy.seconds(self.cooldowns)
        self.cooldowns += 1
        self._trips += 1
        self.tripped = True
        self._was_examined = False
        self._cool(now, seconds)

    def _cool(self, now: float, seconds: float) -> None:
        self.until = max(self.until, now + seconds)
        self._note(State.COOLING, code=self.code, cooldown_seconds=seconds)

    def _forget(self) -> None:
        self._witnesses.clear()
        self.failures = self.cooldowns = self._row = 0
        self.code = None

    def _recover(self) -> None:
        self.tripped = self._probe_out = False
        self.until = self._asked_until
        self._note(State.HEALTHY)

    def _note(self, after: State, *, code: AttemptCode | None = None, cooldown_seconds: float = 0.0) -> None:
        before, self._state = self._state, after
        if before is not after:
            self._on_change(BreakerChange(before=before, after=after, code=code, cooldown_seconds=cooldown_seconds))
