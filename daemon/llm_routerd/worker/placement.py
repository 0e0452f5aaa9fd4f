"""Which shards a worker serves, and which requests belong into each.  Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llm_routerd.protocol.keys import Layout

if TYPE_CHECKING:
    from llm_routerd.config.tree import Config
    from llm_routerd.protocol.keys import Keys


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """One shard.

    Attributes:
        keys: its own.
        metrics_channel: its metrics stream, and the name of the channel.
        homes: each layout in force that has this shard, and its number there.
        is_only: there is no other, and nobody has to be told which it is.
    """

    keys: Keys
    metrics_channel: str
    homes: tuple[tuple[Layout, int], ...]
    is_only: bool

    @property
    def name(self) -> str:
        """For logs: what its keys begin with; "" for an only one."""
        return "" if self.is_only else self.keys.prefix

    def is_home_of(self, request_id: str) -> bool:
        """Whether a request with this id may stand here."""
        return any(layout.shard_of(request_id) == number for layout, number in self.homes)


def placements(config: Config) -> tuple[Placement, ...]:
    """The shards that a worker serves: its own of the layout in force, and all of the earlier ones."""
    redis = config.redis
    current, *earlier = layouts = [Layout(redis.prefix, shards) for shards in (redis.shards, *redis.draining)]
    served = [current.keys[number] for number in redis.serve or range(redis.shards)]
    served += [keys for layout in earlier for keys in layout.keys]
    homes: dict[str, list[tuple[Layout, int]]] = {}
    for layout in dict.fromkeys(layouts):
        for number, keys in enumerate(layout.keys):
            homes.setdefault(keys.prefix, []).append((layout, number))
    return tuple(
        Placement(
            keys=keys,
            metrics_channel=homes[keys.prefix][0][0].metrics_channel(homes[keys.prefix][0][1], config.metrics.channel),
            homes=tuple(homes[keys.prefix]),
            is_only=redis.shards == 1 and not redis.draining,
        )
        for keys in dict.fromkeys(served)
    )
