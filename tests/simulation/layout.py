"""Where shards lie in a Cluster, and in which shard ids fall.  Pure."""

from __future__ import annotations

import uuid
from collections import Counter
from typing import TYPE_CHECKING

from redis.crc import key_slot

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterable, Sequence

    from llm_routerd.protocol.keys import Layout

SLOTS = 16_384
_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def ranges_of(nodes: int) -> list[range]:
    """The slots of each node as `redis-cli --cluster create` deals them: one range a node."""
    per_node, cursor, first, dealt = SLOTS / nodes, 0.0, 0, []
    for number in range(nodes):
        last = SLOTS - 1 if number == nodes - 1 else int(cursor + per_node - 1 + 0.5)
        dealt.append(range(first, last + 1))
        first, cursor = last + 1, cursor + per_node
    return dealt


def shards_of_nodes(layout: Layout, nodes: int) -> list[int]:
    """How many shards each node gets, where nobody has moved a slot."""
    dealt = ranges_of(nodes)
    slots = [key_slot(keys.dead.encode()) for keys in layout.keys]
    return [sum(slot in part for slot in slots) for part in dealt]


def busiest(counts: Sequence[float]) -> float:
    """The largest as a multiple of the mean."""
    return max(counts) * len(counts) / sum(counts)


def ids_by_kind(rng: random.Random, number: int) -> dict[str, list[str]]:
    """So many ids of each kind that producers use."""
    made: dict[str, Callable[[int], str]] = {
        "uuid4": lambda _: str(uuid.UUID(int=rng.getrandbits(128), version=4)),
        "ULID, 1 ms apart": lambda i: _ulid(1_790_000_000_000 + i, rng),
        "counter": str,
        "counter, every 100th": lambda i: str(100 * i),
        "order-<counter>, 8 digits": lambda i: f"order-{i:08d}",
        "tenant:counter, 50 tenants": lambda i: f"tenant-{rng.randrange(50)}:{i}",
        "entry-like ms-0": lambda i: f"{1_790_000_000_000 + 7 * i}-0",
    }
    return {kind: [make(i) for i in range(number)] for kind, make in made.items()}


def _ulid(milliseconds: int, rng: random.Random) -> str:
    value = milliseconds << 80 | rng.getrandbits(80)
    return "".join(_CROCKFORD[value >> shift & 31] for shift in range(125, -1, -5))


def shard_shares(layout: Layout, ids: Iterable[str]) -> list[int]:
    """How many of the ids fall in each shard."""
    counted = Counter(map(layout.shard_of, ids))
    return [counted[shard] for shard in range(layout.shards)]
