"""The gateway as a process of its own, and what it and a daemon with a gateway beside it have in common."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING

from msgspec.structs import replace

from llm_routerd.config.load import changes_needing_restart, load_config
from llm_routerd.errors import ConfigError, RouterdError
from llm_routerd.gateway.http.gateway import Gateway
from llm_routerd.logs import get_logger, on_loop_exception, set_up_logs
from llm_routerd.service.garbage import calm_garbage_collector
from llm_routerd.service.limits import make_room_for_clients
from llm_routerd.service.notify import Notifier, Watchdog
from llm_routerd.worker.supervisor import Supervisor, first_of

if TYPE_CHECKING:
    from llm_routerd.config.tree import Config

log = get_logger()

GRACE_SECONDS = 10.0  # for answers under way, when it is to end; their clients can come back for the rest
_LOOK_SECONDS = 1.0
_TABLES = ("redis.", "gateway.", "log.")  # what a gateway without a daemon cares for


def serve_gateway(config: Config, *, config_path: str | None = None, listen: str | None = None) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code.

    Args:
        config: as read at start.
        config_path: where SIGHUP reads it again.
        listen: where, instead of `gateway.listen`.

    Raises:
        ConfigError: it would let in whoever comes, or cannot listen.
        UnsuitableServerError: this Redis can never serve it.
    """
    set_up_logs(config.log)
    process = GatewayProcess(config, config_path=config_path, listen=listen)
    import uvloop  # noqa: PLC0415 - only what serves needs it

    try:
        uvloop.run(process.run())
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the loop has gone, and one that comes now would end us otherwise
    return 0


async def start_gateway(config: Config, tasks: Supervisor) -> Gateway:
    """A gateway that listens, and whose connections to Redis are among these tasks; the caller stops it.

    Raises:
        ConfigError: it would let in whoever comes, or cannot listen.
    """
    gateway = Gateway(config)
    await gateway.start()
    tasks.essential(_keep_connected(gateway), "gateway")
    for key in config.gateway.keys.values():
        if key.key_missing is not None:
            log.warning("gateway_key_without_secret", key=key.name, missing=key.key_missing)
    usable = sum(key.key is not None for key in config.gateway.keys.values())
    log.info("gateway_listens", listen=config.gateway.listen, keys=usable)
    return gateway


async def _keep_connected(gateway: Gateway) -> None:
    try:
        await gateway.run()
    except* RouterdError as group:
        fault: BaseException = group
        while isinstance(fault, BaseExceptionGroup):
            fault = fault.exceptions[0]
        raise fault from None


def by_itself(config: Config, listen: str) -> Config:
    """The configuration of a gateway without a daemon beside it, which listens there, whatever the file says.

    Providers' keys are its daemons', and which of them they have is not known here.
    """
    deployments = {name: replace(each, key_missing=None) for name, each in config.deployments.items()}
    return replace(config, deployments=deployments, gateway=replace(config.gateway, listen=listen))


class GatewayProcess:
    """One gateway process.

    Args:
        config: as read at start.
        config_path: where SIGHUP reads it again.
        listen: where, instead of `gateway.listen`.
    """

    def __init__(self, config: Config, *, config_path: str | None, listen: str | None) -> None:
        self._config = config
        self._config_path = config_path
        self._listen = listen or config.gateway.listen
        self._notifier = Notifier()
        self._tasks = Supervisor()
        self._gateway: Gateway

    async def run(self) -> None:
        """Listen, serve, let what is under way end; a second signal does not wait for it.

        Raises:
            ConfigError: it would let in whoever comes, or cannot listen.
            UnsuitableServerError: this Redis can never serve it.
            TaskFailed: a fault of ours has ended what it cannot do without; it has been logged.
        """
        asyncio.get_running_loop().set_exception_handler(on_loop_exception)
        try:
            await self._tasks.guard(self._serve(), "serve")
        finally:
            await self._tasks.aclose()

    async def _serve(self) -> None:
        stop, hurry, loop = asyncio.Event(), asyncio.Event(), asyncio.get_running_loop()

        def end() -> None:
            (hurry if stop.is_set() else stop).set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, end)
        watchdog = Watchdog(self._notifier, lambda: not watchdog.is_stuck)
        self._tasks.essential(watchdog.run(), "watchdog")
        self._gateway = await start_gateway(make_room_for_clients(by_itself(self._config, self._listen)), self._tasks)
        loop.add_signal_handler(signal.SIGHUP, lambda: self._tasks.helper(self._reload(), "reload"))
        calm_garbage_collector()
        self._notifier.ready(self._status_line())
        log.info("ready", listen=self._listen)
        try:
            await self._tell_until(stop)
        finally:
            self._notifier.stopping("stopping")
            if stop.is_set():
                await first_of(self._gateway.stop(GRACE_SECONDS), hurry.wait())
            if hurry.is_set() or not stop.is_set():
                await self._gateway.stop(0.0)
        log.info("stopped")

    async def _tell_until(self, stop: asyncio.Event) -> None:
        """Keep the service manager and the log informed of whether Redis is there."""
        told = self._status_line()
        while not stop.is_set():
            try:
                async with asyncio.timeout(_LOOK_SECONDS):
                    await stop.wait()
            except TimeoutError:
                line = self._status_line()
                if line != told:
                    told = line
                    self._notifier.status(line)

    def _status_line(self) -> str:
        trouble = self._gateway.trouble
        return f"listening on {self._listen}" + (f"; Redis cannot be used: {trouble}" if trouble else "")

    async def _reload(self) -> None:
        self._notifier.reloading("reading the configuration")
        try:
            config = await asyncio.to_thread(load_config, self._config_path, os.environ)
            for change in changes_needing_restart(self._config, config):
                if change.startswith(_TABLES):
                    log.warning("change_needs_restart", key=change)
            config = replace(config, redis=self._config.redis)
            self._gateway.reload(by_itself(config, self._listen))
        except ConfigError as error:
            log.warning("reload_refused", why=str(error))
        else:
            self._config = config
            log.info("reloaded", keys=len(config.gateway.keys), aliases=len(config.gateway.aliases))
        finally:
            self._notifier.ready(self._status_line())
