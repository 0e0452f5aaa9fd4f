"""`llm-routerd mcp-bridge`: from the arguments to the bridge."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from llm_routerd.cli.settings import read_config
from llm_routerd.errors import ConfigError

if TYPE_CHECKING:
    import argparse


def run(arguments: argparse.Namespace) -> int:
    """Serve until told to stop.

    Raises:
        ConfigError: the configuration is unsound, or names no MCP server; the extra is not installed.
        BrokerError: this Redis can never serve it.
    """
    config = read_config(arguments)
    if find_spec("mcp") is None:
        raise ConfigError("mcp-bridge needs the MCP SDK: pip install 'llm-routerd[mcp]'")
    from llm_routerd.service.mcp_bridge import serve_mcp_bridge  # noqa: PLC0415 - it takes a second to load

    return serve_mcp_bridge(config, stderr=arguments.stderr)
