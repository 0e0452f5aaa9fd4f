"""What comes: five days in the life of a few boxes, short ones."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from llm_routerd.fleet.picture import Box
from tests.simulation.fleet_world import GIB, Job, Machine, Trace

if TYPE_CHECKING:
    import random

    from llm_routerd.fleet.picture import Lane

TENANTS = 10


def _machine(name: str, *, slots: int, gib: int, speed: float, reserve: int = 0, mb: float = 2000.0) -> Machine:
    box = Box(name=name, slots=slots, reserve=reserve, memory_bytes=gib * GIB)
    return Machine(box=box, tokens_per_second=speed, bytes_per_second=mb * 1e6)


def _job(rng: random.Random, number: int, at: float, model: str, mean: float, lane: Lane = "normal") -> Job:
    """Lengths are lognormal, and one knows their mean."""
    tokens = max(5, round(rng.lognormvariate(math.log(mean) - 0.18, 0.6)))
    return Job(token=f"{lane}-{number:04}", at=at, model=model, tokens=tokens, expected_tokens=round(mean), lane=lane)


def two_models(rng: random.Random, number: int = 240) -> Trace:
    """Two jobs with two models take turns on one card, which has room for one of them."""
    at, jobs = 0.0, []
    for i in range(number):
        at += rng.expovariate(1 / 1.3)
        jobs.append(_job(rng, i, at, "ab"[i % 2], 150))
    machine = _machine("card", slots=4, gib=24, speed=40)
    return Trace(name="two models", machines=(machine,), sizes={"a": 18 * GIB, "b": 18 * GIB}, jobs=tuple(jobs))


def chat(rng: random.Random, number: int = 120) -> list[Job]:
    """People who come in groups."""
    at = 5.0
    jobs: list[Job] = []
    while len(jobs) < number:
        at += rng.expovariate(1 / 20)
        for _ in range(rng.choice((1, 1, 2, 4, 8))):
            jobs.append(_job(rng, len(jobs), at + rng.random(), "chat", 200, "high"))
    return jobs


def chat_and_batch(rng: random.Random, number: int = 500, chats: int = 120) -> Trace:
    """A batch that is there from the beginning, and people on the same card; there is room for both models."""
    jobs = chat(rng, chats) + [_job(rng, i, 0.0, "batch", 200, "low") for i in range(number)]
    machine = _machine("card", slots=4, reserve=1, gib=24, speed=50)
    sizes = {"chat": 6 * GIB, "batch": 12 * GIB}
    return Trace(name="chat and batch", machines=(machine,), sizes=sizes, jobs=tuple(jobs), pins=frozenset({"chat"}))


def three_boxes(rng: random.Random, number: int = 400) -> Trace:
    """Of different speeds; the middle one is down for fifteen seconds of each minute."""
    fast = _machine("fast", slots=4, gib=24, speed=60)
    middle = _machine("middle", slots=2, gib=16, speed=30, mb=1000)
    slow = _machine("slow", slots=2, gib=16, speed=12, mb=500)
    downs = tuple((start, start + 15.0) for start in range(45, 6000, 60))
    flapping = Machine(
        box=middle.box,
        tokens_per_second=middle.tokens_per_second,
        bytes_per_second=middle.bytes_per_second,
        downs=downs,
    )
    at, jobs = 0.0, []
    for i in range(number):
        at += rng.expovariate(1 / 0.8)
        jobs.append(_job(rng, i, at, rng.choice("aab"), 150))
    sizes = {"a": 10 * GIB, "b": 12 * GIB}
    return Trace(name="three boxes", machines=(fast, flapping, slow), sizes=sizes, jobs=tuple(jobs))


def ten_tenants(rng: random.Random, number: int = 500) -> Trace:
    """Of very different sizes, each with three conversations, at more than two boxes can do for a while."""
    machines = (_machine("one", slots=3, gib=24, speed=40), _machine("two", slots=3, gib=24, speed=40))
    weights = [rank**-1.3 for rank in range(1, TENANTS + 1)]
    at, jobs = 0.0, []
    for i in range(number):
        at += rng.expovariate(1 / (0.5 if i < number // 2 else 1.2))
        tenant = rng.choices(range(TENANTS), weights)[0]
        job = _job(rng, i, at, "a", 130)
        jobs.append(
            Job(
                token=job.token,
                at=at,
                model="a",
                tokens=job.tokens,
                expected_tokens=job.expected_tokens,
                tenant=f"tenant-{tenant}",
                prompt_tokens=1500,
                key=f"{tenant}/{rng.randrange(3)}",
            )
        )
    return Trace(name="ten tenants", machines=machines, sizes={"a": 12 * GIB}, jobs=tuple(jobs))


def faster(trace: Trace, times: float, *, tokens_in_one: int = 1) -> Trace:
    """The same at so many times the speed: all that is said in seconds is divided, what is said of boxes stays.

    Args:
        trace: what happens.
        times: as fast.
        tokens_in_one: an answer has so many times fewer tokens, each of which takes as much longer.
    """
    speed = times / tokens_in_one
    machines = tuple(
        replace(
            each,
            tokens_per_second=each.tokens_per_second * speed,
            prompt_tokens_per_second=each.prompt_tokens_per_second * times,
            bytes_per_second=each.bytes_per_second * times,
            load_seconds=each.load_seconds / times,
            downs=tuple((start / times, end / times) for start, end in each.downs),
        )
        for each in trace.machines
    )
    jobs = tuple(
        replace(
            job,
            at=job.at / times,
            tokens=max(1, round(job.tokens / tokens_in_one)),
            expected_tokens=max(1, round(job.expected_tokens / tokens_in_one)),
        )
        for job in trace.jobs
    )
    return replace(trace, machines=machines, jobs=jobs)


def shaken(trace: Trace, rng: random.Random, seconds: float) -> Trace:
    """The same with each call up to so many seconds later: what differs then hangs on less than that."""
    return replace(trace, jobs=tuple(replace(job, at=job.at + rng.uniform(0.0, seconds)) for job in trace.jobs))


def quiet_hour(rng: random.Random, number: int = 40, model: str = "a") -> list[Job]:
    """A call now and then, which the small box answers at its leisure."""
    at, jobs = 0.0, []
    for i in range(number):
        at += 20 + rng.expovariate(1 / 20)
        jobs.append(_job(rng, i, at, model, 100))
    return jobs


def one_asleep(rng: random.Random, number: int = 200) -> Trace:
    """A small box that is always up, and a large one that sleeps until it is woken; quiet at first, then a batch."""
    quiet = quiet_hour(rng)
    at, jobs = quiet[-1].at, []
    for i in range(number):
        at += rng.expovariate(1 / 0.5)
        jobs.append(_job(rng, len(quiet) + i, at, "a", 150))
    small = _machine("small", slots=1, gib=16, speed=20, mb=500)
    large = replace(_machine("large", slots=4, gib=24, speed=60), boot_seconds=100.0)
    return Trace(name="one asleep", machines=(small, large), sizes={"a": 10 * GIB}, jobs=(*quiet, *jobs))


TRACES = (two_models, chat_and_batch, three_boxes, ten_tenants, one_asleep)
