"""The programs of `examples/`, each run as its reader would, where its interpreter and its Redis client are installed.

`EXAMPLES_REQUIRED` names those that must be: `make test-examples` sets it, so that none is left out unseen.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import pytest

from llm_routerd.protocol.events import FINAL_ID
from tests.standin.server import StandIn
from tests.support.daemons import producer, running_daemon, write_config
from tests.support.processes import ROOT
from tests.support.proxy import open_proxy
from tests.support.queue import open_client
from tests.support.servers import ValkeyProcess, running_valkey

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

_EXAMPLES = ROOT / "examples"
_GO_PROGRAM = ROOT / "build" / "examples" / "ask-go"  # `go run` would turn every failing exit code into 1
_SECONDS = 30.0
_DISCARDED = "\n[discarded]\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """How a program is started in its folder, and a command that fails where it cannot be."""

    command: tuple[str, ...]
    probe: tuple[str, ...]


# `-e` is redis-cli's from version 7 on.
_BY_LANGUAGE = {
    "shell": Example(command=("sh", "ask.sh"), probe=("sh", "-c", "jq --version && redis-cli -e --version")),
    "python": Example(command=(sys.executable, "ask.py"), probe=(sys.executable, "-c", "import redis")),
    "node": Example(command=("node", "ask.js"), probe=("node", "-e", "import('redis').catch(() => process.exit(1))")),
    "go": Example(command=(str(_GO_PROGRAM),), probe=("go", "build", "-o", str(_GO_PROGRAM), ".")),
    "ruby": Example(command=("ruby", "ask.rb"), probe=("ruby", "-rredis", "-e", "")),
    "php": Example(command=("php", "ask.php"), probe=("php", "-r", "exit((int) !extension_loaded('redis'));")),
    "lua": Example(
        command=("lua", "ask.lua"),
        probe=("lua", "-e", "require 'redis' require 'cjson' require 'socket' assert(unpack)"),
    ),
}


@cache
def _why_not(language: str) -> str:
    """Why a program cannot be run here; "": it can.  Nothing is downloaded."""
    probe = _BY_LANGUAGE[language].probe
    environ = {**os.environ, "GOPROXY": "off", "GOTOOLCHAIN": "local"}
    try:
        tried = subprocess.run(
            probe, cwd=_EXAMPLES / language, env=environ, capture_output=True, text=True, timeout=110, check=False
        )
    except FileNotFoundError:
        return f"no {probe[0]} here"
    return "" if tried.returncode == 0 else f"{probe[0]} is here, and not all that examples/{language} needs"


@pytest.fixture(params=list(_BY_LANGUAGE))
def language(request: pytest.FixtureRequest) -> str:
    """Each language in turn; left out where it is not installed and nobody requires it."""
    name: str = request.param
    if why := _why_not(name):
        assert name not in os.environ.get("EXAMPLES_REQUIRED", "").split(), why
        pytest.skip(why)
    return name


@pytest.fixture(scope="module")
def valkey() -> Iterator[ValkeyProcess]:
    """A server with a port, for clients that know no Unix sockets."""
    with running_valkey(tcp=True) as server:
        yield server


@asynccontextmanager
async def started(language: str, url: str, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A program that runs; killed if it has not ended at the end."""
    process = await asyncio.create_subprocess_exec(
        *(*_BY_LANGUAGE[language].command, *arguments),
        cwd=_EXAMPLES / language,
        env={**os.environ, "REDIS_URL": url},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(_SECONDS):
            yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def _ended(process: asyncio.subprocess.Process, shown: bytes = b"") -> tuple[int | None, str, str]:
    """Exit code, everything on stdout, everything on stderr."""
    out, err = await process.communicate()
    return process.returncode, (shown + out).decode(), err.decode()


async def _until(process: asyncio.subprocess.Process, text: bytes) -> bytes:
    """What it has shown, as soon as that holds a text."""
    assert process.stdout is not None
    shown = b""
    while text not in shown:
        if not (piece := await process.stdout.read(4096)):
            code, out, err = await _ended(process, shown)
            raise AssertionError(f"it ended with {code} before it showed {text!r}:\n{out}\n{err}")
        shown += piece
    return shown


async def test_answer_is_shown_across_a_rejected_attempt_and_a_lost_connection(
    language: str, tmp_path: Path, valkey: ValkeyProcess
) -> None:
    """The first model breaks off, the second's answer stands there whole and once, and neither was asked twice."""
    valkey.reset()
    # It breaks off late: what has not been written by then is never shown.
    async with (
        StandIn({"tiny": "delay_ms=25 tokens=99 error_after=40", "big": "delay_ms=60 tokens=20"}) as models,
        running_daemon(write_config(tmp_path, valkey.url, models.url)),
        open_proxy(valkey.port) as proxy,
        started(language, proxy.url, "What is it?", "example-1") as program,
        producer(valkey.url) as client,
    ):
        shown = await _until(program, _DISCARDED.encode() + b"a ")
        connections = proxy.connections
        await proxy.drop()
        code, out, err = await _ended(program, shown)
        final = await client.final("example-1")
        assert final is not None
        rejected, answer = out.split(_DISCARDED)
        assert (code, answer) == (0, final.data["raw_text"] + "\n"), err
        assert rejected.startswith("a stand-in")
        assert proxy.connections > connections
        assert [call["model"] for call in models.calls] == ["tiny", "big"]


async def test_exit_code_tells_an_error_from_a_cancellation(
    language: str, tmp_path: Path, valkey: ValkeyProcess
) -> None:
    """And the last line says why."""
    valkey.reset()
    async with (
        StandIn({"tiny": "delay_ms=60", "big": ""}) as models,
        running_daemon(write_config(tmp_path, valkey.url, models.url)),
        started(language, valkey.tcp_url, "[[fail=500]]", "failing") as failing,
        started(language, valkey.tcp_url, "[[tokens=500]]", "cancelled") as unwanted,
        producer(valkey.url) as client,
    ):
        await _until(unwanted, b"a stand-in")
        await client.cancel("cancelled", "seen enough")
        code, _, err = await _ended(unwanted)
        assert (code, err.strip()) == (2, "cancelled: seen enough")
        code, out, err = await _ended(failing)
        assert (code, out.strip()) == (1, "")
        assert err.strip().startswith("error: ")


async def test_text_of_another_attempt_than_the_results_is_given_up(language: str, valkey: ValkeyProcess) -> None:
    """A worker that was thought dead answered first."""
    valkey.reset()
    answer = {"id": "late", "raw_text": 'the "right"\nanswer: ä', "attempt": 1}
    async with open_client(valkey.url) as redis:
        for event_id, kind, data in (
            ("1-0", "attempt", {"deployment": "local"}),
            ("2-0", "attempt", {"deployment": "local"}),
            ("2-1", "token", {"text": "the wrong"}),
            (FINAL_ID, "result", answer),
        ):
            await redis.xadd("llm:events:late", {"type": kind, "data": json.dumps(data)}, id=event_id)
        async with started(language, valkey.tcp_url, "Say it.", "late") as program:
            assert await _ended(program) == (0, f"the wrong{_DISCARDED}{answer['raw_text']}\n", "")
        [[_, request]] = await redis.xrange("llm:requests")
        assert request == {"id": "late", "prompt": "Say it.", "stream": "true"}
