"""The daemon around one worker: embedded server, signals, service manager, health, reload."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from llm_routerd.accounting.gauges import Gauges
from llm_routerd.accounting.metrics import Metrics
from llm_routerd.config.load import changes_needing_restart, load_config
from llm_routerd.errors import BrokerError, ConfigError, RouterdError
from llm_routerd.logs import get_logger, on_loop_exception, set_up_logs
from llm_routerd.queue.connection import PipeState
from llm_routerd.routing.eligibility import unanswerable, without_keys
from llm_routerd.routing.health import Health, StateChange
from llm_routerd.running.shortage import Shortage
from llm_routerd.service.embedded import EmbeddedServer, listen_of
from llm_routerd.service.embedded import state_directory as default_state_directory
from llm_routerd.service.garbage import calm_garbage_collector
from llm_routerd.service.health_http import HealthServer
from llm_routerd.service.limits import make_room, make_room_for_clients
from llm_routerd.service.notify import Notifier, Watchdog
from llm_routerd.wiring import get_ready, make_parser, make_prompt_hash, make_resources
from llm_routerd.worker.admission import Admission
from llm_routerd.worker.supervisor import Supervisor, TaskFailed
from llm_routerd.worker.worker import Status, Worker, make_consumer_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llm_routerd.config.tree import Config
    from llm_routerd.gateway.http.gateway import Gateway

log = get_logger()

MOST_RESTARTS = 5  # of the embedded server, within RESTART_WINDOW_SECONDS
RESTART_WINDOW_SECONDS = 60.0
RESTART_PAUSE_SECONDS = 0.5
_GRACE_SECONDS = 3.0  # for the last of what a gateway tells, when the worker has ended
LAST_SECONDS = 5.0  # after a fault of ours, until the process ends whatever happens


def serve(
    config: Config,
    *,
    config_path: str | None = None,
    embedded: bool = False,
    state_directory: str | None = None,
    gateway: bool = False,
) -> int:
    """Serve until SIGTERM or SIGINT, with a gateway beside it if that is wanted; returns the exit code.

    Raises:
        ConfigError: the configuration cannot be used after all (an address, the embedded server).
        BrokerError: Redis refuses what no worker can do without.
    """
    set_up_logs(config.log)
    make_room(config)
    if gateway:
        config = make_room_for_clients(config, calls=config.daemon.concurrency)
    directory = Path(state_directory) if state_directory else default_state_directory()
    daemon = Daemon(
        config,
        config_path=config_path,
        embedded_in=directory if embedded else None,
        has_gateway=gateway,
        tasks=Supervisor(on_failure=end_in_any_case),
    )
    import uvloop  # noqa: PLC0415 - only the daemon needs it

    try:
        uvloop.run(daemon.run())
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the loop has gone, and one that comes now would end us otherwise
    return 0


class Daemon:
    """One daemon process.

    Args:
        config: as read at start.
        config_path: where SIGHUP reads it again.
        embedded_in: directory of an embedded server; None: use the Redis of the configuration.
        has_gateway: whether there is one beside it.
        tasks: of the process.
    """

    def __init__(
        self,
        config: Config,
        *,
        config_path: str | None,
        embedded_in: Path | None,
        has_gateway: bool = False,
        tasks: Supervisor | None = None,
    ) -> None:
        self._config = config
        self._config_path = config_path
        self._embedded_in = embedded_in
        self._has_gateway = has_gateway
        self._gateway: Gateway | None = None
        self._closing: asyncio.Task[None] | None = None  # of the gateway, which ends while the worker drains
        self._notifier = Notifier()
        self._rng = random.Random()
        self._tasks = Supervisor() if tasks is None else tasks
        self._is_ready = False
        self._unusable: Mapping[str, str] = without_keys(config)  # deployments that can never answer, and why
        self._failure: BrokerError | None = None  # why this ends, where nobody has asked for it
        self._worker: Worker
        self._metrics: Metrics

    async def run(self) -> None:
        """Start up, work, drain, shut down.

        Raises:
            ConfigError: the configuration cannot be used after all (an address, the embedded server).
            BrokerError: Redis refuses what no worker can do without.
            TaskFailed: a fault of ours has ended what the daemon cannot do without; it has been logged.
        """
        asyncio.get_running_loop().set_exception_handler(on_loop_exception)
        try:
            server = await self._start_embedded()
            try:
                await self._work(server)
            finally:
                if server is not None:
                    await server.stop()
        except RouterdError:
            raise
        except Exception as error:
            log.exception("daemon_failed", task="daemon")
            raise TaskFailed(f"a fault in llm-routerd has ended it ({type(error).__name__})") from None

    async def _start_embedded(self) -> EmbeddedServer | None:
        if self._embedded_in is None:
            return None
        redis = self._config.redis
        server = EmbeddedServer(self._embedded_in, listen_of(redis.url), memory_mb=redis.embedded_memory_mb)
        await server.start()
        log.info("embedded_server_ready", directory=str(self._embedded_in), url=server.public_url)
        self._config = replace(self._config, redis=replace(self._config.redis, url=server.url))
        return server

    async def _work(self, server: EmbeddedServer | None) -> None:
        config, consumer = self._config, make_consumer_name()
        self._metrics = Metrics()
        self._health = Health(rng=self._rng, on_change=_log_change)
        self._shortage = Shortage()
        self._prompt_hash = make_prompt_hash(config.audit)
        self._worker = worker = Worker(
            config,
            admission=self._make_admission(config, consumer),
            metrics=self._metrics,
            rng=self._rng,
            consumer=consumer,
            on_status=self._status_changed,
            tasks=self._tasks,
        )
        self._watchdog = Watchdog(self._notifier, self._healthy)
        self._handle_signals()
        self._tasks.essential(self._watchdog.run(), "watchdog")
        endpoint = await self._start_endpoint(config)
        if server is not None:
            self._tasks.essential(self._follow_embedded(server), "embedded-server")
        calm_garbage_collector()
        log.info("starting", consumer=consumer, prefix=config.redis.prefix, concurrency=config.daemon.concurrency)
        try:
            if self._has_gateway:
                from llm_routerd.service.gateway import start_gateway  # noqa: PLC0415 - who has none goes without

                self._gateway = await start_gateway(config, self._tasks)
            await worker.run()
        finally:
            await self._stop_gateway()
            self._notifier.stopping("stopped")
            if endpoint is not None:
                await endpoint.stop()
            await self._tasks.aclose()
        log.info("stopped")
        if self._failure is not None:
            raise self._failure

    def _make_admission(self, config: Config, consumer: str) -> Admission:
        resources = make_resources(
            config,
            health=self._health,
            rng=self._rng,
            consumer=consumer,
            shortage=self._shortage,
            prompt_hash=self._prompt_hash,
        )
        return Admission(make_parser(config), resources)

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        loop.add_signal_handler(signal.SIGHUP, lambda: self._tasks.helper(self._reload(), "reload"))

    def _stop(self) -> None:
        self._worker.stop()
        if self._gateway is not None and self._closing is None:
            grace = self._config.daemon.drain_seconds + _GRACE_SECONDS
            self._closing = self._tasks.helper(self._gateway.stop(grace), "close-gateway")

    async def _stop_gateway(self) -> None:
        """The worker has ended, and what of its requests has an end is told."""
        if self._gateway is None:
            return
        if self._closing is None:
            await self._gateway.stop(0.0)
        elif not (await asyncio.wait((self._closing,), timeout=_GRACE_SECONDS))[0]:
            log.warning("gateway_cut_off", requests=self._gateway.followed)

    async def _start_endpoint(self, config: Config) -> HealthServer | None:
        if not config.metrics.listen:
            return None
        endpoint = HealthServer(
            config.metrics.listen,
            metrics=self._render_metrics,
            not_ready=self._not_ready,
            not_alive=self._not_alive,
        )
        complaint = await endpoint.start()
        if complaint is not None:
            log.warning("health_endpoint_off", why=complaint)
        return endpoint

    async def _follow_embedded(self, server: EmbeddedServer) -> None:
        """Start the server again whenever it ends; if it does so time and again, end as a failure."""
        loop = asyncio.get_running_loop()
        ends: list[float] = []
        while True:
            status = await server.wait()
            if self._worker.status().draining:
                return
            log.error("embedded_server_ended", exit_status=status)
            ends = [*(at for at in ends if loop.time() - at < RESTART_WINDOW_SECONDS), loop.time()]
            if len(ends) > MOST_RESTARTS:
                self._failure = BrokerError(f"the embedded server ended {len(ends)} times; its log has more")
                self._worker.stop()
                return
            try:
                await server.start_again()
            except BrokerError as error:
                log.error("embedded_server_not_started", why=str(error))  # noqa: TRY400 - its last words
                await asyncio.sleep(RESTART_PAUSE_SECONDS)
            else:
                log.info("embedded_server_ready", directory=str(self._embedded_in), url=server.public_url)

    async def _reload(self) -> None:
        self._notifier.reloading("reading the configuration")
        try:
            await self._read_again()
        finally:
            self._notifier.ready(_status_line(self._worker.status()))

    async def _read_again(self) -> None:
        try:
            config = await asyncio.to_thread(load_config, self._config_path, os.environ)
            for change in changes_needing_restart(self._config, config):
                log.warning("change_needs_restart", key=change)
            url = config.redis.url if self._embedded_in is None else self._config.redis.url
            config = replace(config, redis=replace(self._config.redis, url=url))
            admission = self._make_admission(config, self._worker.consumer)
            if self._gateway is not None:
                listen = self._config.gateway.listen
                self._gateway.reload(replace(config, gateway=replace(config.gateway, listen=listen)))
        except ConfigError as error:
            log.warning("reload_refused", why=str(error))
        else:
            before = self._config.deployments
            # What has been changed has a new start: its cooldown was the old address's, or the old key's.
            self._health.retain({name for name, each in config.deployments.items() if before.get(name) == each})
            self._worker.reload(config, admission)
            self._config, self._unusable = config, without_keys(config)
            if not self._worker.status().draining:  # else no request will come to it
                await self._get_ready_for_requests()
            log.info("reloaded", deployments=len(config.deployments), chains=len(config.chains))

    async def _get_ready_for_requests(self) -> None:
        """What can wait until the daemon is ready: prices, litellm, models in memory."""
        resources = self._worker.resources
        found = await get_ready(resources)
        if resources is not self._worker.resources:
            return  # a reload came between, and has its own
        if found.unpriced:
            log.warning("price_unknown", deployments=list(found.unpriced))
        self._unusable = found.unusable
        for chain, why in unanswerable(self._config, self._unusable).items():
            log.warning("chain_unanswerable", chain=chain, why=why)
        calm_garbage_collector()

    def _status_changed(self, status: Status) -> None:
        line = _status_line(status)
        # Before all shards are there, if need be: a node that is away must not have systemd take us for one that hangs.
        if status.serves and not self._is_ready:
            self._is_ready = True
            self._notifier.ready(line)
            log.info("ready", consumer=self._worker.consumer)
            self._tasks.helper(self._get_ready_for_requests(), "get-ready")
        elif status.draining:
            self._notifier.stopping(line)
        else:
            self._notifier.status(line)

    def _healthy(self) -> bool:
        return not self._watchdog.is_stuck

    def _not_alive(self) -> str | None:
        return None if self._healthy() else "the event loop is stuck"

    def _not_ready(self) -> str | None:
        status = self._worker.status()
        if not status.ready:
            return _status_line(status)
        if self._config.deployments.keys() <= self._unusable.keys():
            return "no request can be answered: " + "; ".join(f"{name}: {why}" for name, why in self._unusable.items())
        return None

    async def _render_metrics(self) -> str:
        backlogs = await self._worker.backlogs()
        left = unanswerable(self._config, self._unusable)
        for_tools, for_people = self._worker.resting()
        return self._metrics.render_prometheus(
            Gauges(
                in_flight=self._worker.status().in_flight,
                held_up=self._shortage.waiting,
                runs_waiting_tool=for_tools,
                runs_waiting_person=for_people,
                lag_by_lane={lane: each.unread for lane, each in backlogs.items()},
                handed_back_by_lane={lane: each.handed_back for lane, each in backlogs.items()},
                loop_lag_seconds=self._watchdog.loop_lag_seconds,
                deployments=self._health.states(asyncio.get_running_loop().time()),
                chains={name: name not in left for name in self._config.chains},
            )
        )


def end_in_any_case() -> None:
    """After a fault of ours, end soon also where something holds up an orderly end (a thread that imports, say)."""
    timer = threading.Timer(LAST_SECONDS, os._exit, (1,))
    timer.daemon = True
    timer.start()


def _status_line(status: Status) -> str:
    if status.draining:
        return f"draining, {status.in_flight} in flight"
    if status.redis is not PipeState.READY:
        return f"Redis {status.redis.value.replace('_', ' ')}: {status.why}"
    if not status.ready:
        return f"cannot read requests: {status.why}"
    return f"answering, {status.in_flight} in flight" + (f"; {status.why}" if status.why else "")


def _log_change(told: StateChange) -> None:
    change = told.change
    log.warning(
        "deployment_state",
        state=change.after.value,
        deployment=told.deployment,
        before=change.before.value,
        code=None if change.code is None else change.code.value,
        cooldown_seconds=round(change.cooldown_seconds, 1),
        **({} if told.tenant is None else {"tenant": told.tenant}),
    )
