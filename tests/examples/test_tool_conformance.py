"""What tries tool workers out finds who breaks a rule, and which."""

from __future__ import annotations

import asyncio
import signal
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
        ("group", "Reads each tool's stream through the consumer group `llm-tools`"),
        ("format", "Acts on a call"),
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
    assert (code, told.splitlines()) == (69, [told.strip()])
    assert told.startswith("Redis has tools under the prefix `llm`: give it an empty database; ")
    assert "`redis-cli -n 0 FLUSHDB`" in told


async def test_what_was_not_seen_to_act_is_not_said_to_leave_a_call_alone(url: str) -> None:
    """A line of another form is no act, and so tells nothing of the calls that have none."""
    _, told = await tried(url, sys.executable, "-m", "tests.support.careless", "format")
    for rule in ("Acts on a call", "Answers arguments that are not", "Does not act on a call whose `deadline_ms`"):
        assert f"FAIL  {rule}" in told, told


async def test_without_registrations_nothing_else_is_tried(url: str) -> None:
    """Whose calls nobody takes: it would take minutes to say so rule by rule."""
    code, told = await tried(url, sys.executable, "-m", "tests.support.careless", "nothing", patience=1.0)
    assert code == 1
    first, second, third, *_ = told.splitlines()
    assert first.startswith("FAIL  Registers `echo` and `note`, each as schemas/tool has it: they are not there")
    assert second.startswith("No other rule was tried, for it has to register both tools first")
    assert third == "0 of 16 rules are kept"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_interrupted_it_ends_the_worker_and_says_how_to_empty_the_database(
    number: signal.Signals, url: str
) -> None:
    """And has removed what it had made, where it could."""
    trial = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "llm_routerd.client.tool_conformance", "--redis", url),
        *("--", sys.executable, "-m", "tests.support.careless"),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert trial.stdout is not None
    assert (await trial.stdout.readline()).startswith(b"PASS")
    trial.send_signal(number)
    _, complaint = await asyncio.wait_for(trial.communicate(), 30)
    assert (trial.returncode, complaint.decode().splitlines()) == (130, [complaint.decode().strip()])
    assert b"`redis-cli -n 0 FLUSHDB`" in complaint
    async with open_client(url) as redis:
        assert await redis.keys("*") == []
        assert len(await redis.client_list()) == 1  # ours: no worker is left


async def test_help_says_what_the_tools_have_to_do() -> None:
    """Whoever reads nothing else can write them."""
    trial = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "llm_routerd.client.tool_conformance", "--help"), stdout=asyncio.subprocess.PIPE
    )
    told, _ = await trial.communicate()
    for said in ("TOOL_FILE", "`<call_id> <text>`", "`echo`", "result `noted`"):
        assert said in told.decode()


async def test_what_cannot_be_started_or_reached_is_said() -> None:
    """With other exit codes than a broken rule has."""
    assert (await tried("redis://127.0.0.1:1/0", "true"))[0] == 69
    assert (await tried("nonsense", "true"))[0] == 69
    with running_valkey() as valkey:
        code, told = await tried(valkey.url, "/no/such/program")
        assert (code, told) == (2, "/no/such/program: No such file or directory\n")
