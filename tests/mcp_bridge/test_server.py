"""The connection to one MCP server, over stdio and over HTTP: what becomes of calls, and of the server."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from llm_routerd.client.tool_worker import ToolError
from llm_routerd.config.mcp import McpServer
from llm_routerd.mcp_bridge import server as server_module
from tests.mcp_bridge.servers import TRACE, connection, sound_server, stranger
from tests.support.eventually import eventually
from tests.support.processes import ChildProcess, free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@asynccontextmanager
async def http_server(folder: Path, port: int) -> AsyncIterator[ChildProcess]:
    """The server that is made with the SDK, over HTTP."""
    arguments = ("-m", "tests.support.mcp_server", "http", str(port))
    async with ChildProcess(*arguments, environ={"MCP_TEST_FOLDER": str(folder)}) as process:
        await process.until(lambda line: True if "Uvicorn running" in line else None)
        yield process
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)  # it would wait for streams that are open


@asynccontextmanager
async def table_of(way: str, folder: Path) -> AsyncIterator[McpServer]:
    """The table of the sound server, which is there."""
    if way == "stdio":
        yield sound_server(folder)
    else:
        port = free_port()
        async with http_server(folder, port):
            yield McpServer(name="t", url=f"http://127.0.0.1:{port}/mcp", headers={"Authorization": "Bearer x"})


@pytest.mark.parametrize("way", ["stdio", "http"])
async def test_tools_are_called_and_their_answers_told(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 2026-07-28: results, errors, questions to a person; with the trace, and with nothing of our environment."""
    monkeypatch.setenv("SECRET_OF_THE_BRIDGE", "x")
    async with table_of(way, tmp_path) as table, connection(table) as connected:
        assert await connected.call("add", a=1, b=2) == b'{"total":3}'
        assert await connected.call("write", text="hello") == b'{"result":"written"}'
        assert await connected.call("picture") == "a red dot\n[image, image/png, 4 bytes: not shown]"
        assert await connected.call("told") == f"{TRACE} 2026-07-28 False"
        for tool, told in (
            ("fail", "Error executing tool fail"),
            ("nothing-like-it", "Unknown tool"),
            ("ask", "not carried out: the tool wants an answer first.*it asks: Delete all 17 files?"),
        ):
            with pytest.raises(ToolError, match=told):
                await connected.call(tool)
        with pytest.raises(ToolError):
            await connected.call("add", a="no number")
    assert (tmp_path / "written").read_text() == "hello\n"


@pytest.mark.parametrize("way", ["stdio", "http"])
async def test_a_changed_list_is_heeded(way: str, tmp_path: Path) -> None:
    """Told of by `subscriptions/listen`; what is new has a name that can be one, and what has gone is gone."""
    async with table_of(way, tmp_path) as table, connection(table) as connected:
        assert "t.picture" in connected.names
        await connected.call("learn")
        await eventually(lambda: "t.learnt_tool" in connected.names)
        assert "t.picture" not in connected.names
        assert await connected.call("learnt/tool", a=2, b=3) == b'{"total":5}'


@pytest.mark.parametrize("way", ["stdio", "http"])
async def test_a_call_that_is_cancelled_is_cancelled_at_the_server(way: str, tmp_path: Path) -> None:
    """As the tool worker does at the call's deadline; the connection is as good as before."""
    async with table_of(way, tmp_path) as table, connection(table) as connected:
        calling = asyncio.create_task(connected.call("slow"))
        await eventually((tmp_path / "slow-began").exists)
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
        await eventually((tmp_path / "slow-cancelled").exists)
        assert await connected.call("add", a=1, b=2) == b'{"total":3}'


async def test_a_server_that_crashes_is_started_again(tmp_path: Path) -> None:
    """The call it died of is not issued again: what it did is not known; the next one waits until it is back."""
    async with connection(stranger("crash", tmp_path)) as connected:
        with capture_logs() as logs:
            with pytest.raises(
                ToolError, match=r"^unknown outcome: the server gave no valid answer; it may have acted"
            ):
                await connected.call("act")
            with pytest.raises(ToolError, match=r"^the server gave no valid answer$"):
                await connected.call("act", may_repeat=True)
        assert [each["why"] for each in logs if each["event"] == "mcp_server_lost"] == ["it has ended with exit code 7"]
    assert (tmp_path / "acted").read_text() == "x\n" * 2
    assert len(connected.offers) >= 2


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("ends", "it has ended with exit code 4"),
        ("flood", "it sent a message of more than 8388608 bytes"),
        ("no-list", "it does not keep to the protocol (ValidationError)"),
    ],
)
async def test_a_server_that_cannot_be_used_is_told(
    how: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And tried again, later and later; calls are answered at once, or nearly."""
    monkeypatch.setattr(server_module, "_WAIT_SECONDS", 0.1)
    with capture_logs() as logs:
        async with connection(stranger(how, tmp_path), wait=False) as connected:
            await eventually(lambda: len(logs) >= 2, seconds=20)
            server_wait = server_module._WAIT_SECONDS
            try:
                server_module._WAIT_SECONDS = 0.1
                with pytest.raises(ToolError, match="not carried out: the server of this tool is away"):
                    await connected.call("act")
            finally:
                server_module._WAIT_SECONDS = server_wait
    assert {each["why"] for each in logs} == {why}
    assert all(each["event"] == "mcp_server_lost" and each["server"] == "t" for each in logs)


async def test_a_command_that_is_not_there_is_told(tmp_path: Path) -> None:
    """With what to do; so is a folder that is not."""
    for table, why in (
        (McpServer(name="t", command=("no-such-program",)), "its command cannot be started; is it installed"),
        (McpServer(name="t", command=("true",), cwd="/nowhere"), "it cannot be started: No such file"),
        (McpServer(name="t", url=f"http://127.0.0.1:{free_port()}/mcp"), "it cannot be reached (ConnectError)"),
    ):
        with capture_logs() as logs:
            async with connection(table, wait=False):
                await eventually(lambda logs=logs: logs)  # type: ignore[misc]
        assert logs[0]["why"].startswith(why)


async def test_tools_of_a_server_that_stays_away_are_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not at once: one that is started anew is soon back."""
    monkeypatch.setattr(server_module, "_AWAY_SECONDS", 1.0)
    there = tmp_path / "server.py"
    there.write_text("import runpy, sys; sys.argv[1] = 'crash'; runpy.run_path(sys.argv[2], run_name='__main__')")
    table = stranger("crash", tmp_path)
    table = McpServer(name="t", command=(sys.executable, str(there), "crash", table.command[1]), env=table.env)
    async with connection(table) as connected:
        there.unlink()
        with pytest.raises(ToolError):
            await connected.call("act")
        assert connected.names == {"t.act"}
        await eventually(lambda: not connected.offers[-1])


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("noise", "done"),
        ("not-utf-8", "d\N{REPLACEMENT CHARACTER}"),
        ("sample", "refused refused"),
        ("twice", "done"),
        ("pages", "done"),
        ("many", "done"),
    ],
)
async def test_what_is_merely_odd_does_no_harm(how: str, told: str, tmp_path: Path) -> None:
    """Noise on stdout, no UTF-8, wishes for a model or a person, lists without end; at 2025-11-25."""
    async with connection(stranger(how, tmp_path)) as connected:
        assert await connected.call("act") == told
        assert len(connected.offers[0]) <= 10_000


async def test_a_result_of_ten_megabytes_is_bounded(tmp_path: Path) -> None:
    """One of two is cut; one that is longer than any message may be ends the connection, and the call."""
    async with connection(stranger("long", tmp_path)) as connected:
        assert await connected.call("act") == "y" * 65_537
    async with connection(stranger("huge", tmp_path)) as connected:
        with pytest.raises(ToolError, match="unknown outcome"):
            await connected.call("act")


async def test_a_result_that_is_none_is_an_error(tmp_path: Path) -> None:
    """The tool has acted all the same."""
    async with connection(stranger("no-result", tmp_path)) as connected:
        with pytest.raises(ToolError, match="unknown outcome: the server gave no valid answer"):
            await connected.call("act")
        assert connected.server.is_connected


async def test_hostile_schemas_and_results_take_no_time(tmp_path: Path) -> None:
    """Results are judged by the daemon, with an engine that is bounded; the SDK's would take for ever."""
    async with connection(stranger("bomb", tmp_path)) as connected:
        assert connected.names == {"t.act"}
        started = time.monotonic()
        assert await connected.call("act") == b'{"text":"' + b"a" * 40 + b'!"}'
        assert time.monotonic() - started < 2


async def test_a_changed_list_of_an_earlier_protocol_is_heeded(tmp_path: Path) -> None:
    """Told of by a notification."""
    async with connection(stranger("more", tmp_path)) as connected:
        assert connected.names == {"t.act"}
        await connected.call("act")
        await eventually(lambda: connected.names == {"t.act", "t.new"})


async def test_a_server_that_hangs_is_told_that_nobody_waits(tmp_path: Path) -> None:
    """By a notification; it may go on with other calls."""
    async with connection(stranger("hang", tmp_path)) as connected:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await connected.call("act")
        await eventually((tmp_path / "cancelled").exists)


async def test_a_server_that_has_stopped_altogether_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not answer the next look."""
    monkeypatch.setattr(server_module, "_LOOK_SECONDS", 0.2)
    monkeypatch.setattr(server_module, "_LIST_SECONDS", 2.0)
    with capture_logs() as logs:
        async with connection(stranger("stop", tmp_path)) as connected:
            with pytest.raises(ToolError, match="unknown outcome"):
                await connected.call("act", text="x" * 1_000_000)  # more than a pipe holds
            await connected.until_connected()
    assert [each["why"] for each in logs if each["event"] == "mcp_server_lost"] == ["it does not answer in time"]
    assert (tmp_path / "acted").read_text() == "x\n"


async def test_a_server_of_ever_new_names_does_not_grow_the_bridge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The SDK keeps what it was told, for as long as the connection lasts."""
    monkeypatch.setattr(server_module, "_MOST_NEW_NAMES", 2)
    monkeypatch.setattr(server_module, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(server_module, "_LEAST_GAP_SECONDS", 0.01)
    with capture_logs() as logs:
        async with connection(stranger("ever-new", tmp_path)):
            await eventually(lambda: len(logs) > 1)
    assert logs[1]["why"] == "its tools have ever new names"


async def test_an_http_server_that_comes_back_is_found(tmp_path: Path) -> None:
    """A call while it is away was not carried out; once it is back, calls are."""
    port = free_port()
    async with (
        http_server(tmp_path, port) as process,
        connection(McpServer(name="t", url=f"http://127.0.0.1:{port}/mcp")) as connected,
    ):
        assert await connected.call("add", a=1, b=1) == b'{"total":2}'
        process.send_signal(signal.SIGKILL)
        await process.wait()
        with pytest.raises(ToolError, match="not carried out: the server refused the call: it cannot be reached"):
            await connected.call("add", a=1, b=1)
        async with http_server(tmp_path, port):
            await connected.until_connected()
            assert await connected.call("add", a=1, b=1) == b'{"total":2}'
