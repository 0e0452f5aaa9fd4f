"""Workers of one queue that differ, as they do for as long as a rolling restart takes: in their leases, in what they know."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace
from structlog.testing import capture_logs

from llm_routerd.accounting.gauges import Gauges
from llm_routerd.config.tree import Chain
from tests.support.endings import final_of, nothing_left
from tests.support.eventually import eventually
from tests.support.fakes import FakeBackend, hangs, says, waits_for
from tests.support.queue import add, open_client
from tests.support.servers import ValkeyProcess
from tests.support.workers import DAEMON, LOCAL, make_config, make_test_admission, run_worker

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_routerd.config.tree import Config
    from llm_routerd.worker.worker import Worker

ACL = (Path(__file__).parents[2] / "systemd" / "users.acl").read_text(encoding="utf-8")
OLD = make_config(daemon=replace(DAEMON, lease_seconds=1.2))
SHORT_SECONDS = 0.25


def make_new(url: str = "", **daemon: Any) -> Config:
    """The configuration after the change: a shorter lease, a further chain, a further deployment."""
    config = make_config(url, daemon=replace(DAEMON, lease_seconds=SHORT_SECONDS, **daemon))
    return replace(
        config,
        deployments={**config.deployments, "attic": replace(LOCAL, name="attic")},
        chains={**config.chains, "new": Chain(name="new", deployments=("local",))},
    )


def passed_on(worker: Worker) -> int:
    """How many requests it has handed back because another knows their model."""
    page = worker.metrics.render_prometheus(Gauges())
    (line,) = (line for line in page.splitlines() if line.startswith("llm_routerd_passed_on_total "))
    return int(line.rpartition(" ")[2])


async def kinds_of(client: Any, ids: Sequence[str]) -> set[str]:
    """The types of the final events of these requests, once they all stand."""
    return {kind for kind, _ in [await final_of(client, request_id) for request_id in ids]}


async def test_worker_with_a_shorter_lease_takes_nothing_from_a_living_one(valkey_url: str) -> None:
    """The lease that holds is the longest of the living."""
    gate = asyncio.Event()
    busy, eager = FakeBackend(waits_for(gate)), FakeBackend(says("x"))
    async with open_client(valkey_url) as client, run_worker(valkey_url, {"local": busy}, consumer="w1", config=OLD):
        ids = [await add(client) for _ in range(4)]
        await eventually(lambda: busy.running == len(ids))
        async with run_worker(valkey_url, {"local": eager}, consumer="w2", config=make_new()):
            await asyncio.sleep(3 * SHORT_SECONDS)
            gate.set()
            assert await kinds_of(client, ids) == {"result"}
        assert (len(busy.calls), len(eager.calls)) == (len(ids), 0)


async def test_request_for_a_model_that_another_worker_knows_waits_for_that_one(valkey_url: str) -> None:
    """It is handed back once, whoever looks meanwhile, and taken when there is room."""
    gate = asyncio.Event()
    knowing = FakeBackend(waits_for(gate), says("x"))
    config = make_new(concurrency=1)
    async with (
        open_client(valkey_url) as client,
        run_worker(
            valkey_url, {"local": knowing, "attic": FakeBackend(says("x"))}, consumer="w1", config=config
        ) as new,
    ):
        first = await add(client)
        await eventually(lambda: knowing.running == 1)
        async with run_worker(valkey_url, {}, consumer="w2", config=OLD) as old:
            ids = [await add(client, model=model) for model in ("new", "attic") for _ in range(3)]
            await eventually(lambda: passed_on(old) == len(ids))
            unknown = await add(client, model="never")
            assert await kinds_of(client, [unknown]) == {"error"}
            await asyncio.sleep(2 * SHORT_SECONDS)
            gate.set()
            assert await kinds_of(client, [first, *ids]) == {"result"}
            assert (passed_on(old), passed_on(new)) == (len(ids), 0)
            await nothing_left(client)


async def test_request_that_nobody_knows_any_longer_has_its_end(valkey_url: str) -> None:
    """It does not wait for a worker that has left."""
    knowing = FakeBackend(hangs())
    async with open_client(valkey_url) as client, AsyncExitStack() as stack:
        config = make_new(concurrency=1, drain_seconds=0.0)
        await stack.enter_async_context(run_worker(valkey_url, {"local": knowing}, consumer="w1", config=config))
        await add(client)
        await eventually(lambda: knowing.running == 1)
        old_config = replace(OLD, daemon=config.daemon)
        async with run_worker(valkey_url, {"local": FakeBackend(says("x"))}, consumer="w2", config=old_config) as old:
            waiting = await add(client, model="new")
            await eventually(lambda: passed_on(old) == 1)
            await stack.aclose()
            kind, data = await final_of(client, waiting)
            assert (kind, data["code"]) == ("error", "unknown_model")


async def test_model_of_a_living_worker_is_known_after_the_server_stood_still() -> None:
    """All registrations have run out then, and whoever comes first finds nobody: it is not to say so."""
    server = ValkeyProcess()
    await asyncio.to_thread(server.start)
    try:
        knowing, ids = {"local": FakeBackend(says("x"))}, [f"r{number}" for number in range(8)]
        async with (
            open_client(server.url) as client,
            run_worker(server.url, knowing, consumer="w1", config=make_new()),
            run_worker(server.url, {}, consumer="w2", config=replace(OLD, daemon=make_new().daemon)),
        ):
            await asyncio.sleep(SHORT_SECONDS)
            server.freeze()
            adding = asyncio.gather(*(add(client, model="new", id=request_id) for request_id in ids))
            await asyncio.sleep(3 * SHORT_SECONDS)
            server.thaw()
            await adding
            assert await kinds_of(client, ids) == {"result"}
            unknown = await add(client, model="never")
            assert await kinds_of(client, [unknown]) == {"error"}
    finally:
        await asyncio.to_thread(server.close)


async def test_rolling_restart_loses_nothing_and_pays_nothing_twice(valkey_url: str) -> None:
    """Two workers, one after the other, go from the old configuration to the new one, under load of both."""
    calls: list[FakeBackend] = []

    def backends() -> dict[str, FakeBackend]:
        calls.append(FakeBackend(says("a", "b", "c", delay=0.2)))
        return {"local": calls[-1], "attic": calls[-1]}

    async with open_client(valkey_url) as client, AsyncExitStack() as stack:

        async def start(name: str, config: Config) -> Worker:
            return await stack.enter_async_context(run_worker(valkey_url, backends(), consumer=name, config=config))

        leaving = [await start("w1", OLD), await start("w2", OLD)]
        ids = [await add(client) for _ in range(6)]
        await eventually(lambda: sum(each.running for each in calls) == len(ids))
        for worker, name in zip(leaving, ("w3", "w4"), strict=True):
            worker.stop()
            await start(name, make_new())
            ids += [await add(client, model=model) for model in ("default", "new", "attic") for _ in range(4)]
            await worker.shards[0].in_flight.empty()
        assert await kinds_of(client, ids) == {"result"}
        await nothing_left(client)
    assert sum(len(each.calls) for each in calls) == len(ids)


async def test_worker_that_the_acl_keeps_out_of_the_registry_works_and_says_so(valkey_url: str) -> None:
    """An ACL of an older release does not know it: leases are then the worker's own, and the log names what is refused."""
    with capture_logs() as logs:
        async with open_client(valkey_url) as client:
            await client.execute_command("ACL", "SETUSER", "default", "-hset", "-hgetall")
            try:
                async with run_worker(valkey_url, {"local": FakeBackend(says("x"))}):
                    assert await kinds_of(client, [await add(client)]) == {"result"}
                    assert await kinds_of(client, [await add(client, model="never")]) == {"error"}
            finally:
                await client.execute_command("ACL", "SETUSER", "default", "+hset", "+hgetall")
    (line,) = (line for line in logs if line["event"] == "worker_not_registered")
    assert "hset" in line["why"]


async def test_acl_that_we_ship_allows_the_registry(valkey_url: str) -> None:
    """A worker that may do what the user `daemon` may, and nothing else, is seen by the others."""
    rules = next(line for line in ACL.splitlines() if line.startswith("user daemon ")).split()[2:]
    async with open_client(valkey_url) as client:
        await client.execute_command("ACL", "SETUSER", "daemon", *rules, ">pw")
        try:
            async with run_worker(valkey_url.replace("unix://", "unix://daemon:pw@"), {}):
                assert json.loads(await client.hget("llm:workers", "w1"))["models"] == ["default", "local", "cloud"]
            assert await client.hkeys("llm:workers") == []
        finally:
            await client.execute_command("ACL", "DELUSER", "daemon")


async def test_reload_tells_the_others_soon(valkey_url: str) -> None:
    """Not only with the next renewal, which may be far."""
    config = make_config(daemon=replace(DAEMON, lease_seconds=30.0))
    new = make_new(valkey_url)
    async with open_client(valkey_url) as client, run_worker(valkey_url, {}, config=config) as worker:
        worker.reload(new, make_test_admission(new, {}))
        async with asyncio.timeout(5):
            while "new" not in json.loads(await client.hget("llm:workers", "w1"))["models"]:  # noqa: ASYNC110 - Redis
                await asyncio.sleep(0.02)


async def test_reload_while_it_drains_promises_nothing(valkey_url: str) -> None:
    """Who is about to leave takes no requests any more, whatever its configuration knows."""
    model, go_on = FakeBackend(), asyncio.Event()
    model.scripts[:] = [waits_for(go_on, "hi")]
    new = make_new(valkey_url)
    async with open_client(valkey_url) as client, run_worker(valkey_url, {"local": model}) as worker:
        await add(client)
        await eventually(lambda: model.calls)
        worker.stop()
        worker.reload(new, make_test_admission(new, {}))
        assert worker.shards[0].broker.models == ()
        go_on.set()
