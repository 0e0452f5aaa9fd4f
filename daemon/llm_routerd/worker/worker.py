"""The worker: start up, read and handle requests of all its shards, reload, drain."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llm_routerd.errors import BrokerError
from llm_routerd.logs import get_logger
from llm_routerd.protocol.keys import LANES, Lane, Layout
from llm_routerd.queue.boxes import SharedBoxes
from llm_routerd.queue.connection import PipeState, ResponseError, describe
from llm_routerd.queue.deliveries import Backlog
from llm_routerd.routing.chains import names
from llm_routerd.worker.placement import placements
from llm_routerd.worker.places import Capacity
from llm_routerd.worker.shard import Shard, Workplace
from llm_routerd.worker.supervisor import Supervisor, TaskFailed, all_of, first_of

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

    from llm_routerd.accounting.metrics import Metrics
    from llm_routerd.config.tree import Config
    from llm_routerd.running.resources import Resources
    from llm_routerd.worker.admission import Admission

log = get_logger()

CLOSE_SECONDS = 2.0  # longest time for the connections to models to close


def make_consumer_name() -> str:
    """A consumer name that no other process has: two that share one would both run what either was given."""
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(3)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """How the worker is doing, for systemd, health and `/metrics`.

    Attributes:
        ready: requests of all its shards are read and answered.
        serves: those of one of them are, at least.
        redis: what is known of Redis; of several shards of the first whose server is not there.
        why: what is wrong; "": nothing.
        in_flight: requests.
        draining: it has been stopped.
    """

    ready: bool
    serves: bool
    redis: PipeState
    why: str
    in_flight: int
    draining: bool


class Worker:
    """One worker process.

    `run` returns when `stop` has been called and the drain is over.

    Args:
        config: the tree in force.
        admission: for it; `reload` replaces it.
        metrics: this worker's counters.
        rng: for jitter.
        consumer: this worker's name in the consumer groups.
        on_status: called whenever `status()` has changed in a way that others should know of.
        tasks: of the process; while `run` runs, it is the one that ends the process should an essential one fail.

    Attributes:
        shards: of the queue that this worker serves; usually there is one.
    """

    def __init__(
        self,
        config: Config,
        *,
        admission: Admission,
        metrics: Metrics,
        rng: random.Random,
        consumer: str,
        on_status: Callable[[Status], None] = lambda _status: None,
        tasks: Supervisor | None = None,
    ) -> None:
        self.consumer = consumer
        self.metrics = metrics
        self._admission = admission
        self._on_status = on_status
        self._context = copy_context()
        self._tasks = Supervisor() if tasks is None else tasks
        self._opened: set[Resources] = set()  # those in force, and earlier ones that requests still run on
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()
        self._capacity = Capacity(
            concurrency=config.daemon.concurrency,
            taken=lambda: self.in_flight - self._placeless(),
            waiting=self._waiting,
            shortage=lambda: self.resources.shortage.why,
        )
        workplace = Workplace(
            consumer=consumer,
            metrics=metrics,
            capacity=self._capacity,
            rng=rng,
            tasks=self._tasks,
            on_change=self._tell,
            whereabouts={},
        )
        self.shards: Sequence[Shard] = tuple(
            Shard(config, placement, admission, workplace) for placement in placements(config)
        )
        self._use(config, admission)

    def _use(self, config: Config, admission: Admission) -> None:
        """Let this configuration be the one in force."""
        admission.resources.shortage.on_change = self._shortage_changed
        admission.resources.fleet.shared = self._shared_boxes(config)
        admission.resources.fleet.on_waiting = self._capacity.changed
        self._admission = admission
        self._opened.add(admission.resources)
        self._capacity.concurrency = config.daemon.concurrency
        self._drain_seconds = config.daemon.drain_seconds
        for shard in self.shards:
            shard.use(config, admission)
            shard.introduce(() if self._stopping.is_set() else names(config))

    def _shared_boxes(self, config: Config) -> SharedBoxes | None:
        """What all workers know of the local boxes; it is kept in the first shard, by those that serve it."""
        first = Layout(config.redis.prefix, config.redis.shards).keys[0]
        pipe = next((shard.pipe for shard in self.shards if shard.placement.keys == first), None)
        return SharedBoxes(pipe, first, worker=self.consumer) if config.boxes and pipe is not None else None

    def _waiting(self, lane: Lane) -> int:
        """How many requests of a lane wait for a slot of a box."""
        return sum(each.fleet.waiting(lane) for each in self._opened)

    def _placeless(self) -> int:
        """How many requests take no place; of a lane no more than may wait, for others may hand over any number."""
        most = self._capacity.concurrency
        return sum(min(most, self._waiting(lane)) for lane in LANES)

    @property
    def resources(self) -> Resources:
        """Those of the configuration in force."""
        return self._admission.resources

    @property
    def in_flight(self) -> int:
        """How many requests this worker is busy with."""
        return sum(len(shard.in_flight) for shard in self.shards)

    def resting(self) -> tuple[int, int]:
        """How many runs wait without a place for their tools, and how many for people."""
        found = [shard.resting() for shard in self.shards]
        return sum(tools for tools, _ in found), sum(people for _, people in found)

    def status(self) -> Status:
        """How this worker is doing."""
        shortage = self.resources.shortage.why
        # Those that are away come first: what is told of Redis, and why, is of one shard.
        shards = sorted(self.shards, key=lambda shard: shard.pipe.state is PipeState.READY)
        complaints = [shard.complaint(shortage) for shard in shards]
        served = [
            shard.is_served and not why and not self._stopping.is_set()
            for shard, why in zip(shards, complaints, strict=True)
        ]
        why = next(filter(None, complaints), "")
        return Status(
            ready=all(served),
            serves=any(served),
            redis=shards[0].pipe.state,
            why=why or next((note for shard in self.shards if (note := shard.note)), ""),
            in_flight=self.in_flight,
            draining=self._stopping.is_set(),
        )

    async def backlogs(self) -> dict[str, Backlog]:
        """What waits in each lane, of all shards; what Redis does not tell in time is left out."""
        found: dict[str, Backlog] = {}
        for of_shard in await asyncio.gather(*(shard.backlogs() for shard in self.shards)):
            for lane, each in of_shard.items():
                so_far = found.get(lane, Backlog(unread=0, handed_back=0))
                found[lane] = Backlog(
                    unread=so_far.unread + each.unread, handed_back=so_far.handed_back + each.handed_back
                )
        return found

    def stop(self) -> None:
        """Drain and end; called again: end at once, and hand everything back."""
        if self._stopping.is_set():
            self._hurry.set()
        self._stopping.set()
        self._capacity.is_closed = True
        self._capacity.changed()
        for shard in self.shards:
            shard.introduce(())
            self._tasks.helper(shard.stop_reading(), "stop-reading")
        self._tell()

    def reload(self, config: Config, admission: Admission) -> None:
        """Use another configuration for requests that come from now on."""
        old = self.resources
        old.fleet.follow(config.boxes)
        self._use(config, admission)
        self._capacity.changed()
        running = {item.task for shard in self.shards for item in shard.in_flight if item.task is not None}
        self._tasks.helper(self._close_when_idle(old, running), "retire-resources")

    async def _close_when_idle(self, resources: Resources, running: set[asyncio.Task[None]]) -> None:
        if running:
            await asyncio.wait(running)
        await resources.aclose()
        self._opened.discard(resources)

    async def run(self) -> None:
        """Work until stopped; whatever is in flight then is finished or handed back.

        Raises:
            BrokerError: Redis refuses what no worker can do without; the message names the command.
            UnsuitableServerError: the server at start cannot serve us.
            TaskFailed: a fault of ours has ended what no worker can do without; what was in flight is handed back.
        """
        pipes = [self._tasks.essential(shard.run_pipe(), "pipe") for shard in self.shards]
        try:
            await self._tasks.guard(self._work(), "worker")
        except TaskFailed:
            self._stopping.set()
            self._capacity.is_closed = True
            await asyncio.gather(
                *(shard.abandon(is_pipe_alive=not pipe.done()) for shard, pipe in zip(self.shards, pipes, strict=True))
            )
            raise
        finally:
            for shard in self.shards:
                await shard.aclose()
            await self._tasks.aclose()
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_SECONDS):
                    await asyncio.gather(*(each.aclose() for each in self._opened))

    async def _work(self) -> None:
        try:
            await all_of(*map(self._serve, self.shards))
            if any(shard.has_groups for shard in self.shards):
                await self._drain()
                await self.resources.fleet.leave()
                await all_of(*(shard.say_goodbye() for shard in self.shards if shard.has_groups))
        except ResponseError as error:
            log.error("redis_refuses", why=describe(error))  # noqa: TRY400 - its text may quote a key
            raise BrokerError(describe(error)) from error

    async def _serve(self, shard: Shard) -> None:
        """Read and handle the requests of a shard until stopped, maybe before it was there."""
        shard.name_logs()
        await first_of(shard.first_contact(), self._stopping.wait())
        if shard.has_groups:
            await shard.read_on()

    def _shortage_changed(self) -> None:
        self._capacity.changed()
        self._tell()

    async def _drain(self) -> None:
        """Finish what is in flight, as long as that is allowed to take."""
        log.info("draining", in_flight=self.in_flight, seconds=self._drain_seconds)
        emptied = all_of(*(shard.in_flight.empty() for shard in self.shards))
        await first_of(emptied, self._hurry.wait(), timeout_seconds=self._drain_seconds)

    def _tell(self) -> None:
        """Whichever shard it was that has changed: what is logged of the worker does not name it."""
        self._context.copy().run(self._on_status, self.status())
