"""`redis.wait_replicas`: an answer counts when replicas have it, on real servers that die, stop and change places."""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace
from structlog.testing import capture_logs

from llm_routerd.config.tree import RedisConfig
from llm_routerd.protocol.events import FINAL_ID
from llm_routerd.queue.connection import replicas
from tests.support.accounts import scraped_of
from tests.support.endings import final_of, nothing_left
from tests.support.eventually import eventually
from tests.support.fakes import FakeBackend, says, waits_for
from tests.support.proxy import Proxy, open_proxy
from tests.support.queue import add, open_client
from tests.support.servers import ValkeyProcess, running_valkey
from tests.support.workers import DAEMON, make_config, run_worker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from llm_routerd.config.tree import Config
    from llm_routerd.worker.worker import Worker

ACL = (Path(__file__).parents[2] / "systemd" / "users.acl").read_text(encoding="utf-8")
LONG = 20.0  # longer than a test waits for anything


def waiting(wait_seconds: float = LONG, *, count: int = 1) -> Config:
    """A configuration that waits for replicas."""
    return replace(
        make_config(daemon=replace(DAEMON, lease_seconds=60.0, result_ttl_seconds=600)),
        redis=RedisConfig(wait_replicas=count, wait_replicas_seconds=wait_seconds),
    )


async def in_step(client: Any) -> None:
    """Wait until a server has its replica, which says so for the first time up to a second after it has all."""
    async with asyncio.timeout(15), client.pipeline(transaction=False) as pipeline:
        heard = 0
        while not heard:
            _, heard = await pipeline.set("step", "", px=60_000).execute_command("WAIT", 1, 2000).execute()


class Pair:
    """A primary and its replica, in step.

    Attributes:
        client: of the primary.
        way, link: proxies before the primary, for the worker and for the replica.
    """

    def __init__(self, primary: ValkeyProcess, replica: ValkeyProcess, client: Any, way: Proxy, link: Proxy) -> None:
        self.primary, self.replica, self.client, self.way, self.link = primary, replica, client, way, link

    async def fail_over(self) -> None:
        """Kill the primary, make the replica one, and lead the worker there."""
        await asyncio.to_thread(self.primary.kill)
        self.replica.thaw()
        async with open_client(self.replica.url) as promoted:
            await promoted.execute_command("REPLICAOF", "NO", "ONE")
        self.way.target = self.replica.port


@asynccontextmanager
async def open_pair() -> AsyncIterator[Pair]:
    """Both, as they should be."""
    quick = {"repl-diskless-sync-delay": "0"}
    with running_valkey(quick, tcp=True) as primary:
        async with (
            open_proxy(primary.port) as link,
            open_proxy(primary.port) as way,
            open_client(primary.url) as client,
        ):
            with running_valkey({**quick, "replicaof": f"127.0.0.1 {link.port}"}, tcp=True) as replica:
                await in_step(client)
                yield Pair(primary, replica, client, way, link)


def told(logs: list[Any], event: str) -> list[Any]:
    """The lines of the log with this event."""
    return [line for line in logs if line["event"] == event]


def ended(worker: Worker) -> float:
    """How many requests this worker has accounted for."""
    return sum(count for name, count in scraped_of(worker).items() if name.startswith("requests_total"))


async def test_answer_counts_when_a_replica_has_it() -> None:
    """It stands on the primary before that, and nobody is told."""
    model = FakeBackend(says("hi"))
    with capture_logs() as logs:
        async with open_pair() as pair, run_worker(pair.way.url, {"local": model}, config=waiting()) as worker:
            await final_of(pair.client, await add(pair.client))
            await eventually(lambda: ended(worker) == 1)
            pair.replica.freeze()
            await final_of(pair.client, await add(pair.client))
            await asyncio.sleep(0.3)
            assert (ended(worker), worker.in_flight) == (1, 1)
            pair.replica.thaw()
            await eventually(lambda: ended(worker) == 2)
            async with open_client(pair.replica.url) as replica:
                await nothing_left(replica)
        assert told(logs, "answers_not_on_replicas") == []


async def test_replica_that_is_away_is_told_once_and_costs_one_wait() -> None:
    """Answers count without it; when it is back they wait for it again."""
    model = FakeBackend(says("hi"))
    with capture_logs() as logs:
        async with open_pair() as pair, run_worker(pair.way.url, {"local": model}, config=waiting(1.0)) as worker:
            pair.replica.freeze()
            await final_of(pair.client, await add(pair.client))
            await eventually(lambda: ended(worker) == 1)
            assert worker.status().ready
            assert worker.status().why == "answers are not on the replicas: fewer than 1 have acknowledged it in 1 s"
            began = time.monotonic()
            for _ in range(5):
                await final_of(pair.client, await add(pair.client))
            await eventually(lambda: ended(worker) == 6)
            assert time.monotonic() - began < 4.0  # and not one each
            await asyncio.sleep(1.5 * replicas.LOOK_EVERY_SECONDS)
            await final_of(pair.client, await add(pair.client))  # a look
            pair.replica.thaw()
            async with asyncio.timeout(15):
                while worker.status().why:
                    await final_of(pair.client, await add(pair.client))
        assert len(told(logs, "answers_not_on_replicas")) == len(told(logs, "replicas_acknowledge_again")) == 1
        assert told(logs, "redis_not_ready") == []


@pytest.mark.parametrize("replicated", ["all", "request", "nothing"])
async def test_failover_before_the_replica_has_acknowledged_loses_no_answer(replicated: str) -> None:
    """The commit goes to the new primary as well, and the model is not asked again; either way it is counted once."""
    gate = asyncio.Event()
    model = FakeBackend(says("hi"), waits_for(gate))
    async with open_pair() as pair, run_worker(pair.way.url, {"local": model}, config=waiting(4.0)) as worker:
        await final_of(pair.client, await add(pair.client))
        await eventually(lambda: ended(worker) == 1)
        pair.link.swallows = replicated == "nothing"
        entry = await add(pair.client)
        await eventually(lambda: model.running == 1)
        if replicated == "request":
            await in_step(pair.client)
            pair.link.swallows = True
        if replicated == "all":
            pair.replica.freeze()  # what comes meanwhile waits in its socket
        gate.set()
        await final_of(pair.client, entry)
        await pair.fail_over()
        await eventually(lambda: ended(worker) == 2)
        async with open_client(pair.replica.url) as promoted:
            assert (await final_of(promoted, entry))[0] == "result"
            assert await promoted.xlen("llm_router_metrics") == 2
            await nothing_left(promoted)
        assert len(model.calls) == 2


@pytest.mark.parametrize("is_refused", [False, True], ids=["answer", "error-and-dead-letter"])
async def test_connection_lost_before_replicas_have_acknowledged_changes_nothing(*, is_refused: bool) -> None:
    """The commit is sent again, and recognises its own work: one event, one dead letter, counted once."""
    model = FakeBackend(says("hi"))
    async with open_pair() as pair, run_worker(pair.way.url, {"local": model}, config=waiting()) as worker:
        pair.replica.freeze()
        await final_of(pair.client, await add(pair.client, prompt="" if is_refused else "hello"))
        for _ in range(2):
            pair.way.connections = 0
            await pair.way.drop()
            await eventually(lambda: pair.way.connections > 1)
        assert ended(worker) == 0
        pair.replica.thaw()
        await eventually(lambda: ended(worker) == 1 and not worker.in_flight)
        assert await pair.client.xlen("llm_router_metrics") == 1
        assert await pair.client.xlen("llm:dead") == is_refused
        assert len(model.calls) == (not is_refused)
        assert not worker.in_flight
        await nothing_left(pair.client)


async def test_storm_of_lost_connections_and_stopped_replicas_counts_each_answer_once() -> None:
    """Many answers are under way whenever something goes; none is asked for, written or counted twice."""
    rng = random.Random(7)
    model = FakeBackend(says("a", "b", "c", delay=0.003))
    async with open_pair() as pair, run_worker(pair.way.url, {"local": model}, config=waiting(2.0)) as worker:
        entries = [await add(pair.client, stream=rng.choice(("false", '"live"'))) for _ in range(150)]
        for _ in range(8):
            pair.replica.freeze()
            await asyncio.sleep(rng.uniform(0.01, 0.1))
            await pair.way.drop()
            await asyncio.sleep(rng.uniform(0.01, 0.2))
            pair.replica.thaw()
            await asyncio.sleep(rng.uniform(0.0, 0.1))
        assert {(await final_of(pair.client, each))[0] for each in entries} == {"result"}
        await eventually(lambda: ended(worker) == len(entries))
        assert await pair.client.xlen("llm_router_metrics") == len(entries) == len(model.calls)
        await nothing_left(pair.client)


async def test_no_answer_that_counts_is_lost_by_a_failover() -> None:
    """Replication lags, the primary dies in full flight: what was told as finished before, the new primary has."""
    model = FakeBackend(says("hi", delay=0.002))
    with capture_logs() as logs:
        async with open_pair() as pair, run_worker(pair.way.url, {"local": model}, config=waiting(5.0)) as worker:
            pair.link.delay_seconds = 0.02
            for number in range(300):
                await add(pair.client, prompt=str(number))
            await eventually(lambda: ended(worker) > 50)
            await asyncio.to_thread(pair.primary.kill)
            counted = {line["id"] for line in told(logs, "request_finished")}
            await pair.fail_over()
            async with open_client(pair.replica.url) as promoted:
                finals = [await promoted.xrange(f"llm:events:{each}", FINAL_ID, FINAL_ID) for each in counted]
                assert len(counted) > 50
                assert all(finals)
                await nothing_left(promoted)
            assert len({str(call.messages) for call in model.calls}) == len(model.calls)


async def test_primary_that_becomes_a_replica_meanwhile_has_not_answered() -> None:
    """It says UNBLOCKED to the WAIT, and the commit is sent again when there is a primary."""
    model = FakeBackend(says("hi"))
    async with open_pair() as pair, run_worker(pair.way.url, {"local": model}, config=waiting()) as worker:
        pair.replica.freeze()
        await final_of(pair.client, await add(pair.client))
        await pair.client.execute_command("REPLICAOF", "127.0.0.1", "1")
        await eventually(lambda: not worker.status().ready)
        assert ended(worker) == 0
        await pair.client.execute_command("REPLICAOF", "NO", "ONE")
        pair.replica.thaw()
        await eventually(lambda: ended(worker) == 1)
        assert await pair.client.xlen("llm_router_metrics") == len(model.calls) == 1
        assert worker.status().why == ""


async def test_user_that_may_not_wait_answers_without_and_is_told_once() -> None:
    """Until the right is there."""
    with running_valkey(tcp=True) as server, capture_logs() as logs:
        async with open_client(server.url) as client:
            await client.execute_command("ACL", "SETUSER", "default", "-wait")
            async with run_worker(server.url, {"local": FakeBackend(says("hi"))}, config=waiting(0.5)) as worker:
                for _ in range(3):
                    await final_of(client, await add(client))
                await eventually(lambda: ended(worker) == 3)
                assert worker.status().ready
                (line,) = told(logs, "answers_not_on_replicas")
                assert line["why"] == "NoPermissionError: the user may not run wait"
                await client.execute_command("ACL", "SETUSER", "default", "+wait")
                async with asyncio.timeout(15):
                    while "fewer" not in worker.status().why:  # for there is no replica
                        await final_of(client, await add(client))
    assert len(told(logs, "answers_not_on_replicas")) == 2


async def test_user_that_we_ship_may_wait() -> None:
    """What is missing is the replica, and not the right."""
    rules = next(line for line in ACL.splitlines() if line.startswith("user daemon ")).split()[2:]
    with running_valkey(tcp=True) as server, capture_logs() as logs:
        url = server.url.replace("unix://", "unix://daemon:pw@")
        async with open_client(server.url) as client:
            await client.execute_command("ACL", "SETUSER", "daemon", *rules, ">pw")
            async with run_worker(url, {"local": FakeBackend(says("hi"))}, config=waiting(0.1)):
                await final_of(client, await add(client))
                await eventually(lambda: told(logs, "answers_not_on_replicas"))
    (line,) = told(logs, "answers_not_on_replicas")
    assert line["why"].startswith("fewer than 1 ")


async def test_server_that_knows_no_wait_answers_all_the_same(redis_url: str) -> None:
    """As above; no batch is repeated for it."""
    model = FakeBackend(says("hi"))
    with capture_logs() as logs:
        async with (
            open_client(redis_url) as client,
            run_worker(redis_url, {"local": model}, config=waiting()) as worker,
        ):
            for _ in range(3):
                await final_of(client, await add(client))
            await eventually(lambda: ended(worker) == 3)
    (line,) = told(logs, "answers_not_on_replicas")
    assert line["why"] == "ResponseError: unknown command wait"


def test_replicas_that_are_away_are_looked_for_briefly_and_seldom() -> None:
    """A whole wait, a tenth of one a second later, and a whole one again when they are back."""
    whys: list[str | None] = []
    two = replicas.Replicas(2, wait_seconds=1.0, on_trouble=whys.append)
    assert two.question(0.0) == ("WAIT", 2, 1000)
    assert two.answered(1, 1.0) is None
    assert two.question(1.9) is None
    assert two.question(2.0) == ("WAIT", 2, 100)
    two.answered(2, 2.1)
    assert two.question(2.1) == ("WAIT", 2, 1000)
    assert [why is None for why in whys] == [False, True]


def test_shortest_wait_is_not_for_ever() -> None:
    """To Redis, a timeout of 0 is none."""
    assert replicas.Replicas(1, wait_seconds=0.0001).question(0.0) == ("WAIT", 1, 1)
