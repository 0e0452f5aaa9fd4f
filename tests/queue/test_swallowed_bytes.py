"""A server or forwarder that accepts and falls silent after byte n, for each n of a connection's beginning."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from llm_routerd.client import Client
from llm_routerd.errors import BrokerError
from llm_routerd.queue import reader
from llm_routerd.queue.connection import ConnectionFactory, RedisError, factory, pipe, pooled
from llm_routerd.worker import shard
from tests.support.endings import final_of
from tests.support.eventually import eventually
from tests.support.fakes import FakeBackend, says
from tests.support.proxy import Proxy, open_proxy
from tests.support.queue import open_client
from tests.support.servers import ValkeyProcess, running_valkey
from tests.support.workers import run_worker

if TYPE_CHECKING:
    from collections.abc import Iterator

DIRECTIONS = ["requests", "replies"]


@pytest.fixture(scope="module")
def server() -> Iterator[ValkeyProcess]:
    """A server with a port."""
    with running_valkey({"databases": "64"}, tcp=True) as server:
        yield server


@pytest.fixture
async def beginning(server: ValkeyProcess) -> dict[str, int]:
    """How many bytes go each way until a connection stands."""
    async with open_proxy(server.port) as proxy:
        standing = await ConnectionFactory(proxy.url, client_name="test").connect()
        await standing.disconnect(nowait=True)
        return dict(zip(DIRECTIONS, proxy.carried, strict=True))


@pytest.fixture
def impatient(beginning: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every bound is low, once the beginning has been measured."""
    monkeypatch.setattr(factory, "CONNECT_SECONDS", 0.15)
    monkeypatch.setattr(pipe, "BATCH_SECONDS", 0.3)
    monkeypatch.setattr(reader, "BLOCK_MS", 200)
    monkeypatch.setattr(reader, "GRACE_SECONDS", 0.3)
    monkeypatch.setattr(reader, "TROUBLE_SECONDS", 0.2)


def swallow(proxy: Proxy, direction: str, after: int | None) -> None:
    """Have it pass so many bytes of each new connection in this direction; None: all."""
    setattr(proxy, f"passes_{direction}", after)


def sample(total: int) -> list[int]:
    """Each of the first bytes, and then each so many-th, so that every reply and every script is cut somewhere."""
    return [*range(min(total, 48)), *range(48, total, max(1, total // 60)), total - 1]


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.usefixtures("impatient")
async def test_connecting_ends_in_bounded_time_wherever_it_is_cut(
    server: ValkeyProcess, beginning: dict[str, int], direction: str
) -> None:
    """All of it has one bound, not each of its steps."""
    total, few = beginning[direction], asyncio.Semaphore(16)

    async def connect(after: int) -> float:
        async with few, open_proxy(server.port) as proxy:
            swallow(proxy, direction, after)
            began = asyncio.get_running_loop().time()
            with pytest.raises((RedisError, OSError, TimeoutError)):
                await ConnectionFactory(proxy.url, client_name="test").connect()
            return asyncio.get_running_loop().time() - began

    took = await asyncio.gather(*map(connect, sample(total)))
    assert max(took) < 3.0  # the bound is 0.3 s; the rest is for a machine that is busy


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.usefixtures("impatient")
async def test_worker_whose_start_is_cut_goes_on_trying_and_recovers(
    server: ValkeyProcess, beginning: dict[str, int], direction: str
) -> None:
    """At each place of its first seconds: it says what is wrong, and answers soon after the way is free."""
    total = beginning[direction]
    cuts = [0, 1, 5, total // 3, total - 1, total, total + 10, total + 60, total + 200, total + 350]
    with capture_logs() as logs:
        await asyncio.gather(*(recovers(server, direction, after, place) for place, after in enumerate(cuts)))
    assert [line for line in logs if line["log_level"] == "error"] == []
    silent = [line for line in logs if line["event"] in {"redis_not_ready", "cannot_read_requests"}]
    assert len(silent) >= 6
    assert all("does not answer" in line["why"] for line in silent), silent


async def recovers(server: ValkeyProcess, direction: str, after: int, place: int) -> None:
    """One worker, in a database of its own."""
    async with open_proxy(server.port) as proxy, open_client(f"{server.tcp_url[:-1]}{place}") as client:
        swallow(proxy, direction, after)
        url = f"{proxy.url[:-1]}{place}"
        async with run_worker(url, {"local": FakeBackend(says("hi"))}, until_ready=False):
            await eventually(lambda: proxy.connections >= 4, seconds=10)
            swallow(proxy, direction, None)
            entry = await client.xadd("llm:requests", {"prompt": "hello"})
            async with asyncio.timeout(5):
                assert (await final_of(client, entry))[0] == "result"


@pytest.mark.parametrize("direction", DIRECTIONS)
async def test_worker_whose_start_is_cut_hears_a_stop(
    server: ValkeyProcess, beginning: dict[str, int], monkeypatch: pytest.MonkeyPatch, direction: str
) -> None:
    """It waits for none of the long bounds of what it is doing: those are as they are."""
    monkeypatch.setattr(reader, "STOP_SECONDS", 0.2)
    monkeypatch.setattr(shard, "GOODBYE_SECONDS", 0.3)
    total = beginning[direction]
    cuts = [0, 5, total // 2, total, total + 60, total + 200, total + 400]

    async def stops(after: int, place: int) -> float:
        async with open_proxy(server.port) as proxy:
            swallow(proxy, direction, after)
            async with run_worker(f"{proxy.url[:-1]}{place}", {}, until_ready=False) as worker:
                await eventually(lambda: proxy.connections)
                await asyncio.sleep(0.15)  # it hangs somewhere by now: there is nothing else to wait for
                worker.stop()
                began = asyncio.get_running_loop().time()
        return asyncio.get_running_loop().time() - began

    took = await asyncio.gather(*(stops(after, 20 + place) for place, after in enumerate(cuts)))
    assert max(took) < 2.0


async def test_stop_is_heard_while_the_reader_waits_for_its_next_try(
    server: ValkeyProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pause of seconds is cut short."""
    monkeypatch.setattr(factory.Backoff, "next_seconds", lambda _self: 30.0)
    monkeypatch.setattr(shard, "GOODBYE_SECONDS", 0.3)
    async with open_proxy(server.port) as proxy, run_worker(f"{proxy.url[:-1]}40", {}) as worker:
        proxy.swallows = True
        await proxy.drop()
        await asyncio.sleep(0.1)
        worker.stop()
        began = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - began < 2.0


@pytest.mark.parametrize("direction", DIRECTIONS)
async def test_client_says_in_bounded_time_that_nobody_answers_and_goes_on_when_somebody_does(
    server: ValkeyProcess, monkeypatch: pytest.MonkeyPatch, direction: str
) -> None:
    """Wherever its beginning is cut."""
    monkeypatch.setattr(pooled, "REPLY_SECONDS", 0.2)

    async def asks(after: int) -> float:
        async with open_proxy(server.port) as proxy:
            swallow(proxy, direction, after)
            began = asyncio.get_running_loop().time()
            async with Client(f"{proxy.url[:-1]}50", patience_seconds=0.3) as client:
                with pytest.raises(BrokerError):
                    await client.submit(prompt="hello")
                took = asyncio.get_running_loop().time() - began
                swallow(proxy, direction, None)
                assert await client.submit(prompt="hello", id=f"r{after}") == f"r{after}"
        return took

    cuts = [*range(0, 60, 3)] if direction == "requests" else [*range(10)]
    assert max(await asyncio.gather(*map(asks, cuts))) < 2.0


async def test_client_closes_where_the_server_takes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is still to be sent is not waited for, and no error of the closing is anybody's."""
    monkeypatch.setattr(pooled, "REPLY_SECONDS", 0.2)
    monkeypatch.setattr(pooled, "CONNECT_SECONDS", 0.3)
    writers: list[Any] = []

    async def take_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        writers.append(writer)

    listener = await asyncio.start_server(take_nothing, "127.0.0.1", 0, limit=1024)
    url = f"redis://127.0.0.1:{listener.sockets[0].getsockname()[1]}/0"
    try:
        async with asyncio.timeout(5):
            async with Client(url, patience_seconds=0.1) as client:
                with pytest.raises(BrokerError):
                    await client.submit(prompt="x" * 30_000_000)
    finally:
        for writer in writers:
            writer.transport.abort()
        listener.close()
        await listener.wait_closed()
