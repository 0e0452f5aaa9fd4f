"""All MCP servers of a configuration, and the one tool worker that serves what they offer."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

from llm_routerd.client.tool_worker import ToolWorker
from llm_routerd.errors import BrokerError
from llm_routerd.logs import get_logger
from llm_routerd.mcp_bridge.offering import offer_of
from llm_routerd.mcp_bridge.server import Server

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mcp_types import Tool

    from llm_routerd.config.mcp import McpServer
    from llm_routerd.config.tree import Config
    from llm_routerd.mcp_bridge.offering import Offered
    from llm_routerd.protocol.tool import ToolRequest

log = get_logger()

_CALLS_AT_ONCE = 64


class Bridge:
    """Serves the tools of all servers whose secrets are there.

    Args:
        config: as read at start.
        stderr: let the servers' stderr through to ours.

    Raises:
        BrokerError: the URL of Redis is unsound.
    """

    def __init__(self, config: Config, *, stderr: bool = False) -> None:
        redis = config.redis
        self._worker = ToolWorker(
            redis.url,
            prefix=redis.prefix,
            shards=redis.shards,
            concurrency=_CALLS_AT_ONCE,
            on_trouble=lambda line, error: log.warning("tool_worker", what=line, exc_info=error),
        )
        self._offered: dict[str, dict[str, Offered]] = {}
        self._told: dict[str, tuple[str, ...]] = {}
        self._servers: dict[str, Server] = {}
        for table in config.mcp.values():
            if table.secret_missing is not None:
                log.warning("mcp_server_without_secret", server=table.name, missing=table.secret_missing)
                continue
            self._servers[table.name] = Server(
                table, partial(self._offer, table), most_bytes=config.agents.result_bytes, stderr=stderr
            )

    def status(self) -> str:
        """One line for people."""
        there = sum(server.is_connected for server in self._servers.values())
        return f"{there} of {len(self._servers)} servers, {sum(map(len, self._offered.values()))} tools"

    async def run(self) -> None:
        """Serve until `stop`; calls under way are finished first, and then the servers ended.

        Raises:
            NotAllowedError, UnsuitableServerError: Redis can never be used as it is.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                for name, server in self._servers.items():
                    tasks.create_task(server.run(), name=f"mcp-{name}")
                try:
                    await self._worker.run()
                finally:
                    for server in self._servers.values():
                        server.stop()
        except* BrokerError as errors:
            raise errors.exceptions[0] from None

    def stop(self) -> None:
        """Let `run` come to its end."""
        self._worker.stop()

    async def _offer(self, table: McpServer, tools: Sequence[Tool]) -> None:
        """Register what a server lists now, and nothing else of it."""
        offer = await asyncio.to_thread(offer_of, tools, table)  # hostile schemas take their time
        server = self._servers[table.name]
        before = self._offered.get(table.name, {})
        self._offered[table.name] = offer.tools
        if offer.left_out != self._told.get(table.name, ()):
            self._told[table.name] = offer.left_out
            for line in offer.left_out:
                log.warning("mcp_tool_left_out", server=table.name, what=line)
        for name, offered in offer.tools.items():
            if offered != before.get(name):
                self._worker.add(name, partial(_call, server, offered), offered.registration, replace=True)
                await asyncio.sleep(0)
        for name in before.keys() - offer.tools.keys():
            await self._worker.remove(name)


async def _call(server: Server, offered: Offered, arguments: dict[str, Any], request: ToolRequest) -> bytes | str:
    may_repeat = offered.registration.get("idempotent", False)
    return await server.call(offered.tool, arguments, request, may_repeat=may_repeat)
