"""The worker: start up, read and handle requests, reload, drain."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from llm_routerd.errors import BrokerError
from llm_routerd.logs import get_logger
from llm_routerd.protocol.keys import LANES, Keys
from llm_routerd.queue.broker import Broker
from llm_routerd.queue.connection import ConnectionFactory, Needs, Pipe, PipeState, Replicas, ResponseError, describe
from llm_routerd.queue.deliveries import Limits
from llm_routerd.queue.reader import Reader
from llm_routerd.routing.chains import names
from llm_routerd.worker.abandoning import abandon
from llm_routerd.worker.clock import ServerClock
from llm_routerd.worker.handler import Handler
from llm_routerd.worker.inflight import InFlightTable
from llm_routerd.worker.intake import Intake
from llm_routerd.worker.leases import TICKS_PER_LEASE, Leases
from llm_routerd.worker.mending import Mending
from llm_routerd.worker.orphans import Orphans
from llm_routerd.worker.places import Places
from llm_routerd.worker.request_log import RequestLog
from llm_routerd.worker.settling import Settler
from llm_routerd.worker.supervisor import Supervisor, TaskFailed, first_of
from llm_routerd.worker.trimmed import Trimmed
from llm_routerd.worker.troubles import Troubles

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

    from llm_routerd.accounting.metrics import Metrics
    from llm_routerd.config.tree import Config
    from llm_routerd.queue.deliveries import Backlog
    from llm_routerd.running.resources import Resources
    from llm_routerd.worker.admission import Admission

log = get_logger()

LAGS_SECONDS = 1.0  # longest time that a scrape waits for Redis
GOODBYE_SECONDS = 3.0  # longest time for the last words to Redis
CLOSE_SECONDS = 2.0  # longest time for the connections to models to close
OUT_OF_MEMORY_POLL_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 5.0  # between two tries to reach Redis
LETTERS_AT_LEAST = 8  # dead letters that fit within their bound, be each as large as one may be


def make_consumer_name() -> str:
    """A consumer name that no other process has: two that share one would both run what either was given."""
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(3)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """How the worker is doing, for systemd, health and `/metrics`."""

    ready: bool
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
        consumer: this worker's name in the consumer group.
        on_status: called whenever `status()` has changed in a way that others should know of.
        tasks: of the process; while `run` runs, it is the one that ends the process should an essential one fail.
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
        self._config = config
        self._drain_seconds = config.daemon.drain_seconds
        self._on_status = on_status
        self._why = "connecting to Redis"
        self._has_groups = False
        self._tasks = Supervisor() if tasks is None else tasks
        self._keepers: list[asyncio.Task[None]] = []
        self._opened: set[Resources] = set()  # those in force, and earlier ones that requests still run on
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()
        self.metrics = metrics
        self.in_flight = InFlightTable()
        self.clock = ServerClock()
        self._places = Places(
            self.in_flight, concurrency=config.daemon.concurrency, shortage=lambda: self.resources.shortage.why
        )
        self._open_queue(config, consumer)
        self._furnish(config, admission)
        self._keep_ours(config.daemon.lease_seconds, rng)
        self._use(config, admission)

    def _open_queue(self, config: Config, consumer: str) -> None:
        """The two connections: one that blocks, to read, and one for all else."""
        self._connections = _connections(config, "llm-routerd"), _connections(config, "llm-routerd-read")
        pipe, reader = self._connections
        pause_seconds = min(LONGEST_PAUSE_SECONDS, config.daemon.lease_seconds / TICKS_PER_LEASE)
        keys = Keys(config.redis.prefix)
        self._troubles = Troubles(keys, self._tell)
        replicas = _replicas(config, self._troubles.replicas)
        self.pipe = Pipe(pipe, on_state=self._redis_state, longest_pause_seconds=pause_seconds, replicas=replicas)
        self.broker = Broker(self.pipe, keys, consumer=consumer, limits=_limits(config))
        self.broker.lane_types.on_change = self._troubles.lane
        self.broker.on_registration = partial(self._troubles.done_without, "worker_not_registered")
        self._reader = Reader(reader, self.broker)

    def _furnish(self, config: Config, admission: Admission) -> None:
        """What a delivery goes through."""
        daemon, broker, metrics = config.daemon, self.broker, self.metrics
        settler = Settler(
            broker=broker,
            metrics=metrics,
            observers=(RequestLog(),),
            clock=self.clock,
            max_letter_bytes=min(daemon.max_request_bytes, daemon.dead_max_bytes // LETTERS_AT_LEAST),
            on_trouble=partial(self._troubles.refused, "cannot_deliver_answers"),
        )
        self._mending = Mending(broker=broker, metrics=metrics)
        self._handler = Handler(
            admission,
            broker=broker,
            settler=settler,
            mending=self._mending,
            metrics=metrics,
            clock=self.clock,
            knows_others=lambda: self._leases.knows_others,
        )
        self._intake = Intake(
            broker=broker,
            handler=self._handler,
            trimmed=Trimmed(broker, settler, self.in_flight, self._tasks),
            in_flight=self.in_flight,
            places=self._places,
            tasks=self._tasks,
            on_freed=self._place_freed,
        )

    def _keep_ours(self, lease_seconds: float, rng: random.Random) -> None:
        """What sees to leases, and takes up what is nobody's."""
        self._leases = Leases(
            broker=self.broker,
            in_flight=self.in_flight,
            clock=self.clock,
            lease_seconds=lease_seconds,
            places=self._places,
            receive=self._intake.receive_claim,
            on_trouble=partial(self._troubles.refused, "cannot_renew_leases"),
            rng=rng,
        )
        self._orphans = Orphans(
            broker=self.broker,
            metrics=self.metrics,
            lease_seconds=lease_seconds,
            longest_seconds=lambda: self._leases.longest_seconds,
            free=self._places.free,
            receive=self._intake.receive,
            is_steady=lambda: self._leases.is_steady,
            clock=self.clock,
        )

    def _use(self, config: Config, admission: Admission) -> None:
        """Let this configuration be the one in force."""
        admission.resources.shortage.on_change = self._shortage_changed
        self._handler.use(admission)
        self._opened.add(admission.resources)
        self._places.concurrency = config.daemon.concurrency
        self._drain_seconds = config.daemon.drain_seconds
        for connections in self._connections:
            connections.most_entry_bytes = config.daemon.max_request_bytes
        self.broker.limits = replace(self.broker.limits, result_ttl_ms=_limits(config).result_ttl_ms)
        self._introduce(() if self._stopping.is_set() else names(config))

    @property
    def resources(self) -> Resources:
        """Those of the configuration in force."""
        return self._handler.admission.resources

    def status(self) -> Status:
        """How this worker is doing."""
        complaint = self._troubles.first(self.resources.shortage.why)
        is_served = self._has_groups and self.pipe.state is PipeState.READY
        return Status(
            ready=is_served and not complaint and not self._stopping.is_set(),
            redis=self.pipe.state,
            why=(complaint or self._troubles.note) if is_served else self._why,
            in_flight=len(self.in_flight),
            draining=self._stopping.is_set(),
        )

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

    def stop(self) -> None:
        """Drain and end; called again: end at once, and hand everything back."""
        if self._stopping.is_set():
            self._hurry.set()
        self._stopping.set()
        self._places.is_closed = True
        self._places.changed()
        self._introduce(())
        self._tasks.helper(self._reader.stop(), "stop-reading")
        self._tell()

    def reload(self, config: Config, admission: Admission) -> None:
        """Use another configuration for requests that come from now on."""
        old = self.resources
        self._use(config, admission)
        self._places.changed()
        running = {item.task for item in self.in_flight if item.task is not None}
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
        pipe = self._tasks.essential(self.pipe.run(), "pipe")
        try:
            await self._tasks.guard(self._work(), "worker")
        except TaskFailed:
            self._stopping.set()
            self._places.is_closed = True
            await self._reader.aclose()
            await abandon(
                tuple(self.in_flight),
                broker=self.broker,
                tasks=self._tasks,
                keepers=self._keepers,
                is_pipe_alive=not pipe.done(),
                factory=_connections(self._config, "llm-routerd-last"),
            )
            raise
        finally:
            await self._reader.aclose()
            await self._tasks.aclose()
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_SECONDS):
                    await asyncio.gather(*(each.aclose() for each in self._opened))

    async def _work(self) -> None:
        try:
            if not await self._start_up():
                return
            self._keepers += [
                self._tasks.essential(self._leases.run(), "leases"),
                self._tasks.essential(self._orphans.run(), "orphans"),
                self._tasks.essential(self._mending.run(), "mending"),
            ]
            await self._main_loop()
            await self._drain()
            await self._tasks.end(*self._keepers)
            await self._say_goodbye()
        except ResponseError as error:
            log.error("redis_refuses", why=describe(error))  # noqa: TRY400 - its text may quote a key
            raise BrokerError(describe(error)) from error

    async def _start_up(self) -> bool:
        """Connect and create the groups; False: stopped before that was done."""
        await first_of(self._first_contact(), self._stopping.wait())
        return self._has_groups

    async def _first_contact(self) -> None:
        await self.broker.create_groups()
        # Before anything is read: what this worker takes is its own for its lease, whatever the others'.
        self.clock.set((await self.broker.renew(())).server_ms)
        self._has_groups = True
        self._tell()

    async def _main_loop(self) -> None:
        while not self._stopping.is_set():
            free = self._places.free()
            free -= self._leases.reserved(free)
            if free <= 0:
                await self._places.change()
                continue
            if self.pipe.state is PipeState.OUT_OF_MEMORY:
                await asyncio.sleep(OUT_OF_MEMORY_POLL_SECONDS)  # neither read nor spend
                continue
            with self._places.reading():
                self._intake.receive(await self._reader.read(free))
            self._leases.reader_had_its_turn()
            if self.pipe.state is PipeState.READY:
                self._troubles.reading(self._reader.trouble)

    def _introduce(self, models: Sequence[str]) -> None:
        """Tell the other workers soon which models a request may name here."""
        self.broker.models = models
        self._leases.renew_soon()

    def _place_freed(self) -> None:
        self._places.changed()
        self._leases.place_freed()

    def _shortage_changed(self) -> None:
        self._places.changed()
        self._tell()

    async def _drain(self) -> None:
        """Finish what is in flight, as long as that is allowed to take."""
        log.info("draining", in_flight=len(self.in_flight), seconds=self._drain_seconds)
        await first_of(self.in_flight.empty(), self._hurry.wait(), timeout_seconds=self._drain_seconds)

    async def _say_goodbye(self) -> None:
        """Hand back what did not get done, and leave the group."""
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
            log.warning("answers_given_up", count=given_up, redis=self.pipe.state.value, why=self.status().why)

    def _redis_state(self, state: PipeState, why: str) -> None:
        self._why = why
        if state is PipeState.READY:
            log.info("redis_ready")
        else:
            log.warning("redis_not_ready", state=state.value, why=why)
        self._tell()

    def _tell(self) -> None:
        self._on_status(self.status())


def _connections(config: Config, name: str) -> ConnectionFactory:
    return ConnectionFactory(
        config.redis.url,
        client_name=f"{name}:{os.getpid()}",
        most_entry_bytes=config.daemon.max_request_bytes,
        needs=Needs(prefix=config.redis.prefix, metrics_channel=config.metrics.channel),
    )


def _replicas(config: Config, on_trouble: Callable[[str | None], None]) -> Replicas | None:
    count, wait_seconds = config.redis.wait_replicas, config.redis.wait_replicas_seconds
    return Replicas(count, wait_seconds=wait_seconds, on_trouble=on_trouble) if count else None


def _limits(config: Config) -> Limits:
    return Limits(
        lease_ms=round(config.daemon.lease_seconds * 1000),
        result_ttl_ms=round(config.daemon.result_ttl_seconds * 1000),
        metrics_channel=config.metrics.channel,
        metrics_maxlen=config.metrics.stream_maxlen,
        dead_max_bytes=config.daemon.dead_max_bytes,
        dead_max_entries=config.daemon.dead_max_entries,
    )
