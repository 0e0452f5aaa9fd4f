"""Where the requests of a storm go through: a trio of sentinels' service, or a Cluster, each seen by its shards.

All of it blocks, so a loop calls it in a thread.
"""

from __future__ import annotations

from binascii import crc_hqx
from typing import TYPE_CHECKING, Protocol

from tests.support.clusters import SLOTS, Cluster
from tests.support.sentinels import Sentinels

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from llm_routerd.protocol.keys import Keys, Layout
    from tests.support.servers import ValkeyProcess

# What a primary has done is read from this file after its end; and it is there again when the primary is.
KEEPS_DATA = {"appendonly": "yes", "appendfsync": "no", "auto-aof-rewrite-percentage": "0"}


class Site(Protocol):
    """Several servers that stand for one."""

    url: str
    layout: Layout
    lossless: frozenset[str]  # the faults with which no write may be lost, though the primary is another then

    def start(self) -> None:
        """Start all of it."""

    def close(self) -> None:
        """End all of it, in whatever state it is."""

    def settled(self) -> object:
        """Wait until everything is in order."""

    def primary(self, keys: Keys) -> ValkeyProcess:
        """Who serves a shard."""

    def replicas(self, keys: Keys) -> list[ValkeyProcess]:
        """Who follows that primary."""

    def switch_over(self, keys: Keys) -> ValkeyProcess:
        """Have a replica take over, the primary being well; returns it."""

    def promoted(self, keys: Keys, instead_of: ValkeyProcess) -> ValkeyProcess:
        """Wait for another primary; returns it."""


class SentinelSite:
    """All shards on one primary."""

    lossless: frozenset[str] = frozenset()

    def __init__(self, binary: Path | None, layout: Layout) -> None:
        self.layout = layout
        self._service = Sentinels(binary, config=KEEPS_DATA)
        self.url = self._service.url
        self.start, self.close, self.settled = self._service.start, self._service.close, self._service.settled

    def primary(self, keys: Keys) -> ValkeyProcess:
        """Whom the sentinels name."""
        return self._service.primary()

    def replicas(self, keys: Keys) -> list[ValkeyProcess]:
        """All others."""
        primary = self._service.primary()
        return [server for server in self._service.servers if server.answers and server is not primary]

    def switch_over(self, keys: Keys) -> ValkeyProcess:
        """By `SENTINEL FAILOVER`, which holds no writes back: some may be lost."""
        return self._service.failover()

    def promoted(self, keys: Keys, instead_of: ValkeyProcess) -> ValkeyProcess:
        """As the sentinels decide."""
        return self._service.promoted(instead_of)


class ClusterSite:
    """Each shard in a slot of its own."""

    lossless: frozenset[str] = frozenset({"switch-over"})

    def __init__(self, binary: Path | None, layout: Layout) -> None:
        self.layout = layout
        self._cluster = Cluster(binary, config=KEEPS_DATA)
        self.url = self._cluster.url
        self.start, self.close, self.settled = self._cluster.start, self._cluster.close, self._cluster.settled

    def primary(self, keys: Keys) -> ValkeyProcess:
        """Who serves its slot."""
        return self._cluster.node_of(slot_of(keys))

    def replicas(self, keys: Keys) -> list[ValkeyProcess]:
        """The one that there is."""
        return [self._cluster.replica_of(slot_of(keys))]

    def switch_over(self, keys: Keys) -> ValkeyProcess:
        """By `CLUSTER FAILOVER`, which loses nothing."""
        return self._cluster.failover(slot_of(keys))

    def promoted(self, keys: Keys, instead_of: ValkeyProcess) -> ValkeyProcess:
        """As the primaries vote."""
        return self._cluster.promoted(slot_of(keys), instead_of)

    def move(self, keys: Keys, *, atomic: bool, pause_seconds: float) -> None:
        """Move the shard's slot to the primary after the one that has it, in the order of their ports."""
        source = self.primary(keys)
        primaries = self._cluster.primaries()
        target = primaries[(primaries.index(source) + 1) % len(primaries)]
        at_once = atomic and self._cluster.moves_atomically()
        self._cluster.move_slot(slot_of(keys), target, atomic=at_once, pause_seconds=pause_seconds)


def slot_of(keys: Keys) -> int:
    """The slot in which they all lie, by the hash tag of their prefix."""
    return crc_hqx(keys.prefix.partition("{")[2].partition("}")[0].encode(), 0) % SLOTS


SITES: dict[str, Callable[[Path | None, Layout], Site]] = {"sentinel": SentinelSite, "cluster": ClusterSite}
