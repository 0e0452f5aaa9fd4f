"""The tool workers of `examples/`, each tried out by what ships for authors of others."""

from __future__ import annotations

import asyncio
import sys

import pytest

from tests.support.interpreters import EXAMPLES, leave_out_unless_installed
from tests.support.servers import running_valkey

COMMANDS = {
    "shell": ("sh", "tool-worker.sh"),
    "python": (sys.executable, "tool_worker.py"),
    "node": ("node", "tool-worker.js"),
    "ruby": ("ruby", "tool_worker.rb"),
}


@pytest.mark.parametrize("language", list(COMMANDS))
async def test_tool_worker_keeps_every_rule(language: str) -> None:
    """On a server of its own, in the language's folder."""
    leave_out_unless_installed(language)
    with running_valkey(tcp=True) as valkey:
        trial = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "llm_routerd.client.tool_conformance", "--redis", valkey.tcp_url, "--"),
            *COMMANDS[language],
            cwd=EXAMPLES / language,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            told, _ = await asyncio.wait_for(trial.communicate(), 110)
        finally:
            if trial.returncode is None:
                trial.kill()
    assert trial.returncode == 0, told.decode()
    assert b"16 of 16 rules are kept" in told
