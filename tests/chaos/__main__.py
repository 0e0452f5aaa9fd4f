"""The long chaos runs: `python -m tests.chaos --seed 7 --seconds 120`; `--http`: through gateways, `--runs`: with tools.

`--fleet`: on local boxes, which die and come back.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
from typing import TYPE_CHECKING

from tests.chaos.fleet_storm import REQUESTS_PER_SECOND, run_fleet_storm
from tests.chaos.http_storm import run_http_storm
from tests.chaos.runs_storm import run_runs_storm
from tests.chaos.storm import run_storm

if TYPE_CHECKING:
    from tests.chaos.storm import Report


def main() -> int:
    """Run once, and say what came of it; the exit status is 1 if a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description="Real processes, and what kills them.")
    parser.add_argument("--seed", type=int, default=None, help="reproduces the faults and the requests of a run")
    parser.add_argument("--seconds", type=float, default=120.0, help="length of the storm")
    parser.add_argument("--http", action="store_true", help="clients stream over HTTP, and gateways are killed too")
    parser.add_argument("--streams", type=int, default=500, help="of them, with --http; each fifth is OpenAI's")
    parser.add_argument("--runs", type=int, metavar="N", help="so many runs with tools, whose workers are killed too")
    parser.add_argument("--fleet", action="store_true", help="requests for models on local boxes, which are killed")
    options = parser.parse_args()
    seed = random.randrange(1_000_000) if options.seed is None else options.seed
    print(f"chaos: seed {seed}, {options.seconds:g} s (the seed gives the schedule; the timing is real)", flush=True)
    return asyncio.run(_storm(options, seed)).tell(seed)


async def _storm(options: argparse.Namespace, seed: int) -> Report:
    if options.http:
        openai = options.streams // 5
        return await run_http_storm(seed, options.seconds, native=options.streams - openai, openai=openai)
    if options.fleet:
        return await run_fleet_storm(seed, options.seconds, requests=round(REQUESTS_PER_SECOND * options.seconds))
    if options.runs:
        return await run_runs_storm(seed, options.seconds, runs=options.runs)
    return await run_storm(seed, options.seconds)


if __name__ == "__main__":
    sys.exit(main())
