"""Slots of the local boxes: who waits for one, where his model is, and whose turn it is, over all workers.

The rule is `fleet.plan`, pure; the picture that it goes by is `queue.picture`, shared by all workers.  Here the two
meet: each worker tells of its waiting calls, looks at the picture, plans for all, and takes the slots of its own.
A picture that is wrong leads to a slower choice: a slot is had when whoever keeps the picture has granted it.
"""

from __future__ import annotations

import asyncio
import math
import secrets
from collections import OrderedDict
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import asdict, replace

from llm_routerd.fleet.estimates import Seen, observe
from llm_routerd.fleet.picture import Rules
from llm_routerd.fleet.plan import make_plan
from llm_routerd.logs import get_logger
from llm_routerd.protocol.call import BackendError
from llm_routerd.queue.local_boxes import LocalBoxes
from llm_routerd.queue.picture import BoxReport, CallDetails, Candidate, Picture, WaitingCall, WaitingDetails, Waits
from llm_routerd.running.boxes import plannable, resident_name

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from llm_routerd.config.tree import Config, Deployment
    from llm_routerd.fleet.plan import Begin
    from llm_routerd.fleet.waits import Wait
    from llm_routerd.protocol.backend import Backend
    from llm_routerd.protocol.keys import Lane
    from llm_routerd.queue.picture import Boxes

log = get_logger()

LOOK_SECONDS = 0.25  # so often whoever waits looks at the picture again
RENEW_SECONDS = 10.0
WATCH_SECONDS = 5.0  # so often a box that is used is asked what it has loaded
ASK_SECONDS = 2.0
FIRST_LOOK_SECONDS = 0.5
LEAVE_SECONDS = 0.5
DOWN_SECONDS = 5.0  # so long a box that does not answer is not asked for calls
_MOST_SERVED = 10_000  # beginnings of prompts of which it is known which box has read them
_UNKNOWN_SECONDS = 10.0  # that a call is taken to last


class Wanted(Struct, frozen=True, kw_only=True):
    """A call that wants a slot.

    Attributes:
        members: the deployments that may make it, one for each box.
        key: what calls have in common whose prompts begin alike; "": nothing.
    """

    members: Sequence[Deployment]
    lane: Lane = "normal"
    tenant: str | None = None
    key: str = ""


class Slot(Struct, frozen=True, kw_only=True):
    """A slot that was granted; `loads`: its model is to be loaded first."""

    token: str
    deployment: Deployment
    loads: bool = False


class _Waiting:
    """A call that waits."""

    def __init__(self, wanted: Wanted) -> None:
        loop = asyncio.get_running_loop()
        self.members = {each.box or "": each for each in wanted.members}
        self.wanted = wanted
        self.since = loop.time()
        self.granted: asyncio.Future[Slot | str] = loop.create_future()
        self.wait: Wait | None = None  # what the last plan said
        self.is_told = False


class Fleet:
    """The slots of a configuration's boxes.

    Args:
        config: the tree in force.
        backend: of a deployment, by its name.
        worker: this worker's name, unlike all others'.

    Attributes:
        shared: the picture of all workers; None: there is that of this process alone.
    """

    def __init__(self, config: Config, backend: Callable[[str], Backend], *, worker: str = "") -> None:
        self._boxes = config.boxes
        self._backend = backend
        self._rules = Rules(max_wait=config.fleet.max_wait, min_resident=config.fleet.min_resident)
        self._worker = worker or secrets.token_hex(8)
        self._own = LocalBoxes(worker=self._worker)
        self.shared: Boxes | None = None
        self._waiting: dict[str, _Waiting] = {}
        self._held: dict[str, Slot] = {}
        self._turns: dict[str, float] = {}
        self._served: OrderedDict[str, str] = OrderedDict()
        self._seen: dict[tuple[str, str, str], Seen] = {}
        members = [each for each in config.deployments.values() if each.box is not None]
        self._pinned = {(each.box or "", resident_name(each)) for each in members if each.pin}
        self._askable = {each.box or "": each.name for each in members if config.boxes[each.box or ""].kind == "ollama"}
        self._last = Picture(now_ms=0)
        self._looked = float("-inf")
        self._watched: dict[str, float] = {}  # by box: loop time of the next look
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
        token, call = secrets.token_hex(8), _Waiting(wanted)
        self._waiting[token] = call
        self._drive()
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
            if not isinstance(slot, Slot):  # it may have been granted in this very moment
                self._held.pop(token, None)
                self._later(partial(self._now().release, token))
        if isinstance(slot, Slot):
            self._remember(wanted.key, slot)
        return slot

    async def look_around(self) -> None:
        """Learn what is in memory on all boxes, unless that is known."""
        if self._boxes and self._loop.time() >= self._looked + WATCH_SECONDS / 5:
            self._looked = self._loop.time()
            await self._watch(self._askable)
            self._last = await self._now().look()

    def is_resident(self, deployment: Deployment) -> bool:
        """Whether its model is in its box's memory, as it was seen last."""
        seen = self._last.boxes.get(deployment.box or "")
        return seen is not None and seen.resident is not None and resident_name(deployment) in seen.resident

    @property
    def held(self) -> int:
        """How many slots this worker has now."""
        return len(self._held)

    def release(self, slot: Slot) -> None:
        """The call is over."""
        self._held.pop(slot.token, None)
        self._later(partial(self._now().release, slot.token))
        self._changed.set()

    def loaded(self, slot: Slot, seconds: float) -> None:
        """The model of the slot was loaded in so many seconds."""
        box, model = slot.deployment.box or "", resident_name(slot.deployment)
        self._later(
            partial(
                self._now().report, box, BoxReport(load_seconds={model: self._average("load", box, model, seconds)})
            )
        )
        self._watched[box] = float("-inf")
        self._changed.set()

    def answered(self, slot: Slot, tokens: int, seconds: float) -> None:
        """The call brought so many tokens in so many seconds."""
        if tokens > 0 and seconds > 0:
            box, model = slot.deployment.box or "", resident_name(slot.deployment)
            speed = self._average("speed", box, model, tokens / seconds)
            self._later(partial(self._now().report, box, BoxReport(tokens_per_second={model: speed})))

    async def leave(self) -> None:
        """Give back at once all that this worker holds, for it ends; what is not heard in time, the leases tell."""
        if self._boxes:
            with suppress(TimeoutError):
                async with asyncio.timeout(LEAVE_SECONDS):
                    await self._now().leave()

    async def aclose(self) -> None:
        """Stop."""
        if self._driving is not None:
            self._driving.cancel()
            await asyncio.gather(self._driving, return_exceptions=True)
        if self._going:
            await asyncio.wait(self._going, timeout=LEAVE_SECONDS)
        for each in self._going:
            each.cancel()

    # ------------------------------------------------------------------ the loop

    def _drive(self) -> None:
        self._changed.set()
        if self._driving is None or self._driving.done():
            self._driving = asyncio.create_task(self._run(), name="fleet")

    async def _run(self) -> None:
        """Plan while anybody waits, renew while anything is held; then end."""
        renewed = self._loop.time()
        while self._waiting or self._held:
            self._changed.clear()
            try:
                await self._step()
                if self._loop.time() >= renewed + RENEW_SECONDS:
                    renewed = self._loop.time()
                    lost = await self._now().renew([*self._held, *self._waiting])
                    for token in lost:  # of a Redis that was emptied: told again
                        if token in self._waiting:
                            self._waiting[token].is_told = False
            except Exception:  # a bug of ours costs a look, and not those that wait
                log.exception("fleet_failed")
            pause = LOOK_SECONDS if self._waiting else RENEW_SECONDS / 2
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._changed.wait()

    async def _step(self) -> None:
        used = {box for call in self._waiting.values() for box in call.members}
        await self._watch(used | {slot.deployment.box or "" for slot in self._held.values()})
        while self._waiting:
            boxes = self._now()
            picture = self._with_ours(await boxes.look())
            seen = plannable(picture, self._boxes, pinned=self._pinned, turns=self._turns, served=dict(self._served))
            plan = make_plan(seen, self._rules, picture.now_ms / 1000)
            for token in plan.turns:
                self._turns.setdefault(token, picture.now_ms / 1000)
            for token, wait in plan.waits.items():
                self._told(token, wait)
            began = [await self._begin(each, boxes) for each in plan.of(self._worker)]
            if not any(began):
                await self._tell_waiting(boxes)
                return

    def _with_ours(self, picture: Picture) -> Picture:
        """With our calls that the others have not been told of: what begins at once never waits."""
        known = {each.token for each in picture.waiting}
        now = self._loop.time()
        ours = tuple(
            WaitingCall(
                **asdict(_details(call.wanted)),
                token=token,
                worker=self._worker,
                since_ms=picture.now_ms - round((now - call.since) * 1000),
                until_ms=picture.now_ms,
            )
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
        await boxes.wait(
            [
                Waits(token=token, details=_details(call.wanted), waited_seconds=now - call.since)
                for token, call in new.items()
            ]
        )

    def _told(self, token: str, wait: Wait) -> None:
        call = self._waiting.get(token)
        if call is None:
            return
        call.wait = wait
        if math.isinf(wait.seconds) and not call.granted.done():
            call.granted.set_result(wait.reason)

    async def _begin(self, begin: Begin, boxes: Boxes) -> bool:
        call = self._waiting.get(begin.token)
        if call is None or call.granted.done():
            return False
        box, deployment = self._boxes[begin.box], call.members[begin.box]
        details = CallDetails(
            lane=call.wanted.lane,
            box=begin.box,
            model=begin.model,
            deployment=deployment.name,
            tenant=call.wanted.tenant,
            expected_seconds=begin.seconds,
        )
        occupied = await boxes.occupy(begin.token, details, slots=box.slots, reserve=box.reserve)
        if occupied.verdict == "unkept" and boxes is self.shared:
            log.warning("boxes_not_shared", why="the server keeps no picture of them: each worker counts for itself")
            self.shared = None
            return True
        if occupied.verdict != "granted":
            return False
        if call.granted.done():  # its time was over meanwhile
            self._later(partial(boxes.release, begin.token))
            return True
        slot = Slot(token=begin.token, deployment=deployment, loads=begin.loads)
        self._held[slot.token] = slot
        call.granted.set_result(slot)
        return True

    # ------------------------------------------------------------------ what is known of boxes

    async def _watch(self, used: Iterable[str]) -> None:
        """Ask the boxes that are used what they have loaded, each now and then.

        Only a first answer is waited for, and not for long: a box that is slow to tell holds nobody up.
        """
        now = self._loop.time()
        due = [box for box in used if box in self._askable and self._watched.get(box, float("-inf")) <= now]
        new = [box for box in due if box not in self._watched]
        looks = {box: self._later(partial(self._look_at, box)) for box in due}
        for box in due:
            self._watched[box] = now + WATCH_SECONDS
        if new:
            await asyncio.wait([looks[box] for box in new], timeout=FIRST_LOOK_SECONDS)

    async def _look_at(self, box: str) -> None:
        try:
            async with asyncio.timeout(ASK_SECONDS):
                resident = await self._backend(self._askable[box]).resident()
        except (BackendError, TimeoutError):
            report = BoxReport(down_seconds=DOWN_SECONDS)
        else:
            report = BoxReport(resident=resident, down_seconds=0.0)
        await self._now().report(box, report)
        self._changed.set()

    def _average(self, what: str, box: str, model: str, value: float) -> float:
        key = what, box, model
        self._seen[key] = seen = observe(self._seen.get(key), value, self._loop.time())
        return seen.value

    def _remember(self, key: str, slot: Slot) -> None:
        if key:
            self._served[key] = slot.deployment.box or ""
            self._served.move_to_end(key)
            if len(self._served) > _MOST_SERVED:
                self._served.popitem(last=False)

    def _now(self) -> Boxes:
        return self._own if self.shared is None else self.shared

    def _later(self, doing: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        """What nobody has to wait for."""
        task = asyncio.create_task(_ignoring(doing), name="fleet-tell")
        self._going.add(task)
        task.add_done_callback(self._going.discard)
        return task


async def _ignoring(doing: Callable[[], Awaitable[None]]) -> None:
    try:
        await doing()
    except Exception:  # the lease tells what was not told
        log.exception("fleet_failed")


def _details(wanted: Wanted) -> WaitingDetails:
    return WaitingDetails(
        lane=wanted.lane,
        candidates=tuple(Candidate(each.box or "", resident_name(each)) for each in wanted.members),
        tenant=wanted.tenant,
        expected_seconds=_UNKNOWN_SECONDS,
        affinity=wanted.key or None,
    )
