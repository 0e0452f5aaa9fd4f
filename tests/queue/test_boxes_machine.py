"""Random histories of the boxes against a model in Python, in one process and on a server: whatever order things happen in.

The model says what each verb must answer.  Time passes by rule, in steps of ten seconds, so that the moments which
really pass decide nothing.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from msgspec import Struct

from llm_routerd.queue.picture import BoxReport
from tests.queue.boxes_scene import HASHES, LEASE_SECONDS, LocalScene, SharedScene, call, waits

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from llm_routerd.protocol.keys import Lane

BOXES = ("attic", "cellar")
SLOTS = {("w1", "attic"): 3, ("w2", "attic"): 2, ("w1", "cellar"): 1, ("w2", "cellar"): 1}  # they disagree on one
RESERVE = {"attic": 1, "cellar": 0}
TOKENS = {"w1": ("a", "b", "c", "d"), "w2": ("e", "f", "g", "h")}

workers = st.sampled_from(sorted(TOKENS))
numbers = st.integers(0, 3)
boxes = st.sampled_from(BOXES)
lanes: st.SearchStrategy[Lane] = st.sampled_from(("high", "low"))
models = st.sampled_from(("m", "m", "n"))
twice = st.booleans()


class Held(Struct):
    """A call that holds a slot, as the model has it."""

    box: str
    lane: str
    model: str
    until: int


class BoxesMachine(RuleBasedStateMachine):
    """Two workers with calls of their own, that come, wait, crash and leave."""

    def __init__(self, open_scene: Callable[[AsyncExitStack], Any]) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.stack = AsyncExitStack()
        self.scene = self._run(self._open(open_scene))
        self.now = 0
        self.calls: dict[str, Held] = {}
        self.waiting: dict[str, int] = {}
        self.reported: dict[str, tuple[str, int]] = {}

    def _run(self, awaitable: Awaitable[Any]) -> Any:
        async def run() -> Any:
            return await awaitable

        return self.runner.run(run())

    async def _open(self, open_scene: Callable[[AsyncExitStack], Any]) -> Any:
        scene = open_scene(self.stack)
        if isinstance(scene, SharedScene):
            await scene.client.flushall()
        self.verbs = {worker: await scene.boxes(worker) for worker in TOKENS}
        return scene

    def _there(self, box: str) -> tuple[int, int]:
        """How many calls hold a slot of a box, and how many of them are not of the high lane."""
        lanes = [held.lane for held in self.calls.values() if held.box == box]
        return len(lanes), sum(lane != "high" for lane in lanes)

    @rule(worker=workers, number=numbers, box=boxes, lane=lanes, model=models, quiet=twice, repeated=twice)
    def a_call_asks_for_a_slot(
        self, worker: str, number: int, box: str, lane: Lane, *, model: str, quiet: bool, repeated: bool
    ) -> None:
        """Whether it has one, waits, or is new; having looked or not; once, or again after a lost reply."""
        token = TOKENS[worker][number]
        for _ in range(1 + repeated):
            there, unhurried = self._there(box)
            slots, held = SLOTS[worker, box], self.calls.get(token)
            others = [each.model for each in self.calls.values() if each.box == box and each.model != model]
            if held is not None:
                expected = "granted" if held.box == box else "elsewhere"
            elif quiet and (self.waiting or others):
                expected = "contended"
            else:
                is_free = there < slots and (lane == "high" or unhurried < slots - RESERVE[box])
                expected = "granted" if is_free else "full"
            if expected == "granted":
                self.calls[token] = Held(
                    box,
                    lane if held is None else held.lane,
                    model if held is None else held.model,
                    self.now + LEASE_SECONDS,
                )
                self.waiting.pop(token, None)
            asked = self.verbs[worker].occupy(
                token, call(box, lane, model=model), slots=slots, reserve=RESERVE[box], quiet="any" if quiet else ""
            )
            occupied = self._run(asked)
            assert (occupied.verdict, occupied.running) == (expected, self._there(box)[0])

    @rule(worker=workers, chosen=st.sets(numbers), repeated=twice)
    def calls_wait(self, worker: str, chosen: set[int], *, repeated: bool) -> None:
        """Some of them hold a slot meanwhile."""
        tokens = [TOKENS[worker][number] for number in sorted(chosen)]
        for _ in range(1 + repeated):
            self._run(self.verbs[worker].wait([waits(token) for token in tokens]))
        self.waiting |= {token: self.now + LEASE_SECONDS for token in tokens if token not in self.calls}

    @rule(worker=workers, number=numbers, repeated=twice)
    def a_call_is_over(self, worker: str, number: int, *, repeated: bool) -> None:
        """Or is given up; or never was."""
        token = TOKENS[worker][number]
        for _ in range(1 + repeated):
            self._run(self.verbs[worker].release(token))
        self.calls.pop(token, None)
        self.waiting.pop(token, None)

    @rule(worker=workers, chosen=st.sets(numbers), repeated=twice)
    def a_worker_renews(self, worker: str, chosen: set[int], *, repeated: bool) -> None:
        """Some; what it forgets is as if it had died with that."""
        tokens = [TOKENS[worker][number] for number in sorted(chosen)]
        lost = [token for token in tokens if token not in self.calls and token not in self.waiting]
        for _ in range(1 + repeated):
            assert self._run(self.verbs[worker].renew(tokens)) == lost
        for token in tokens:
            if token in self.calls:
                self.calls[token].until = self.now + LEASE_SECONDS
            elif token in self.waiting:
                self.waiting[token] = self.now + LEASE_SECONDS

    @rule(worker=workers, box=boxes)
    def a_worker_reports(self, worker: str, box: str) -> None:
        """A model that only it has seen."""
        self._run(self.verbs[worker].report(box, BoxReport(resident={worker: 1})))
        self.reported[box] = (worker, self.now + 60)

    @rule(seconds=st.sampled_from((10, 20, 20, 40)))
    def time_passes(self, seconds: int) -> None:
        """Leases of the dead run out."""
        self._run(self.scene.pass_time(seconds))
        self.now += seconds
        self.calls = {token: held for token, held in self.calls.items() if held.until > self.now}
        self.waiting = {token: until for token, until in self.waiting.items() if until > self.now}

    @invariant()
    def the_picture_is_the_models(self) -> None:
        """No token twice, none lost; never more calls than slots, and the reserve is kept."""
        picture = self._run(self.verbs["w1"].look())
        assert [(each.token, each.box, each.lane) for each in sorted(picture.calls, key=lambda each: each.token)] == [
            (token, held.box, held.lane) for token, held in sorted(self.calls.items())
        ]
        assert sorted(each.token for each in picture.waiting) == sorted(self.waiting)
        for box in BOXES:
            there = [each.lane for each in picture.calls if each.box == box]
            most = max(SLOTS[worker, box] for worker in TOKENS)
            assert len(there) <= most
            assert len([lane for lane in there if lane != "high"]) <= most - RESERVE[box]
        fresh = {box: {worker} for box, (worker, until) in self.reported.items() if until > self.now}
        assert {box: set(seen.resident) for box, seen in picture.boxes.items() if seen.resident is not None} == fresh

    def teardown(self) -> None:
        """When all are dead for a lease, all slots are there again, and no more than all."""
        try:
            self.time_passes(LEASE_SECONDS + 10)
            for box in BOXES:
                slots = SLOTS["w1", box]
                asked = [self.verbs["w1"].occupy(f"{box}{n}", call(box, "high"), slots=slots) for n in range(slots + 1)]
                assert [self._run(each).verdict for each in asked] == ["granted"] * slots + ["full"]
        finally:
            self._run(self.stack.aclose())
            self.runner.close()


class LeavingMachine(BoxesMachine):
    """Workers also stop, and begin again."""

    @rule(worker=workers, repeated=twice)
    def a_worker_leaves(self, worker: str, *, repeated: bool) -> None:
        """With all that it has."""
        for _ in range(1 + repeated):
            self._run(self.verbs[worker].leave())
        for token in TOKENS[worker]:
            self.calls.pop(token, None)
            self.waiting.pop(token, None)

    @rule(key=st.sampled_from(HASHES), name=st.sampled_from(("a", "attic", "junk")))
    def somebody_writes_junk(self, key: str, name: str) -> None:
        """Over what stands there: that is gone, and nothing else."""
        self._run(self.scene.client.hset(key, name, '{"until_ms":1,"box":"attic"'))
        for key_of, found in zip(HASHES, (self.reported, self.calls, self.waiting), strict=True):
            if key_of == key:
                found.pop(name, None)  # type: ignore[attr-defined]  # a dict each


@pytest.mark.parametrize("kept", ["local", "valkey"])
def test_boxes_keep_every_promise_in_every_order(kept: str, request: pytest.FixtureRequest) -> None:
    """Live calls never exceed slots, the others never the reserve, no slot is lost for ever, no token counts twice."""
    url = request.getfixturevalue("valkey_url") if kept == "valkey" else ""

    def machine() -> BoxesMachine:
        return LeavingMachine(lambda stack: SharedScene(url, stack)) if url else BoxesMachine(lambda _: LocalScene())

    run_state_machine_as_test(
        machine,  # type: ignore[arg-type]  # it only calls it
        settings=settings(
            max_examples=30,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            database=None,
            phases=[Phase.generate],  # add Phase.shrink to have a short history
        ),
    )
