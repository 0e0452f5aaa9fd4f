"""`llm-routerd check`: one line each on everything that has to be right."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from llm_routerd.cli.check_gateway import check_gateway
from llm_routerd.cli.check_mcp import check_mcp
from llm_routerd.cli.check_models import check_models
from llm_routerd.cli.check_server import check_server
from llm_routerd.cli.check_tools import check_tools
from llm_routerd.cli.exits import Exit
from llm_routerd.cli.findings import Finding, Level, fail, fine
from llm_routerd.cli.settings import read_config
from llm_routerd.cli.terminal import json_line, say
from llm_routerd.config.builtin import DEFAULT_PATH
from llm_routerd.errors import ConfigError

if TYPE_CHECKING:
    import argparse

    from llm_routerd.config.tree import Config


def run(arguments: argparse.Namespace) -> Exit:
    """Look at everything; fails if any line does, and with its own code on an unsound configuration."""
    try:
        config = read_config(arguments)
    except ConfigError as error:
        _print([fail("configuration", str(error))], as_json=arguments.json)
        return Exit.CONFIGURATION
    sound = fine("configuration", _describe(arguments.config, config))
    findings = [sound, *asyncio.run(_check(config))]
    _print(findings, as_json=arguments.json)
    return Exit.FAILED if any(finding.level is Level.FAIL for finding in findings) else Exit.OK


async def _check(config: Config) -> list[Finding]:
    parts = (check_server(config), check_tools(config), check_models(config), check_gateway(config))
    found = [finding for findings in await asyncio.gather(*parts) for finding in findings]
    return [*found, *check_mcp(config)]


def _describe(path: str | None, config: Config) -> str:
    """Where the configuration comes from, and how much there is of it."""
    default = DEFAULT_PATH if Path(DEFAULT_PATH).is_file() else "built-in"
    return f"{path or default}: {len(config.deployments)} deployments, {len(config.chains)} chains"


def _print(findings: list[Finding], *, as_json: bool) -> None:
    for finding in findings:
        say(json_line(finding.to_json()) if as_json else finding.to_line())
