"""Slots of the local boxes: who waits for one, where his model is, and whose turn it is, over all workers.

The rule is `fleet.plan`, pure; the picture that it goes by is `queue.picture`, shared by all workers.  Here the two
meet: each worker tells of its waiting calls, looks at the picture, plans for all, and takes the slots of its own.
A picture that is wrong leads to a slower choice: a slot is had when whoever keeps the picture has granted it.
"""

from __future__ import annotations

import asyncio
import math
import secrets
from collections import Counter, OrderedDict
from contextlib import suppress
from typing import TYPE_CHECKING

from msgspec.structs import replace

from llm_routerd.fleet.picture import Rules
from llm_routerd.fleet.plan import make_plan
from llm_routerd.fleet.waits import Why
from llm_routerd.logs import get_logger
from llm_routerd.protocol.codes import AttemptCode
from llm_routerd.queue.local_boxes import LocalBoxes
from llm_routerd.queue.picture import MOST_TOLD, BoxReport, Picture
from llm_routerd.running.box_calls import UNKNOWN_SECONDS, Slot, WaitingForSlot, Wanted, call_details
from llm_routerd.running.box_watch import DOWN_SECONDS, WATCH_SECONDS, BoxWatch
from llm_routerd.running.boxes import boot_seconds, has_awoken, plannable, resident_name
from llm_routerd.running.kept_slots import KeptSlots
from llm_routerd.running.sleeping import Sleeping
from llm_routerd.running.waking import Waking

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from llm_routerd.config.fleet import Box
    from llm_routerd.config.tree import Config, Deployment
    from llm_routerd.fleet.plan import Begin, Plan
    from llm_routerd.fleet.waits import Wait
    from llm_routerd.protocol.backend import Backend
    from llm_routerd.protocol.keys import Lane
    from llm_routerd.queue.picture import Boxes, Quiet

log = get_logger()

LOOK_SECONDS = 0.25  # so often whoever waits looks at the picture again
RENEW_SECONDS = 10.0
LEAVE_SECONDS = 0.5
DOWN_SECONDS_AT_MOST = 60.0  # so long a box that does not answer is waited for, whoever else might be asked
NOT_LOADED_SECONDS = 30.0  # so long a box that could not load a model is left, if there are others
_ANY_NUMBER = 1_000_000
_MOST_SERVED = 10_000  # beginnings of prompts of which it is known which box has read them


class Fleet:
    """The slots of a configuration's boxes.

    Args:
        config: the tree in force.
        backend: of a deployment, by its name.
        worker: this worker's name, unlike all others'.

    Attributes:
        shared: the picture of all workers; None: there is that of this process alone.
        on_awake: called with a deployment whose box was asleep, and is awake now.
        on_waiting: called when more or fewer calls wait than before.
    """

    def __init__(self, config: Config, backend: Callable[[str], Backend], *, worker: str = "") -> None:
        self._boxes = config.boxes
        self._rules = Rules(
            max_wait=config.fleet.max_wait, min_resident=config.fleet.min_resident, preempt=config.fleet.preempt
        )
        self._worker = worker or secrets.token_hex(8)
        self._own = LocalBoxes(worker=self._worker)
        self.shared: Boxes | None = None
        self.on_waiting: Callable[[], None] = lambda: None
        self.on_awake: Callable[[Deployment], None] = lambda _deployment: None
        self._watch = BoxWatch(
            config,
            backend,
            report=self._report,
            later=self._later,
            on_news=self._wake,
            is_used=lambda box: any(call.box == box for call in self._last.calls),
        )
        self._waking = Waking(config.boxes, self._now, self._watch.look_at)
        self._sleeping = Sleeping(config.boxes, lambda: self.shared, self._watch.look_at)
        self._waiting: dict[str, WaitingForSlot] = {}
        self._waiting_of: Counter[Lane] = Counter()  # those whom a look has found no slot for
        self._held: dict[str, Slot] = {}
        self._kept = KeptSlots(lambda *tokens: self._now().drop(*tokens))
        self._turns: dict[str, float] = {}
        self._served: OrderedDict[str, str] = OrderedDict()
        members = [each for each in config.deployments.values() if each.box is not None]
        self._members = members
        self._pinned = {(each.box or "", resident_name(each)) for each in members if each.pin}
        self._not_loaded: dict[str, float] = {}  # by deployment: loop time until which its box is left to others
        self._last = Picture(now_ms=0)
        self._looked = float("-inf")  # loop time of that
        self._changed = asyncio.Event()
        self._driving: asyncio.Task[None] | None = None
        self._going: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()

    async def take(self, wanted: Wanted, *, seconds: float) -> Slot | str:
        """Wait for a slot; why there is none, in one line, when the time is over or no box will ever have one.

        Args:
            wanted: the call.
            seconds: longest wait; infinite: as long as it takes.
        """
        wanted = self._where_it_loads(wanted)
        slot = await self._take_at_once(wanted) or await self._wait_for(wanted, seconds)
        if isinstance(slot, Slot) and wanted.key:
            self._remember(wanted.key, slot)
        return slot

    def _where_it_loads(self, wanted: Wanted) -> Wanted:
        """Without boxes that could not load its model a moment ago, if there are others."""
        now = self._loop.time()
        able = tuple(each for each in wanted.members if self._not_loaded.get(each.name, now) <= now)
        return replace(wanted, members=able) if 0 < len(able) < len(wanted.members) else wanted

    async def _take_at_once(self, wanted: Wanted) -> Slot | None:
        """A slot of the only box there is for it, where nothing has to be waited for or weighed.

        That saves the look whose turn it is: a third of what a box costs a request.
        """
        if len(wanted.members) != 1 or self._waiting_of.total():
            return None
        if self._is_quiet() and (kept := self._kept.take(wanted)) is not None:
            return self._hold(kept)
        (deployment,) = wanted.members
        box = self._boxes[deployment.box or ""]
        quiet: Quiet = "resident" if box.name in self._watch.askable else "any"
        token, details = secrets.token_hex(8), call_details(wanted, deployment, UNKNOWN_SECONDS)
        occupied = await self._now().occupy(
            token, details, slots=box.slots, reserve=box.reserve, quiet=quiet, sleeps=bool(box.wake)
        )
        if occupied.verdict != "granted":
            return None
        if self._loop.time() > self._looked + LOOK_SECONDS:  # the loop rests, for nothing was held
            self._wake()
        return self._hold(Slot(token, deployment, wanted, since=self._loop.time()))

    def _is_quiet(self) -> bool:
        """Whether nobody waits for any box, as was seen a moment ago."""
        return (
            not (self._waiting_of.total() or self._last.waiting) and self._loop.time() < self._looked + 2 * LOOK_SECONDS
        )

    def _hold(self, slot: Slot) -> Slot:
        self._held[slot.token] = slot
        self._sleeping.used(slot.deployment.box or "")
        self._drive()
        return slot

    async def _wait_for(self, wanted: Wanted, seconds: float) -> Slot | str:
        tokens = self._watch.expected_tokens(wanted.members[0], wanted.max_tokens)
        token, call = secrets.token_hex(8), WaitingForSlot(wanted, tokens)
        self._waiting[token] = call
        self._kept.give_back()  # it may be all that lacks
        self._drive()
        self._wake()
        slot: Slot | str | None = None
        try:
            async with asyncio.timeout(None if math.isinf(seconds) else seconds):
                slot = await call.granted
        except TimeoutError:
            why = "" if call.wait is None else f": {call.wait.reason}"
            return f"queue_timeout: no slot within {seconds:g} s{why}"
        finally:
            del self._waiting[token]
            self._turns.pop(token, None)
            if call.is_counted:
                self._waiting_of[wanted.lane] -= 1
                self.on_waiting()
            if not isinstance(slot, Slot):  # it may have been granted in this very moment
                self._held.pop(token, None)
                self._now().drop(token)
        return slot

    async def look_around(self) -> None:
        """Learn what is in memory on all boxes, unless that is known."""
        if self._boxes and self._loop.time() >= self._looked + WATCH_SECONDS / 5:
            self._looked = self._loop.time()
            await self._watch.look(self._watch.askable)
            await self._look()

    def is_resident(self, deployment: Deployment) -> bool:
        """Whether its model is in its box's memory, as it was seen last."""
        seen = self._last.boxes.get(deployment.box or "")
        return seen is not None and seen.resident is not None and resident_name(deployment) in seen.resident

    def load_seconds(self, deployment: Deployment) -> float | None:
        """What loading its model on its box has taken, as was told last; None: nobody knows."""
        seen = self._last.boxes.get(deployment.box or "")
        return None if seen is None else seen.load_seconds.get(resident_name(deployment))

    @property
    def held(self) -> int:
        """How many slots this worker has now."""
        return len(self._held)

    def waiting(self, lane: Lane) -> int:
        """How many calls of the lane wait here, for longer than it takes to look."""
        return self._waiting_of[lane]

    def release(self, slot: Slot) -> None:
        """The call is over."""
        if self._held.pop(slot.token, None) is None:
            return
        self._sleeping.used(slot.deployment.box or "")
        if not (self._is_quiet() and self._kept.keep(slot)):
            self._now().drop(slot.token)
        if self._waiting:
            self._wake()

    def loaded(self, slot: Slot, seconds: float) -> None:
        """The model of the slot was loaded in so many seconds."""
        self._watch.loaded(slot.deployment, seconds)

    def not_loaded(self, slot: Slot, code: AttemptCode) -> None:
        """The model of the slot could not be loaded; where that was its server's failure, others need not try it."""
        if code is AttemptCode.UPSTREAM:
            self._not_loaded[slot.deployment.name] = self._loop.time() + NOT_LOADED_SECONDS
            for call in self._waiting.values():
                call.leave(slot.deployment)

    def answered(self, slot: Slot, tokens: int, seconds: float) -> None:
        """The call brought so many tokens in so many seconds."""
        self._watch.answered(slot.deployment, tokens, seconds)

    def fell_silent(self, deployment: Deployment, code: AttemptCode) -> bool:
        """Whether a call found nobody at a box that can be woken: that says nothing of the deployment's health."""
        box = self._boxes.get(deployment.box or "")
        if box is None or not box.wake or code is not AttemptCode.CONNECT:
            return False
        self._kept.give_back()
        self._later(lambda: self._report(box.name, BoxReport(down_seconds=DOWN_SECONDS)))
        return True

    def follow(self, boxes: Mapping[str, Box]) -> None:
        """Count by what is in force now: calls of ours go on that began before a reload."""
        self._boxes = {name: boxes.get(name, box) for name, box in self._boxes.items()}
        self._later(self._sleeping.aclose)

    def start(self) -> None:
        """Put boxes to sleep from now on, which have that in their configuration."""
        self._sleeping.start()

    async def leave(self) -> None:
        """Give back at once all that this worker holds, for it ends; what is not heard in time, the leases tell."""
        if self._boxes:
            with suppress(TimeoutError):
                async with asyncio.timeout(LEAVE_SECONDS):
                    await self._now().leave()

    async def aclose(self) -> None:
        """Stop."""
        self._kept.give_back()
        await self._waking.aclose()
        await self._sleeping.aclose()
        if self._driving is not None:
            self._driving.cancel()
            await asyncio.gather(self._driving, return_exceptions=True)
        if self._going:
            await asyncio.wait(self._going, timeout=LEAVE_SECONDS)
        for each in self._going:
            each.cancel()

    # ------------------------------------------------------------------ the loop

    def _drive(self) -> None:
        if self._driving is None or self._driving.done():
            self._driving = asyncio.create_task(self._run(), name="fleet")

    def _wake(self) -> None:
        self._changed.set()

    async def _run(self) -> None:
        """Plan while anybody waits, look on and renew while anything is held; then end."""
        renewed, was_idle = self._loop.time(), False
        while self._waiting or self._held or not was_idle:
            was_idle = not (self._waiting or self._held)
            self._changed.clear()
            if self._loop.time() >= renewed + RENEW_SECONDS:
                renewed = self._loop.time()
                await _ignoring(self._renew)
            await _ignoring(self._step)  # a bug of ours costs a look, and not those that wait
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS if self._waiting or self._held else WATCH_SECONDS):
                    await self._changed.wait()

    async def _renew(self) -> None:
        lost = await self._now().renew([*self._held, *self._waiting])
        for token in lost:  # of a Redis that was emptied: told again
            if token in self._waiting:
                self._waiting[token].is_told = False

    def _may_cut(self) -> bool:
        """Whether a call of ours may have to make room for another worker's."""
        return self._rules.preempt and any(each.is_cuttable for each in self._held.values())

    async def _look(self) -> Picture:
        before, self._last = self._last, await self._now().look()
        self._looked = self._loop.time()
        for each in self._members:
            if has_awoken(self._boxes[each.box or ""], before, self._last):
                self.on_awake(each)
        return self._last

    async def _look_and_restore(self) -> Picture:
        """Look, and tell again of slots that the picture has lost: it was emptied, or stood still for a lease.

        Their calls run, whatever was granted since: that there are more than slots is to be seen by all.
        """
        held = dict(self._held)
        picture = await self._look()
        if len(picture.calls) >= MOST_TOLD or not picture.now_ms:
            return picture
        there = {call.token for call in picture.calls}
        for token, slot in held.items():
            if token not in there and token in self._held:
                details = call_details(slot.wanted, slot.deployment, UNKNOWN_SECONDS)
                await self._now().occupy(token, details, slots=_ANY_NUMBER)
                if token not in self._held:
                    self._now().drop(token)
        return picture

    async def _step(self) -> None:
        used = {box for call in self._waiting.values() for box in call.members}
        await self._watch.look(used | {slot.deployment.box or "" for slot in self._held.values()})
        for slot in self._held.values():
            self._sleeping.used(slot.deployment.box or "")
        if not self._waiting and not self._may_cut():
            await self._look_and_restore()
        until = self._loop.time() + LOOK_SECONDS
        while self._waiting or self._may_cut():
            boxes = self._now()
            picture = self._with_ours(await self._look_and_restore())
            seen = plannable(picture, self._boxes, pinned=self._pinned, turns=self._turns, served=dict(self._served))
            if not seen.waiting:
                return
            plan = make_plan(seen, self._rules, picture.now_ms / 1000)
            await boxes.pass_over(self._note(plan, picture))
            began = [await self._begin(each, boxes) for each in plan.of(self._worker)]
            await self._tell_waiting(boxes)
            if not any(began):
                return
            if self._loop.time() > until:
                self._wake()  # there is more to begin, and other things to be done before
                return

    def _note(self, plan: Plan, picture: Picture) -> list[str]:
        """What the plan says to those that do not begin, and whom of ours it cuts; returns who is newly passed over.

        That is told to all workers: else each would wait for calls of another that does not know they are next.
        """
        now, waiting = picture.now_ms / 1000, {each.token for each in picture.waiting}
        self._turns = {token: at for token, at in self._turns.items() if token in waiting}
        self._turns |= dict.fromkeys(plan.turns, now)
        for token, wait in plan.waits.items():
            self._told(token, wait)
        for cut in plan.cuts:
            slot = self._held.get(cut.token)
            if slot is not None:
                slot.cut()
        for box in plan.wakes:
            self._waking.wake(box, boot_seconds(self._boxes[box], self._last.boxes.get(box)))
        return [each.token for each in picture.waiting if each.turn_ms is None and each.token in self._turns]

    def _with_ours(self, picture: Picture) -> Picture:
        """With our calls that the others have not been told of: what begins at once never waits."""
        known = {each.token for each in picture.waiting}
        now = self._loop.time()
        ours = tuple(
            call.pictured(token, self._worker, now, picture.now_ms)
            for token, call in self._waiting.items()
            if token not in known and not call.granted.done()
        )
        return replace(picture, waiting=(*picture.waiting, *ours)) if ours else picture

    async def _tell_waiting(self, boxes: Boxes) -> None:
        """Those that wait, each once; `renew` keeps them."""
        now = self._loop.time()
        new = {token: call for token, call in self._waiting.items() if not call.is_told and not call.granted.done()}
        for call in new.values():
            call.is_told = True
            if not call.is_counted:
                call.is_counted = True
                self._waiting_of[call.wanted.lane] += 1
        if new:
            self.on_waiting()
        await boxes.wait([call.told(token, now) for token, call in new.items()])

    def _told(self, token: str, wait: Wait) -> None:
        call = self._waiting.get(token)
        if call is None:
            return
        call.wait = wait
        if call.granted.done():
            return
        if wait.why is Why.DOWN and not self._boxes[wait.box].wake:
            call.down_since = self._loop.time() if call.down_since is None else call.down_since
            if self._loop.time() > call.down_since + DOWN_SECONDS_AT_MOST:
                call.granted.set_result(wait.reason)
                return
        else:
            call.down_since = None
        if math.isinf(wait.seconds):
            call.granted.set_result(wait.reason)
        else:
            call.wanted.on_wait(wait)

    async def _begin(self, begin: Begin, boxes: Boxes) -> bool:
        call = self._waiting.get(begin.token)
        if call is None or call.granted.done() or begin.box not in call.members:  # that was planned before it left it
            return False
        box, deployment = self._boxes[begin.box], call.members[begin.box]
        details = call_details(call.wanted, deployment, begin.seconds)
        occupied = await boxes.occupy(begin.token, details, slots=box.slots, reserve=box.reserve, sleeps=bool(box.wake))
        if occupied.verdict == "unkept" and boxes is self.shared:
            self._count_alone()
            return True
        if occupied.verdict != "granted":
            return False
        if call.granted.done():  # its time was over meanwhile
            boxes.drop(begin.token)
            return True
        slot = Slot(begin.token, deployment, call.wanted, since=self._loop.time(), loads=begin.loads)
        call.granted.set_result(self._hold(slot))
        return True

    def _remember(self, key: str, slot: Slot) -> None:
        self._served[key] = slot.deployment.box or ""
        self._served.move_to_end(key)
        if len(self._served) > _MOST_SERVED:
            self._served.popitem(last=False)

    async def _report(self, box: str, report: BoxReport) -> None:
        """Tell all workers; where nobody keeps that, no box that may sleep would ever be known to be awake."""
        boxes = self._now()
        await boxes.report(box, report)
        if boxes.refusal is not None and boxes is self.shared and self._boxes[box].wake:
            self._count_alone()
            await self._own.report(box, report)

    def _count_alone(self) -> None:
        log.warning("boxes_not_shared", why="the server keeps no picture of them: each worker counts for itself")
        self.shared = None

    def _now(self) -> Boxes:
        return self._own if self.shared is None else self.shared

    def _later(self, doing: Callable[[], Awaitable[object]]) -> asyncio.Task[None]:
        """What nobody has to wait for."""
        task = asyncio.create_task(_ignoring(doing), name="fleet-tell")
        self._going.add(task)
        task.add_done_callback(self._going.discard)
        return task


async def _ignoring(doing: Callable[[], Awaitable[object]]) -> None:
    try:
        await doing()
    except Exception:  # the lease tells what was not told
        log.exception("fleet_failed")
