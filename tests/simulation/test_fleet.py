"""What the simulation of the fleet has found, and what docs/fleet.md says by it."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from llm_routerd.fleet.picture import Rules
from tests.simulation.fleet import alone, quantile, waits_of
from tests.simulation.fleet_policies import Assigned, FirstCome, Ours, least_seconds, oracle
from tests.simulation.fleet_traces import (
    TRACES,
    chat_and_batch,
    one_asleep,
    quiet_hour,
    ten_tenants,
    three_boxes,
    two_models,
)
from tests.simulation.fleet_world import World

SEEDS = (1,)
RULES = Rules()


@pytest.mark.parametrize("seed", SEEDS)
def test_models_by_turns_are_loaded_a_fifth_as_often_as_first_come_first_served(seed: int) -> None:
    """And nobody is left behind: past its turn a call waits `max_wait` and what then runs, an answer and a load."""
    trace = two_models(random.Random(seed), 120)
    ours, theirs = World(trace).run(Ours(RULES)), World(trace).run(FirstCome())
    assert ours.loads <= 0.2 * theirs.loads
    (machine,) = trace.machines
    longest = max(job.tokens for job in trace.jobs) / machine.tokens_per_second
    assert ours.late
    assert max(ours.late.values()) <= RULES.max_wait + longest + 1.0  # a second until it is looked at


def test_patience_is_what_collates() -> None:
    """Without it the models are loaded more often, and all takes longer."""
    trace = two_models(random.Random(1), 120)
    patient, hasty = (World(trace).run(Ours(Rules(max_wait=wait, min_resident=0.0))) for wait in (30.0, 0.0))
    assert hasty.loads > 2 * patient.loads
    assert hasty.total_seconds > patient.total_seconds


@pytest.mark.parametrize("seed", SEEDS)
def test_chat_waits_beside_a_batch_about_as_long_as_alone(seed: int) -> None:
    """Where the batch may be cut; else groups that are larger than `reserve` wait for one of its answers at most."""
    trace = chat_and_batch(random.Random(seed), 250, 100)
    by_itself = quantile(World(alone(trace, "high")).run(Ours(RULES)).waits.values(), 0.99)
    cutting = World(trace).run(Ours(Rules(preempt=True)))
    assert cutting.cuts
    assert quantile(waits_of(trace, cutting, "high"), 0.99) <= 1.2 * by_itself
    plain = World(trace).run(Ours(RULES))
    theirs = World(trace).run(Assigned("warm first"))
    assert quantile(waits_of(trace, plain, "high"), 0.99) <= 0.1 * quantile(waits_of(trace, theirs, "high"), 0.99)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("made", TRACES, ids=lambda made: made.__name__)
def test_total_time_is_near_what_the_oracle_takes(made: type, seed: int) -> None:
    """Within 15 % of the best in hindsight, which nothing beats that is possible at all."""
    trace = made(random.Random(seed), 120)
    best = oracle(trace).total_seconds
    assert least_seconds(trace) <= best + 1.0
    assert World(trace).run(Ours(RULES)).total_seconds <= 1.15 * best


@pytest.mark.parametrize("seed", SEEDS)
def test_box_that_comes_and_goes_costs_others_little(seed: int) -> None:
    """No more loads, and shorter waits than those who send calls where they fit at the moment."""
    trace = three_boxes(random.Random(seed), 200)
    ours = World(trace).run(Ours(RULES))
    for theirs in (World(trace).run(Assigned(how)) for how in ("round robin", "least busy", "warm first")):
        assert ours.loads <= theirs.loads
        assert quantile(ours.waits.values(), 0.99) < quantile(theirs.waits.values(), 0.99)


@pytest.mark.parametrize("seed", SEEDS)
def test_small_tenants_do_not_wait_behind_the_largest(seed: int) -> None:
    """And fewer prompts are read again than by those who look at no key."""
    trace = ten_tenants(random.Random(seed), 300)
    ours, theirs = World(trace).run(Ours(RULES)), World(trace).run(FirstCome())
    small = [job.token for job in trace.jobs if job.tenant != "tenant-0"]
    assert quantile((ours.waits[token] for token in small), 0.5) < quantile(
        (theirs.waits[token] for token in small), 0.5
    )
    assert ours.tokens_read_again < 0.6 * theirs.tokens_read_again


@pytest.mark.parametrize("seed", SEEDS)
def test_box_that_sleeps_is_woken_for_a_batch_and_not_before(seed: int) -> None:
    """Once, soon after it has begun; all is done in a fraction of the time that the box which is up takes alone."""
    trace = one_asleep(random.Random(seed), 150)
    batch = trace.jobs[len(quiet_hour(random.Random(seed)))].at
    ours, alone = World(trace).run(Ours(RULES)), World(trace).run(Ours(RULES, wakes=False))
    (woken,) = ours.woken
    assert batch < woken < batch + 30
    assert not alone.woken
    assert quantile(ours.waits.values(), 0.99) < 0.25 * quantile(alone.waits.values(), 0.99)
    assert quantile(ours.waits.values(), 0.99) < 1.5 * 100.0, "a boot, and some"


@pytest.mark.parametrize("seed", range(3))
def test_quiet_hour_wakes_nobody(seed: int) -> None:
    """What is up can do it, if somewhat later than the large one could."""
    rng = random.Random(seed)
    trace = replace(one_asleep(rng, 1), jobs=tuple(quiet_hour(rng, 120)))
    assert World(trace).run(Ours(RULES)).woken == []


def test_box_that_nobody_else_can_stand_in_for_is_woken_once() -> None:
    """For the first call; the others find it booting, or awake."""
    rng = random.Random(1)
    trace = one_asleep(rng, 40)
    trace = replace(trace, machines=trace.machines[1:], jobs=tuple(quiet_hour(rng, 20)))
    result = World(trace).run(Ours(RULES))
    assert result.woken == [trace.jobs[0].at]
    assert max(result.waits.values()) < 100.0 + 10.0


def test_same_seed_is_the_same_run() -> None:
    """So that a table can be reproduced."""
    first, second = (World(three_boxes(random.Random(5), 60)).run(Ours(RULES)) for _ in range(2))
    assert first == second
