"""The short storm over the local fleet; `make chaos-fleet` has the long one."""

from __future__ import annotations

import os

import pytest

from tests.chaos.fleet_storm import NAMES, REQUESTS, run_fleet_storm

SECONDS = 12.0


@pytest.mark.timeout(170)  # what a storm waits for at most, where promises are broken
async def test_boxes_that_die_and_come_back_cost_no_request_and_no_slot() -> None:
    """A thousand requests: each has one final event, no slot is left, and every box is used again."""
    seed = int(os.environ.get("SEED", "20261128"))
    print(f"chaos: seed {seed}, {SECONDS:g} s (the seed gives the schedule; the timing is real)")
    report = await run_fleet_storm(seed, SECONDS)
    assert not report.faults, "\n".join([f"seed {seed}:", *report.faults[:40], report.worker_log])
    assert report.orders >= REQUESTS
    assert sum(report.storm.get(name, 0) for name in NAMES) >= len(NAMES)
    assert report.endings["result"] >= 0.9 * report.orders, (report.endings, report.storm)
