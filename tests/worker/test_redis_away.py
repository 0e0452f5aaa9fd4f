"""A worker whose Redis goes away, comes back with or without its data, or cannot serve: a real Valkey, fake models."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace
from structlog.testing import capture_logs

from llm_routerd.protocol.codes import AttemptCode
from llm_routerd.queue import outbox, reader
from llm_routerd.queue.connection import Backoff, ConnectionFactory, Pipe, PipeState, pipe
from llm_routerd.queue.reader import Reader
from llm_routerd.worker import shard
from tests.support.endings import final_of, nothing_left
from tests.support.eventually import eventually
from tests.support.fakes import FakeBackend, babbles, fails, hangs, says, waits_for
from tests.support.proxy import open_proxy
from tests.support.queue import add, events_of, open_client
from tests.support.servers import ValkeyProcess, running_valkey
from tests.support.workers import CLOUD, DAEMON, LOCAL, make_config, run_worker

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator

    from llm_routerd.protocol.call import Call, Delta, Finish
    from llm_routerd.worker.worker import Worker
    from tests.support.fakes import Script

KEEPS_DATA = {"appendonly": "yes", "appendfsync": "always"}
FORGETS = {"appendonly": "no"}
LONG_LEASE = replace(DAEMON, lease_seconds=30.0)


@pytest.fixture
def server() -> Iterator[ValkeyProcess]:
    """A server that keeps its data over a restart."""
    with running_valkey(KEEPS_DATA, tcp=True) as server:
        yield server


@pytest.fixture
def tries(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with every try to connect."""
    seen: list[int] = []
    connect = ConnectionFactory.connect

    async def counted(factory: ConnectionFactory) -> Any:
        seen.append(len(seen))
        return await connect(factory)

    monkeypatch.setattr(ConnectionFactory, "connect", counted)
    return seen


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A silent connection counts as dead after half a second."""
    monkeypatch.setattr(pipe, "BATCH_SECONDS", 0.5)
    monkeypatch.setattr(reader, "BLOCK_MS", 200)
    monkeypatch.setattr(reader, "GRACE_SECONDS", 0.5)


def told(logs: list[Any], event: str) -> list[Any]:
    """The lines of the log with this event."""
    return [line for line in logs if line["event"] == event]


def says_after(gate: asyncio.Event, *texts: str) -> Script:
    """Half of the texts, the other half once the gate is open, then the end."""
    ending = says(*texts[len(texts) // 2 :])

    async def script(backend: FakeBackend, call: Call) -> AsyncGenerator[Delta | Finish, None]:
        async for item in says(*texts[: len(texts) // 2])(backend, call):
            if not hasattr(item, "finish_reason"):
                yield item
        await gate.wait()
        async for item in ending(backend, call):
            yield item

    return script


@pytest.mark.parametrize("config", [KEEPS_DATA, FORGETS], ids=["with-its-data", "without-its-data"])
async def test_answer_that_was_finished_while_redis_was_stopped_is_delivered(config: dict[str, str]) -> None:
    """The model has been paid: its answer waits for Redis, and the next request is answered too."""
    gate = asyncio.Event()
    model = FakeBackend(waits_for(gate))
    with running_valkey(config, tcp=True) as server:
        async with run_worker(server.url, {"local": model}) as worker:
            async with open_client(server.url) as client:
                entry = await add(client)
                await eventually(lambda: model.running == 1)
            await asyncio.to_thread(server.kill)
            gate.set()
            await eventually(lambda: worker.shards[0].pipe.state is PipeState.AWAY and model.running == 0)
            await asyncio.to_thread(server.start)
            async with open_client(server.url) as client:
                assert (await final_of(client, entry))[0] == "result"
                assert (await final_of(client, await add(client)))[0] == "result"
                assert len(model.calls) == 2
                await nothing_left(client)


async def test_tokens_that_came_while_redis_was_stopped_are_delivered_in_order(server: ValkeyProcess) -> None:
    """The transcript has no hole and nothing twice."""
    gate = asyncio.Event()
    texts = [f"word{number} " for number in range(40)]
    model = FakeBackend(says_after(gate, *texts))
    async with run_worker(server.url, {"local": model}) as worker:
        async with open_client(server.url) as client:
            entry = await add(client, stream='"live"')
            await eventually(lambda: model.running == 1)
        await asyncio.to_thread(server.kill)
        gate.set()
        await eventually(lambda: worker.shards[0].pipe.state is PipeState.AWAY)
        await asyncio.to_thread(server.start)
        async with open_client(server.url) as client:
            await final_of(client, entry)
            events = await events_of(client, entry)
            assert "".join(data["text"] for _, kind, data in events if kind == "token") == "".join(texts)
            assert len([kind for _, kind, _ in events if kind == "attempt"]) == 1


async def test_stopped_redis_is_told_once_and_not_once_per_try(server: ValkeyProcess, tries: list[int]) -> None:
    """One line when it goes, one when it is back."""
    with capture_logs() as logs:
        async with run_worker(server.url, {"local": FakeBackend(says("hi"))}) as worker:
            await asyncio.to_thread(server.stop)
            await eventually(lambda: worker.shards[0].pipe.state is PipeState.AWAY)
            before = len(tries)
            await eventually(lambda: len(tries) > before + 8)
            assert not worker.status().ready
            await asyncio.to_thread(server.start)
            await eventually(lambda: worker.status().ready)
            assert len(told(logs, "redis_not_ready")) == 1
            assert len(told(logs, "redis_ready")) == 2  # at the start, too


async def test_replica_that_refuses_writes_is_told_once_and_costs_no_call(
    server: ValkeyProcess, tries: list[int]
) -> None:
    """READONLY: it lets itself be connected to, and is not ready for all that; a failover ends it."""
    gate = asyncio.Event()
    model = FakeBackend(waits_for(gate))
    with capture_logs() as logs:
        async with run_worker(server.url, {"local": model}) as worker, open_client(server.url) as client:
            entry = await add(client)
            await eventually(lambda: model.running == 1)
            await client.execute_command("REPLICAOF", "127.0.0.1", "1")
            gate.set()
            await eventually(lambda: worker.shards[0].pipe.state is PipeState.AWAY)
            before = len(tries)
            await eventually(lambda: len(tries) > before + 8)
            assert not worker.status().ready
            await client.execute_command("REPLICAOF", "NO", "ONE")
            assert (await final_of(client, entry))[0] == "result"
            await eventually(lambda: worker.status().ready)
            (line,) = told(logs, "redis_not_ready")
            assert line["why"].startswith("the server is a replica")
            assert len(told(logs, "redis_ready")) == 2
            assert len(model.calls) == 1


async def test_server_that_is_loading_is_waited_for(server: ValkeyProcess) -> None:
    """LOADING at the start: not ready, told once, and then everything goes on."""
    with capture_logs() as logs:
        async with open_proxy(server.port) as proxy, open_client(server.url) as client:
            proxy.is_loading = True
            entry = await add(client)
            async with run_worker(proxy.url, {"local": FakeBackend(says("hi"))}, until_ready=False) as worker:
                await eventually(lambda: proxy.connections > 4)
                assert not worker.status().ready
                proxy.is_loading = False
                assert (await final_of(client, entry))[0] == "result"
                (line,) = told(logs, "redis_not_ready")
                assert "BusyLoading" in line["why"]


async def test_redis_without_memory_gets_no_answer_and_is_asked_for_no_request(server: ValkeyProcess) -> None:
    """It stops reading and spending, keeps what it has, and goes on when there is memory again."""
    gate = asyncio.Event()
    model = FakeBackend(waits_for(gate))
    config = make_config(daemon=replace(DAEMON, concurrency=1))
    with capture_logs() as logs:
        async with (
            run_worker(server.url, {"local": model}, config=config) as worker,
            open_client(server.url) as client,
        ):
            entries = [await add(client) for _ in range(3)]
            await eventually(lambda: model.running == 1)
            await client.config_set("maxmemory", "1")
            gate.set()
            await eventually(lambda: worker.shards[0].pipe.state is PipeState.OUT_OF_MEMORY)
            await refuses_more_commands(client)
            assert not worker.status().ready
            assert (len(model.calls), model.running) == (1, 0)
            assert await client.xlen("llm:requests") == 3
            await client.config_set("maxmemory", "0")
            for entry in entries:
                assert (await final_of(client, entry))[0] == "result"
            assert len(model.calls) == 3
            assert len(told(logs, "redis_not_ready")) == 1
            await nothing_left(client)


async def refused_commands(client: Any) -> int:
    """How often the server has said OOM."""
    stats = await client.info("errorstats")
    return int(stats.get("errorstat_OOM", {}).get("count", 0))


async def refuses_more_commands(client: Any) -> None:
    """Wait until the server has said OOM a few times more."""
    before = await refused_commands(client)
    async with asyncio.timeout(10):
        while True:
            if await refused_commands(client) > before + 2:
                return
            await asyncio.sleep(0.05)


async def test_next_deployment_is_not_paid_while_its_attempt_cannot_be_told(server: ValkeyProcess) -> None:
    """Out of memory between two attempts: the second call waits."""
    gate = asyncio.Event()

    async def fails_late(backend: FakeBackend, call: Call) -> AsyncGenerator[Delta | Finish, None]:
        await gate.wait()
        async for item in fails(AttemptCode.UPSTREAM)(backend, call):
            yield item

    local, cloud = FakeBackend(fails_late), FakeBackend(says("from the cloud"))
    async with (
        run_worker(server.url, {"local": local, "cloud": cloud}) as worker,
        open_client(server.url) as client,
    ):
        entry = await add(client)
        await eventually(lambda: local.running == 1)
        await client.config_set("maxmemory", "1")
        gate.set()
        await eventually(lambda: worker.shards[0].pipe.state is PipeState.OUT_OF_MEMORY)
        assert cloud.calls == []
        await client.config_set("maxmemory", "0")
        assert (await final_of(client, entry))[1]["deployment"] == "cloud"


async def test_worker_that_was_overtaken_while_it_slept_calls_no_further_deployment(valkey_url: str) -> None:
    """Its model's time is over when it wakes; before it pays for the next call it finds that the request is not its."""
    gate = asyncio.Event()

    async def fails_late(backend: FakeBackend, call: Call) -> AsyncGenerator[Delta | Finish, None]:
        await gate.wait()
        async for item in fails(AttemptCode.UPSTREAM)(backend, call):
            yield item

    local, cloud = FakeBackend(fails_late), FakeBackend(says("never"))
    config = make_config(daemon=LONG_LEASE)
    async with (
        run_worker(valkey_url, {"local": local, "cloud": cloud}, config=config) as worker,
        open_client(valkey_url) as client,
    ):
        entry = await add(client)
        await eventually(lambda: local.running == 1)
        await client.xadd(f"llm:events:{entry}", {"type": "attempt", "data": "{}"}, id="2-0")
        gate.set()
        await eventually(lambda: not worker.in_flight)
        assert cloud.calls == []
        assert [event_id for event_id, _, _ in await events_of(client, entry)] == ["1-0", "2-0"]


@pytest.mark.usefixtures("impatient")
async def test_partition_that_swallows_packets_delays_the_answer_and_no_more(server: ValkeyProcess) -> None:
    """Nothing comes back, not even an error: the connection counts as dead in bounded time."""
    gate = asyncio.Event()
    model = FakeBackend(waits_for(gate))
    config = make_config(daemon=LONG_LEASE)
    with capture_logs() as logs:
        async with (
            open_proxy(server.port) as proxy,
            open_client(server.url) as client,
            run_worker(proxy.url, {"local": model}, config=config) as worker,
        ):
            entry = await add(client)
            await eventually(lambda: model.running == 1)
            proxy.swallows = True
            gate.set()
            await eventually(lambda: worker.shards[0].pipe.state is PipeState.AWAY)
            proxy.swallows = False
            assert (await final_of(client, entry))[0] == "result"
            assert (await final_of(client, await add(client)))[0] == "result"
            assert len(model.calls) == 2
            assert len(told(logs, "redis_not_ready")) == 1


async def test_request_whose_delivery_was_lost_on_the_way_is_answered_at_once(server: ValkeyProcess) -> None:
    """The reply of the blocking read never came: the new connection finds it, and it counts as no crash."""
    config = make_config(daemon=LONG_LEASE)
    async with (
        open_proxy(server.port) as proxy,
        open_client(server.url) as client,
        run_worker(proxy.url, {"local": FakeBackend(says("hi"))}, config=config),
    ):
        proxy.drops_next_delivery = True
        entry = await add(client)
        assert (await final_of(client, entry))[0] == "result"
        assert proxy.dropped == 1
        assert [data["delivery"] for _, kind, data in await events_of(client, entry) if kind == "attempt"] == [1]


@pytest.mark.parametrize("how", [("SCRIPT", "FLUSH"), ("CLIENT", "KILL", "TYPE", "normal")], ids=" ".join)
async def test_streamed_answer_survives(server: ValkeyProcess, how: tuple[str, ...]) -> None:
    """Scripts that were forgotten and connections that were killed are made again; the transcript is whole."""
    gate = asyncio.Event()
    texts = [f"word{number} " for number in range(10)]
    async with (
        open_client(server.url) as client,
        run_worker(server.url, {"local": FakeBackend(says_after(gate, *texts))}) as worker,
    ):
        entry = await add(client, stream='"live"')
        await eventually(lambda: worker.in_flight == 1)
        async with open_client(server.url) as operator:
            await operator.execute_command(*how)
        gate.set()
        await final_of(client, entry)
        events = await events_of(client, entry)
        assert "".join(data["text"] for _, kind, data in events if kind == "token") == "".join(texts)
        assert len([kind for _, kind, _ in events if kind == "attempt"]) == 1


async def test_claim_whose_reply_was_lost_is_found_with_the_new_connection(server: ValkeyProcess) -> None:
    """The dead worker's entry is ours already and we do not know it: the reconnected pipe looks, and no lease is waited for."""
    config = make_config(daemon=LONG_LEASE)
    async with (
        open_client(server.url) as client,
        run_worker(server.url, {"local": FakeBackend(says("hi"))}, config=config) as worker,
    ):
        # As if claimed: delivered to this consumer behind its back.
        await client.xgroup_create("llm:requests", "other", "0")
        entry = await client.eval(
            "local e = redis.call('XADD', KEYS[1], '*', 'prompt', 'hi')"
            "redis.call('XREADGROUP', 'GROUP', 'llm-router', 'w1', 'COUNT', 1, 'STREAMS', KEYS[1], '>')"
            "return e",
            1,
            "llm:requests",
        )
        name = next(each["id"] for each in await client.client_list() if each["name"] == pipe_name(worker))
        await client.client_kill_filter(_id=name)
        assert (await final_of(client, entry))[0] == "result"


def pipe_name(worker: Worker) -> str:
    """What the pipe's connection calls itself."""
    return worker.shards[0].pipe._factory._client_name


async def test_frozen_redis_makes_no_worker_take_over_from_a_living_one(server: ValkeyProcess) -> None:
    """All leases have run out when it thaws, and everybody lives: each renews before any takes over."""
    slow, other = FakeBackend(hangs("half")), FakeBackend(says("never"))
    config = make_config()
    config = replace(config, deployments={"local": replace(LOCAL, timeout=60.0, idle_timeout=60.0), "cloud": CLOUD})
    async with (
        open_client(server.url) as client,
        run_worker(server.url, {"local": slow}, consumer="w1", config=config) as first,
    ):
        entry = await add(client)
        await eventually(lambda: slow.running == 1)
        async with run_worker(server.url, {"local": other}, consumer="w2", config=config):
            server.freeze()
            await asyncio.sleep(1.5 * DAEMON.lease_seconds)
            server.thaw()
            await asyncio.sleep(DAEMON.lease_seconds)
            assert (first.in_flight, other.calls) == (1, [])
        assert [event_id for event_id, _, _ in await events_of(client, entry)] == ["1-0"]


async def test_model_that_never_ends_costs_bounded_memory_while_redis_stands_still(server: ValkeyProcess) -> None:
    """What cannot be written is not taken from the model."""
    chunk = "word " * 2000
    model = FakeBackend(babbles(chunk))
    config = make_config(daemon=LONG_LEASE)
    async with (
        open_client(server.url) as client,
        run_worker(server.url, {"local": model}, config=config) as worker,
    ):
        await add(client, stream='"live"')
        await eventually(lambda: model.running == 1)
        server.freeze()
        try:
            await eventually(lambda: worker.shards[0].broker.outbox.crowded)
            assert worker.shards[0].broker.outbox.unwritten <= outbox.MAX_PENDING_CHARS + len(chunk)
        finally:
            server.thaw()
        await eventually(lambda: not worker.shards[0].broker.outbox.crowded)


async def test_worker_stops_in_time_while_redis_is_away(server: ValkeyProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last words are bounded: systemd need not kill it."""
    monkeypatch.setattr(shard, "GOODBYE_SECONDS", 0.3)
    config = make_config(daemon=replace(DAEMON, drain_seconds=0.2))
    async with open_client(server.url) as client:
        async with run_worker(server.url, {"local": FakeBackend(hangs())}, config=config) as worker:
            await add(client)
            await eventually(lambda: worker.in_flight == 1)
            await client.aclose()
            await asyncio.to_thread(server.kill)
            await eventually(lambda: worker.shards[0].pipe.state is PipeState.AWAY)
            began = asyncio.get_running_loop().time()
        assert asyncio.get_running_loop().time() - began < 5.0


def in_order(logs: list[Any]) -> list[str]:
    """The log's lines on whether Redis is there and requests can be read."""
    told_of = {"redis_ready", "redis_not_ready", "cannot_read_requests", "reading_again"}
    return [line["event"] for line in logs if line["event"] in told_of]


@pytest.mark.parametrize("slower", [Reader, Pipe], ids=["the-reader", "the-pipe"])
async def test_request_after_an_outage_waits_for_neither_connections_pause(
    server: ValkeyProcess, monkeypatch: pytest.MonkeyPatch, tries: list[int], slower: type
) -> None:
    """Whichever is back first tells the other; and the log ends with what is true."""
    with capture_logs() as logs:
        async with run_worker(server.url, {"local": FakeBackend(says("hi"))}) as worker:
            await asyncio.to_thread(server.stop)
            await eventually(lambda: worker.shards[0].pipe.state is PipeState.AWAY)
            (one, other) = (
                (worker.shards[0]._reader, worker.shards[0].pipe)
                if slower is Reader
                else (worker.shards[0].pipe, worker.shards[0]._reader)
            )
            monkeypatch.setattr(one._backoff, "next_seconds", lambda: 60.0)
            monkeypatch.setattr(other._backoff, "next_seconds", lambda: 0.1)
            before = len(tries)
            await eventually(lambda: len(tries) > before + 3)
            await asyncio.to_thread(server.start)
            await eventually(lambda: worker.shards[0].pipe.state is PipeState.READY)
            began = asyncio.get_running_loop().time()
            async with open_client(server.url) as client:
                assert (await final_of(client, await add(client)))[0] == "result"
            assert asyncio.get_running_loop().time() - began < 0.5
    assert in_order(logs) == ["redis_ready", "redis_not_ready", "redis_ready"]


async def test_reader_that_fails_while_redis_is_away_is_not_said_to_afterwards(
    server: ValkeyProcess, monkeypatch: pytest.MonkeyPatch, tries: list[int]
) -> None:
    """Its reason is older than the return of Redis, however often it was refused meanwhile."""
    with capture_logs() as logs:
        async with run_worker(server.url, {"local": FakeBackend(says("hi"))}) as worker:
            await asyncio.to_thread(server.stop)
            await eventually(lambda: worker.shards[0].pipe.state is PipeState.AWAY)
            monkeypatch.setattr(reader, "TROUBLE_SECONDS", 0.1)
            monkeypatch.setattr(Backoff, "next_seconds", lambda _self: 0.02)
            before = len(tries)
            await eventually(lambda: len(tries) > before + 20)
            await asyncio.to_thread(server.start)
            await eventually(lambda: worker.status().ready)
            async with open_client(server.url) as client:
                assert (await final_of(client, await add(client)))[0] == "result"
            assert worker.status().ready
    assert in_order(logs) == ["redis_ready", "redis_not_ready", "redis_ready"]


async def test_reader_on_a_silent_connection_reads_again_soon_after_the_pipe_is_back(
    server: ValkeyProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not wait for the end of its blocking read; and what the server gave to that one is not lost."""
    monkeypatch.setattr(pipe, "BATCH_SECONDS", 0.3)
    config = make_config(daemon=LONG_LEASE)
    async with (
        open_proxy(server.port) as proxy,
        open_client(server.url) as client,
        run_worker(proxy.url, {"local": FakeBackend(says("hi"))}, config=config) as worker,
    ):
        await eventually(lambda: worker.shards[0]._reader._client_id is not None)
        assert (await final_of(client, await add(client)))[0] == "result"
        proxy.swallows = True
        await eventually(lambda: worker.shards[0].pipe.state is PipeState.AWAY)
        entry = await add(client)  # to the read that the server still believes in
        proxy.swallows = False
        await eventually(lambda: worker.shards[0].pipe.state is PipeState.READY)
        began = asyncio.get_running_loop().time()
        assert (await final_of(client, entry))[0] == "result"
        assert (await final_of(client, await add(client)))[0] == "result"
        assert asyncio.get_running_loop().time() - began < 2.0
