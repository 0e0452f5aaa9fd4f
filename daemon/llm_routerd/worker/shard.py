"""One shard of the queue, as a worker serves it: its way to Redis, what a delivery goes through, what keeps it ours.

A shard has two connections of its own, one that blocks, to read, and one for all else; and leases, a clock and troubles
of its own: it may lie on another node than its neighbour, which goes on while this one is away.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from llm_routerd.logs import get_logger, name_in_logs
from llm_routerd.protocol.keys import LANES
from llm_routerd.queue.broker import Broker
from llm_routerd.queue.connection import ConnectionFactory, Needs, Pipe, PipeState, Replicas, whereabouts_of
from llm_routerd.queue.deliveries import Limits
from llm_routerd.queue.hearer import Hearer
from llm_routerd.queue.reader import Reader
from llm_routerd.worker.abandoning import abandon
from llm_routerd.worker.asking import Asking
from llm_routerd.worker.auditing import Auditor
from llm_routerd.worker.clock import ServerClock
from llm_routerd.worker.handler import Handler
from llm_routerd.worker.inflight import InFlightTable
from llm_routerd.worker.intake import Intake
from llm_routerd.worker.leases import TICKS_PER_LEASE, Leases
from llm_routerd.worker.mending import Mending
from llm_routerd.worker.orphans import Orphans
from llm_routerd.worker.places import Places
from llm_routerd.worker.request_log import RequestLog
from llm_routerd.worker.runs.books import RunBooks
from llm_routerd.worker.runs.mailroom import Mailroom
from llm_routerd.worker.runs.toolbox import Toolbox
from llm_routerd.worker.runs.walk import RunWalk
from llm_routerd.worker.settling import Settler
from llm_routerd.worker.trimmed import Trimmed
from llm_routerd.worker.troubles import Troubles

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

    from llm_routerd.accounting.metrics import Metrics
    from llm_routerd.config.tree import Config
    from llm_routerd.queue.connection import Whereabouts
    from llm_routerd.queue.deliveries import Backlog
    from llm_routerd.worker.admission import Admission
    from llm_routerd.worker.inflight import InFlight
    from llm_routerd.worker.placement import Placement
    from llm_routerd.worker.places import Capacity
    from llm_routerd.worker.supervisor import Supervisor

log = get_logger()

LAGS_SECONDS = 1.0  # longest time that a scrape waits for Redis
GOODBYE_SECONDS = 3.0  # longest time for the last words to Redis
OUT_OF_MEMORY_POLL_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 5.0  # between two tries to reach Redis
LETTERS_AT_LEAST = 8  # dead letters that fit within their bound, be each as large as one may be


@dataclass(frozen=True, slots=True, kw_only=True)
class Workplace:
    """What all shards of one worker share.

    Attributes:
        consumer: the worker's name in the consumer groups.
        metrics: its counters.
        capacity: its places.
        rng: for jitter.
        tasks: of the process.
        on_change: called when `is_served` or `complaint` of a shard may have changed.
        whereabouts: of servers that have all shards, by their URL.
    """

    consumer: str
    metrics: Metrics
    capacity: Capacity
    rng: random.Random
    tasks: Supervisor
    on_change: Callable[[], None]
    whereabouts: dict[str, Whereabouts]


class Shard:
    """A worker's side of one shard.

    Args:
        config: the tree in force.
        placement: which shard it is.
        admission: for the configuration; `use` replaces it.
        workplace: of the worker.

    Attributes:
        has_groups: its consumer groups have been found, or made: nothing is read before.
    """

    def __init__(self, config: Config, placement: Placement, admission: Admission, workplace: Workplace) -> None:
        self.placement = placement
        self._config = config
        self._tasks = workplace.tasks
        self._on_change = workplace.on_change
        self._shared_whereabouts = workplace.whereabouts
        self._why = "connecting to Redis"
        self.has_groups = False
        self._keepers: list[asyncio.Task[None]] = []
        self.in_flight = InFlightTable()
        self.clock = ServerClock()
        self._places = Places(workplace.capacity)
        self._open_queue(config, workplace.consumer)
        self._furnish(config, admission, workplace.metrics)
        self._keep_ours(config.daemon.lease_seconds, workplace)

    def _open_queue(self, config: Config, consumer: str) -> None:
        """The connections: one that blocks, to read, one to hear for runs, while any rests, and one for all else."""
        self._whereabouts = self._find(config.redis.url)
        self._connections = tuple(map(self._connect, ("llm-routerd", "llm-routerd-read", "llm-routerd-hear")))
        pipe, reader, hearer = self._connections
        pause_seconds = min(LONGEST_PAUSE_SECONDS, config.daemon.lease_seconds / TICKS_PER_LEASE)
        self._troubles = Troubles(self.placement.keys, self._on_change)
        replicas = _replicas(config, self._troubles.replicas)
        self.pipe = Pipe(pipe, on_state=self._redis_state, longest_pause_seconds=pause_seconds, replicas=replicas)
        self.broker = Broker(self.pipe, self.placement.keys, consumer=consumer, limits=self._limits(config))
        self.broker.lane_types.on_change = self._troubles.lane
        self.broker.on_registration = partial(self._troubles.done_without, "worker_not_registered")
        self._hearer = Hearer(hearer, self.pipe)
        self._reader = Reader(
            reader, self.broker, on_wait=self._places.waits, share=self._places.share, shut=self._places.shut
        )

    def _furnish(self, config: Config, admission: Admission, metrics: Metrics) -> None:
        """What a delivery goes through."""
        daemon, broker = config.daemon, self.broker
        auditor = Auditor(
            broker=broker,
            clock=self.clock,
            metrics=metrics,
            on_refusal=partial(self._troubles.done_without, "audit_refused"),
            is_on=config.audit.enabled,
        )
        settler = Settler(
            broker=broker,
            metrics=metrics,
            auditor=auditor,
            observers=(RequestLog(),),
            clock=self.clock,
            max_letter_bytes=min(daemon.max_request_bytes, daemon.dead_max_bytes // LETTERS_AT_LEAST),
            on_trouble=partial(self._troubles.refused, "cannot_deliver_answers"),
        )
        self._mending = Mending(broker=broker, metrics=metrics)
        asking = Asking(broker)
        books = RunBooks(metrics, auditor)
        walk = RunWalk(broker=broker, asking=asking, toolbox=Toolbox(broker), clock=self.clock, books=books)
        self._handler = Handler(
            admission,
            placement=self.placement,
            broker=broker,
            walk=walk,
            asking=asking,
            settler=settler,
            mending=self._mending,
            metrics=metrics,
            clock=self.clock,
            knows_others=lambda: self._leases.knows_others,
        )
        self._mailroom = Mailroom(
            broker=broker,
            hearer=self._hearer,
            in_flight=self.in_flight,
            clock=self.clock,
            tasks=self._tasks,
            wake=self._wake,
        )
        self._intake = Intake(
            broker=broker,
            handler=self._handler,
            trimmed=Trimmed(broker, settler, self.in_flight, self._tasks),
            mailroom=self._mailroom,
            in_flight=self.in_flight,
            places=self._places,
            tasks=self._tasks,
            on_freed=self._place_freed,
        )

    def _keep_ours(self, lease_seconds: float, workplace: Workplace) -> None:
        """What sees to leases, and takes up what is nobody's."""
        self._leases = Leases(
            broker=self.broker,
            in_flight=self.in_flight,
            clock=self.clock,
            lease_seconds=lease_seconds,
            places=self._places,
            receive=self._intake.receive_claim,
            on_trouble=partial(self._troubles.refused, "cannot_renew_leases"),
            rng=workplace.rng,
        )
        self._orphans = Orphans(
            broker=self.broker,
            metrics=workplace.metrics,
            lease_seconds=lease_seconds,
            longest_seconds=lambda: self._leases.longest_seconds,
            free=self._places.free,
            receive=self._intake.receive,
            is_steady=lambda: self._leases.is_steady,
            clock=self.clock,
        )

    def use(self, config: Config, admission: Admission) -> None:
        """Let this configuration be the one in force; what has no answer of Redis yet is sent where it says."""
        moves = config.redis.url != self._config.redis.url
        self._config = config
        self._handler.use(admission)
        for connections in self._connections:
            connections.most_entry_bytes = config.daemon.max_request_bytes
        self.broker.limits = replace(self.broker.limits, result_ttl_ms=self._limits(config).result_ttl_ms)
        if moves:
            self._move()

    def _move(self) -> None:
        """Leave for the server that the configuration names by now."""
        self._whereabouts = self._find(self._config.redis.url)
        for connections in self._connections:
            connections.use(self._config.redis.url, self._whereabouts)
        self.pipe.leave()
        self._reader.leave()
        self._hearer.leave()

    def introduce(self, models: Sequence[str]) -> None:
        """Tell the other workers soon which models a request may name here."""
        self.broker.models = models
        self._leases.renew_soon()

    @property
    def is_served(self) -> bool:
        """Whether Redis is there, and requests can be read."""
        return self.has_groups and self.pipe.state is PipeState.READY

    def complaint(self, shortage: str | None) -> str:
        """Why requests are not answered, in one line, `shortage` being what this process lacks; "": they are."""
        return self._named(self._troubles.first(shortage) if self.is_served else self._why)

    @property
    def note(self) -> str:
        """What keeps nobody from being answered, and should be mended all the same, in one line; "": nothing."""
        return self._named(self._troubles.note)

    def _named(self, why: str) -> str:
        return f"{self.placement.name}: {why}" if why and self.placement.name else why

    async def backlogs(self) -> dict[str, Backlog]:
        """What waits in each lane; one of which Redis does not tell in time is left out."""
        if self.pipe.state is not PipeState.READY:
            return {}
        try:
            async with asyncio.timeout(LAGS_SECONDS):
                found = await asyncio.gather(*map(self.broker.backlog, LANES))
        except TimeoutError:
            return {}
        return {lane: backlog for lane, backlog in zip(LANES, found, strict=True) if backlog is not None}

    def resting(self) -> tuple[int, int]:
        """How many runs wait without a place for their tools, and how many for people."""
        return self._mailroom.waiting

    def name_logs(self) -> None:
        """Have what this task logs, and whichever tasks it starts, name the shard, where there are several."""
        if self.placement.name:
            name_in_logs(shard=self.placement.name)

    async def run_pipe(self) -> None:
        """Drive the connection for all but reading, until cancelled.

        Raises:
            UnsuitableServerError: the server at start cannot serve us.
        """
        self.name_logs()
        await self.pipe.run()

    async def first_contact(self) -> None:
        """Connect, create the groups, and start what keeps ours."""
        await self.broker.create_groups()
        # Before anything is read: what this worker takes is its own for its lease, whatever the others'.
        self.clock.set((await self.broker.renew(())).server_ms)
        self.has_groups = True
        self._on_change()
        self._keepers += [
            self._tasks.essential(self._leases.run(), "leases"),
            self._tasks.essential(self._orphans.run(), "orphans"),
            self._tasks.essential(self._mending.run(), "mending"),
            self._tasks.essential(self._mailroom.look_on(), "mailroom-look"),
            self._tasks.essential(self._mailroom.time_on(), "mailroom-time"),
            self._tasks.essential(self._mailroom.hear_on(), "mailroom-hear"),
        ]

    async def read_on(self) -> None:
        """Read requests and start them, until the places are closed."""
        while not self._places.is_closed:
            free = self._places.free_to_read()
            if self.pipe.state is PipeState.READY:  # else nothing can be taken over
                free -= self._leases.reserved(free)
            if free <= 0:
                await self._places.turn()
                continue
            if self.pipe.state is PipeState.OUT_OF_MEMORY:
                self._places.pass_over()
                await asyncio.sleep(OUT_OF_MEMORY_POLL_SECONDS)  # neither read nor spend
                continue
            with self._places.reads(free):
                self._intake.receive(await self._reader.read(free))
            self._leases.reader_had_its_turn()
            if self.pipe.state is PipeState.READY:
                self._troubles.reading(self._reader.trouble)

    async def stop_reading(self) -> None:
        """End the read that is under way, and begin no other."""
        await self._reader.stop()

    async def say_goodbye(self) -> None:
        """Hand back what did not get done, and leave the groups."""
        self.name_logs()
        await self._tasks.end(*self._keepers)
        left = list(self.in_flight)
        for item in left:
            item.stop("drain")
        stopped = [item.task for item in left if item.task is not None and item.stopped == "drain"]
        try:
            async with asyncio.timeout(GOODBYE_SECONDS):
                await asyncio.gather(*stopped, return_exceptions=True)
                given = await self.broker.hand_everything_back()
                if given:
                    log.info("handed_back", count=given)
                await self.broker.retire(oneself=True)
        except TimeoutError:
            log.warning("goodbye_unheard", in_flight=len(left), redis=self.pipe.state.value)
        if given_up := sum(item.is_ending for item in self.in_flight):
            log.warning("answers_given_up", count=given_up, redis=self.pipe.state.value, why=self._why)

    async def abandon(self, *, is_pipe_alive: bool) -> None:
        """Hand everything back at once, after a fault of ours."""
        await self._reader.aclose()
        await abandon(
            tuple(self.in_flight),
            broker=self.broker,
            tasks=self._tasks,
            keepers=self._keepers,
            is_pipe_alive=is_pipe_alive,
            factory=self._connect("llm-routerd-last"),
        )

    async def aclose(self) -> None:
        """Close the reading connection; the pipe's goes with its task."""
        await self._reader.aclose()

    def _wake(self, item: InFlight) -> None:
        self._intake.wake(item)

    def _place_freed(self) -> None:
        self._places.changed()
        self._leases.place_freed()

    def _redis_state(self, state: PipeState, why: str) -> None:
        self._why = why
        self._places.changed()  # what was kept for what is to be taken over
        if state is PipeState.READY:
            log.info("redis_ready")
        else:
            log.warning("redis_not_ready", state=state.value, why=why)
        self._on_change()

    def _find(self, url: str) -> Whereabouts:
        shared = self._shared_whereabouts
        if (found := shared.get(url)) is None:
            found = whereabouts_of(
                url, self.placement.keys.dead, tell=lambda what: log.warning("redis_ambiguous", why=what)
            )
            if found.has_all:
                shared.clear()
                shared[url] = found
        return found

    def _connect(self, name: str) -> ConnectionFactory:
        config, placement = self._config, self.placement
        return ConnectionFactory(
            config.redis.url,
            client_name=f"{name}:{os.getpid()}",
            most_entry_bytes=config.daemon.max_request_bytes,
            needs=Needs(prefix=placement.keys.prefix, metrics_channel=placement.metrics_channel),
            whereabouts=self._whereabouts,
        )

    def _limits(self, config: Config) -> Limits:
        return Limits(
            lease_ms=round(config.daemon.lease_seconds * 1000),
            result_ttl_ms=round(config.daemon.result_ttl_seconds * 1000),
            metrics_channel=self.placement.metrics_channel,
            metrics_maxlen=config.metrics.stream_maxlen,
            dead_max_bytes=config.daemon.dead_max_bytes,
            dead_max_entries=config.daemon.dead_max_entries,
            audit_maxlen=config.audit.stream_maxlen,
        )


def _replicas(config: Config, on_trouble: Callable[[str | None], None]) -> Replicas | None:
    count, wait_seconds = config.redis.wait_replicas, config.redis.wait_replicas_seconds
    return Replicas(count, wait_seconds=wait_seconds, on_trouble=on_trouble) if count else None
