"""One storm over runs with tools: workers, tool workers and the server are killed while models, tools and people talk."""

from __future__ import annotations

import asyncio
import json
import random
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from llm_routerd.protocol.keys import LANES, Keys
from tests.chaos.approver import run_id
from tests.chaos.driver import Driver
from tests.chaos.plan import STORM, WORKERS, Kind, make_plan
from tests.chaos.producers import Order, Producers
from tests.chaos.runs_verdict import TOOLS, RunsVerdict
from tests.chaos.storm import CALM_SECONDS, Report, calls_still_running, wait_for_calm
from tests.chaos.world import LASTING, Slot, Span, World
from tests.support.proxy import Proxy, open_proxy
from tests.support.servers import ValkeyProcess
from tests.support.wire import eventually_true

if TYPE_CHECKING:
    from collections.abc import Mapping
    from enum import StrEnum
    from pathlib import Path

_KEYS = Keys()
TOOL_WORKERS = WORKERS  # a fault's `slot` is one of either
MOST_TURNS = 5
_BEHIND_PAUSE_SECONDS = (0.5, 1.5)
_TOOLS_PAUSE_SECONDS = (0.5, 1.5)
_LOSS_PAUSE_SECONDS = (0.3, 2.0)
_LOSS_SECONDS = (0.02, 0.3)
_DELAY_SECONDS = 0.01  # of each packet, so that losses meet something
_ASKED_WITHIN = 0.75  # of the storm: what comes last meets some of it too
_ACT_SECONDS = (0.0, 0.0, 0.05, 0.4)
_IDLE_SECONDS = 10.0  # no model is given up because this machine is busy
BEHIND: dict[StrEnum, tuple[int, float, float]] = {
    kind: how for kind, how in STORM.items() if kind is not Kind.ADD_LAST_ID
}
AT_TOOLS: dict[StrEnum, tuple[int, float, float]] = {
    Kind.KILL_WORKER: (5, 0.1, 1.0),
    Kind.STOP_WORKER: (4, 0.3, 4.0),
    Kind.DRAIN_WORKER: (2, 0.0, 0.5),
}
# What of it asks, waits for a person, or is cancelled in the middle: how often each.
_KINDS = {"plain": 5, "asks": 3, "cancelled": 2}


def make_runs(seed: int, count: int) -> list[Order]:
    """The requests: up to five turns each, in which the two tools are called once or twice."""
    rng = random.Random(f"runs-{seed}")
    return [_run(rng, number) for number in range(count)]


def _run(rng: random.Random, number: int) -> Order:
    kind = rng.choices(list(_KINDS), list(_KINDS.values()))[0]
    turns = rng.randint(0 if kind == "plain" else 1, MOST_TURNS)  # in the fifth no tool is offered, whatever is planned
    words = [f"id=run-{number}", f"first_ms={rng.choice((0, 20, 300))}", f"delay_ms={rng.choice((0, 5, 30))}"]
    for turn in range(1, turns + 1):
        calls = [f'{rng.choice(TOOLS)} {{"seconds":{rng.choice(_ACT_SECONDS)}}}' for _ in range(rng.randint(1, 2))]
        words.append(f"turn{turn}='{' '.join(calls)}'")
    agent: dict[str, Any] = {"tools": ["*"]}
    if kind == "asks" or (kind == "cancelled" and rng.random() < 0.5):
        agent["confirm"] = [TOOLS[0]]
    fields = {
        "id": run_id(number),
        "prompt": f"[[{' '.join(words)}]]",
        "agent": json.dumps(agent),
        "stream": rng.choice(["false", "true"]),
    }
    return Order(name=f"run-{number}", kind=kind, lane=rng.choice(LANES), fields=fields, key_id=fields["id"])


class Askers(Producers):
    """They add the runs, spread over the storm, and cancel some."""

    def __init__(self, world: World, seed: int, count: int) -> None:
        super().__init__(world, seed)
        self.orders = make_runs(seed, count)
        self._rng = random.Random(f"askers-{seed}")

    async def run(self, seconds: float) -> None:
        """Return when it is known of each that it was added, and of each that was to be cancelled that it is."""
        pause = seconds / len(self.orders)
        for order in self.orders:
            self._spawn(self._ask(order, self._rng.uniform(0.0, 3.0)))
            await asyncio.sleep(pause)
        while self._tasks:
            await asyncio.gather(*self._tasks)

    async def _ask(self, order: Order, cancelled_after: float) -> None:
        async with self._world.client() as client:
            await self._add(client, order)
        if order.kind == "cancelled":
            await self._cancel(order, cancelled_after)


class RunsWorld(World):
    """Tool workers as well, and a person; `tool_workers` are their places.

    Workers and tool workers reach the server through a proxy that loses replies at times, so that scripts and answers
    are repeated which had been carried out.
    """

    def __init__(self, runs: int) -> None:
        server = ValkeyProcess(LASTING, tcp=True)
        super().__init__(server, idle_seconds=_IDLE_SECONDS)
        self.losses = 0  # of replies
        self._port = server.port
        self._proxy: Proxy
        self._open = AsyncExitStack()
        self.tool_workers: list[Slot] = []
        self.approvers: list[Slot] = []  # one
        self._runs = runs

    async def __aenter__(self) -> Self:
        self._proxy = await self._open.enter_async_context(open_proxy(self._port))
        self._proxy.delay_seconds = _DELAY_SECONDS
        try:
            return await super().__aenter__()
        except BaseException:
            await self._open.aclose()
            raise

    async def __aexit__(self, *_: object) -> None:
        await super().__aexit__(*_)
        await self._open.aclose()

    @property
    def url(self) -> str:
        """Where workers and tool workers find the server."""
        return self._proxy.url

    async def lose_replies(self, seed: int, seconds: float) -> None:
        """At times, for so long: what is asked gets through, and the connections are gone before it is answered."""
        rng = random.Random(f"losses-{seed}")
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            await asyncio.sleep(rng.uniform(*_LOSS_PAUSE_SECONDS))
            began = time.time()
            self._proxy.loses_replies = True
            await asyncio.sleep(rng.uniform(*_LOSS_SECONDS))
            await self._proxy.drop()
            self._proxy.loses_replies = False
            self.troubles.append(Span(began, time.time()))
            self.losses += 1

    def _make_slots(self) -> None:
        super()._make_slots()
        for number in range(TOOL_WORKERS):
            module = ("tests.support.acting", self.url, str(self.acts_path), "5.0")
            self._start(self.tool_workers, f"tool-worker-{number}", *module)
        self._start(self.approvers, "approver", "tests.chaos.approver", self.server.url, str(self._runs))

    def _start(self, slots: list[Slot], name: str, *module: str) -> None:
        log = self.directory / f"{name}.log"
        slots.append(Slot(len(slots), self.directory, log, self._environment, module=module))
        slots[-1].start()

    @property
    def acts_path(self) -> Path:
        """Where tools note that they act."""
        return self.directory / "acts"

    def _close(self) -> None:
        for slot in (*self.tool_workers, *self.approvers):
            slot.close()
        super()._close()

    async def ready(self, client: Any) -> None:
        """Wait until all are there, and the tools registered."""
        for slot in self.slots:
            await slot.ready()

        async def is_served() -> bool:
            return bool(await client.hlen(_KEYS.tools) == len(TOOLS))

        await eventually_true(is_served)

    def worker_log(self, *, lines: int = 15) -> str:
        """The others' too."""
        others = (*self.tool_workers, *self.approvers)
        return "\n".join([super().worker_log(lines=lines), *(slot.last_words(lines) for slot in others)])


@dataclass(frozen=True, slots=True, kw_only=True)
class RunsReport(Report):
    """Also what the runs did."""

    runs: Mapping[str, int]

    def tell(self, seed: int) -> int:
        """Print it; the exit status of a program that ran it."""
        print("runs: " + ", ".join(f"{what} {count}" for what, count in self.runs.items()))
        return super(RunsReport, self).tell(seed)


async def run_runs_storm(seed: int, seconds: float, *, runs: int = 300) -> RunsReport:
    """Run once; no process is left when this returns or raises.

    Args:
        seed: gives the faults, their times, and the runs; the timing is real.
        seconds: the length of the storm.
        runs: how many there are.
    """
    async with RunsWorld(runs) as world, world.client(is_patient=True) as client:
        await world.ready(client)
        behind, at_tools = Driver(world), Driver(world, world.tool_workers)
        askers = Askers(world, seed, runs)
        async with asyncio.TaskGroup() as group:
            group.create_task(behind.run(make_plan(seed, seconds, BEHIND, _BEHIND_PAUSE_SECONDS)), name="behind")
            plan = make_plan(seed + 1, seconds, AT_TOOLS, _TOOLS_PAUSE_SECONDS)
            group.create_task(at_tools.run(plan), name="at-tools")
            group.create_task(world.lose_replies(seed, seconds), name="losses")
            group.create_task(askers.run(_ASKED_WITHIN * seconds), name="askers")
        late = await wait_for_calm(client, askers.orders)
        late += await _wait_for_tools(client)
        running = await asyncio.to_thread(calls_still_running, world.models_url)
        verdict = RunsVerdict(world, askers.orders, world.acts_path)
        await verdict.reach(client)
        places = {"worker": world.slots, "tool worker": world.tool_workers, "approver": world.approvers}
        ended = [f"{what} {slot.number}" for what, slots in places.items() for slot in slots if slot.has_ended]
        return RunsReport(
            faults=[
                *(f"{which} ended by itself" for which in ended),
                *(f"a drained process exited with {each}" for each in behind.unclean_exits + at_tools.unclean_exits),
                *late,
                *(f"{call['id']} still runs on {call['model']}" for call in running),
                *verdict.faults,
            ],
            orders=len(askers.orders),
            calls=len(verdict.calls),
            endings=verdict.endings,
            storm={
                **{str(kind): count for kind, count in behind.done.items()},
                **{f"{kind}".replace("worker", "tool-worker"): count for kind, count in at_tools.done.items()},
                "lose-replies": world.losses,
            },
            worker_log=world.worker_log(),
            runs=verdict.told,
        )


async def _wait_for_tools(client: Any) -> list[str]:
    """Wait until no call stands in a tool's stream: what nobody waits for any more, tool workers delete."""
    waiting = 0
    try:
        async with asyncio.timeout(CALM_SECONDS):
            while True:
                waiting = sum([await client.xlen(_KEYS.tool_calls(tool)) for tool in TOOLS])
                if not waiting:
                    return []
                await asyncio.sleep(0.2)
    except TimeoutError:
        return [f"after {CALM_SECONDS:g} s of calm {waiting} calls stand in the tools' streams"]
