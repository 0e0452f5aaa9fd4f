"""The bridge with MCP servers from PyPI and npm; the test plays the daemon's side.  `MCP_REQUIRED` names what must be here.

They are the reference servers of the protocol's authors, by their Python and their TypeScript SDK.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from asyncio.subprocess import DEVNULL
from contextlib import asynccontextmanager
from datetime import datetime
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import pytest

from tests.support.bridges import running_bridge, write_bridge_config
from tests.support.fakes import FakeBackend
from tests.support.processes import ROOT, free_port
from tests.support.runs import answers, calls, event_of, turns
from tests.support.toolcalls import open_caller, until
from tests.support.wire import final_of
from tests.support.workers import run_worker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.bridges import BridgeProcess
    from tests.support.toolcalls import Caller

NODE = ROOT / "tests" / "mcp_servers" / "node" / "node_modules"
_REQUIRED = os.environ.get("MCP_REQUIRED", "").split(",")


def leave_out(language: str, what: str) -> None:
    """Skip, unless this must not be left out."""
    assert language not in _REQUIRED, what
    pytest.skip(what)


def in_node(package: str, *arguments: str) -> list[str]:
    """The command of a server from npm."""
    program = NODE / "@modelcontextprotocol" / package / "dist" / "index.js"
    node = shutil.which("node")
    if node is None or not program.exists():
        leave_out("node", f"{package} is not installed: make test-mcp, where npm is")
    return [str(node), str(program), *arguments]


@asynccontextmanager
async def bridged(
    redis_url: str, folder: Path, protocol: str, **table: Any
) -> AsyncIterator[tuple[BridgeProcess, Caller, dict[str, Any]]]:
    """A bridge to one server, `it`: the process, who calls, and what is registered."""
    config = write_bridge_config(folder, redis_url, it=table)
    async with running_bridge(config) as bridge, open_caller(redis_url) as caller:
        connected = await bridge.until_logged("mcp_server_connected", seconds=40)
        assert connected["protocol"] == protocol

        async def are_registered() -> bool:
            return bool(await caller.redis.hlen("llm:tools") >= connected["tools"])

        await until(are_registered, seconds=20)
        found = {name: json.loads(each) for name, each in (await caller.redis.hgetall("llm:tools")).items()}
        yield bridge, caller, found


async def test_a_file_is_listed_and_one_is_written_after_a_yes(valkey_url: str, tmp_path: Path) -> None:
    """What reads is called at once; what writes waits for a person, which the daemon sees to."""
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "notes.txt").write_text("buy milk")
    command = in_node("server-filesystem", str(shared))
    async with bridged(valkey_url, tmp_path, "2025-11-25", command=command) as (bridge, caller, found):
        asks = {name.removeprefix("it."): each["confirm"] for name, each in found.items()}
        assert not any(asks[name] for name in ("list_directory", "read_text_file", "search_files"))
        assert all(asks[name] for name in ("write_file", "edit_file", "move_file"))
        assert not found["it.edit_file"]["idempotent"]
        listed = await caller.asked("it.list_directory", {"path": str(shared)})
        assert "notes.txt" in listed["result"]
        read = await caller.asked("it.read_text_file", {"path": str(shared / "notes.txt")})
        assert "buy milk" in read["result"]
        await caller.asked("it.write_file", {"path": str(shared / "new.txt"), "content": "and bread"})
        assert (shared / "new.txt").read_text() == "and bread"
        outside = await caller.asked("it.read_text_file", {"path": "/etc/passwd"})
        assert "denied" in outside["error"]
        assert "milk" not in "\n".join(bridge.output)


async def test_run_lists_a_file_and_writes_another_after_a_yes(valkey_url: str, tmp_path: Path) -> None:
    """The whole way: a worker's run, the bridge, the server; nothing is written before a person has agreed."""
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "notes.txt").write_text("buy milk")
    command = in_node("server-filesystem", str(shared))
    new = shared / "new.txt"
    model = FakeBackend(
        turns(
            calls("it_list_directory", path=str(shared)),
            calls("it_write_file", path=str(new), content="and bread"),
            answers("written"),
        )
    )
    async with (
        bridged(valkey_url, tmp_path, "2025-11-25", command=command) as (_, caller, _found),
        run_worker(valkey_url, {"local": model}),
    ):
        agent = json.dumps({"tools": ["it.*"]})
        await caller.redis.xadd("llm:requests", {"id": "files", "prompt": "shopping", "agent": agent})
        asked = await event_of(caller.redis, "files", "tool_call", 2)
        assert (asked["name"], asked["confirm"]) == ("it.write_file", True)
        assert not new.exists()
        assert "notes.txt" in str((await event_of(caller.redis, "files", "tool_result"))["result"])
        word = {"confirm": asked["call_id"], "args_sha256": asked["args_sha256"], "by": "ada"}
        await caller.redis.xadd("llm:consent:files", word)
        kind, result = await final_of(caller.redis, "files")
        assert (kind, result["content"], result["turns"]) == ("result", "written", 3)
        assert new.read_text() == "and bread"


async def test_a_time_is_told(valkey_url: str, tmp_path: Path) -> None:
    """By a server from PyPI."""
    if find_spec("mcp_server_time") is None:
        leave_out("python", "mcp-server-time is not installed: make test-mcp")
    command = [sys.executable, "-m", "mcp_server_time", "--local-timezone", "Europe/Oslo"]
    async with bridged(valkey_url, tmp_path, "2026-07-28", command=command, prefix="") as (_, caller, found):
        assert set(found) == {"get_current_time", "convert_time"}
        told = await caller.asked("get_current_time", {"timezone": "Asia/Tokyo"})
        time = datetime.fromisoformat(json.loads(told["result"])["datetime"])
        assert abs((datetime.now(ZoneInfo("Asia/Tokyo")) - time).total_seconds()) < 60
        assert "error" in await caller.asked("get_current_time", {"timezone": "Nowhere/Land"})


@asynccontextmanager
async def listening(command: list[str], port: int) -> AsyncIterator[None]:
    """A server over HTTP, from when it listens to the end of the block."""
    environ = {**os.environ, "PORT": str(port)}
    process = await asyncio.create_subprocess_exec(*command, env=environ, stdout=DEVNULL, stderr=DEVNULL)
    try:
        await until(lambda: _listens(port), seconds=20)
        yield
    finally:
        process.kill()
        await process.wait()


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


async def test_everything_that_a_server_can_send_is_told_over_stdio(valkey_url: str, tmp_path: Path) -> None:
    """At 2025-11-25, which the TypeScript SDK speaks."""
    await _try_everything(valkey_url, tmp_path, {"command": in_node("server-everything", "stdio")})


async def test_everything_that_a_server_can_send_is_told_over_http(valkey_url: str, tmp_path: Path) -> None:
    """With a session, and streams of events."""
    port = free_port()
    async with listening(in_node("server-everything", "streamableHttp"), port):
        await _try_everything(valkey_url, tmp_path, {"url": f"http://127.0.0.1:{port}/mcp"})


async def _try_everything(redis_url: str, folder: Path, table: dict[str, Any]) -> None:
    """Text, pictures, links, structured content; a call that takes longer than is waited for."""
    async with bridged(redis_url, folder, "2025-11-25", **table) as (bridge, caller, found):
        assert not found["it.echo"]["confirm"]
        assert found["it.toggle-simulated-logging"]["confirm"]
        assert await caller.asked("it.echo", {"message": "hello"}) == {"result": "Echo: hello"}
        assert "[image, image/png, " in (await caller.asked("it.get-tiny-image"))["result"]
        assert "[resource " in (await caller.asked("it.get-resource-links", {"count": 2}))["result"]
        weather = await caller.asked("it.get-structured-content", {"location": "Chicago"})
        assert (
            found["it.get-structured-content"]["result_schema"]["properties"].keys()
            == json.loads(weather["result"]).keys()
        )
        long = await caller.asked("it.trigger-long-running-operation", {"duration": 60, "steps": 60}, seconds=1.0)
        assert long == {"error": "the tool has not ended in time, and may have acted"}
        assert await caller.asked("it.get-sum", {"a": 1, "b": 2}) == {"result": "The sum of 1 and 2 is 3."}
        assert not bridge.logged("mcp_server_lost")
