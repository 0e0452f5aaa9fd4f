"""Traces of the simulation on real processes: a Valkey, two daemons, boxes with memory; the figures are the same.

Compared are waits (p50 and p99 of each lane), loads of each box, and the total time: within a fifth, and where that is
less than what cannot be seen of it, within a look (a worker sees what others do so often) or two loads.
"""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING

import pytest

from llm_routerd.fleet.picture import LANES, Rules
from llm_routerd.running.fleet import LOOK_SECONDS
from tests.chaos.fleet_replay import replayed, simulated
from tests.simulation.fleet_traces import chat_and_batch, faster, three_boxes, two_models

if TYPE_CHECKING:
    from tests.chaos.fleet_replay import Figures
    from tests.simulation.fleet_world import Trace

SHARE = 0.2
LOADS = 2
SEED = int(os.environ.get("SEED", "2"))
TOKENS_IN_ONE = 10  # of the trace's in one of the stand-in's: so many fewer are written


def by_turns() -> tuple[Trace, float]:
    """Two models on one card."""
    return two_models(random.Random(SEED), 120), 8.0


def chat_with_a_batch() -> tuple[Trace, float]:
    """On one card, with a slot kept for the chat."""
    return chat_and_batch(random.Random(SEED), 120, 24), 16.0


def unlike_boxes() -> tuple[Trace, float]:
    """Three, of which one is killed and comes back."""
    return three_boxes(random.Random(SEED), 120), 5.0


@pytest.mark.timeout(110)
@pytest.mark.parametrize("made", [by_turns, chat_with_a_batch, unlike_boxes], ids=lambda made: made.__name__)
async def test_real_processes_do_as_the_simulation_says(made: type) -> None:
    """The same trace, at several times the speed; so are `max_wait` and `min_resident`."""
    trace, times = made()
    trace = faster(trace, times, tokens_in_one=TOKENS_IN_ONE)
    rules = Rules(max_wait=30.0 / times, min_resident=20.0 / times)
    real, there = await replayed(trace, rules)
    told = simulated(trace, rules, there)
    print(f"{trace.name}, seed {SEED}\nsimulated {told.told(trace)}\nreal      {real.told(trace)}")
    assert unlike(trace, told, real) == {}


def unlike(trace: Trace, told: Figures, real: Figures) -> dict[str, tuple[float, float]]:
    """What differs by more than it may, as simulated and as it was."""
    pairs = {"total": (told.total_seconds, real.total_seconds, 0.0)}
    for machine in trace.machines:
        name = machine.box.name
        pairs[f"loads on {name}"] = (told.loads.get(name, 0), real.loads.get(name, 0), LOADS)
    for lane in LANES:
        for share in (0.5, 0.99) if any(job.lane == lane for job in trace.jobs) else ():
            pairs[f"{lane}, {share}"] = (told.wait(trace, lane, share), real.wait(trace, lane, share), LOOK_SECONDS)
    return {
        what: (one, other)
        for what, (one, other, least) in pairs.items()
        if abs(one - other) > max(SHARE * max(one, other), least)
    }
