"""The native door against its own description: schemathesis asks whatever the document allows, and what it does not."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any

import pytest

from llm_routerd.gateway.http import durable
from tests.gateway.application import open_site
from tests.standin.server import StandIn
from tests.support.daemons import running_daemon, write_config

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.servers import ValkeyProcess

# What a document cannot say: that a model has to be known, that two places give one id.  And who ends a request has not
# removed it.
NOT_CHECKED = "positive_data_acceptance,use_after_free"
# The phase `coverage` takes minutes over a request's schema, and a server a tenth of a second of them.
PARTS = [
    ("--phases", "examples,fuzzing,stateful", "--max-examples", "25"),
    ("--phases", "coverage", "--exclude-operation-id", "submit"),
]
SECONDS = 240


@pytest.mark.timeout(SECONDS + 60)
@pytest.mark.parametrize("part", PARTS, ids=["generated", "coverage"])
async def test_door_is_as_it_is_described(
    python_client: Callable[[str], Any],
    valkey_server: ValkeyProcess,
    valkey_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    part: tuple[str, ...],
) -> None:
    """Statuses, media types, headers and bodies; what the document forbids is refused, and nothing is a 5xx."""
    python_client("schemathesis")
    monkeypatch.setattr(durable, "LONG_POLL_SECONDS", 0.3)
    monkeypatch.setattr(durable, "SSE_SECONDS", 0.5)
    async with StandIn({"tiny": "", "big": ""}) as standin:
        config = write_config(tmp_path, valkey_url, standin.url)
        async with running_daemon(config), open_site(valkey_url) as site:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "schemathesis.cli", "run", f"{site.url}/openapi.json",
                "--checks", "all", "--exclude-checks", NOT_CHECKED, "--seed", "1", "--request-timeout", "20",
                "--continue-on-failure", *part,
                cwd=tmp_path, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            )  # fmt: skip
            try:
                async with asyncio.timeout(SECONDS):
                    told, _ = await process.communicate()
            finally:
                if process.returncode is None:
                    process.kill()
    assert process.returncode == 0, told.decode()
