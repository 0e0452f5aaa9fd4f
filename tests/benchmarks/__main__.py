"""The benchmark: the floor, the daemon and a task queue with litellm, on one Valkey and one stand-in model.

    python -m tests.benchmarks [--only NAME …] [--peers NAME …] [--soak] [--rounds N] [--json FILE]

A second table has the gateway beside the daemon alone, and beside those proxies of other people that `--peers` names;
they are installed under build/ (LiteLLM's takes 700 MB), and without them their columns are empty.

Run from the repository's root; `make bench` does.  The rounds of the systems are interleaved, CPU is that of the
measured process, and every token that a figure counts was checked at a subscriber.
Exit code 1: a target was missed.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import orjson
import uvloop

from tests.benchmarks import boxed, costs, front_door, sharded, workloads
from tests.benchmarks.proxies import KINDS
from tests.benchmarks.systems import Bed, make_bed
from tests.benchmarks.table import Row, machine, to_markdown, to_text

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

_BY_NAME = ("costs", "idle-shards", "idle-cluster", "spread")  # with --only: figures to plan with, see docs/scale.md
_RESULTS = Path(__file__).parent / "results" / "latest.json"


def _plan(bed: Bed, rounds: int, peers: Sequence[str]) -> dict[str, Callable[[], AsyncIterator[Row]]]:
    """What is measured, in this order."""
    return {
        "start": lambda: workloads.measure_starts(bed, rounds=rounds),
        "idle": lambda: workloads.measure_idle(bed, seconds=10),
        "memory": lambda: workloads.measure_memory(bed, requests=5000),
        "tokens": lambda: workloads.measure_bursts(bed, [workloads.TOKENS], concurrency=32, rounds=2 * rounds + 1),
        "short": lambda: workloads.measure_bursts(
            bed, [workloads.SHORT, workloads.SHORT_WITH_SCHEMA], concurrency=64, rounds=2 * rounds + 1
        ),
        "two": lambda: workloads.measure_two_workers(bed, rounds=5, requests=2500),
        "shards": lambda: sharded.measure_shards(bed, rounds=5, rate=60, seconds=4),
        "trickle": lambda: workloads.measure_trickle(bed, rounds=3, seconds=8),
        "delay": lambda: workloads.measure_delay(bed, rounds=3),
        "open": lambda: workloads.measure_open_streams(bed),
        "boxes": lambda: boxed.measure_boxes(bed, rounds=2 * rounds + 1),
        "http": lambda: front_door.measure_http_bursts(
            bed, [front_door.TOKENS, front_door.SHORT], rounds=rounds, peers=peers
        ),
        "http-trickle": lambda: front_door.measure_http_trickle(bed, rounds=3, seconds=8, peers=peers),
        "http-open": lambda: front_door.measure_http_open(bed, rounds=2, peers=peers),
        "soak": lambda: workloads.measure_soak(bed),
        "costs": lambda: costs.measure_costs(bed, rounds=rounds),
        "idle-shards": lambda: costs.measure_idle_shards(bed, seconds=10),
        "idle-cluster": lambda: costs.measure_idle_cluster(seconds=10),
        "spread": lambda: costs.measure_spread(bed, rounds=rounds, rate=400, seconds=3),
    }


async def _measure(options: argparse.Namespace) -> list[Row]:
    rows: list[Row] = []
    with make_bed() as bed:
        for name, measure in _plan(bed, options.rounds, options.peers).items():
            left_out = name in _BY_NAME or (name == "soak" and not options.soak)
            if name not in options.only and (options.only or left_out):
                continue
            began = time.perf_counter()
            rows += [row async for row in measure()]
            print(f"{name}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    return rows


def main() -> int:
    """Measure, print the table, write the JSON and beside it the Markdown."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description="The benchmark.")
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME", help="some of the measurements only")
    parser.add_argument("--peers", nargs="*", default=[], choices=KINDS, metavar="NAME", help=f"{', '.join(KINDS)}")
    parser.add_argument("--soak", action="store_true", help="100,000 requests as well: some minutes more")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, default=None, help="where the results go")
    options = parser.parse_args()
    path = options.json or (_RESULTS if not options.only else None)
    gc.disable()  # the load's own pauses are nobody's latency
    began = time.perf_counter()
    rows = uvloop.run(_measure(options))
    print(to_text(rows))
    print(f"\n{time.perf_counter() - began:.0f} s in all")
    if path is not None:
        path.parent.mkdir(exist_ok=True)
        document = {"machine": machine(), "rows": [row.to_json() for row in rows]}
        path.write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
        path.with_suffix(".md").write_text(to_markdown(rows))
    return 1 if any(row.is_met is False for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
