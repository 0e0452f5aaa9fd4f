"""Which deployment a request asks next: one request's way through its chain, as a machine without I/O.

The rules:

- A request may ask a deployment only if `ineligibility` has nothing against it.  That function is the one
  place where `local_only` is enforced, and every deployment, of the chain and of its fallbacks, passes
  through it.
- `ordered` asks in the order of the configuration.  `latency` draws two of the deployments that may be asked
  now and takes the one whose first token is expected sooner, and now and then any of them, so that every one
  stays measured.
- `resident` takes the first whose model is in memory, and the first of all where none is.
- `retries` are further calls to the same deployment after a failure that may pass, after a backoff with full
  jitter.  `ordered` makes them before it goes on.  `latency` asks the chain's other deployments first, since
  whoever chose that strategy wants an answer soon and not one from a particular model, and comes back to
  those that failed only then.
- A wait, be it backoff or Retry-After, may take half of the time that is left, so that as much remains for
  the call, and never more than a minute.  If it would be longer, there is no retry: the next deployment is
  asked at once.
- `repair` asks the same deployment again with the validation error, after an answer that was not the JSON
  asked for.
- Then come the `fallback` chains, in order and depth-first, each chain once.  A deployment that has been
  asked is not asked again by another chain: it has had its retries.  So there is an end: a request makes at
  most `1 + retries + repair` calls to each deployment that it can reach, cycles or no cycles.
- A deployment that cools down is passed over and recorded in `attempts`, once.  It is looked at again where a
  fallback chain names it too, and when nothing else is left: its time may be over by then.
- When all cool down, the request ends at once and its message says for how long.  Asking one all the same
  would cost every request that deployment's timeout, which cooling down is there to spare them, and it is
  asked anyway, by its probe, as soon as its time is over.  But a `local_only` request has no cloud to go to, and
  what shut the local deployment may have been somebody's messages: before it ends, a probe of our own tells
  whether the deployment answers (`Examine`), once in each cooldown.
- What broke off at the request's own deadline before the deployment had half of the time that its
  configuration gives it says nothing of its health: else three hasty requests would take it away from all
  others.
- The permits of `Health` never leave this module: each `Ask` stands for one, and the one of `answered`,
  `rejected` and `abandoned` that its driver owes for each `Ask` gives it back.  Of a deployment on boxes it is taken
  with the slot (`placed`): who waits for one keeps no probe from those that have one.
- A call that was cut for another one (`preempted`) has had no turn: its deployment is asked again as if it never was.
  That happens to a request `MOST_CUTS` times at most.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import orjson

from llm_routerd.protocol.codes import AttemptCode, ErrorCode, Fault
from llm_routerd.protocol.outcome import AttemptRecord, Outcome
from llm_routerd.routing.chains import with_fallbacks
from llm_routerd.routing.decisions import Ask, Decision, Examine, GiveUp
from llm_routerd.routing.eligibility import ineligibility
from llm_routerd.routing.load import draw

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

    from llm_routerd.config.tree import Chain, Config, Deployment
    from llm_routerd.protocol.outcome import Rejection
    from llm_routerd.routing.deployment_breaker import Permit
    from llm_routerd.routing.eligibility import Need
    from llm_routerd.routing.health import Health

BACKOFF_FIRST_SECONDS: Final = 0.5
BACKOFF_MAX_SECONDS: Final = 8.0
LONGEST_WAIT_SECONDS: Final = 60.0
MOST_CUTS: Final = 3
_WAIT_SHARE: Final = 0.5
_FAIR_SHARE: Final = 0.5
# Timers fire late and clocks are read twice: so close to the deadline, it was the deadline.
_DEADLINE_SLACK_SECONDS: Final = 0.05

_MAX_TENANT: Final = 128  # characters of a tenant's name by which he is told from others


class _Turn:
    """One deployment's turn in one request: the calls it may still get."""

    __slots__ = ("calls", "deployment", "failures", "not_before", "repair", "repairs_left", "retries_left")

    def __init__(self, deployment: Deployment, chain: Chain) -> None:
        self.deployment = deployment
        self.retries_left = chain.retries
        self.repairs_left = chain.repair
        self.calls = 0
        self.failures = 0
        self.not_before = float("-inf")
        self.repair: str | None = None


def _are_of_one_group(one: _Turn, other: _Turn) -> bool:
    return one is other or (one.deployment.group is not None and one.deployment.group == other.deployment.group)


class ChainRun:
    """One request's way through its chain.

    `decide` is called until an answer is accepted or it gives up.  After each `Ask` its driver owes one
    call of `answered`, `rejected` or `abandoned` before it may decide again, also when it was cancelled while
    it waited; after an `Examine`, one of `examined`.

    Args:
        config: the tree that was in force when the request began; a reload does not reach it.
        chain: from `resolve`.
        health: shared by all requests.
        need: what every deployment has to fulfil.
        deadline: on the clock of `now`; None: none.
        rng: for jitter and choice.
        tenant: whose request it is; None: it names nobody.
        messages: what is asked, to tell failures that the same messages may have caused.

    Attributes:
        is_resident: whether a deployment's model is in memory, as far as is known; for the strategy `resident`.
    """

    def __init__(
        self,
        *,
        config: Config,
        chain: Chain,
        health: Health,
        need: Need,
        deadline: float | None,
        rng: random.Random,
        tenant: str | None = None,
        messages: Sequence[Any] | None = None,
    ) -> None:
        self._tenant = "" if tenant is None else tenant[:_MAX_TENANT]
        self._messages = messages
        self.is_resident: Callable[[Deployment], bool] = lambda _deployment: False
        self._config = config
        self._health = health
        self._need = need
        self._deadline = deadline
        self._rng = rng
        self._chain = chain
        self._coming = list(with_fallbacks(config, chain))
        self._turns: list[_Turn] = []
        self._repairing: _Turn | None = None
        self._asked: set[str] = set()
        self._examined: tuple[str, ...] = ()
        self._cuts = 0  # calls of ours that were cut for others
        self._passed_over: dict[str, _Turn] = {}
        self._looked_again = False
        self._asking: tuple[_Turn, Permit | None] | None = None
        self._passed: list[AttemptRecord] = []
        self._notes: dict[str, str] = {}

    def decide(self, now: float) -> Decision:
        """Whom to ask next.

        Raises:
            RuntimeError: the last `Ask` has had no verdict.
        """
        if self._asking is not None:
            raise RuntimeError("decide() before the verdict on the last Ask")
        while True:
            if self._deadline is not None and now >= self._deadline:
                return self._give_up(ErrorCode.DEADLINE_EXCEEDED)
            turn = self._choose(now)
            if turn is not None:
                decision = self._ask(turn, now)
                if decision is not None:
                    return decision
                self._turns.remove(turn)
            elif self._coming:
                self._enter(self._coming.pop(0))
            elif not self._looked_again:
                self._looked_again = True
                self._turns = [turn for name, turn in self._passed_over.items() if name not in self._asked]
            elif not self._need.local_only:
                return self._give_up(ErrorCode.CHAIN_EXHAUSTED)
            else:
                return self._examine(now) or self._give_up(ErrorCode.LOCAL_EXHAUSTED)

    def examined(self, deployment: Deployment, *, answers: bool | None) -> None:
        """What came of an `Examine`; None: this request could not wait for it, which tells the others nothing."""
        if answers is not None:
            self._health.examined(deployment.name, self._tenant, answers=answers)
        self._examined += (deployment.name,)
        if answers:
            self._turns = [self._passed_over.pop(deployment.name)]

    def placed(self, deployment: Deployment, now: float) -> bool:
        """The last `Ask` has a slot for this one of its `members`; False: that may not be asked any more."""
        if self._asking is None:
            raise RuntimeError("placed() without an Ask")
        turn, permit = self._asking
        if permit is not None:
            return True
        chosen: _Turn | None = turn
        if turn.deployment is not deployment:
            chosen = next((each for each in self._turns if each.deployment.name == deployment.name), None)
        permit = None if chosen is None else self._health.admit(deployment.name, now, self._tenant)
        if chosen is None or permit is None:
            return False
        if chosen is not turn:
            self._uncount(turn)
            self._count(chosen)
        self._asking = chosen, permit
        return True

    def _count(self, turn: _Turn) -> None:
        turn.calls += 1
        self._asked.add(turn.deployment.name)

    def _uncount(self, turn: _Turn) -> None:
        turn.calls -= 1
        if not turn.calls:
            self._asked.discard(turn.deployment.name)

    def first_token(self, ttft_seconds: float) -> None:
        """The first token of the call came, so long after the call itself began; at most once per `Ask`."""
        if self._asking is not None and self._asking[1] is not None:
            self._health.first_token(self._asking[1], ttft_seconds)

    def answered(self) -> None:
        """The last `Ask` brought the answer."""
        _, permit = self._verdict()
        if permit is not None:
            self._health.succeeded(permit)

    def abandoned(self) -> None:
        """The last `Ask` was given up for a reason that has nothing to do with its deployment."""
        _, permit = self._verdict()
        if permit is not None:
            self._health.abandoned(permit)

    def rejected(self, rejection: Rejection, now: float, elapsed_seconds: float | None) -> None:
        """The last `Ask` came to nothing.

        Args:
            rejection: why.
            now: the time of it.
            elapsed_seconds: since the call began, not counting waits of ours before it; None: it never began
                (no slot became free within `queue_timeout`), which says nothing of the deployment's health.
        """
        turn, permit = self._verdict()
        was_cut = rejection.code is AttemptCode.PREEMPTED and self._cuts < MOST_CUTS
        if was_cut:
            self._cuts += 1
            self._uncount(turn)
        if permit is None:
            pass  # no slot was free
        elif elapsed_seconds is None or self._was_hasty(turn.deployment, rejection.code, now, elapsed_seconds):
            self._health.abandoned(permit)
        else:
            self._health.rejected(permit, rejection, now, elapsed_seconds, self._likeness(rejection))
        self._notes[turn.deployment.name] = f"{rejection.outcome.value} ({rejection.code.value})"
        if rejection.outcome is Outcome.INVALID and turn.repairs_left > 0:
            turn.repairs_left -= 1
            turn.repair = rejection.reason
            self._repairing = turn
        elif rejection.retryable and rejection.code.traits.may_pass and turn.retries_left > 0:
            turn.retries_left -= 1
            turn.failures += 1
            turn.not_before = now + (rejection.retry_after_seconds or 0.0) + self._backoff(turn.failures)
        elif not was_cut:
            self._turns.remove(turn)
            if elapsed_seconds is None and rejection.code is AttemptCode.BUSY:
                self._leave_group(turn.deployment, rejection)

    def _leave_group(self, deployment: Deployment, rejection: Rejection) -> None:
        """No box had a slot in time: the others of the same model were waited for as well."""
        group = deployment.group
        for each in [each for each in self._turns if group is not None and each.deployment.group == group]:
            self._notes[each.deployment.name] = f"{rejection.outcome.value} ({rejection.code.value})"
            self._asked.add(each.deployment.name)
            self._turns.remove(each)

    def _was_hasty(self, deployment: Deployment, code: AttemptCode, now: float, elapsed_seconds: float) -> bool:
        bound = code.traits.bound
        if bound is None or self._deadline is None or self._deadline - now > _DEADLINE_SLACK_SECONDS:
            return False
        due = deployment.connect_timeout if bound == "connect_timeout" else deployment.timeout
        return elapsed_seconds < due * _FAIR_SHARE

    def _likeness(self, rejection: Rejection) -> int | None:
        """The messages' hash, where it matters."""
        if self._messages is None or rejection.fault is not Fault.PERHAPS_CALLER:
            return None
        return hash(orjson.dumps(self._messages))

    def _examine(self, now: float) -> Examine | None:
        """A deployment that was only passed over, and of which a probe of our own may tell more."""
        for name, turn in self._passed_over.items():
            is_new = name not in self._asked and name not in self._examined
            if is_new and self._health.examinable(name, now, self._tenant):
                return Examine(deployment=turn.deployment)
        return None

    def _verdict(self) -> tuple[_Turn, Permit | None]:
        if self._asking is None:
            raise RuntimeError("a verdict without an Ask")
        asking, self._asking = self._asking, None
        return asking

    def _enter(self, chain: Chain) -> None:
        self._chain = chain
        for name in dict.fromkeys(chain.deployments):
            deployment = self._config.deployments[name]
            obstacle = ineligibility(deployment, self._need)
            if obstacle is not None:
                self._notes[name] = obstacle
            elif name not in self._asked:
                self._turns.append(_Turn(deployment, chain))

    def _choose(self, now: float) -> _Turn | None:
        """Whose turn it is in the current chain; None: nobody's."""
        repairing, self._repairing = self._repairing, None
        if repairing is not None or not self._turns:
            return repairing
        if self._chain.strategy == "resident":
            return next((turn for turn in self._turns if self.is_resident(turn.deployment)), self._turns[0])
        if self._chain.strategy == "ordered" or len(self._turns) == 1:
            return self._turns[0]
        available = self._health.available
        ready = [
            turn for turn in self._turns if available(turn.deployment.name, max(now, turn.not_before), self._tenant)
        ]
        if not ready:
            return self._turns[0]
        fewest = min(turn.failures for turn in ready)
        candidates = [turn for turn in ready if turn.failures == fewest]
        return draw(candidates, lambda turn: self._health.score(turn.deployment.name), self._rng)

    def _ask(self, turn: _Turn, now: float) -> Ask | None:
        """Ask the deployment if it can be asked; None: its turn is over."""
        deployment = turn.deployment
        at = max(now, turn.not_before)
        left = None if self._deadline is None else self._deadline - now
        longest = LONGEST_WAIT_SECONDS if left is None else min(LONGEST_WAIT_SECONDS, left * _WAIT_SHARE)
        if at - now > longest:
            return None
        permit: Permit | None = None
        if deployment.box is None:
            permit = self._health.admit(deployment.name, at, self._tenant)
            may_ask = permit is not None
        else:
            may_ask = self._health.available(deployment.name, at, self._tenant)
        if not may_ask:
            if turn.calls == 0:
                self._pass_over(turn, now)
            return None
        self._count(turn)
        self._asking = turn, permit
        return Ask(
            deployment=deployment,
            wait_seconds=at - now,
            repair=turn.repair,
            passed=self._take_passed(),
            members=self._members(turn, at),
            is_firm=self._cuts >= MOST_CUTS,
            is_last=not self._coming and all(_are_of_one_group(each, turn) for each in self._turns),
        )

    def _members(self, turn: _Turn, at: float) -> tuple[Deployment, ...]:
        """Which boxes may be asked for the same model; a repair is its own deployment's."""
        group = turn.deployment.group
        if group is None or turn.repair is not None:
            return (turn.deployment,)
        others = (each for each in self._turns if each is not turn and each.deployment.group == group)
        may = [
            each.deployment
            for each in others
            if each.not_before <= at and self._health.available(each.deployment.name, at, self._tenant)
        ]
        return (turn.deployment, *may)

    def _pass_over(self, turn: _Turn, now: float) -> None:
        deployment = turn.deployment
        code, seconds = self._health.cooldown(deployment.name, now, self._tenant)
        cause = "" if code is None else f" ({code.value})"
        reason = f"cooling down{cause}, " + (f"{seconds:.1f} s more" if seconds else "being probed")
        if deployment.name not in self._passed_over:
            record = AttemptRecord(
                deployment=deployment.name,
                model=deployment.model,
                outcome=Outcome.REJECTED,
                code=AttemptCode.COOLDOWN,
                reason=reason,
            )
            self._passed.append(record)
        self._passed_over[deployment.name] = turn
        self._notes[deployment.name] = reason

    def _take_passed(self) -> tuple[AttemptRecord, ...]:
        passed = tuple(self._passed)
        self._passed.clear()
        return passed

    def _backoff(self, failures: int) -> float:
        return self._rng.uniform(0, min(BACKOFF_MAX_SECONDS, BACKOFF_FIRST_SECONDS * 2.0 ** min(failures - 1, 16)))

    def _give_up(self, code: ErrorCode) -> GiveUp:
        names_by_note: dict[str, list[str]] = {}
        for name, note in self._notes.items():
            names_by_note.setdefault(note, []).append(name)
        notes = [f"{', '.join(names)}: {note}" for note, names in names_by_note.items()]
        if code is ErrorCode.DEADLINE_EXCEEDED:
            notes.insert(
                0,
                "the deadline has passed" if notes else "the deadline passed before any deployment was asked",
            )
        return GiveUp(code=code, message="; ".join(notes) or "nothing to ask", passed=self._take_passed())
