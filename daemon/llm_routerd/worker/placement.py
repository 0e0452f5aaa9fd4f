"""Which shards a worker serves, and which requests belong into each.  Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llm_routerd.protocol.keys import Layout

if TYPE_CHECKING:
    from collections.abc import Iterator

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
    served: dict[str, list[tuple[Layout, int]]] = {}
    for layout, number in _stations(config):
        served.setdefault(layout.keys[number].prefix, []).append((layout, number))
    return tuple(
        Placement(
            keys=homes[0][0].keys[homes[0][1]],
            metrics_channel=homes[0][0].metrics_channel(homes[0][1], config.metrics.channel),
            homes=tuple(homes),
            is_only=redis.shards == 1 and not redis.draining,
        )
        for homes in served.values()
    )


def _stations(config: Config) -> Iterator[tuple[Layout, int]]:
    redis = config.redis
    current = Layout(redis.prefix, redis.shards)
    yield from ((current, number) for number in redis.serve or range(redis.shards))
    for shards in redis.draining:
        layout = Layout(redis.prefix, shards)
        yield from ((layout, number) for number in range(shards))
