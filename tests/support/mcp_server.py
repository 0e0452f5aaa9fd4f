"""An MCP server made with the SDK: `python -m tests.support.mcp_server stdio`, or `http PORT`; speaks 2026-07-28.

What its tools do stands in the folder that `MCP_TEST_FOLDER` names.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import anyio
from mcp.server.mcpserver import Context, MCPServer
from mcp_types import (
    ElicitRequest,
    ElicitRequestFormParams,
    ImageContent,
    InputRequiredResult,
    TextContent,
    ToolAnnotations,
)
from pydantic import BaseModel

FOLDER = Path(os.environ.get("MCP_TEST_FOLDER", "/nowhere"))
server = MCPServer("test")
READS_ONLY = ToolAnnotations(read_only_hint=True)


class Sum(BaseModel):
    """What `add` returns."""

    total: int


@server.tool(annotations=READS_ONLY)
def add(a: int, b: int) -> Sum:
    """Add two numbers."""
    return Sum(total=a + b)


@server.tool()
def write(text: str) -> str:
    """Append a line to a file, so that a test counts how often it acted."""
    with (FOLDER / "written").open("a", encoding="utf-8") as file:
        file.write(text + "\n")
    return "written"


@server.tool(annotations=ToolAnnotations(idempotent_hint=True), structured_output=False)
def fail() -> str:
    """Fail, with a text."""
    raise ValueError("no such city")


@server.tool(annotations=READS_ONLY, structured_output=False)
def picture() -> list[Any]:
    """A picture, and a word on it."""
    return [TextContent(text="a red dot"), ImageContent(data="QUJDRA==", mime_type="image/png")]


@server.tool(annotations=READS_ONLY, structured_output=False)
def told(ctx: Context) -> str:
    """The trace that came with the call, the protocol, and what of the environment came."""
    meta: dict[str, Any] = dict(ctx.request_context.meta or {})
    return f"{meta.get('traceparent')} {ctx.protocol_version} {'SECRET_OF_THE_BRIDGE' in os.environ}"


@server.tool(structured_output=False)
async def slow() -> str:
    """Take for ever; a cancellation leaves a file."""
    (FOLDER / "slow-began").touch()
    try:
        await anyio.sleep(3600)
    except anyio.get_cancelled_exc_class():
        (FOLDER / "slow-cancelled").touch()
        raise
    return ""


@server.tool(structured_output=False)
async def nap() -> str:
    """Take a second."""
    (FOLDER / "nap-began").touch()
    await anyio.sleep(1)
    return "awake"


@server.tool()
def crash() -> str:
    """End the whole server."""
    (FOLDER / "crashed").touch()
    os._exit(3)


@server.tool(structured_output=False)
def ask() -> InputRequiredResult:
    """Want an answer of a person."""
    params = ElicitRequestFormParams(
        message="Delete all 17 files?", requested_schema={"type": "object", "properties": {}}
    )
    return InputRequiredResult(input_requests={"sure": ElicitRequest(params=params)})


@server.tool()
async def learn(ctx: Context) -> str:
    """Have one more tool from now on, and `picture` no longer."""
    server.add_tool(add, name="learnt/tool", annotations=READS_ONLY)
    server.remove_tool("picture")
    await ctx.notify_tools_changed()
    return "learnt"


if __name__ == "__main__":
    if sys.argv[1] == "http":
        server.run("streamable-http", host="127.0.0.1", port=int(sys.argv[2]))
    else:
        server.run()
