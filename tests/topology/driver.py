"""Does to the servers what the plan says, and keeps what each primary that went had in it."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import tempfile
import time
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import redis

from tests.chaos.driver import Driver, to_its_end
from tests.chaos.plan import Kind, make_plan
from tests.chaos.world import Span
from tests.support.eventually import waited_for
from tests.support.servers import ValkeyProcess
from tests.topology.sites import KEEPS_DATA, ClusterSite

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from llm_routerd.protocol.keys import Keys
    from tests.chaos.plan import Fault
    from tests.chaos.world import World
    from tests.topology.sites import Site


class Failover(StrEnum):
    """One way in which a primary goes, or a slot."""

    SWITCH_OVER = "switch-over"
    KILL_PRIMARY = "kill-primary"
    KILL_AHEAD = "kill-primary-ahead-of-its-replicas"
    STOP_PRIMARY = "stop-primary"
    PAUSE_PRIMARY = "pause-primary"
    MOVE_SLOT = "move-slot"
    MOVE_SLOT_AT_ONCE = "move-slot-at-once"


# How often each comes, and how long it lasts, in seconds: a pause, of replicas as well, ends before anybody takes them
# for dead.
SENTINEL_FAULTS: dict[StrEnum, tuple[int, float, float]] = {
    Failover.SWITCH_OVER: (2, 0.0, 0.0),
    Failover.KILL_PRIMARY: (3, 0.0, 2.0),
    Failover.KILL_AHEAD: (2, 0.1, 0.4),
    Failover.STOP_PRIMARY: (3, 0.0, 2.0),
    Failover.PAUSE_PRIMARY: (1, 0.1, 0.4),
}
CLUSTER_FAULTS = SENTINEL_FAULTS | {
    Failover.MOVE_SLOT: (2, 0.0, 0.02),
    Failover.MOVE_SLOT_AT_ONCE: (2, 0.0, 0.0),
}
_WORKER_FAULTS: dict[StrEnum, tuple[int, float, float]] = {Kind.KILL_WORKER: (1, 0.1, 1.0)}
_WORKER_PAUSE_SECONDS = (2.0, 8.0)
_CALM_SECONDS = (0.3, 1.5)
# What a producer or a subscriber has seen, a replica has got by then, machine and all.
LAG_SECONDS = 2.0

Events = dict[str, tuple[str, str]]  # type and data of each event of a stream, by its ID


@dataclass(frozen=True, slots=True, kw_only=True)
class Departure:
    """A primary that was left, and may have taken writes with it.

    Attributes:
        span: from before it until all followed another.
        served: the shards that it served.
        waiting: ids of the requests that stood in its lanes at its end.
        events: by their key, those streams that were not finished well before.
    """

    kind: str
    span: Span
    served: frozenset[Keys]
    waiting: frozenset[str]
    events: Mapping[str, Events]


class FailoverDriver(Driver):
    """One storm of them.  `departures` tells what each primary had that went; what stands at the end may lack of that."""

    def __init__(self, world: World, site: Site, open_since: Callable[[float], Collection[str]]) -> None:
        """`open_since` names the requests that had no end at a time."""
        super().__init__(world)
        self.departures: list[Departure] = []
        self._site = site
        self._open_since = open_since

    async def storm(self, seed: int, seconds: float, kinds: Mapping[StrEnum, tuple[int, float, float]]) -> None:
        """Kill workers, and do one thing after the other to the servers; each kind comes once at least."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.run(make_plan(seed, seconds, _WORKER_FAULTS, _WORKER_PAUSE_SECONDS)), name="workers")
            over_at = time.monotonic() + seconds
            for fault in make_plan(seed, len(kinds) + seconds, kinds, (1.0, 1.0)):
                if time.monotonic() > over_at and self.done.keys() >= kinds.keys():
                    return
                await asyncio.sleep(random.Random(f"calm-{seed}-{fault.at_seconds}").uniform(*_CALM_SECONDS))
                await self._do(fault)

    async def _to_server(self, fault: Fault) -> None:
        keys = self._site.layout.keys[fault.slot % self._site.layout.shards]
        await to_its_end(lambda: self._do_to_server(fault, keys))

    def _do_to_server(self, fault: Fault, keys: Keys) -> None:
        if fault.kind in {Failover.MOVE_SLOT, Failover.MOVE_SLOT_AT_ONCE}:
            assert isinstance(self._site, ClusterSite)
            at_once = fault.kind is Failover.MOVE_SLOT_AT_ONCE
            self._site.move(keys, atomic=at_once, pause_seconds=fault.seconds)
            self._site.settled()
            return
        self._site.settled()
        primary = self._site.primary(keys)
        served = frozenset(each for each in self._site.layout.keys if self._site.primary(each) is primary)
        began = time.time()
        with tempfile.TemporaryDirectory(prefix="left-", dir="/tmp") as left:
            _keep(primary, Path(left))
            self._go(fault, keys, primary)
            self._site.settled()
            if self._site.primary(keys) is primary or fault.kind in self._site.lossless:
                return
            requests = self._open_since(began - LAG_SECONDS)
            waiting, events = _had(primary.binary, Path(left), served, requests)
        span = Span(began, time.time())
        self.departures.append(Departure(kind=fault.kind, span=span, served=served, waiting=waiting, events=events))

    def _go(self, fault: Fault, keys: Keys, primary: ValkeyProcess) -> None:
        match fault.kind:
            case Failover.SWITCH_OVER:
                self._site.switch_over(keys)
            case Failover.KILL_PRIMARY:
                primary.kill()
                self._site.promoted(keys, primary)
                time.sleep(fault.seconds)
                primary.start()
            case Failover.KILL_AHEAD:
                replicas = self._site.replicas(keys)
                for replica in replicas:
                    replica.freeze()
                try:
                    primary.command("CLIENT", "KILL", "TYPE", "replica")
                    time.sleep(fault.seconds)
                    primary.kill()
                finally:
                    for replica in replicas:
                        replica.thaw()
                self._site.promoted(keys, primary)
                primary.start()
            case Failover.STOP_PRIMARY:
                primary.freeze()
                try:
                    self._site.promoted(keys, primary)
                    time.sleep(fault.seconds)
                finally:
                    primary.thaw()
            case Failover.PAUSE_PRIMARY:
                primary.freeze()
                time.sleep(fault.seconds)
                primary.thaw()
            case _:
                raise AssertionError(fault.kind)


def _keep(primary: ValkeyProcess, where: Path) -> None:
    """Have its append-only file by another name: it goes on growing, and is not gone when a replica throws it away."""
    waited_for("an append-only file", lambda: _is_written(primary) or None, seconds=10.0, passing=redis.RedisError)
    for name in (primary.directory / "appendonlydir").iterdir():
        if name.suffix == ".manifest":
            shutil.copy(name, where)
        else:
            os.link(name, where / name.name)


def _is_written(primary: ValkeyProcess) -> bool:
    with primary.connect() as client:
        state = client.info("persistence")
    return not state["aof_rewrite_in_progress"] and not state["aof_rewrite_scheduled"] and bool(state["aof_enabled"])


def _had(
    binary: Path, left: Path, shards: Collection[Keys], requests: Collection[str]
) -> tuple[frozenset[str], dict[str, Events]]:
    """Who stood in the lanes, and the events of these requests, as another server reads them from what was kept."""
    server = ValkeyProcess(KEEPS_DATA, binary=binary)
    try:
        shutil.copytree(left, server.directory / "appendonlydir")
        server.start()
        with server.connect() as client:
            waiting = {
                json.loads(fields["data"])["id"]
                for each in shards
                for lane in each.lanes
                for _, fields in client.xrange(lane)
            }
            return frozenset(waiting), events_of(client, [each.events(name) for each in shards for name in requests])
    finally:
        server.close()


def events_of(client: redis.Redis, keys: Sequence[str]) -> dict[str, Events]:
    """The events of those of these streams that there are."""
    with client.pipeline(transaction=False) as pipe:
        for key in keys:
            pipe.xrange(key)
        streams = pipe.execute()
    return {
        key: {entry: (fields["type"], fields["data"]) for entry, fields in entries}
        for key, entries in zip(keys, streams, strict=True)
        if entries
    }
