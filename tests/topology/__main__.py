"""The long storm of failovers: `python -m tests.topology sentinel --seed 7 --seconds 150 --requests 2000`."""

from __future__ import annotations

import argparse
import asyncio
import random
import sys

from llm_routerd.protocol.keys import Layout
from tests.support.binaries import NAMES, find_binary
from tests.topology.sites import SITES
from tests.topology.storm import run_storm


def main() -> int:
    """Run once, and say what came of it; the exit status is 1 if a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.topology", description="Real servers, and what fails over.")
    parser.add_argument("site", choices=SITES, help="what the requests go through")
    parser.add_argument("--server", choices=NAMES, default="valkey", help="what it is made of")
    parser.add_argument("--shards", type=int, default=3)
    parser.add_argument("--wait-replicas", type=int, default=0, help="of the workers' configuration")
    parser.add_argument("--seed", type=int, default=None, help="reproduces the faults and the requests of a run")
    parser.add_argument("--seconds", type=float, default=150.0, help="length of the storm")
    parser.add_argument("--requests", type=int, default=2000)
    options = parser.parse_args()
    seed = random.randrange(1_000_000) if options.seed is None else options.seed
    binary = find_binary(options.server)
    if binary is None:
        parser.error(f"{options.server}-server is not installed here")
    print(f"{options.site} of {options.server}: seed {seed}, {options.seconds:g} s", flush=True)
    site = SITES[options.site](binary, Layout("llm", options.shards))
    settings = f"wait_replicas = {options.wait_replicas}"
    report = asyncio.run(run_storm(site, seed, options.seconds, options.requests, settings=settings))
    print(
        "lost with a primary: " + (", ".join(f"{what} {count}" for what, count in report.losses.items()) or "nothing")
    )
    print(f"longest time from a request to its answer: {report.longest_seconds:.1f} s")
    return report.tell(seed)


if __name__ == "__main__":
    sys.exit(main())
