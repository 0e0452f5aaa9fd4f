"""One run: start everything, let the storm pass while requests come, follow each to its end, and judge."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import redis

from tests.chaos.storm import Report
from tests.chaos.world import World
from tests.support.eventually import waited_for
from tests.topology.driver import CLUSTER_FAULTS, SENTINEL_FAULTS, FailoverDriver
from tests.topology.producers import Subscribers
from tests.topology.sites import ClusterSite
from tests.topology.verdict import judge

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.topology.sites import Site

# The last failover, a lease, its reclaiming, and a producer's patience, several times over.
CALM_SECONDS = 60.0
# No model is given up because this machine is busy.
IDLE_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FailoverReport(Report):
    """Also what went with the primaries, and what came of it."""

    losses: Mapping[str, int]
    longest_seconds: float


async def run_storm(site: Site, seed: int, seconds: float, requests: int, *, settings: str = "") -> FailoverReport:
    """Run once; no process is left when this returns or raises.

    Args:
        site: what the requests go through.
        seed: gives the faults, their times, and the requests; the timing is real.
        seconds: the length of the storm.
        requests: how many are asked meanwhile.
        settings: further lines of the workers' `[redis]`.
    """
    layout = site.layout
    lines = f'prefix = "{layout.prefix}"\nshards = {layout.shards}\n{settings}'
    async with World(site, redis=lines, idle_seconds=IDLE_SECONDS) as world:
        subscribers = Subscribers(site.url, layout, seed)
        driver = FailoverDriver(world, site, subscribers.open_since)
        faults = CLUSTER_FAULTS if isinstance(site, ClusterSite) else SENTINEL_FAULTS
        late: list[str] = []
        try:
            async with asyncio.timeout(seconds + CALM_SECONDS), asyncio.TaskGroup() as group:
                group.create_task(driver.storm(seed, seconds, faults), name="driver")
                group.create_task(subscribers.run(requests, seconds), name="subscribers")
            await asyncio.to_thread(_calm, site)
        except TimeoutError:
            still = [each.name for each in subscribers.asked if each.ended_at is None]
            late = [f"after {CALM_SECONDS:g} s of calm there is no end of {still}"]
        findings = await asyncio.to_thread(judge, world, site.primary, subscribers.asked, driver.departures)
        unexpected = [f"worker {n} ended by itself" for n, slot in enumerate(world.slots) if slot.has_ended]
        return FailoverReport(
            faults=[*unexpected, *late, *findings.faults],
            orders=len(subscribers.asked),
            calls=findings.calls,
            endings=findings.endings,
            storm=driver.done,
            losses=findings.losses,
            longest_seconds=findings.longest_seconds,
            worker_log=world.worker_log(),
        )


def _calm(site: Site) -> None:
    """Wait until nothing stands in the lanes: what was answered by a primary that is gone is answered anew."""

    def is_empty() -> bool | None:
        for keys in site.layout.keys:
            with site.primary(keys).connect() as client:
                if any(client.xlen(lane) for lane in keys.lanes):
                    return None
        return True

    site.settled()
    with suppress(AssertionError):  # the verdict tells what is left
        waited_for("empty lanes", is_empty, seconds=CALM_SECONDS, passing=redis.RedisError)
