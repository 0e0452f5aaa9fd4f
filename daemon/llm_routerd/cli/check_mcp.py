"""The part of `check` that looks at the MCP servers of the configuration, without starting one.

Of a configuration that names none there is nothing to say.  Nothing here keeps the daemon from its promises.
"""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from llm_routerd.cli.findings import Finding, fine, warn

if TYPE_CHECKING:
    from llm_routerd.config.mcp import McpServer
    from llm_routerd.config.tree import Config


def check_mcp(config: Config) -> list[Finding]:
    """Everything there is to say about them."""
    if not config.mcp:
        return []
    found = [_judge(server) for server in config.mcp.values()]
    if find_spec("mcp") is None:
        found.insert(0, warn("mcp-bridge", "cannot run: the MCP SDK is missing", "pip install 'llm-routerd[mcp]'"))
    return found


def _judge(server: McpServer) -> Finding:
    subject = f"MCP server {server.name}"
    if server.secret_missing is not None:
        missing = f"is not served: its secret is missing ({server.secret_missing})"
        return warn(subject, missing, "set it, or take it out")
    if server.url is not None:
        return fine(subject, "is reached over HTTP, which was not tried")
    if server.cwd is not None and not Path(server.cwd).is_dir():
        return warn(subject, f"cannot be started here: there is no folder {server.cwd}", f"mend mcp.{server.name}.cwd")
    program = server.command[0]
    path = str(Path(server.cwd or ".", program)) if "/" in program else program
    if shutil.which(path, path=server.env.get("PATH")) is None:
        remedy = "install it, or give its whole path"
        return warn(subject, f"cannot be started here: there is no program {program}", remedy)
    return fine(subject, f"can be started: {program}")
