"""What tries tool workers out finds who breaks a rule, and which."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.processes import ROOT
from tests.support.queue import open_client
from tests.support.servers import ValkeyProcess, running_valkey

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def server() -> Iterator[ValkeyProcess]:
    """Whose clients are cut off."""
    with running_valkey() as server:
        yield server


@pytest.fixture
def url(server: ValkeyProcess) -> str:
    """Of that server, empty."""
    server.reset()
    return server.url


async def tried(url: str, *command: str, patience: float = 4.0) -> tuple[int | None, str]:
    """The exit code, and everything that was said."""
    trial = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "llm_routerd.client.tool_conformance", "--redis", url, "--patience", str(patience)),
        *("--", *command),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    told, _ = await asyncio.wait_for(trial.communicate(), 110)
    return trial.returncode, told.decode()


@pytest.mark.parametrize(
    ("broken", "rule"),
    [
        ("registration", "Registers `echo` and `note`"),
        ("arguments", "Answers arguments that are not what its `parameters` say"),
        ("bytes", "Changes no byte"),
        ("once", "Acts once on a call that comes twice"),
        ("deadline", "Does not act on a call whose `deadline_ms` has passed"),
        ("inbox", "Makes no inbox"),
        ("acknowledge", "Acknowledges and deletes"),
        ("twice", "Shares the calls"),
        ("connection", "Goes on after its connections were cut"),
        ("stop", "Ends on SIGTERM, and first answers"),
        ("never ends", "Ends on SIGTERM, and first answers"),
        ("pending", "Killed while it acts and started again"),
        ("", ""),
    ],
)
async def test_broken_rule_is_found(broken: str, rule: str, url: str) -> None:
    """By its name; who breaks none passes, and nothing is left in Redis."""
    code, told = await tried(url, sys.executable, "-m", "tests.support.careless", broken)
    failed = [line.removeprefix("FAIL  ") for line in told.splitlines() if line.startswith("FAIL")]
    assert (code, bool(failed)) == ((1, True) if broken else (0, False)), told
    assert not broken or any(line.startswith(rule) for line in failed), told
    async with open_client(url) as redis:
        assert await redis.keys("*") == []


async def test_redis_that_is_in_use_is_left_alone(url: str) -> None:
    """It says what to do instead."""
    async with open_client(url) as redis:
        await redis.hset("llm:tools", "echo", "{}")
    code, told = await tried(url, "true")
    assert (code, told) == (69, "Redis has tools under the prefix `llm`: give it an empty database\n")


async def test_what_cannot_be_started_or_reached_is_said() -> None:
    """With other exit codes than a broken rule has."""
    assert (await tried("redis://127.0.0.1:1/0", "true"))[0] == 69
    assert (await tried("nonsense", "true"))[0] == 69
    with running_valkey() as valkey:
        code, told = await tried(valkey.url, "/no/such/program")
        assert (code, told) == (2, "/no/such/program: No such file or directory\n")
