"""The short storm over runs with tools; `make chaos-runs` has the long one."""

from __future__ import annotations

import os

import pytest

from tests.chaos.runs_storm import make_runs, run_runs_storm

SECONDS = 20.0
RUNS = 120


def test_seed_reproduces_the_runs() -> None:
    """What is printed after a failure is enough to see the same again."""
    assert make_runs(7, RUNS) == make_runs(7, RUNS) != make_runs(8, RUNS)


@pytest.mark.timeout(150)
async def test_no_turn_and_no_call_is_made_twice_in_a_storm() -> None:
    """Workers, tool workers and the server are killed and frozen; every run ends once, and no tool is told twice."""
    seed = int(os.environ.get("SEED", "20261128"))
    print(f"chaos: seed {seed}, {SECONDS:g} s (the seed gives the schedule; the timing is real)")
    report = await run_runs_storm(seed, SECONDS, runs=RUNS)
    assert not report.faults, "\n".join([f"seed {seed}:", *report.faults, report.worker_log])
    assert report.endings["result"] > RUNS / 2
    assert report.runs["confirmed"] > 5
    assert report.runs["denied"] > 0
