"""A reload names another Redis: what is in flight goes on there, and no model is asked twice."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace
from structlog.testing import capture_logs

from llm_routerd.queue.connection import ConnectionFactory, Pipe, PipeState
from llm_routerd.queue.connection.whereabouts import Fixed
from tests.support.endings import final_of
from tests.support.eventually import eventually
from tests.support.fakes import FakeBackend, says, waits_for
from tests.support.queue import add, open_client
from tests.support.servers import ValkeyProcess, running_valkey
from tests.support.workers import DAEMON, make_config, make_test_admission, run_worker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llm_routerd.config.tree import Config
    from llm_routerd.worker.worker import Worker

COUNT = 20
CONFIG = make_config(daemon=replace(DAEMON, concurrency=COUNT, lease_seconds=4.0, drain_seconds=8.0))


@pytest.fixture
def pair() -> Iterator[tuple[ValkeyProcess, ValkeyProcess]]:
    """A primary, and a replica of it that is in step."""
    with running_valkey({"repl-diskless-sync-delay": "0"}, tcp=True) as primary:
        of = {"replicaof": f"127.0.0.1 {primary.port}"}
        with running_valkey(of, tcp=True) as replica:
            while replica.command("ROLE")[3] != "connected":
                pass
            yield primary, replica


def at(server: ValkeyProcess) -> Config:
    """The configuration that names this server."""
    return replace(CONFIG, redis=replace(CONFIG.redis, url=server.tcp_url))


def swap(old: ValkeyProcess, new: ValkeyProcess) -> None:
    """The replica is the primary from now on, and the old one its replica: it takes no writes."""
    new.command("REPLICAOF", "NO", "ONE")
    old.command("REPLICAOF", "127.0.0.1", new.port)


async def begun(client: Any, model: FakeBackend) -> list[str]:
    """Requests whose model is being asked, and of which the replica knows it."""
    entries = [await add(client) for _ in range(COUNT)]
    await eventually(lambda: model.running == COUNT)
    await client.wait(1, 5000)
    return entries


def reload(worker: Worker, server: ValkeyProcess, model: FakeBackend) -> None:
    """As SIGHUP does it."""
    config = at(server)
    worker.reload(config, make_test_admission(config, {"local": model}, consumer="w1"))


@pytest.mark.parametrize("is_stopping", [False, True])
async def test_what_is_in_flight_is_answered_at_the_primary_that_a_reload_names(
    pair: tuple[ValkeyProcess, ValkeyProcess], *, is_stopping: bool
) -> None:
    """Also when the worker has been stopped, and waits for whoever takes its answers."""
    old, new = pair
    gate = asyncio.Event()
    model = FakeBackend(waits_for(gate))
    async with (
        open_client(old.tcp_url) as before,
        open_client(new.tcp_url) as after,
        run_worker(old.tcp_url, {"local": model}, config=CONFIG) as worker,
    ):
        entries = await begun(before, model)
        await asyncio.to_thread(swap, old, new)
        gate.set()
        await eventually(lambda: worker.status().redis is not PipeState.READY)
        if is_stopping:
            worker.stop()
        reload(worker, new, model)
        for entry in entries:
            assert (await final_of(after, entry))[0] == "result"
        await eventually(lambda: worker.in_flight == 0)
        assert len(model.calls) == COUNT
        if not is_stopping:
            assert (await final_of(after, await add(after)))[0] == "result"


async def test_reload_that_names_the_same_server_by_another_address_disturbs_nothing(
    pair: tuple[ValkeyProcess, ValkeyProcess],
) -> None:
    """What is in flight stays this worker's, and the log knows of no trouble."""
    server, _ = pair
    gate = asyncio.Event()
    model = FakeBackend(waits_for(gate))
    with capture_logs() as logs:
        async with (
            open_client(server.tcp_url) as client,
            run_worker(server.tcp_url, {"local": model}, config=CONFIG) as worker,
        ):
            entries = await begun(client, model)
            config = replace(CONFIG, redis=replace(CONFIG.redis, url=server.url))
            worker.reload(config, make_test_admission(config, {"local": FakeBackend(says("new"))}, consumer="w1"))
            await eventually(lambda: worker.shards[0].pipe.generation == 2)
            gate.set()
            for entry in entries:
                assert (await final_of(client, entry))[1]["content"] == "done"
            assert (await final_of(client, await add(client)))[1]["content"] == "new"
            assert len(model.calls) == COUNT
    assert [line for line in logs if line["log_level"] in {"warning", "error"}] == []


async def test_worker_that_waits_for_a_server_that_is_gone_goes_where_a_reload_says(
    pair: tuple[ValkeyProcess, ValkeyProcess],
) -> None:
    """At once, and not when its next try is due."""
    old, new = pair
    model = FakeBackend(says("hi"))
    async with open_client(new.tcp_url) as after, run_worker(old.tcp_url, {"local": model}, config=CONFIG) as worker:
        new.command("REPLICAOF", "NO", "ONE")
        old.kill()
        await eventually(lambda: worker.status().redis is PipeState.AWAY)
        await asyncio.sleep(1.0)
        reload(worker, new, model)
        async with asyncio.timeout(2.0):
            assert (await final_of(after, await add(after)))[0] == "result"


async def test_nothing_is_read_of_the_old_server_by_a_worker_that_had_no_place_free_when_it_left(
    pair: tuple[ValkeyProcess, ValkeyProcess],
) -> None:
    """No read was under way that could be broken off: what comes next is read where the reload says."""
    old, new = pair
    gate = asyncio.Event()
    model = FakeBackend(waits_for(gate))
    async with (
        open_client(old.tcp_url) as before,
        open_client(new.tcp_url) as after,
        run_worker(old.tcp_url, {"local": model}, config=CONFIG) as worker,
    ):
        await begun(before, model)
        new.command("REPLICAOF", "NO", "ONE")
        reload(worker, new, model)
        await eventually(lambda: worker.shards[0].pipe.generation == 2)
        await add(before)
        gate.set()
        assert (await final_of(after, await add(after)))[0] == "result"
        await eventually(lambda: worker.in_flight == 0)
        assert await before.xlen("llm:requests") == COUNT + 1
        assert len(model.calls) == COUNT + 1


class Slow(Fixed):
    """It takes its time."""

    def __init__(self) -> None:
        self.asked, self.gate = asyncio.Event(), asyncio.Event()

    async def find(self) -> None:
        """Where the URL says, by and by."""
        self.asked.set()
        await self.gate.wait()


async def test_pipe_that_was_connecting_to_the_old_server_does_not_stay_there(
    pair: tuple[ValkeyProcess, ValkeyProcess],
) -> None:
    """That connection comes about soon after the reload, and leads where the old configuration said."""
    old, new = pair
    slow = Slow()
    factory = ConnectionFactory(old.tcp_url, client_name="a", whereabouts=slow)
    pipe = Pipe(factory)
    running = asyncio.create_task(pipe.run())
    try:
        await slow.asked.wait()
        factory.use(new.tcp_url, Fixed())
        pipe.leave()
        slow.gate.set()
        async with asyncio.timeout(5):
            assert await pipe.call("CONFIG", "GET", "port") == [b"port", str(new.port).encode()]
        assert pipe.generation == 1
    finally:
        running.cancel()
