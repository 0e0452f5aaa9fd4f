"""A Cluster of three primaries and three replicas, as processes; all of it blocks, so a loop calls it in a thread.

Nobody writes data to disk: a primary that is started again before its replica took over takes its slots' data with it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import pytest
import redis

from tests.support.eventually import waited_for
from tests.support.processes import lasting_port
from tests.support.servers import ValkeyProcess, running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

T = TypeVar("T")

SLOTS = 16_384
PRIMARIES = 3
NODE_TIMEOUT_MS = 1000
SETTLE_SECONDS = 30.0
_KEYS_AT_ONCE = 5
_QUICK = {
    "bind": "127.0.0.1",
    "cluster-enabled": "yes",
    "cluster-node-timeout": str(NODE_TIMEOUT_MS),
    "cluster-replica-validity-factor": "0",
    "cluster-allow-replica-migration": "no",
    "repl-diskless-sync": "yes",
    "repl-diskless-sync-delay": "0",
    "repl-ping-replica-period": "1",
}


class Cluster:
    """One Cluster.

    Attributes:
        nodes: three primaries at first, then a replica of each.
        url: `redis+cluster://…` of it, every node named.
        seeds: the same by any one node, in the order of `nodes`.
    """

    def __init__(
        self,
        binary: Path | None = None,
        *,
        config: Mapping[str, str] | None = None,
        lines: Sequence[str] = (),
        password: str = "",
    ) -> None:
        """Prepare it.

        Args:
            binary: what all of it is started from; None: Valkey.
            config: further directives of the nodes.
            lines: further lines of their configuration, as `user …`.
            password: of their default user.
        """
        auth = {"requirepass": password, "masterauth": password} if password else {}
        self.nodes = [
            ValkeyProcess({**_QUICK, **auth, **(config or {})}, port=lasting_port(), binary=binary, lines=lines)
            for _ in range(2 * PRIMARIES)
        ]
        self._auth = ["AUTH", password] if password else []
        account = f":{password}@" if password else ""
        self.url = f"redis+cluster://{account}{','.join(f'127.0.0.1:{node.port}' for node in self.nodes)}"
        self.seeds = [f"redis+cluster://{account}127.0.0.1:{node.port}" for node in self.nodes]

    def start(self) -> None:
        """Start all and make them one; return when it has `settled`."""
        for node in self.nodes:
            node.start()
        first, *others = self.nodes
        for number in range(PRIMARIES):
            node = self.nodes[number]
            node.command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            bounds = (number * SLOTS // PRIMARIES, (number + 1) * SLOTS // PRIMARIES - 1)
            node.command("CLUSTER", "ADDSLOTSRANGE", *bounds)
        for node in others:
            first.command("CLUSTER", "MEET", "127.0.0.1", node.port)
        _wait_for("nodes that know each other", self._have_met)
        for number in range(PRIMARIES):
            self.nodes[PRIMARIES + number].command("CLUSTER", "REPLICATE", self.id_of(self.nodes[number]))
        self.settled()

    def close(self) -> None:
        """End all, in whatever state they are."""
        for node in self.nodes:
            node.close()

    @staticmethod
    def id_of(node: ValkeyProcess) -> str:
        """What the Cluster calls it."""
        name: str = node.command("CLUSTER", "MYID")
        return name

    def node_of(self, slot: int) -> ValkeyProcess:
        """The primary that serves it."""
        return _wait_for(f"a node that serves slot {slot}", lambda: self._serves(slot))

    def primaries(self) -> list[ValkeyProcess]:
        """Those that serve slots, in the order of `nodes`."""
        return [node for node in self.nodes if node.answers and (own := _myself(node)).primary is None and own.slots]

    def replica_of(self, slot: int) -> ValkeyProcess:
        """A replica of that primary which follows it now."""
        return _wait_for(f"a replica for slot {slot}", lambda: self._follows(self.node_of(slot)))

    def failover(self, slot: int) -> ValkeyProcess:
        """Have the slot's replica take over in good order (CLUSTER FAILOVER); returns it once it has."""
        before, replica = self.node_of(slot), self.replica_of(slot)
        replica.command("CLUSTER", "FAILOVER")
        return self.promoted(slot, before)

    def promoted(self, slot: int, instead_of: ValkeyProcess) -> ValkeyProcess:
        """Wait until another node serves the slot; returns it."""

        def other() -> ValkeyProcess | None:
            found = self._serves(slot)
            return found if found is not instead_of else None

        return _wait_for(f"another node that serves slot {slot}", other)

    @staticmethod
    def kill(node: ValkeyProcess) -> None:
        """SIGKILL it."""
        node.kill()

    @staticmethod
    def stop(node: ValkeyProcess) -> None:
        """SIGSTOP it."""
        node.freeze()

    @staticmethod
    def cont(node: ValkeyProcess) -> None:
        """SIGCONT what was stopped."""
        node.thaw()

    @staticmethod
    def restart(node: ValkeyProcess) -> None:
        """Start what does not run; it comes back without data, and knows who it was."""
        node.start()

    def move_slot(self, slot: int, to: ValkeyProcess, *, atomic: bool = False, pause_seconds: float = 0.0) -> None:
        """Move a slot with its keys to another primary, while commands run, once all has `settled`.

        Args:
            slot: which.
            to: a primary.
            atomic: all at once (`CLUSTER MIGRATESLOTS`, where `moves_atomically`), and not key by key (`MIGRATE`).
            pause_seconds: between its keys.
        """
        self.settled()
        source = self.node_of(slot)
        if source is to:
            return
        if atomic:
            self._move_at_once(slot, source, to)
            return
        names = self.id_of(source), self.id_of(to)
        to.command("CLUSTER", "SETSLOT", slot, "IMPORTING", names[0])
        source.command("CLUSTER", "SETSLOT", slot, "MIGRATING", names[1])
        while keys := source.command("CLUSTER", "GETKEYSINSLOT", slot, _KEYS_AT_ONCE):
            source.command("MIGRATE", "127.0.0.1", to.port, "", 0, 5000, *self._auth, "KEYS", *keys)
            time.sleep(pause_seconds)
        for node in (to, source, *self._others(source, to)):
            node.command("CLUSTER", "SETSLOT", slot, "NODE", names[1])

    def moves_atomically(self) -> bool:
        """Whether these servers have `CLUSTER MIGRATESLOTS`."""
        return any("MIGRATESLOTS" in str(line).upper() for line in self.nodes[0].command("CLUSTER", "HELP"))

    def settled(self) -> None:
        """Wait until all that runs agrees on who serves what, says that the Cluster is well, and follows its primary."""
        _wait_for("a Cluster in order", self._in_order)

    def _move_at_once(self, slot: int, source: ValkeyProcess, to: ValkeyProcess) -> None:
        source.command("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", self.id_of(to))
        _wait_for(f"slot {slot} moved", lambda: self._serves(slot) is to or None)

    def _others(self, *but: ValkeyProcess) -> list[ValkeyProcess]:
        return [node for node in self.nodes if node.answers and node not in but and _myself(node).primary is None]

    def _have_met(self) -> bool | None:
        return all(len(_seen_by(node)) == len(self.nodes) for node in self.nodes) or None

    def _serves(self, slot: int) -> ValkeyProcess | None:
        """Who says so of itself; a primary that has not yet heard of its successor says it with an older epoch."""
        selves = [(_myself(node), node) for node in self.nodes if node.answers]
        serving = [(own.epoch, node) for own, node in selves if own.primary is None and own.serves(slot)]
        return max(serving, key=lambda pair: pair[0])[1] if serving else None

    def _follows(self, primary: ValkeyProcess) -> ValkeyProcess | None:
        name = self.id_of(primary)
        for node in self.nodes:
            if node.answers and _myself(node).primary == name and node.command("ROLE")[3] == "connected":
                return node
        return None

    def _in_order(self) -> bool | None:
        live = [node for node in self.nodes if node.answers]
        names, views = {self.id_of(node) for node in live}, set()
        for node in live:
            role, seen = node.command("ROLE"), _seen_by(node)
            if "cluster_state:ok" not in node.command("CLUSTER", "INFO"):
                return None
            if role[0] == "slave" and role[3] != "connected":
                return None
            if any("fail" in flag for member in seen if member.name in names for flag in member.flags):
                return None
            views.add(
                str(sorted((member.name, member.primary, member.slots) for member in seen if member.name in names))
            )
        return len(views) == 1 or None


class _Member(NamedTuple):
    """A line of `CLUSTER NODES`."""

    name: str
    flags: tuple[str, ...]
    primary: str | None
    epoch: int
    slots: tuple[range, ...]

    def serves(self, slot: int) -> bool:
        return any(slot in part for part in self.slots)


def _seen_by(node: ValkeyProcess) -> list[_Member]:
    members = []
    for line in node.command("CLUSTER", "NODES").splitlines():
        name, _, flags, primary, _, _, epoch, _, *parts = line.split()
        bounds = [part.partition("-") for part in parts if not part.startswith("[")]  # those are on the move
        slots = tuple(range(int(first), int(last or first) + 1) for first, _, last in bounds)
        members.append(_Member(name, tuple(flags.split(",")), primary if primary != "-" else None, int(epoch), slots))
    return members


def _myself(node: ValkeyProcess) -> _Member:
    return next(member for member in _seen_by(node) if "myself" in member.flags)


def _wait_for(what: str, find: Callable[[], T | None]) -> T:
    return waited_for(what, find, seconds=SETTLE_SECONDS, passing=redis.RedisError)


def running_cluster(binary: Path | None = None, **options: Any) -> AbstractContextManager[Cluster]:
    """A Cluster of the caller's own (`options` as of `Cluster`), as `running` has it."""
    return running(Cluster(binary, **options))


@pytest.fixture
def cluster(server_binary: Path) -> Iterator[Cluster]:
    """One Cluster, of each binary."""
    with running_cluster(server_binary) as made:
        yield made
