"""A trace of the simulation, played on real processes; and the same in the simulation, with the same rules.

What is compared is what does not depend on how fast this machine is: a wait is counted from the moment in which a
request is added to the queue until the box begins to answer it, loading included, as the box's own log has it.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import msgspec

from llm_routerd.fleet.estimates import Estimates, Seen
from llm_routerd.fleet.picture import LANES
from llm_routerd.protocol.events import FINAL_ID
from llm_routerd.protocol.keys import Keys
from llm_routerd.running.fleet import LOOK_SECONDS
from tests.chaos.fleet_world import DAEMONS, FleetWorld
from tests.simulation.fleet import quantile
from tests.simulation.fleet_policies import Ours
from tests.simulation.fleet_world import Loaded, World
from tests.standin.box import Box, Model

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from llm_routerd.fleet.picture import Rules
    from tests.simulation.fleet_world import Job, Machine, Trace

KEYS = Keys()
PATIENCE_SECONDS = 60.0  # after the last request was added
_LONG_AGO = -1000.0  # in seconds of the simulation
_TOLD_SECONDS = 15.0  # until all know what one has learned: with the next look at the box
_LEARNING_CALLS = 8  # of each model on each box, so that every worker has some


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What came of a trace; seconds.

    Attributes:
        waits: by token, until the answer began.
        loads: of models, by box.
        total_seconds: from the first request to the end of the last answer.
        rejected: attempts that failed, by their code; of real processes only.
    """

    waits: Mapping[str, float]
    loads: Mapping[str, int]
    total_seconds: float
    rejected: Mapping[str, int]

    def wait(self, trace: Trace, lane: str, share: float) -> float:
        """A quantile of the lane's waits."""
        return quantile((self.waits[job.token] for job in trace.jobs if job.lane == lane), share)

    def told(self, trace: Trace) -> str:
        """In a line."""
        lanes = [lane for lane in LANES if any(job.lane == lane for job in trace.jobs)]
        waits = (
            f"{lane} p50 {self.wait(trace, lane, 0.5):.2f} p90 {self.wait(trace, lane, 0.9):.2f} "
            f"p99 {self.wait(trace, lane, 0.99):.2f}"
            for lane in lanes
        )
        more = f", rejected {dict(self.rejected)}" if self.rejected else ""
        return f"{'; '.join(waits)}; loads {dict(self.loads)}; total {self.total_seconds:.1f}{more}"


def simulated(trace: Trace, rules: Rules, there: Mapping[str, Sequence[str]]) -> Figures:
    """The trace in the simulation, of workers that know the boxes.

    Args:
        trace: what happens.
        rules: that the workers keep.
        there: models in memory at the beginning, by box.
    """
    world = World(trace)
    for name, models in there.items():
        world.sites[name].loaded.update({model: Loaded(_LONG_AGO, _LONG_AGO) for model in models})
    estimates = Estimates()
    for site in world.sites.values():
        for model in trace.sizes:
            at = site.machine.box.name, model
            estimates.load_seconds[at] = Seen(world.load_seconds(site, model), 1.0, 0.0)
            estimates.tokens_per_second[at] = Seen(site.machine.tokens_per_second, 1.0, 0.0)
    policy = Ours(rules, workers=DAEMONS, look_seconds=LOOK_SECONDS, estimates=estimates)
    result = world.run(policy, tick_seconds=LOOK_SECONDS / 10)
    return Figures(waits=result.waits, loads=result.loads_on, total_seconds=result.total_seconds, rejected={})


async def replayed(trace: Trace, rules: Rules) -> tuple[Figures, dict[str, list[str]]]:
    """The trace on real processes, and which models each box had in memory when it began."""
    boxes = {machine.box.name: _box_of(machine, trace) for machine in trace.machines}
    async with FleetWorld(boxes, lambda url, urls: config_of(trace, rules, url, urls)) as world:
        await _learn(world, trace)
        there = {name: [each["model"] for each in (await box.state())["resident"]] for name, box in world.boxes.items()}
        before = {name: await box.loads() for name, box in world.boxes.items()}
        began = time.time()
        async with asyncio.TaskGroup() as group:
            falling = [group.create_task(_fall_and_rise(world, machine, began)) for machine in trace.machines]
            added = await _add_all(world, trace.jobs, began)
            finals = await finals_of(world, [job.token for job in trace.jobs])
            for each in falling:
                each.cancel()
        await asyncio.gather(*(box.start() for box in world.boxes.values() if not box.is_up))
        loads = {name: (await box.loads() - before[name]).total() for name, box in world.boxes.items()}
        bad = {token: final for token, final in finals.items() if final["type"] != "result"}
        assert not bad, bad
        return _measured(world, added, loads, finals), there


async def _learn(world: FleetWorld, trace: Trace) -> None:
    """Let the daemons see how fast each box loads and answers, as they have in a fleet that is in service.

    The pinned models last: they stay.  What a worker has seen it tells at its next look, when it uses the box again.
    """
    for model in sorted(trace.sizes, key=lambda each: each in trace.pins):
        await _ask_all(world, trace, [(box, model) for box in world.boxes] * _LEARNING_CALLS)
    give_up_at = time.monotonic() + _TOLD_SECONDS
    while missing := await _unknown(world, trace):
        assert time.monotonic() < give_up_at, f"nobody has told of {missing}"
        await _ask_all(world, trace, [(box, model) for box, model, _ in missing] * DAEMONS)


async def _ask_all(world: FleetWorld, trace: Trace, asked: Sequence[tuple[str, str]]) -> None:
    """One call for each, of a box and a model, as long as they are expected to be; returns when all are answered."""
    expected = {job.model: job.expected_tokens for job in trace.jobs}
    names = [f"learn-{uuid4().hex}" for _ in asked]
    async with world.client() as client:
        for name, (box, model) in zip(names, asked, strict=True):
            prompt = f"[[id={name} tokens={expected[model]}]]"
            fields = {"id": name, "prompt": prompt, "model": f"{model}@{box}", "stream": "false"}
            await client.xadd(KEYS.requests("normal"), fields)
    ends = await finals_of(world, names)
    assert {end["type"] for end in ends.values()} == {"result"}, ends


async def _unknown(world: FleetWorld, trace: Trace) -> list[tuple[str, str, str]]:
    """Boxes and models, and what the daemons have not told of them yet."""
    async with world.client() as client:
        told = {name: msgspec.json.decode(text) for name, text in (await client.hgetall(KEYS.boxes)).items()}
    return [
        (box, model, what)
        for box in world.boxes
        for model in trace.sizes
        for what in ("load_seconds", "tokens_per_second")
        if (what != "load_seconds" or model not in trace.pins)  # a daemon loads what is pinned when it starts
        and f"{model}:latest" not in told.get(box, {}).get(what, {})
    ]


def _measured(
    world: FleetWorld, added: Mapping[str, float], loads: Mapping[str, int], finals: Mapping[str, Any]
) -> Figures:
    calls = {call["id"]: call for _, call in world.calls() if call["how"] == "finished"}
    waits = {
        token: calls[token]["start"] + calls[token]["load_seconds"] + calls[token]["wait_seconds"] - at
        for token, at in added.items()
    }
    rejected = Counter(
        attempt["code"] for final in finals.values() for attempt in final["attempts"] if attempt["code"] is not None
    )
    total = max(call["end"] for call in calls.values()) - min(added.values())
    return Figures(waits=waits, loads=loads, total_seconds=total, rejected=rejected)


def _box_of(machine: Machine, trace: Trace) -> Box:
    """The stand-in that is such a machine."""
    says = f"delay_ms={1000 / machine.tokens_per_second:.3f}"
    models = {
        name: Model(size=size, load_seconds=machine.load_seconds + size / machine.bytes_per_second, says=says)
        for name, size in trace.sizes.items()
    }
    return Box(models=models, memory=machine.box.memory_bytes, slots=machine.box.slots)


def config_of(trace: Trace, rules: Rules, redis_url: str, urls: Mapping[str, str]) -> str:
    """The daemons' configuration: every box may serve every model."""
    head = f"""
[redis]
url = "{redis_url}"
[daemon]
concurrency = {max(64, len(trace.jobs))}
[metrics]
listen = ""
[log]
format = "json"
[fleet]
max_wait = {rules.max_wait}
min_resident = {rules.min_resident}
preempt = {str(rules.preempt).lower()}
[chains.default]
deployments = ["{next(iter(trace.sizes))}"]
"""
    boxes = [
        f'[boxes.{machine.box.name}]\napi_base = "{urls[machine.box.name]}"\nslots = {machine.box.slots}\n'
        f"reserve = {machine.box.reserve}\nmemory_gb = {machine.box.memory_bytes / 1e9}\n"
        for machine in trace.machines
    ]
    deployments = [
        f'[deployments.{model}]\nmodel = "ollama/{model}"\nboxes = {list(urls)}\nlocal = true\ntimeout = 60.0\n'
        f"pin = {str(model in trace.pins).lower()}\n"
        for model in trace.sizes
    ]
    return "\n".join([head, *boxes, *deployments])


async def _add_all(world: FleetWorld, jobs: Sequence[Job], began: float) -> dict[str, float]:
    """Add each at its time; returns when that was, in Unix seconds."""
    added = {}
    async with world.client() as client:
        for job in sorted(jobs, key=lambda each: each.at):
            await asyncio.sleep(began + job.at - time.time())
            added[job.token] = time.time()
            await client.xadd(KEYS.requests(job.lane), fields_of(job))
    return added


def fields_of(job: Job) -> dict[str, str]:
    """The request; the first token of an answer comes at once, and each further one when it is due."""
    prompt = f"[[id={job.token} tokens={job.tokens + 1}]]"
    return {"id": job.token, "prompt": prompt, "model": job.model, "stream": "false"}


async def _fall_and_rise(world: FleetWorld, machine: Machine, began: float) -> None:
    """Kill the box and start it again, each time that the trace says so."""
    box = world.boxes[machine.box.name]
    for start, end in machine.downs:
        await asyncio.sleep(began + start - time.time())
        await box.kill()
        await asyncio.sleep(began + end - time.time())
        await box.start()


async def finals_of(
    world: FleetWorld, ids: Sequence[str], *, seconds: float = PATIENCE_SECONDS
) -> dict[str, dict[str, Any]]:
    """The final event of each request, its `type` beside its data.

    Raises:
        AssertionError: one has none in time.
    """
    finals: dict[str, dict[str, Any]] = {}
    give_up_at = time.monotonic() + seconds
    async with world.client() as client:
        while missing := [each for each in ids if each not in finals]:
            assert time.monotonic() < give_up_at, f"no end of {len(missing)} requests: {missing[:10]}"
            async with client.pipeline(transaction=False) as pipe:
                for each in missing:
                    pipe.xrange(KEYS.events(each), FINAL_ID, FINAL_ID)
                found = await pipe.execute()
            for each, entries in zip(missing, found, strict=True):
                if entries:
                    fields = entries[0][1]
                    finals[each] = {**msgspec.json.decode(fields["data"]), "type": fields["type"]}
            await asyncio.sleep(0.1)
    return finals
