"""Boxes die and come back, and so does a daemon, while requests run: a storm over the local fleet, and its verdict."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from llm_routerd.protocol.events import FINAL_ID
from llm_routerd.protocol.keys import LANES, Keys
from llm_routerd.queue.picture import LEASE_SECONDS as SLOT_LEASE_SECONDS
from tests.chaos.fleet_replay import finals_of
from tests.chaos.fleet_world import FleetWorld
from tests.chaos.storm import Report
from tests.standin.box import GB, Box, Model

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.chaos.fleet_world import BoxPlace, Place

KEYS = Keys()
PRODUCERS = 4
REQUESTS = 1000
REQUESTS_PER_SECOND = 60.0  # of the long one
MODELS = ("a", "b")
SLOTS = 6
LEASE_SECONDS = 3.0  # of a request; that of a slot is the daemon's own
CALM_SECONDS = SLOT_LEASE_SECONDS + 15.0  # until all is answered, and what a daemon held that was killed is free
BOX_UP_SECONDS = (1.0, 4.0)
BOX_DOWN_SECONDS = (0.1, 1.5)
DAEMON_UP_SECONDS = 25.0  # so that a request is not delivered to more that die than it may
_FIRST_DEATH_SECONDS = 1.5  # of a daemon: what it held is free a lease later, and that is waited for
AGAIN_SECONDS = 45.0  # in which a box that is back is used: cooldowns double with each failure in a row
NAMES = ("attic", "desk", "cellar")
BOX = Box(
    models={name: Model(size=6 * GB, load_seconds=0.1, says="delay_ms=5") for name in MODELS},
    memory=8 * GB,
    slots=SLOTS,
)


def config_of(redis_url: str, urls: Mapping[str, str]) -> str:
    """The daemons' configuration: each model on all boxes."""
    boxes = [
        f'[boxes.{name}]\napi_base = "{url}"\nslots = {SLOTS}\nreserve = 1\nmemory_gb = 8.0\n'
        for name, url in urls.items()
    ]
    deployments = [
        f'[deployments.{model}]\nmodel = "ollama/{model}"\nboxes = {list(urls)}\nlocal = true\ntimeout = 20.0\n'
        f'[chains.{model}]\ndeployments = ["{model}"]\nretries = 2\n'
        for model in MODELS
    ]
    head = f"""
[redis]
url = "{redis_url}"
[daemon]
concurrency = 64
lease_seconds = {LEASE_SECONDS}
[metrics]
listen = ""
[log]
format = "json"
[fleet]
max_wait = 2.0
min_resident = 0.5
preempt = true
[chains.default]
deployments = ["a"]
"""
    return "\n".join([head, *boxes, *deployments])


class FleetStorm:
    """One storm.

    Args:
        world: that it comes over.
        seed: of what is asked, and of when who dies; what comes of it in real time differs from run to run.
        seconds: how long.
    """

    def __init__(self, world: FleetWorld, seed: int, seconds: float) -> None:
        self._world = world
        self._seed = seed
        self._seconds = seconds
        self._ends_at = time.time() + seconds
        self.ids: list[str] = []
        self.deaths: Counter[str] = Counter()
        self.back: dict[str, float] = {}  # by box: when it came back last, in Unix seconds

    async def run(self, requests: int) -> None:
        """Add so many requests, evenly, while all that can die dies; all are up again when this returns."""
        async with asyncio.TaskGroup() as group:
            for number in range(PRODUCERS):
                group.create_task(self._produce(number, requests // PRODUCERS), name=f"producer-{number}")
            for box in self._world.boxes.values():
                group.create_task(self._kill_now_and_then(box), name=f"kill-{box.name}")
            group.create_task(self._kill_daemon(), name="kill-daemon")

    async def _produce(self, number: int, count: int) -> None:
        rng = random.Random(f"producer-{self._seed}-{number}")
        pause = self._seconds / count
        for _ in range(count):
            await self.add(rng)
            await asyncio.sleep(rng.uniform(0.0, 2 * pause))

    async def add(self, rng: random.Random) -> str:
        """One request."""
        name = f"r{len(self.ids)}"
        self.ids.append(name)
        fields = {
            "id": name,
            "prompt": f"[[id={name} tokens={rng.randint(5, 35)}]]",
            "model": rng.choice(MODELS),
            "stream": rng.choice(("false", "true")),
        }
        async with self._world.client() as client:
            await client.xadd(KEYS.requests(rng.choice(LANES)), fields)
        return name

    async def _kill_now_and_then(self, box: BoxPlace) -> None:
        rng = random.Random(f"{box.name}-{self._seed}")
        while time.time() + BOX_UP_SECONDS[0] < self._ends_at:
            await asyncio.sleep(rng.uniform(*BOX_UP_SECONDS))
            await self._kill(box, box.name, rng.uniform(*BOX_DOWN_SECONDS))
            self.back[box.name] = time.time()

    async def _kill_daemon(self) -> None:
        rng = random.Random(f"daemon-{self._seed}")
        await asyncio.sleep(min(_FIRST_DEATH_SECONDS, self._seconds / 3))
        while True:
            number = rng.randrange(len(self._world.daemons))
            await self._kill(self._world.daemons[number], f"daemon {number}", rng.uniform(0.0, 1.0))
            if time.time() + DAEMON_UP_SECONDS > self._ends_at:
                return
            await asyncio.sleep(DAEMON_UP_SECONDS)

    async def _kill(self, place: Place, name: str, down_seconds: float) -> None:
        self.deaths[name] += 1
        await place.kill()
        await asyncio.sleep(down_seconds)
        await place.start()


async def run_fleet_storm(seed: int, seconds: float, *, requests: int = REQUESTS) -> Report:
    """Run once; no process is left when this returns or raises."""
    async with FleetWorld(dict.fromkeys(NAMES, BOX), config_of) as world:
        storm = FleetStorm(world, seed, seconds)
        await storm.run(requests)
        faults = await _forgotten(world, storm)
        try:
            finals = await finals_of(world, storm.ids, seconds=CALM_SECONDS)
        except AssertionError as error:
            finals, faults = {}, [*faults, str(error)]
        faults += await _ends_that_are_not_one(world, storm.ids)
        faults += await _slots_left(world)
        states = [state for box in world.boxes.values() for state in (*box.past, await box.state())]
        faults += [f"{state['most_running']} calls at once" for state in states if state["most_running"] > SLOTS]
        faults += [f"{state['running']} calls still run" for state in states[-1:] if state["running"]]
        faults += world.complaints()
        return Report(
            faults=faults,
            orders=len(storm.ids),
            calls=sum(1 for _ in world.calls()),
            endings=Counter(final["type"] for final in finals.values()),
            storm={**storm.deaths, **_codes(finals)},
            worker_log="\n".join(daemon.process.last_words() for daemon in world.daemons),
        )


def _codes(finals: Mapping[str, Any]) -> Counter[str]:
    """Of attempts that failed, and of requests that did."""
    codes = Counter(f"attempt {each['code']}" for end in finals.values() for each in end["attempts"] if each["code"])
    return codes + Counter(f"error {end['code']}" for end in finals.values() if end["type"] == "error")


async def _forgotten(world: FleetWorld, storm: FleetStorm) -> list[str]:
    """Ask on until every box has had a call since it came back; those that never have."""
    rng = random.Random(f"calm-{storm._seed}")
    give_up_at = time.monotonic() + AGAIN_SECONDS
    while True:
        newest = dict.fromkeys(world.boxes, 0.0)
        for name, call in world.calls():
            if call["how"] == "finished":
                newest[name] = max(newest[name], call["start"])
        unused = [name for name, at in newest.items() if at < storm.back.get(name, 0.0)]
        if not unused:
            return []
        if time.monotonic() > give_up_at:
            return [f"{name} has not been used since it came back" for name in unused]
        for _ in range(3 * SLOTS):  # as many as need more than the others
            await storm.add(rng)
        await asyncio.sleep(0.5)


async def _ends_that_are_not_one(world: FleetWorld, ids: Sequence[str]) -> list[str]:
    faults = []
    async with world.client() as client:
        for each in ids:
            events = await client.xrange(KEYS.events(each))
            ends = [name for name, fields in events if fields["type"] in {"result", "error", "cancelled"}]
            if ends != [FINAL_ID] or events[-1][0] != FINAL_ID:
                faults.append(f"{each}: final events {ends} of {len(events)}")
    return faults


async def _slots_left(world: FleetWorld) -> list[str]:
    """What is held or waited for when the last lease of whoever was killed is over."""
    give_up_at = time.monotonic() + SLOT_LEASE_SECONDS + 1.0
    async with world.client() as client:
        while True:
            seconds, micros = await client.time()
            now_ms = seconds * 1000 + micros // 1000
            left = [
                f"{key} still has {text}"
                for key in (KEYS.box_calls, KEYS.box_waiting)
                for text in await client.hvals(key)
                if json.loads(text)["until_ms"] > now_ms
            ]
            if not left or time.monotonic() > give_up_at:
                return left
            await asyncio.sleep(0.2)
