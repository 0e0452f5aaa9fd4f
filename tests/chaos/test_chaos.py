"""The short chaos run; `make chaos` has the long one."""

from __future__ import annotations

import os

import pytest

from tests.chaos.plan import Kind, make_plan
from tests.chaos.storm import run_storm

SECONDS = 14.0


def test_seed_reproduces_the_plan_and_a_short_run_has_every_kind_of_fault() -> None:
    """What is printed after a failure is enough to see the same storm again."""
    plan = make_plan(7, SECONDS)
    assert plan == make_plan(7, SECONDS)
    assert plan != make_plan(8, SECONDS)
    assert {fault.kind for fault in plan} == set(Kind)


@pytest.mark.timeout(110)
async def test_nothing_is_lost_in_a_storm() -> None:
    """Workers and server are killed, frozen and cut off; every request has one final event, and no other trace."""
    seed = int(os.environ.get("SEED", "20261120"))
    print(f"chaos: seed {seed}, {SECONDS:g} s (the seed gives the schedule; the timing is real)")
    report = await run_storm(seed, SECONDS)
    assert not report.faults, "\n".join([f"seed {seed}:", *report.faults, report.worker_log])
    assert report.orders > 30
    assert report.endings["result"] > 15
