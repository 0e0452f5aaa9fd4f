"""The short storms of failovers; `python -m tests.topology` has the long ones."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from llm_routerd.protocol.keys import Layout
from tests.topology.sites import SITES
from tests.topology.storm import run_storm

if TYPE_CHECKING:
    from pathlib import Path

SECONDS = 25.0
REQUESTS = 300


@pytest.mark.timeout(150)
@pytest.mark.parametrize("site", list(SITES))
async def test_every_request_is_answered_in_a_storm_of_failovers(server_binary: Path, site: str) -> None:
    """Once, and by one call, unless its worker died or a primary took a write with it that no replica had."""
    seed = int(os.environ.get("SEED", "20261128"))
    report = await run_storm(SITES[site](server_binary, Layout("llm", 3)), seed, SECONDS, REQUESTS)
    told = f"seed {seed}: {dict(report.storm)}, lost: {dict(report.losses)}"
    print(told)
    assert not report.faults, "\n".join([told, *report.faults, report.worker_log])
    assert sum(report.endings.values()) == report.orders == REQUESTS
