"""The MCP bridge as a process of its own."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

from llm_routerd.errors import ConfigError
from llm_routerd.logs import get_logger, on_loop_exception, set_up_logs
from llm_routerd.mcp_bridge.bridge import Bridge
from llm_routerd.service.notify import Notifier, Watchdog
from llm_routerd.worker.supervisor import Supervisor

if TYPE_CHECKING:
    from llm_routerd.config.tree import Config

log = get_logger()

_LOOK_SECONDS = 1.0


def serve_mcp_bridge(config: Config, *, stderr: bool = False) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code.

    Args:
        config: as read at start.
        stderr: let the servers' stderr through to ours.

    Raises:
        ConfigError: it names no MCP server.
        NotAllowedError, UnsuitableServerError: Redis can never be used as it is.
    """
    if not config.mcp:
        raise ConfigError("there is no MCP server to be bridged: add a table [mcp.<name>]")
    set_up_logs(config.log)
    asyncio.run(_serve(config, stderr=stderr))  # uvloop leaves ends of pipes open in children, which so never end
    return 0


async def _serve(config: Config, *, stderr: bool) -> None:
    await _Process(config, stderr=stderr).run()


class _Process:
    """One bridge process; made where its event loop runs."""

    def __init__(self, config: Config, *, stderr: bool) -> None:
        self._bridge = Bridge(config, stderr=stderr)
        self._notifier = Notifier()
        self._tasks = Supervisor()

    async def run(self) -> None:
        """Serve; what is under way at the first signal is finished."""
        asyncio.get_running_loop().set_exception_handler(on_loop_exception)
        try:
            await self._tasks.guard(self._serve(), "serve")
        finally:
            await self._tasks.aclose()

    async def _serve(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._end)
        watchdog = Watchdog(self._notifier, lambda: not watchdog.is_stuck)
        self._tasks.essential(watchdog.run(), "watchdog")
        self._tasks.essential(self._tell(), "status")
        log.info("ready")
        self._notifier.ready(self._bridge.status())
        await self._bridge.run()
        log.info("stopped")

    def _end(self) -> None:
        self._notifier.stopping("stopping")
        self._bridge.stop()

    async def _tell(self) -> None:
        """Keep the service manager informed of which servers are there."""
        told = ""
        while True:
            if (line := self._bridge.status()) != told:
                told = line
                self._notifier.status(line)
            await asyncio.sleep(_LOOK_SECONDS)
