"""Tenants of unlike sizes, and what share of all requests each shard gets by who chooses it.  Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.simulation.layout import shard_shares

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from llm_routerd.protocol.keys import Layout

TENANTS = 1000
KINDS = ("alike", "Zipf 1.1", "Zipf 1.5", "one has half")


def sizes_of(kind: str) -> list[float]:
    """The share of each tenant, the largest first."""
    match kind:
        case "alike":
            weights = [1.0] * TENANTS
        case "Zipf 1.1" | "Zipf 1.5":
            weights = [rank ** -float(kind.removeprefix("Zipf ")) for rank in range(1, TENANTS + 1)]
        case "one has half":
            weights = [TENANTS - 1.0] + [1.0] * (TENANTS - 1)
        case _:
            raise ValueError(kind)
    whole = sum(weights)
    return [weight / whole for weight in weights]


def shares_by_id(layout: Layout, sizes: Sequence[float], number: int, rng: random.Random) -> list[float]:
    """Each request has an id of its own, `tenant:number`, and that chooses the shard."""
    tenants = rng.choices(range(len(sizes)), sizes, k=number)
    counts = shard_shares(layout, (f"tenant-{tenant}:{i}" for i, tenant in enumerate(tenants)))
    return [count / number for count in counts]


def shares_by_tenant(layout: Layout, sizes: Sequence[float]) -> list[float]:
    """The producer puts requests without an id into a shard that it chooses by the tenant."""
    shares = [0.0] * layout.shards
    for tenant, size in enumerate(sizes):
        shares[layout.shard_of(f"tenant-{tenant}")] += size
    return shares
