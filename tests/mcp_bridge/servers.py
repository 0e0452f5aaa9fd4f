"""Connections to servers of the tests, without Redis."""

from __future__ import annotations

import asyncio
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llm_routerd.config.mcp import McpServer
from llm_routerd.mcp_bridge.offering import offer_of
from llm_routerd.mcp_bridge.server import Server
from llm_routerd.protocol.tool import ToolRequest
from tests.support.eventually import eventually
from tests.support.processes import ROOT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from mcp_types import Tool

STRANGER = ROOT / "tests" / "support" / "mcp_stranger.py"
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def sound_server(folder: Path, **keys: Any) -> McpServer:
    """The table of the server that is made with the SDK, over stdio."""
    command = (sys.executable, "-m", "tests.support.mcp_server", "stdio")
    return McpServer(name="t", command=command, cwd=str(ROOT), env={"MCP_TEST_FOLDER": str(folder)}, **keys)


def stranger(how: str, folder: Path, **keys: Any) -> McpServer:
    """The table of one that does not behave."""
    command = (sys.executable, str(STRANGER), how)
    return McpServer(name="t", command=command, env={"MCP_TEST_FOLDER": str(folder)}, **keys)


@dataclass
class Connected:
    """A connection, and what was offered over it, each time."""

    table: McpServer
    offers: list[Sequence[Tool]] = field(default_factory=list)
    server: Server = field(init=False)

    def __post_init__(self) -> None:
        self.server = Server(self.table, self._offer, most_bytes=65_536)

    async def _offer(self, tools: Sequence[Tool]) -> None:
        self.offers.append(tools)

    @property
    def names(self) -> set[str]:
        """The registered names of what was offered last."""
        return set(offer_of(self.offers[-1], self.table).tools)

    async def until_connected(self) -> None:
        """Wait until its tools can be called."""
        await eventually(lambda: self.server.is_connected, seconds=20)

    async def call(self, tool: str, *, may_repeat: bool = False, **arguments: Any) -> bytes | str:
        """Call a tool as the bridge does."""
        call = ToolRequest(
            request_id="r1",
            call_id="call_" + "0" * 24,
            name=f"t.{tool}",
            arguments=arguments,
            turn=0,
            tenant_id="tenant",
            deadline_ms=0,
            traceparent=TRACE,
        )
        return await self.server.call(tool, arguments, call, may_repeat=may_repeat)


@asynccontextmanager
async def connection(table: McpServer, *, wait: bool = True) -> AsyncIterator[Connected]:
    """A connection that is kept until the end of the block."""
    connected = Connected(table)
    running = asyncio.create_task(connected.server.run())
    try:
        if wait:
            await connected.until_connected()
        yield connected
    finally:
        connected.server.stop()
        await running
