"""The MCP bridge as a process, with MCP servers of the tests or of other people."""

from __future__ import annotations

import json
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from tests.support.processes import ROOT, DaemonProcess

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

STRANGER = ROOT / "tests" / "support" / "mcp_stranger.py"


class BridgeProcess(DaemonProcess):
    """`llm-routerd mcp-bridge`, its log as JSON."""

    command = "mcp-bridge"


def sound(folder: Path) -> dict[str, Any]:
    """The table of the server that is made with the SDK, over stdio."""
    command = [sys.executable, "-m", "tests.support.mcp_server", "stdio"]
    return {"command": command, "cwd": str(ROOT), "env": {"MCP_TEST_FOLDER": str(folder)}}


def stranger(how: str, folder: Path) -> dict[str, Any]:
    """The table of one that does not behave."""
    return {"command": [sys.executable, str(STRANGER), how], "env": {"MCP_TEST_FOLDER": str(folder)}}


def write_bridge_config(folder: Path, redis_url: str, more: str = "", **servers: Mapping[str, Any]) -> Path:
    """Write `bridge.toml`, with a table for each server."""
    lines = [f"[redis]\nurl = {json.dumps(redis_url)}\n[log]\nformat = 'json'\n{more}"]
    for name, table in servers.items():
        lines.append(f"[mcp.{name}]")
        lines += [f"{key} = {_toml(value)}" for key, value in table.items()]
    path = folder / "bridge.toml"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {json.dumps(each)}" for key, each in value.items()) + " }"
    return json.dumps(value)


@asynccontextmanager
async def running_bridge(
    config: Path, *arguments: str, environ: Mapping[str, str] | None = None
) -> AsyncIterator[BridgeProcess]:
    """A bridge that has begun; stopped at the end, if it has not ended by then."""
    async with BridgeProcess("--config", str(config), *arguments, environ=environ) as bridge:
        await bridge.until_ready()
        yield bridge
