"""The programs of `examples/`, each run as its reader would, where its interpreter and its Redis client are installed."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from llm_routerd.protocol.events import FINAL_ID
from tests.standin.server import StandIn
from tests.support.daemons import producer, running_daemon, write_config
from tests.support.interpreters import EXAMPLES, GO_PROGRAM, leave_out_unless_installed
from tests.support.proxy import open_proxy
from tests.support.queue import open_client
from tests.support.servers import ValkeyProcess, running_valkey

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

_SECONDS = 30.0
COMMANDS: dict[str, tuple[str, ...]] = {
    "shell": ("sh", "ask.sh"),
    "python": (sys.executable, "ask.py"),
    "node": ("node", "ask.js"),
    "go": (str(GO_PROGRAM),),
    "ruby": ("ruby", "ask.rb"),
    "php": ("php", "ask.php"),
    "lua": ("lua", "ask.lua"),
}
_DISCARDED = "\n[discarded]\n"


@pytest.fixture(params=list(COMMANDS))
def language(request: pytest.FixtureRequest) -> str:
    """Each language in turn; left out where it is not installed and nobody requires it."""
    name: str = request.param
    leave_out_unless_installed(name)
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
        *(*COMMANDS[language], *arguments),
        cwd=EXAMPLES / language,
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
            ("0-1", "queued", {"position": 1, "reason": "1 before you on attic"}),
            ("1-0", "attempt", {"deployment": "local"}),
            ("1-1", "queued", {"position": 0, "reason": "next on attic"}),
            ("2-0", "attempt", {"deployment": "local"}),
            ("2-1", "token", {"text": "the wrong"}),
            (FINAL_ID, "result", answer),
        ):
            await redis.xadd("llm:events:late", {"type": kind, "data": json.dumps(data)}, id=event_id)
        async with started(language, valkey.tcp_url, "Say it.", "late") as program:
            assert await _ended(program) == (0, f"the wrong{_DISCARDED}{answer['raw_text']}\n", "")
        [[_, request]] = await redis.xrange("llm:requests")
        assert request == {"id": "late", "prompt": "Say it.", "stream": "true"}
