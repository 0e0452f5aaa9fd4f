"""A server that is too old, or a cluster that keeps our keys in several places: nobody works with it, and all say why."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import redis
from msgspec.structs import replace
from redis.asyncio import Redis
from structlog.testing import capture_logs

from llm_routerd.cli.exits import Exit
from llm_routerd.cli.main import main
from llm_routerd.client import Client
from llm_routerd.config.tree import MetricsConfig, RedisConfig
from llm_routerd.errors import UnsuitableServerError
from llm_routerd.queue.connection import ConnectionFactory, MovedError, PipeState, RedisError
from tests.support.daemons import write_config
from tests.support.endings import final_of
from tests.support.eventually import eventually
from tests.support.fakes import FakeBackend, says
from tests.support.processes import DaemonProcess, free_port
from tests.support.proxy import open_proxy
from tests.support.queue import add, open_client
from tests.support.servers import ValkeyProcess, running_valkey
from tests.support.workers import make_config, run_worker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from tests.support.proxy import Proxy

OLD = (b"redis", b"6.2.14")
TOO_OLD = "Redis 6.2.14 is too old; Redis 7.0 or newer is needed"
LLM = "{llm}"
METRICS = "{llm}_router_metrics"
SLOTS = 16_384
TAGGED_SLOT = 7494  # of {llm}


def cluster_node() -> AbstractContextManager[ValkeyProcess]:
    """A server in cluster mode, without slots; by default its second port is 10,000 above the first, and may not be one."""
    config = {"cluster-enabled": "yes", "cluster-port": str(free_port()), "cluster-require-full-coverage": "no"}
    return running_valkey(config, tcp=True)


@pytest.fixture(scope="module")
def server() -> Iterator[ValkeyProcess]:
    """A server that a proxy makes older."""
    with running_valkey(tcp=True) as server:
        yield server


@pytest.fixture
async def old(server: ValkeyProcess) -> AsyncIterator[Proxy]:
    """A way to it, on which it says that it is Redis 6.2."""
    server.reset()
    async with open_proxy(server.port) as proxy:
        proxy.speaks_as = OLD
        yield proxy


@pytest.fixture(scope="module")
def lone_node() -> Iterator[ValkeyProcess]:
    """A server in cluster mode."""
    with cluster_node() as node:
        yield node


async def ends_with_78(config: Path) -> str:
    """The last line of a daemon that does not begin to work."""
    async with DaemonProcess("--config", str(config)) as daemon:
        assert await daemon.wait() == Exit.CONFIGURATION
        assert [line for line in daemon.output if json_event(line) not in {"starting", None}] == []
        return daemon.output[-1]


def json_event(line: str) -> str | None:
    """The event of a line of the log; None: it is none."""
    return str(json.loads(line)["event"]) if line.startswith("{") else None


async def test_daemon_ends_at_a_server_that_is_too_old_and_does_nothing_there(old: Proxy, tmp_path: Path) -> None:
    """One line, exit code 78, by which systemd does not start it again; no group, no consumer."""
    assert await ends_with_78(write_config(tmp_path, old.url, "http://127.0.0.1:9")) == f"llm-routerd: {TOO_OLD}"
    async with open_client(old.url) as client:
        assert await client.keys("*") == []


async def test_worker_does_not_work_with_an_older_server_that_takes_the_place_of_a_good_one(old: Proxy) -> None:
    """It is not ready, says so once, and goes on trying: what is put right is used at once."""
    old.speaks_as = None
    with capture_logs() as logs:
        async with run_worker(old.url, {"local": FakeBackend(says("Hi"))}) as worker:
            old.speaks_as = OLD
            await old.drop()
            await eventually(lambda: worker.shards[0].pipe.state is PipeState.UNUSABLE)
            async with open_client(old.url) as client:
                entry = await add(client)
                tries = old.connections
                await eventually(lambda: old.connections >= tries + 3)
                assert not worker.status().ready
                assert worker.status().why == TOO_OLD
                assert [line["why"] for line in logs if line.get("state") == "unusable"] == [TOO_OLD]
                assert not await client.exists(f"llm:events:{entry}")
                old.speaks_as = None
                await final_of(client, entry)
                await eventually(lambda: worker.status().ready)


async def test_client_says_what_is_wrong_with_an_older_server(old: Proxy) -> None:
    """At once, and nothing is written."""
    async with Client(old.url) as client:
        for call in (client.ping, partial(client.submit, prompt="Why?"), partial(client.cancel, "r1")):
            async with asyncio.timeout(5):
                with pytest.raises(UnsuitableServerError) as caught:
                    await call()
            assert str(caught.value) == TOO_OLD
    async with open_client(old.url) as theirs:
        assert await theirs.keys("*") == []


async def test_client_with_the_connections_of_its_caller_says_so_when_something_is_refused(old: Proxy) -> None:
    """What an older server does not do is no puzzle."""
    async with Redis.from_url(old.url) as theirs:
        await theirs.set("llm:requests", "no stream")
        with pytest.raises(UnsuitableServerError) as caught:
            await Client(theirs).submit(prompt="Why?")
        assert str(caught.value) == TOO_OLD


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, list[str]]:
    """A command's exit code, and what it printed."""
    code = main(words)
    captured = capsys.readouterr()
    return code, (captured.out + captured.err).splitlines()


@pytest.mark.parametrize("words", [("submit", "Why?"), ("cancel", "r1"), ("follow", "r1"), ("dead", "list")])
async def test_commands_say_the_same_in_one_line(
    old: Proxy, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    """With the exit code of the daemon."""
    ended = await asyncio.to_thread(run, capsys, *words, "--redis", old.url)
    assert ended == (Exit.CONFIGURATION, [f"llm-routerd: {TOO_OLD}"])


async def test_check_says_that_it_is_too_old_and_guesses_no_further(
    old: Proxy, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """No word of rights or settings, which mean nothing there."""
    config = str(write_config(tmp_path, old.url, "http://127.0.0.1:9"))
    code, lines = await asyncio.to_thread(run, capsys, "check", "--config", config)
    told = [line for line in lines if not line[5:].startswith(("configuration", "deployment", "chain"))]
    assert code == Exit.FAILED
    assert told == [f"OK   redis: {old.url} answers", f"FAIL server: {TOO_OLD}"]


@pytest.mark.parametrize(
    ("prefix", "channel", "says"),
    [
        ("llm", METRICS, 'lie in several slots; use [redis] prefix = "{llm}" (--prefix)'),
        (LLM, "llm_router_metrics", f'in another slot than the queue; use [metrics] channel = "{METRICS}"'),
    ],
    ids=["the queue", "the metrics"],
)
async def test_cluster_that_keeps_our_keys_in_several_places_is_refused(
    lone_node: ValkeyProcess,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    prefix: str,
    channel: str,
    says: str,
) -> None:
    """By the daemon and by `check`, with what to write."""
    config = write_config(tmp_path, lone_node.url, "http://127.0.0.1:9")
    text = config.read_text().replace("[daemon]", f'prefix = "{prefix}"\n[daemon]')
    config.write_text(text.replace("[metrics]", f'[metrics]\nchannel = "{channel}"'))
    assert says in await ends_with_78(config)
    code, lines = await asyncio.to_thread(run, capsys, "check", "--config", str(config))
    (line,) = [line for line in lines if line.startswith("FAIL server")]
    assert code == Exit.FAILED
    assert says in line


async def test_client_at_a_cluster_says_which_prefix_would_do(lone_node: ValkeyProcess) -> None:
    """At once: a request there would never be accepted."""
    async with Client(lone_node.url) as client, asyncio.timeout(5):
        with pytest.raises(UnsuitableServerError, match=r'use \[redis\] prefix = "\{llm\}"'):
            await client.submit(prompt="Why?")


@pytest.fixture(scope="module")
def cluster() -> Iterator[tuple[ValkeyProcess, ValkeyProcess]]:
    """Two nodes, of which the second one has our slot."""
    with cluster_node() as first, cluster_node() as second:
        asyncio.run(join(first, second))
        yield first, second


async def join(first: ValkeyProcess, second: ValkeyProcess) -> None:
    """Make a cluster of two nodes; each takes half of the slots."""
    async with open_client(first.url) as one, open_client(second.url) as other:
        half = SLOTS // 2
        assert half > TAGGED_SLOT
        await one.execute_command("CLUSTER", "ADDSLOTSRANGE", half, SLOTS - 1)
        await other.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, half - 1)
        bus = (await other.config_get("cluster-port"))["cluster-port"]
        await one.execute_command("CLUSTER", "MEET", "127.0.0.1", second.port, bus)
        async with asyncio.timeout(20):
            while not all([await is_whole(node) for node in (one, other)]):  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.02)


async def is_whole(node: Any) -> bool:
    """Whether it serves, and knows of every slot."""
    info = await node.execute_command("CLUSTER", "INFO")
    return "cluster_state:ok" in info and f"cluster_slots_assigned:{SLOTS}" in info


async def test_cluster_that_keeps_our_keys_in_one_slot_is_served_by_whichever_node_is_named(
    cluster: tuple[ValkeyProcess, ValkeyProcess],
) -> None:
    """Worker and client go where the slot is; metrics are there too."""
    config = replace(make_config(), redis=RedisConfig(prefix=LLM), metrics=MetricsConfig(channel=METRICS))
    url = cluster[0].tcp_url
    async with run_worker(url, {"local": FakeBackend(says("Hi"))}, config=config), Client(url, prefix=LLM) as client:
        async with asyncio.timeout(20):
            events = await asyncio.gather(*[client.result(await client.submit(prompt="Why?")) for _ in range(3)])
        assert {event.type for event in events} == {"result"}
        async with open_client(cluster[1].url) as there:
            assert await there.xlen(METRICS) == 3


def test_client_that_cannot_go_there_says_where_our_keys_are(
    cluster: tuple[ValkeyProcess, ValkeyProcess], capsys: pytest.CaptureFixture[str]
) -> None:
    """By a socket it does not get to the other node: the request was not accepted, and nobody waits for it."""
    where = f"this node of the cluster does not have our keys; they are at 127.0.0.1:{cluster[1].port}"
    ended = run(capsys, "submit", "Why?", "--redis", cluster[0].url, "--prefix", LLM)
    assert ended == (Exit.UNAVAILABLE, [f"llm-routerd: not accepted: {where}"])


@pytest.mark.parametrize("node", [0, 1], ids=["without the slot", "with it"])
def test_dead_letters_are_dealt_with_from_whichever_node_is_named(
    cluster: tuple[ValkeyProcess, ValkeyProcess], capsys: pytest.CaptureFixture[str], node: int
) -> None:
    """List, show, retry and drop go where the slot is, each as the first thing that is asked for."""
    data = json.dumps({"fields": {"prompt": "Why?"}})
    with redis.Redis.from_url(cluster[1].url) as there:
        letters = [str(there.xadd(f"{LLM}:dead", {"lane": "normal", "data": data}).decode()) for _ in range(2)]
        try:
            for words, says in (
                (("list",), letters[0]),
                (("show", letters[0]), "Why?"),
                (("retry", letters[0]), "queued again"),
                (("drop", letters[1]), "dropped"),
            ):
                code, lines = run(capsys, "dead", *words, "--redis", cluster[node].tcp_url, "--prefix", LLM)
                assert code == Exit.OK
                assert says in "\n".join(lines)
            assert there.xlen(f"{LLM}:requests") == 1
            assert there.xlen(f"{LLM}:dead") == 0
        finally:
            there.delete(f"{LLM}:dead", f"{LLM}:requests")


async def test_node_that_a_cluster_named_and_that_is_gone_is_not_asked_for_ever(server: ValkeyProcess) -> None:
    """The next try goes to the one that the URL names, which knows of another."""
    gone = MovedError(f"{TAGGED_SLOT} 127.0.0.1:1")
    factory = ConnectionFactory(server.tcp_url, client_name="test")
    factory.whereabouts.lost(gone)
    with pytest.raises(RedisError):
        await factory.connect()
    await (await factory.connect()).disconnect()
    async with Client(server.tcp_url, patience_seconds=5) as client:
        here = client.shards.all[0].server
        assert here is not None
        here.lost(gone)
        assert await client.server_time_ms() > 0
