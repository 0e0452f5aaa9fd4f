"""The long chaos run: `python -m tests.chaos --seed 7 --seconds 120`."""

from __future__ import annotations

import argparse
import asyncio
import random
import sys

from tests.chaos.storm import run_storm


def main() -> int:
    """Run once, and say what came of it; the exit status is 1 if a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description="Real processes, and what kills them.")
    parser.add_argument("--seed", type=int, default=None, help="reproduces the faults and the requests of a run")
    parser.add_argument("--seconds", type=float, default=120.0, help="length of the storm")
    options = parser.parse_args()
    seed = random.randrange(1_000_000) if options.seed is None else options.seed
    print(f"chaos: seed {seed}, {options.seconds:g} s (the seed gives the schedule; the timing is real)", flush=True)
    return asyncio.run(run_storm(seed, options.seconds)).tell(seed)


if __name__ == "__main__":
    sys.exit(main())
