"""The layout of shards, simulated: where they lie, who fills them, and how long requests wait.

    python -m tests.simulation.shards [--seed N]

Run from the repository's root.  No server and no clock: the same seed prints the same tables.
"""

from __future__ import annotations

import argparse
import random
from typing import TYPE_CHECKING

from llm_routerd.protocol.keys import Layout
from tests.simulation import tenants
from tests.simulation.layout import busiest, ids_by_kind, shard_shares, shards_of_nodes
from tests.simulation.waiting import MEAN_SECONDS, everybody, parted, simulate

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tests.simulation.waiting import Team

SHARDS = (4, 8, 12, 16, 24, 32, 48, 64, 256, 1024)
NODES = (3, 6, 12, 24)
WORKERS, PLACES, AMONG = 8, 16, 16  # of the queues: workers, places of each, shards
GROUPS = (1, 2, 4, 8)
LOADS = (0.7, 0.9)
IDS = 50_000
REQUESTS = 30_000
_TOO_LONG_SECONDS = 60.0
_PREFIXES = ("llm", "prod", "a", "queue", "tenant-7", "x1y2")


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """In Markdown."""
    lines = [head, ["---"] * len(head), *([str(cell) for cell in row] for row in rows)]
    return f"{title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def node_table() -> str:
    """Shards of the default prefix on the nodes, as they fall."""
    rows = []
    for nodes in NODES:
        for shards in SHARDS:
            counts = shards_of_nodes(Layout("llm", shards), nodes)
            placed = busiest([shards // nodes + (number < shards % nodes) for number in range(nodes)])
            rows.append(
                (nodes, shards, " ".join(map(str, counts)), counts.count(0), f"{busiest(counts):.2f}", f"{placed:.2f}")
            )
    head = ("nodes", "shards", "shards on each node", "nodes with none", "busiest / mean", "the same, slots placed")
    return table("Shards {llm:i} on nodes, slots as redis-cli --cluster create deals them", head, rows)


def prefix_table() -> str:
    """Whether another prefix would fall better."""
    rows = [
        (nodes, shards, " ".join(f"{busiest(shards_of_nodes(Layout(name, shards), nodes)):.2f}" for name in _PREFIXES))
        for nodes in NODES
        for shards in (16, 64, 256)
    ]
    return table(f"Busiest node / mean by prefix: {', '.join(_PREFIXES)}", ("nodes", "shards", "by prefix"), rows)


def id_table(rng: random.Random) -> str:
    """How evenly ids of each kind fall."""
    made = ids_by_kind(rng, IDS)
    rows = [
        (kind, *(f"{busiest(shard_shares(Layout('llm', shards), ids)):.2f}" for shards in (4, 16, 24, 64)))
        for kind, ids in made.items()
    ]
    return table(f"{IDS:,} ids: fullest shard / mean, by number of shards", ("ids", "4", "16", "24", "64"), rows)


def tenant_table(rng: random.Random) -> str:
    """Who chooses the shard: the id, or the tenant."""
    rows = []
    for kind in tenants.KINDS:
        sizes = tenants.sizes_of(kind)
        by_id = busiest(tenants.shares_by_id(Layout("llm", AMONG), sizes, IDS, rng))
        by_tenant = busiest(tenants.shares_by_tenant(Layout("llm", AMONG), sizes))
        rows.append((kind, f"{sizes[0]:.1%}", f"{by_id:.2f}", f"{by_tenant:.2f}"))
    head = ("tenants", "the largest has", "shard by id", "shard by tenant")
    return table(f"{tenants.TENANTS} tenants on {AMONG} shards: fullest shard / mean", head, rows)


def teams() -> dict[int, Team]:
    """The workers in 1, 2, 4, 8 groups, each of which serves its part of the shards; 1: all serve all."""
    return {
        groups: everybody(WORKERS, AMONG, PLACES) if groups == 1 else parted(WORKERS, AMONG, PLACES, groups=groups)
        for groups in GROUPS
    }


def fillings(rng: random.Random) -> dict[str, list[float]]:
    """The share of each shard, by what fills them."""
    layout = Layout("llm", AMONG)
    return {
        "by id, one tenant has half": tenants.shares_by_id(layout, tenants.sizes_of("one has half"), IDS, rng),
        "by tenant, Zipf 1.1": tenants.shares_by_tenant(layout, tenants.sizes_of("Zipf 1.1")),
        "by tenant, Zipf 1.5": tenants.shares_by_tenant(layout, tenants.sizes_of("Zipf 1.5")),
        "by tenant, one has half": tenants.shares_by_tenant(layout, tenants.sizes_of("one has half")),
    }


def busiest_load(team: Team, shares: Sequence[float], load: float) -> float:
    """What comes to the busiest group of workers, of what it can do; beyond 1 its queue grows without end."""
    groups = {tuple(served): 0 for served in team.served}
    for served in team.served:
        groups[tuple(served)] += team.places
    return max(
        load * team.all_places * sum(shares[shard] for shard in served) / places for served, places in groups.items()
    )


def waiting_row(
    team: Team, shares: Sequence[float], load: float, rng: random.Random
) -> tuple[str, str, str, str, str, str]:
    """Load of the busiest group; wait of all, p50 and p99; p99 of the fullest shard and of the others; places used."""
    most = busiest_load(team, shares, load)
    waited = simulate(team, shares, load=load, requests=REQUESTS, rng=rng)
    full = max(range(len(shares)), key=shares.__getitem__)
    others = [shard for shard in range(len(shares)) if shard != full]
    ours = (waited.quantile(0.5), waited.quantile(0.99), waited.quantile(0.99, [full]))
    p50, p99, fullest = ("grows",) * 3 if most >= 1 else (f"{seconds:.1f}" for seconds in ours)
    elsewhere = waited.quantile(0.99, others)
    return (
        f"{most:.2f}",
        p50,
        p99,
        fullest,
        f"{elsewhere:.1f}" if elsewhere < _TOO_LONG_SECONDS else "grows",
        f"{min(waited.used):.2f} to {max(waited.used):.2f}",
    )


def waiting_tables(rng: random.Random) -> Iterable[str]:
    """All serve all against parts, by load and by what fills the shards."""
    filled = fillings(rng)
    for load in LOADS:
        rows = [
            (filling, groups, *waiting_row(team, shares, load, rng))
            for filling, shares in filled.items()
            for groups, team in teams().items()
        ]
        title = (
            f"Load {load:g}: {WORKERS} workers of {PLACES} places, {AMONG} shards, answers of {MEAN_SECONDS:g} s "
            "(lognormal); waits in seconds"
        )
        head = ("shards filled", "groups", "busiest group", "p50", "p99", "p99 fullest", "p99 others", "places used")
        yield table(title, head, rows)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.shards", description="The layout of shards.")
    parser.add_argument("--seed", type=int, default=7)
    rng = random.Random(parser.parse_args().seed)
    for text in (node_table(), prefix_table(), id_table(rng), tenant_table(rng)):
        print(text)
    for text in waiting_tables(rng):
        print(text)


if __name__ == "__main__":
    main()
