"""The rule: which of all waiting calls begin now, on which box, and how long the others wait.

- The high lane first, then the normal, then the low one; within a lane in turn (`order`).  `reserve` slots of a box are
  for the high lane only.
- A call begins where its model is resident and a slot is free.  Else it waits for such a slot, if that is estimated
  shorter than loading elsewhere; else its model is loaded where that costs least; else it waits.
- A model is not pushed out while calls run on it, while a call of the same lane or a higher one waits for it, or when
  it is pinned.  So others may be served first: for `max_wait` after the first of them was (`Plan.turns`).  Then the box
  is kept: nothing of this lane or a lower one begins there, and when what runs has ended, the model is loaded.
  If the box that is kept was badly chosen, after twice that time all are kept that could be loaded.
- `min_resident` is stronger than `max_wait`, a higher lane is stronger than both.
- A call may leave a free slot to others where a faster box, or one that has read its prompt before, is worth waiting
  for; not once it is overdue.
- A box that sleeps and can be woken is one whose models take a boot longer.  It is woken where that is clearly sooner
  than what is up.  A call waits for it if it may wait that long; else it goes on to the next of its chain, and wakes
  the box all the same if no other serves it: for those that come after it.

One plan is not the end: when its calls have begun, the next one may name more.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from llm_routerd.fleet.affinity import prefer
from llm_routerd.fleet.choices import Choices
from llm_routerd.fleet.estimates import Reckoning
from llm_routerd.fleet.options import Kind, Option
from llm_routerd.fleet.order import in_turn, running_by_tenant
from llm_routerd.fleet.picture import LANES
from llm_routerd.fleet.preemption import Cut, cuts_for
from llm_routerd.fleet.standing import HIGH, RANKS, Standing
from llm_routerd.fleet.waits import Wait, Why

if TYPE_CHECKING:
    from llm_routerd.fleet.choices import Choice
    from llm_routerd.fleet.picture import Picture, Rules, Waiting

_SAME_SECONDS: Final = 0.25  # costs that differ by less are the same
_SAME_SHARE: Final = 0.05
_WORTH_WAITING_SHARE: Final = 0.8  # of what the free slot costs
_WHY: Final = {
    Kind.OPEN: Why.QUEUED,
    Kind.QUEUED: Why.QUEUED,
    Kind.COMING: Why.LOADING,
    Kind.DRAIN: Why.DRAINING,
    Kind.HELD: Why.OTHERS,
    Kind.ASLEEP: Why.WAKING,
}


class Begin(Struct, frozen=True, kw_only=True):
    """A call that begins now.

    Attributes:
        seconds: that it is expected to take, loading included.
        loads: whether the model has to be loaded first.
        push_out: the models in whose place that is, where the box's memory is known; else its server chooses.
    """

    token: str
    worker: str
    box: str
    model: str
    seconds: float
    loads: bool = False
    push_out: tuple[str, ...] = ()


class Plan(Struct, frozen=True, kw_only=True):
    """What is to be done.

    Attributes:
        begin: in this order.
        waits: all others, by token.
        turns: tokens of calls that are passed over with this plan for the first time: it is their `Waiting.turn`.
        cuts: calls to break off for others, if the rules allow it.
        wakes: names of boxes to wake, each once; whoever sees it first does so.
    """

    begin: tuple[Begin, ...]
    waits: dict[str, Wait]
    turns: tuple[str, ...] = ()
    cuts: tuple[Cut, ...] = ()
    wakes: tuple[str, ...] = ()

    def of(self, worker: str) -> tuple[Begin, ...]:
        """What this worker begins; the rest is others' business."""
        return tuple(each for each in self.begin if each.worker == worker)


def make_plan(picture: Picture, rules: Rules, now: float) -> Plan:
    """Decide for all waiting calls; the same picture, rules and `now` give the same plan, in any order of its parts."""
    return _Walk(picture, rules, now).plan()


class _Walk:
    """Through all waiting calls, once."""

    def __init__(self, picture: Picture, rules: Rules, now: float) -> None:
        self._picture = picture
        self._rules = rules
        self._now = now
        self._reckoning = Reckoning(picture.estimates, picture.sizes)
        views = sorted(picture.boxes, key=lambda view: view.box.name)
        self._boxes = {view.box.name: Standing(view, self._reckoning, now) for view in views}
        self._waiting = picture.waiting
        self._begin: list[Begin] = []
        self._waits: dict[str, Wait] = {}
        self._turns: dict[str, None] = {}
        self._cuts: tuple[Cut, ...] = ()
        self._wakes: dict[str, None] = {}
        self._passed: dict[str, Waiting] = {}  # by box the first of the lane that does not begin there
        self._choices = Choices(self._boxes, self._reckoning, rules, now)

    def plan(self) -> Plan:
        """Lane by lane."""
        for lane in LANES:
            calls = [call for call in self._waiting if call.lane == lane]
            self._choices.enter(RANKS[lane], calls)
            self._passed.clear()
            order = in_turn(calls, running_by_tenant(self._picture, lane))
            for call in order:
                self._consider(call)
            if RANKS[lane] == HIGH and self._rules.preempt:
                late = [self._waits[call.token] for call in order if call.token in self._waits]
                by_token = {call.token: call for call in calls}
                ask = partial(self._choices.ask, patience=-math.inf, heeds_plans=False)
                self._cuts = cuts_for(late, by_token, self._boxes, ask)
        return Plan(
            begin=tuple(self._begin),
            waits=self._waits,
            turns=tuple(self._turns),
            cuts=self._cuts,
            wakes=tuple(self._wakes),
        )

    def _consider(self, call: Waiting) -> None:
        """Begin the call, or plan for it to wait."""
        patience = self._rules.max_wait if call.turn is None else call.turn + self._rules.max_wait - self._now
        choice = self._choices.look(call, patience)
        found = self._choose(call, choice, patience) if choice.options else None
        if choice.asleep:
            found = self._or_awake(call, choice.asleep, found, patience)
        if found is None:
            self._waits[call.token] = self._no_place(call, choice.asleep)
            return
        chosen, cost, seconds = found
        if chosen.kind in (Kind.OPEN, Kind.LOAD):
            self._begins(call, chosen, seconds)
            return
        self._waits_for(call, chosen, seconds, patience)
        for each in choice.passable:
            # It would begin there if others did not go first.
            if each.standing.name not in self._passed and each.fixed_seconds + self._seconds(call, each) < cost:
                self._passed[each.standing.name] = call
            if each.kind is not Kind.HELD and call.turn is not None and patience <= -self._rules.max_wait:
                each.standing.close(RANKS[call.lane])
                self._choices.changed()

    # ------------------------------------------------------------------ where it is to be

    @staticmethod
    def _seconds(call: Waiting, each: Option) -> float:
        """What the answer is expected to take there."""
        return call.tokens / each.speed if call.tokens and each.speed else call.seconds

    def _choose(self, call: Waiting, choice: Choice, patience: float) -> tuple[Option, float, float]:
        """The option, its cost in seconds until the answer's end, and the seconds that it takes a slot.

        One pass over all: this is what a plan's time goes to.
        """
        now, tokens, unread = self._now, call.tokens, call.prompt_tokens
        warm = self._picture.served.get(call.key) if call.key and unread else None
        if warm not in choice.within_bound:
            warm = None
        best, least, best_seconds = choice.options[0], math.inf, 0.0
        at_once: list[tuple[Option, float, float]] = []
        for each, name, speed, reading_speed, fixed, ready, ends in choice.rows:
            seconds = tokens / speed if tokens and speed else call.seconds
            if warm is not None and name != warm:
                seconds += unread / reading_speed
            cost = fixed + seconds
            if ends is None:
                at_once.append((each, cost, seconds))
            else:
                slot = ends[0] - now
                cost += slot if slot > ready else ready  # noqa: FURB136 -- a call here is a tenth of all
            if cost < least:
                best, least, best_seconds = each, cost, seconds
        free = [each for each in at_once if each[0].kind is Kind.OPEN]
        if not free:
            return best, least, best_seconds
        is_worth_waiting = (
            best.kind not in (Kind.OPEN, Kind.LOAD)
            and least < _WORTH_WAITING_SHARE * min(cost for _, cost, _ in free)
            and least - best_seconds <= patience
        )
        return (best, least, best_seconds) if is_worth_waiting else _preferred(call, free)

    def _or_awake(
        self, call: Waiting, asleep: list[Option], up: tuple[Option, float, float] | None, patience: float
    ) -> tuple[Option, float, float] | None:
        """That, or a box that has to be woken, where it may be waited for and is clearly sooner; None: neither."""
        best, least = up, math.inf if up is None else _WORTH_WAITING_SHARE * up[1]
        is_free = up is not None and up[0].kind in (Kind.OPEN, Kind.LOAD)
        for each in asleep:
            seconds = self._seconds(call, each)
            if call.tokens and call.prompt_tokens:
                seconds += call.prompt_tokens / each.reading_speed
            cost = each.fixed_seconds + seconds + max(each.ready, each.ends[0] - self._now)
            if cost < least and self._may_wait(call, each, seconds) and not (is_free and cost - seconds > patience):
                best, least = (each, cost, seconds), cost
        return best

    def _may_wait(self, call: Waiting, each: Option, seconds: float) -> bool:
        """Whether the call may wait for the boot, and an answer then; for others before it, as on a box that is up."""
        awake = self._now + each.standing.boot_left
        return (call.begin_by is None or awake <= call.begin_by) and (
            call.end_by is None or awake + each.load_seconds + seconds <= call.end_by
        )

    # ------------------------------------------------------------------ what becomes of it

    def _wake(self, standing: Standing) -> None:
        """The box is to be woken, unless it is being, or may not be yet."""
        waking = standing.waking
        if waking is not None and waking.woken is None and self._now >= waking.not_before:
            self._wakes[standing.name] = None

    def _begins(self, call: Waiting, chosen: Option, seconds: float) -> None:
        standing, model, rank = chosen.standing, chosen.model, RANKS[call.lane]
        passed = self._passed.get(standing.name)
        if passed is not None and passed.turn is None:
            self._turns[passed.token] = None
        loads = chosen.kind is Kind.LOAD
        if loads:
            standing.load(model, chosen.victims, chosen.load_seconds)
        standing.begin(model, rank, chosen.load_seconds + seconds)
        self._choices.satisfied(call)
        self._begin.append(
            Begin(
                token=call.token,
                worker=call.worker,
                box=standing.name,
                model=model,
                seconds=chosen.load_seconds + seconds,
                loads=loads,
                push_out=chosen.push_out,
            )
        )

    def _waits_for(self, call: Waiting, chosen: Option, seconds: float, patience: float) -> None:
        standing, model, rank = chosen.standing, chosen.model, RANKS[call.lane]
        start = max(chosen.ready, chosen.ends[0] - self._now) + chosen.load_seconds
        why = _WHY[chosen.kind]
        if chosen.kind is Kind.COMING and model not in standing.loads:
            why = Why.QUEUED
        if chosen.kind in (Kind.DRAIN, Kind.HELD):
            # What is lower makes room at once, what is of this lane once others have gone first for long enough.
            standing.close(rank if chosen.kind is Kind.DRAIN and patience <= 0 else rank + 1)
            if patience <= 0:  # held by what was just loaded: others go on with that, and load nothing beside it
                standing.close_to_loads(rank)
            standing.expect(model, start)
            self._choices.changed()
        if chosen.kind is Kind.ASLEEP:
            self._wake(standing)
            if standing.waking is not None and standing.waking.is_late:
                why = Why.DOWN
            if model not in standing.ready:
                standing.expect(model, start)
                self._choices.changed()
        before = standing.wait(rank, start, seconds)
        self._waits[call.token] = Wait(
            token=call.token,
            worker=call.worker,
            seconds=start,
            why=why,
            box=standing.name,
            model=model,
            before=before,
        )

    def _no_place(self, call: Waiting, asleep: list[Option]) -> Wait:
        """No box that is up can serve it, nor one of those that sleep in time."""
        soonest = min(asleep, key=lambda each: (each.ready + each.fixed_seconds, each.standing.name), default=None)
        if soonest is not None:
            self._wake(soonest.standing)
        known = [(self._boxes[place.box], place.model) for place in call.candidates if place.box in self._boxes]
        down = min(
            ((each.down_until, each.name, model) for each, model in known if not (each.is_up or each.waking)),
            default=None,
        )
        if down is not None:
            until, box, model = down
            return Wait(
                token=call.token, worker=call.worker, seconds=until - self._now, why=Why.DOWN, box=box, model=model
            )
        if soonest is not None:
            standing = soonest.standing
            is_late = standing.waking is not None and standing.waking.is_late
            return Wait(
                token=call.token,
                worker=call.worker,
                seconds=math.inf,
                why=Why.DOWN if is_late else Why.LATE,
                box=standing.name,
                model=soonest.model,
            )
        model = known[0][1] if known else ""
        return Wait(token=call.token, worker=call.worker, seconds=math.inf, why=Why.NEVER, model=model)


def _preferred(call: Waiting, free: list[tuple[Option, float, float]]) -> tuple[Option, float, float]:
    """Of free slots the one where the answer ends soonest; of those alike the one that the call's key prefers."""
    enough = min(cost for _, cost, _ in free) * (1 + _SAME_SHARE) + _SAME_SECONDS
    alike = {each.standing.name: (each, cost, seconds) for each, cost, seconds in free if cost <= enough}
    return alike[prefer(call.key, [each.standing for each, _, _ in alike.values()]).name]
