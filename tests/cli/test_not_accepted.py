"""What `submit` says of servers that answer and do not take a request: each of its kind, on real ones."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

import pytest
import redis

from llm_routerd.cli.exits import Exit
from llm_routerd.cli.main import main
from tests.support.eventually import waited_for
from tests.support.processes import lasting_port
from tests.support.servers import ValkeyProcess, running_valkey

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


class Servers(NamedTuple):
    """Two of the test's own, that may be maltreated, and a directory."""

    first: ValkeyProcess
    other: ValkeyProcess
    directory: Path


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Servers]:
    """Both of them, empty."""
    config = {"enable-debug-command": "yes", "enable-protected-configs": "yes", "busy-reply-threshold": "20"}
    with running_valkey(config, tcp=True) as first, running_valkey(tcp=True) as other:
        yield Servers(first, other, tmp_path)


def follow(servers: Servers) -> None:
    """Make the first one a replica of the other."""
    servers.first.command("REPLICAOF", "127.0.0.1", servers.other.port)
    waited_for(
        "a replica",
        lambda: servers.first.command("ROLE")[3] == "connected" or None,
        seconds=20,
        passing=redis.RedisError,
    )


def follow_and_take_writes(servers: Servers) -> None:
    """Which are lost at the next synchronization."""
    follow(servers)
    servers.first.command("CONFIG", "SET", "replica-read-only", "no")


def fill(servers: Servers) -> None:
    """Leave no memory."""
    servers.first.command("CONFIG", "SET", "maxmemory", "1")


def fail_to_save(servers: Servers) -> None:
    """Have it save into a directory that is gone."""
    gone = servers.directory / "gone"
    gone.mkdir()
    servers.first.command("CONFIG", "SET", "dir", str(gone))
    servers.first.command("CONFIG", "SET", "save", "3600 1")
    gone.rmdir()
    servers.first.command("BGSAVE")
    with servers.first.connect() as client:
        waited_for(
            "a failure to save",
            lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err" or None,
            seconds=20,
            passing=redis.RedisError,
        )


def lack_replicas(servers: Servers) -> None:
    """Want one."""
    servers.first.command("CONFIG", "SET", "min-replicas-to-write", "1")


def forbid(servers: Servers) -> None:
    """The user may do anything but that."""
    servers.first.command("ACL", "SETUSER", "default", "-xadd")


def load(servers: Servers) -> None:
    """Have it load its data for longer than anybody waits."""
    with servers.first.connect() as client, client.pipeline(transaction=False) as pipe:
        for number in range(3000):
            pipe.set(f"key-{number}", "x" * 100)
        pipe.execute()
    servers.first.command("CONFIG", "SET", "loading-process-events-interval-bytes", "1024")
    servers.first.command("CONFIG", "SET", "key-load-delay", "20000")
    _meanwhile(servers, "DEBUG", "RELOAD")


def run_a_script(servers: Servers) -> None:
    """One without end."""
    _meanwhile(servers, "EVAL", "while true do end", "0")


def _meanwhile(servers: Servers, *words: str) -> None:
    """Run a command that ends with the server, until it shows."""

    def run() -> None:
        with suppress(redis.RedisError):
            servers.first.command(*words)

    def refuses() -> bool | None:
        try:
            servers.first.command("PING")
        except (redis.ConnectionError, redis.ResponseError):
            return True
        return None

    threading.Thread(target=run, daemon=True).start()
    waited_for("a server that is busy", refuses, seconds=20, passing=redis.RedisError)


def occupy_the_lane(servers: Servers) -> None:
    """With a key of another type."""
    servers.first.command("SET", "llm:requests", "x")


TABLE: tuple[tuple[Callable[[Servers], None], Exit, str], ...] = (
    (
        follow,
        Exit.UNAVAILABLE,
        "the server is a replica, which takes no writes; name its primary, 127.0.0.1:{other}, in",
    ),
    (
        follow_and_take_writes,
        Exit.UNAVAILABLE,
        "what is written there is lost; name its primary, 127.0.0.1:{other}, in",
    ),
    (fill, Exit.UNAVAILABLE, "the server is out of memory (maxmemory); raise maxmemory"),
    (fail_to_save, Exit.UNAVAILABLE, "it cannot save its data (MISCONF); look at its log"),
    (lack_replicas, Exit.UNAVAILABLE, "no writes without its replicas (NOREPLICAS); look at them"),
    (forbid, Exit.NOT_ALLOWED, "the user may not run xadd"),
    (load, Exit.UNAVAILABLE, "the server is loading its data (BusyLoadingError); wait until it has"),
    (run_a_script, Exit.UNAVAILABLE, "the server is busy with a script (BUSY); wait for it"),
    (occupy_the_lane, Exit.UNAVAILABLE, "llm:requests is not a stream but a key of another type; RENAME or DEL it"),
)


@pytest.mark.parametrize(("spoil", "code", "says"), TABLE, ids=[spoil.__name__ for spoil, _, _ in TABLE])
def test_request_that_the_server_refuses_is_said_not_to_be_accepted(
    servers: Servers,
    spoil: Callable[[Servers], None],
    code: Exit,
    says: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Why, and what to do; never that it is queued, nor where to follow it."""
    spoil(servers)
    said = refusal(capsys, servers.first.tcp_url, code)
    assert says.format(other=servers.other.port) in said
    assert servers.other.command("XLEN", "llm:requests") == 0


def test_sentinel_accepts_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """As every command says it: with the form of URL that finds the server which does."""
    sentinel = ValkeyProcess({}, port=lasting_port(), sentinel=True)
    try:
        sentinel.start()
        said = refusal(capsys, sentinel.tcp_url, Exit.CONFIGURATION, begins="llm-routerd: a Sentinel answers")
        assert said.endswith(", which keeps no data; write redis+sentinel://host:port/service")
    finally:
        sentinel.close()


@pytest.mark.parametrize(
    ("scheme", "says"),
    [("redis", "the Cluster is down (CLUSTERDOWN); see that each slot"), ("redis+cluster", "serves slot")],
)
def test_cluster_without_the_slot_accepts_nothing(capsys: pytest.CaptureFixture[str], scheme: str, says: str) -> None:
    """A node that nobody has given a slot; by a plain URL as well."""
    node = ValkeyProcess({"cluster-enabled": "yes", "bind": "127.0.0.1"}, port=lasting_port())
    try:
        node.start()
        if scheme == "redis+cluster":  # one that somebody serves, and it is not ours
            node.command("CLUSTER", "ADDSLOTS", 0)
        url = node.tcp_url.replace("redis:", f"{scheme}:")
        assert says in refusal(capsys, url, Exit.UNAVAILABLE, "--prefix", "{llm}")
    finally:
        node.close()


def refusal(
    capsys: pytest.CaptureFixture[str],
    url: str,
    code: Exit,
    *more: str,
    begins: str = "llm-routerd: not accepted: ",
) -> str:
    """The last line that `submit` says of a request that is not accepted."""
    for words in (("--no-wait",), ()):
        assert main(["submit", "Why?", "--redis", url, "--timeout", "0.7", *words, *more]) == code
        said = capsys.readouterr()
        assert said.out == ""
        assert "picked" not in said.err
        assert "follow" not in said.err
        last = said.err.splitlines()[-1]
        assert last.startswith(begins)
    return last
