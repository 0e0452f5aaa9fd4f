"""Boxes and models, simulated: how long calls wait, and how often models are loaded, by who decides.

    python -m tests.simulation.fleet [--seed N]

Run from the repository's root.  No server and no clock: the same seed prints the same tables.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import replace
from typing import TYPE_CHECKING

from llm_routerd.fleet.picture import LANES, Rules
from tests.simulation.fleet_policies import Assigned, FirstCome, Ours, least_seconds, oracle
from tests.simulation.fleet_traces import TRACES
from tests.simulation.fleet_world import World

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from tests.simulation.fleet_world import Policy, Result, Trace

POLICIES: dict[str, Callable[[], Policy]] = {
    "first come": FirstCome,
    "round robin": lambda: Assigned("round robin"),
    "least busy": lambda: Assigned("least busy"),
    "warm first": lambda: Assigned("warm first"),
    "ours": lambda: Ours(Rules()),
    "ours, preempt": lambda: Ours(Rules(preempt=True)),
    "ours, never woken": lambda: Ours(Rules(), wakes=False),
}
HEAD = ("who decides", "lane", "wait p50", "p99", "loads", "tokens read again", "cuts", "woken at", "total")


def quantile(waits: Iterable[float], share: float) -> float:
    """Of these waits."""
    ordered = sorted(waits)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def alone(trace: Trace, lane: str) -> Trace:
    """The same without the other lanes."""
    return replace(trace, jobs=tuple(job for job in trace.jobs if job.lane == lane))


def waits_of(trace: Trace, result: Result, lane: str) -> list[float]:
    """Of the lane's jobs."""
    return [result.waits[job.token] for job in trace.jobs if job.lane == lane]


def rows(trace: Trace) -> Iterator[tuple[str, ...]]:
    """One for each policy and lane."""
    lanes = [lane for lane in LANES if any(job.lane == lane for job in trace.jobs)]
    sleeps = any(machine.boot_seconds for machine in trace.machines)
    results = {name: World(trace).run(made()) for name, made in POLICIES.items() if sleeps or "woken" not in name}
    results["oracle"] = oracle(trace)
    for name, result in results.items():
        for lane in lanes:
            waits = waits_of(trace, result, lane)
            is_first = lane == lanes[0]
            of_all = (
                (
                    result.loads,
                    result.tokens_read_again,
                    result.cuts,
                    ", ".join(f"{at:.0f}" for at in result.woken),
                    f"{result.total_seconds:.0f}",
                )
                if is_first
                else ("",) * 5
            )
            yield (
                name if is_first else "",
                lane,
                f"{quantile(waits, 0.5):.1f}",
                f"{quantile(waits, 0.99):.1f}",
                *map(str, of_all),
            )
    yield ("nobody faster", *("",) * 7, f"{least_seconds(trace):.0f}")
    if "high" in lanes and len(lanes) > 1:
        waits = list(World(alone(trace, "high")).run(Ours(Rules())).waits.values())
        yield ("high alone", "high", f"{quantile(waits, 0.5):.1f}", f"{quantile(waits, 0.99):.1f}", *("",) * 5)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.fleet", description="The local fleet.")
    parser.add_argument("--seed", type=int, default=7)
    seed = parser.parse_args().seed
    for number, made in enumerate(TRACES):
        trace = made(random.Random(seed + number))
        lines = [HEAD, ["---"] * len(HEAD), *rows(trace)]
        print(f"{trace.name}: {len(trace.jobs)} calls on {len(trace.machines)} boxes; seconds\n")
        print("\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n", flush=True)


if __name__ == "__main__":
    main()
