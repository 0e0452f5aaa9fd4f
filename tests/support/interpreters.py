"""Which languages of `examples/` can be run here: those whose interpreter and Redis client are installed.

`EXAMPLES_REQUIRED` names those that must be: `make test-examples` sets it, so that none is left out unseen.
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache

import pytest

from tests.support.processes import ROOT

EXAMPLES = ROOT / "examples"
GO_PROGRAM = ROOT / "build" / "examples" / "ask-go"  # `go run` would turn every failing exit code into 1

# A command in the language's folder that fails where it cannot be run; `-e` is redis-cli's from version 7 on.
_PROBES: dict[str, tuple[str, ...]] = {
    "shell": ("sh", "-c", "jq --version && redis-cli -e --version"),
    "python": (sys.executable, "-c", "import redis"),
    "node": ("node", "-e", "import('redis').catch(() => process.exit(1))"),
    "go": ("go", "build", "-o", str(GO_PROGRAM), "."),
    "ruby": ("ruby", "-rredis", "-e", ""),
    "php": ("php", "-r", "exit((int) !extension_loaded('redis'));"),
    "lua": ("lua", "-e", "require 'redis' require 'cjson' require 'socket' assert(unpack)"),
}


def leave_out_unless_installed(language: str) -> None:
    """Skip the test, or fail it where the language is required."""
    if why := _why_not(language):
        assert language not in os.environ.get("EXAMPLES_REQUIRED", "").split(), why
        pytest.skip(why)


@cache
def _why_not(language: str) -> str:
    """Why a program cannot be run here; "": it can.  Nothing is downloaded."""
    probe = _PROBES[language]
    environ = {**os.environ, "GOPROXY": "off", "GOTOOLCHAIN": "local"}
    try:
        tried = subprocess.run(
            probe, cwd=EXAMPLES / language, env=environ, capture_output=True, text=True, timeout=110, check=False
        )
    except FileNotFoundError:
        return f"no {probe[0]} here"
    return "" if tried.returncode == 0 else f"{probe[0]} is here, and not all that examples/{language} needs"
