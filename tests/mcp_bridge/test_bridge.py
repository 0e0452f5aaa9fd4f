"""The bridge as a process, from the streams of Redis to MCP servers and back; the test plays the daemon's side."""

from __future__ import annotations

import asyncio
import json
import signal
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from llm_routerd.protocol.keys import Layout
from tests.support.bridges import BridgeProcess, running_bridge, sound, stranger, write_bridge_config
from tests.support.daemons import ServiceManager
from tests.support.eventually import eventually
from tests.support.toolcalls import open_caller, until

if TYPE_CHECKING:
    from pathlib import Path

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
SECRET = "a-secret-of-the-bridge"


async def test_tools_are_registered_called_and_answered(valkey_url: str, tmp_path: Path) -> None:
    """What reads and what writes, of two servers, one of which has a name and a list of its own."""
    config = write_bridge_config(
        tmp_path,
        valkey_url,
        files=sound(tmp_path),
        other={**sound(tmp_path), "prefix": "my_", "allow": ["add", "wr*"], "confirm": []},
    )
    async with running_bridge(config) as bridge, open_caller(valkey_url) as caller:
        await caller.until_registered("files.add", "files.write", "my_add", "my_write")
        found: dict[str, Any] = {
            name: json.loads(text) for name, text in (await caller.redis.hgetall("llm:tools")).items()
        }
        assert {name for name in found if not name.startswith("files.")} == {"my_add", "my_write"}
        assert (found["files.add"]["confirm"], found["files.add"]["idempotent"]) == (False, True)
        assert (found["files.write"]["confirm"], found["files.write"]["idempotent"]) == (True, False)
        assert found["my_write"]["confirm"] is False
        assert found["files.add"]["result_schema"]["required"] == ["total"]
        assert found["files.add"]["parameters"]["required"] == ["a", "b"]
        assert await caller.asked("files.add", {"a": 1, "b": 2}) == {"result": '{"total":3}'}
        assert await caller.asked("my_write", {"text": "hello"}) == {"result": '{"result":"written"}'}
        assert (await caller.asked("files.fail"))["error"] == "Error executing tool fail"
        assert (await caller.asked("files.add", {"a": "x", "b": 2}))["error"].startswith("the arguments are not valid")
        assert (await caller.asked("files.told", traceparent=TRACE))["result"].startswith(TRACE)
        await caller.until_done("files.add")
        said = "\n".join(bridge.output)
        assert "hello" not in said
    assert (tmp_path / "written").read_text() == "hello\n"


async def test_a_call_of_a_server_that_hangs_ends_at_its_deadline(valkey_url: str, tmp_path: Path) -> None:
    """The server is told that nobody waits any more."""
    config = write_bridge_config(tmp_path, valkey_url, odd=stranger("hang", tmp_path))
    async with running_bridge(config), open_caller(valkey_url) as caller:
        await caller.until_registered("odd.act")
        assert (await caller.asked("odd.act", seconds=1.0))["error"] == (
            "the tool has not ended in time, and may have acted"
        )
        await eventually((tmp_path / "cancelled").exists)


async def test_a_changed_list_changes_what_is_registered(valkey_url: str, tmp_path: Path) -> None:
    """What is new can be called, and what has gone is registered no longer."""
    config = write_bridge_config(tmp_path, valkey_url, files=sound(tmp_path))
    async with running_bridge(config), open_caller(valkey_url) as caller:
        await caller.until_registered("files.learn", "files.picture")
        await caller.asked("files.learn")
        await caller.until_registered("files.learnt_tool")
        assert await caller.asked("files.learnt_tool", {"a": 1, "b": 2}) == {"result": '{"total":3}'}

        async def has_gone() -> bool:
            return not await caller.redis.hexists("llm:tools", "files.picture")

        await until(has_gone)


async def test_tools_are_registered_in_every_shard(valkey_url: str, tmp_path: Path) -> None:
    """And called there."""
    config = write_bridge_config(tmp_path, valkey_url, files=sound(tmp_path))
    config.write_text(config.read_text().replace("[log]", "shards = 2\n[log]"))
    async with running_bridge(config):
        for keys in Layout("llm", 2).keys:
            async with open_caller(valkey_url, keys=keys) as caller:
                await caller.until_registered("files.add")
                assert await caller.asked("files.add", {"a": 1, "b": 2}) == {"result": '{"total":3}'}


async def test_a_hostile_server_of_many_tools_is_bounded(valkey_url: str, tmp_path: Path) -> None:
    """256 of ten thousand are registered, and the log has a line of it, not one each."""
    config = write_bridge_config(tmp_path, valkey_url, odd=stranger("many", tmp_path))
    async with running_bridge(config) as bridge, open_caller(valkey_url) as caller:
        await caller.until_registered("odd.tool0", "odd.tool255")
        assert await caller.redis.hlen("llm:tools") == 256
        (told,) = bridge.logged("mcp_tool_left_out")
        assert told["what"] == "tool256 and what follows: more than 256 tools; choose by `allow`"
        assert await caller.asked("odd.tool255") == {"result": "done"}


async def test_what_acts_is_not_called_twice(valkey_url: str, tmp_path: Path) -> None:
    """The server dies of the call, and is started again; the call is not issued again."""
    config = write_bridge_config(tmp_path, valkey_url, odd=stranger("crash", tmp_path))
    async with running_bridge(config) as bridge, open_caller(valkey_url) as caller:
        await caller.until_registered("odd.act")
        assert (await caller.asked("odd.act"))["error"].startswith("unknown outcome: ")
        lost = await bridge.until_logged("mcp_server_lost")
        assert (lost["server"], lost["why"], lost["level"]) == ("odd", "it has ended with exit code 7", "warning")
        await caller.until_done("odd.act")
        await eventually(lambda: len(bridge.logged("mcp_server_connected")) == 2)
    assert (tmp_path / "acted").read_text() == "x\n"


async def test_sigterm_finishes_what_has_begun_and_ends_the_servers(valkey_url: str, tmp_path: Path) -> None:
    """The service manager hears of it all; nothing is left."""
    config = write_bridge_config(tmp_path, valkey_url, files=sound(tmp_path))
    async with (
        ServiceManager(tmp_path) as manager,
        running_bridge(config, environ=manager.environ) as bridge,
        open_caller(valkey_url) as caller,
    ):
        await caller.until_registered("files.add")
        await manager.until(
            lambda heard: any(each.startswith("1 of 1 servers, 10 tools") for each in heard.told("STATUS"))
        )
        children = psutil.Process(bridge.pid).children(recursive=True)
        assert children
        call_id = await caller.call("files.nap")
        await eventually((tmp_path / "nap-began").exists)
        bridge.send_signal(signal.SIGTERM)
        assert await bridge.wait() == 0
        assert await caller.answer(call_id) == {"result": "awake"}
        assert (manager.told("READY"), manager.told("STOPPING")) == (["1"], ["1"])
        await eventually(lambda: not any(_lives(child) for child in children))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_no_server_outlives_the_bridge(number: signal.Signals, valkey_url: str, tmp_path: Path) -> None:
    """Not even one that will not end, nor what it has started."""
    config = write_bridge_config(tmp_path, valkey_url, odd=stranger("stubborn", tmp_path))
    async with running_bridge(config) as bridge, open_caller(valkey_url) as caller:
        await caller.until_registered("odd.act")
        processes = [psutil.Process(int(pid)) for pid in (tmp_path / "pids").read_text().split()]
        assert all(process.is_running() for process in processes)
        bridge.send_signal(number)
        assert await bridge.wait() == (0 if number == signal.SIGTERM else -signal.SIGKILL)
        await eventually(lambda: not any(_lives(process) for process in processes))


def _lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def test_a_server_without_its_secret_is_left_out(valkey_url: str, tmp_path: Path) -> None:
    """And told, by the name of what is missing; the others are served, and no secret is in the log."""
    without = {**sound(tmp_path), "env": {"TOKEN": "${env:NOT_THERE}"}}
    with_one = {**sound(tmp_path), "env": {"TOKEN": "${env:TOKEN}"}}
    config = write_bridge_config(tmp_path, valkey_url, one=without, two=with_one)
    async with running_bridge(config, environ={"TOKEN": SECRET}) as bridge, open_caller(valkey_url) as caller:
        await caller.until_registered("two.add")
        (told,) = bridge.logged("mcp_server_without_secret")
        assert (told["server"], told["missing"]) == ("one", "NOT_THERE")
        assert SECRET not in "\n".join(bridge.output)


async def test_a_bridge_starts_before_its_redis_and_its_servers(tmp_path: Path, valkey_url: str) -> None:
    """It waits for both; here Redis is there, and the server never is."""
    config = write_bridge_config(tmp_path, valkey_url, gone={"command": ["no-such-program"]})
    async with running_bridge(config) as bridge:
        lost = await bridge.until_logged("mcp_server_lost")
        assert lost["why"] == "its command cannot be started; is it installed, and in PATH?"


async def test_stderr_of_servers_is_shown_to_who_asks_for_it(valkey_url: str, tmp_path: Path) -> None:
    """It may hold anything, and so goes nowhere by itself."""
    noisy = {"command": ["sh", "-c", "echo a-word-on-stderr >&2; sleep 1"]}
    config = write_bridge_config(tmp_path, valkey_url, noisy=noisy)
    async with running_bridge(config) as bridge:
        await bridge.until_logged("mcp_server_lost")
        assert "a-word-on-stderr" not in bridge.output
    async with running_bridge(config, "--stderr") as bridge:
        await bridge.until(lambda line: True if line == "a-word-on-stderr" else None)


@pytest.mark.parametrize(
    ("tables", "arguments", "code", "says"),
    [
        ({}, (), 78, "there is no MCP server to be bridged: add a table [mcp.<name>]"),
        ({"x": {"command": []}}, (), 78, "mcp.x: needs a `command`"),
        ({"x": {"command": ["true"]}}, ("--redis", "nonsense"), 78, "--redis: "),
        ({"x": {"command": ["true"]}}, ("--nonsense",), 2, "--nonsense"),
    ],
)
async def test_what_cannot_be_served_is_told(
    tables: dict[str, Any], arguments: tuple[str, ...], code: int, says: str, tmp_path: Path
) -> None:
    """In one line, with the exit code of its kind."""
    config = write_bridge_config(tmp_path, "redis://127.0.0.1:1/0", **tables)
    async with BridgeProcess("--config", str(config), *arguments) as bridge:
        assert await bridge.wait() == code
        assert says in bridge.output[-1]


async def test_without_the_extra_it_is_told_what_to_install(tmp_path: Path) -> None:
    """Python is started without the SDK: its name is hidden."""
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as util\n"
        "find = util.find_spec\n"
        "util.find_spec = lambda name, package=None: None if name == 'mcp' else find(name, package)\n"
    )
    config = write_bridge_config(tmp_path, "redis://127.0.0.1:1/0", x={"command": ["true"]})
    async with BridgeProcess("--config", str(config), environ={"PYTHONPATH": str(tmp_path)}) as bridge:
        assert await bridge.wait() == 78
        assert (
            bridge.output == ["llm-routerd: mcp-bridge needs the MCP SDK: pip install 'llm-routerd[mcp]'"]
            or "pip install 'llm-routerd[mcp]'" in bridge.output[-1]
        )


async def test_calls_of_one_server_run_at_once(valkey_url: str, tmp_path: Path) -> None:
    """A slow one keeps none waiting."""
    config = write_bridge_config(tmp_path, valkey_url, files=sound(tmp_path))
    async with running_bridge(config), open_caller(valkey_url) as caller:
        await caller.until_registered("files.slow", "files.add")
        slow = asyncio.create_task(caller.asked("files.slow", seconds=3.0))
        await eventually((tmp_path / "slow-began").exists)
        assert await caller.asked("files.add", {"a": 1, "b": 2}) == {"result": '{"total":3}'}
        assert (await slow)["error"] == "the tool has not ended in time, and may have acted"
