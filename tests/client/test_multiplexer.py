"""Many requests over two connections: each event once, in order, whatever is published, missed or late."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from llm_routerd.client import Client
from llm_routerd.client.following import MOST_PENDING_BYTES
from llm_routerd.client.multiplexer import Multiplexer
from llm_routerd.errors import BrokerError
from llm_routerd.protocol.events import FINAL_ID
from llm_routerd.queue.connection import subscriber
from tests.support.eventually import eventually
from tests.support.proxy import open_proxy
from tests.support.queue import open_client
from tests.support.servers import running_valkey

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from llm_routerd.client.following import Following
    from tests.support.proxy import Proxy


@asynccontextmanager
async def multiplexed(url: str) -> AsyncIterator[Multiplexer]:
    """One that runs, and whose server answers."""
    async with Client(url, patience_seconds=5) as client:
        plexer = Multiplexer(client, url)
        task = asyncio.create_task(plexer.run())
        try:
            await eventually(lambda: not plexer.trouble)
            yield plexer
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def proxied() -> AsyncIterator[tuple[Any, Proxy, Multiplexer]]:
    """A client of a server, and one that reaches it through a proxy."""
    with running_valkey(tcp=True) as server:
        async with (
            open_client(server.url) as redis,
            open_proxy(server.port) as proxy,
            multiplexed(proxy.url) as plexer,
        ):
            yield redis, proxy, plexer


async def write(redis: Any, request_id: str, event_id: str, text: str = "x", *, publishes: bool = True) -> None:
    """An event as the daemon writes it."""
    kind = "result" if event_id == FINAL_ID else "token"
    data = json.dumps({"text": text})
    await redis.xadd(f"llm:events:{request_id}", {"type": kind, "data": data}, id=event_id)
    if publishes:
        message = f'{{"id":"{event_id}","type":"{kind}","data":{data}}}'
        await redis.publish(f"llm:events:{request_id}", message)


async def all_ids(following: Following, *, seconds: float = 10) -> list[str]:
    """The IDs of all events to the end."""
    found: list[str] = []
    async with asyncio.timeout(seconds), following:
        while not following.is_over:
            found += [event.stream_id for event in await following.next(5)]
    return found


IDS = [f"1-{n}" for n in range(50)] + [f"2-{n}" for n in range(10)] + [FINAL_ID]


@pytest.mark.parametrize("publishes", [True, False])
async def test_every_event_comes_once_and_in_order(valkey_url: str, *, publishes: bool) -> None:
    """Whether they are published or not, from the beginning, and from each place on."""
    async with open_client(valkey_url) as redis, multiplexed(valkey_url) as plexer:
        for event_id in IDS[:20]:
            await write(redis, "r", event_id, publishes=publishes)
        task = asyncio.create_task(all_ids(plexer.follow("r")))
        late = asyncio.create_task(all_ids(plexer.follow("r", "1-30")))
        for event_id in IDS[20:]:
            await write(redis, "r", event_id, publishes=publishes)
            await asyncio.sleep(0.002)
        assert await task == IDS
        assert await late == IDS[31:]
        assert await all_ids(plexer.follow("r", "2-9")) == [FINAL_ID]
        assert await all_ids(plexer.follow("r", FINAL_ID)) == []
        assert plexer.followed == 0


async def reads(redis: Any) -> int:
    """How often streams have been looked at."""
    return int((await redis.info("commandstats")).get("cmdstat_xread", {}).get("calls", 0))


async def test_a_new_request_is_heard_from_its_first_event_on(valkey_url: str) -> None:
    """It is followed before it is submitted, so that nothing has to be read from its stream."""
    async with open_client(valkey_url) as redis, multiplexed(valkey_url) as plexer:
        before = await reads(redis)
        async with plexer.follow("r", is_new=True) as following:
            await plexer.submit("r", b'{"id":"r","prompt":"x"}')
            ((_, fields),) = await redis.xrange("llm:requests")
            assert json.loads(fields["data"])["id"] == "r"
            await write(redis, "r", "1-0")
            assert [event.stream_id for event in await following.next(5)] == ["1-0"]
            await redis.xadd("llm:events:r", {"type": "cancelled", "data": "{}"}, id=FINAL_ID)  # nobody publishes that
            assert [event.type for event in await following.next(5)] == ["cancelled"]
        assert await reads(redis) - before <= 4


async def listeners(redis: Any, request_id: str) -> int:
    """How many connections the server tells what is published of a request."""
    ((_, number),) = await redis.pubsub_numsub(f"llm:events:{request_id}")
    return int(number)


async def test_a_request_that_is_left_is_unsubscribed_with_the_next_subscription(
    valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And with a PING where there is no other; whoever comes back before that hears it all the same."""
    monkeypatch.setattr(subscriber, "PING_SECONDS", 1.0)
    async with open_client(valkey_url) as redis, multiplexed(valkey_url) as plexer:
        async with plexer.follow("a", is_new=True):
            assert await listeners(redis, "a") == 1
        async with plexer.follow("b", is_new=True):
            assert (await listeners(redis, "a"), await listeners(redis, "b")) == (0, 1)
        async with plexer.follow("b", is_new=True) as following:
            await write(redis, "b", "1-0")
            assert [event.stream_id for event in await following.next(5)] == ["1-0"]
        async with asyncio.timeout(5):
            while await listeners(redis, "b"):  # noqa: ASYNC110 - no event tells it
                await asyncio.sleep(0.05)


async def test_what_is_no_event_is_passed_over(valkey_url: str) -> None:
    """Whoever may publish may publish anything; what stands in the stream counts."""
    async with (
        open_client(valkey_url) as redis,
        multiplexed(valkey_url) as plexer,
        plexer.follow("r", is_new=True) as following,
    ):
        await write(redis, "r", "1-0", publishes=False)
        for said in (
            "",
            "{",
            "[]",
            '{"id":"x-y","type":"token","data":{}}',
            '{"id":"1-","type":3,"data":{}}',
            "\udcff",
        ):
            await redis.publish("llm:events:r", said.encode("utf-8", "surrogateescape"))
        assert [event.stream_id for event in await following.next(5)] == ["1-0"]
        await write(redis, "r", FINAL_ID)
        assert [event.stream_id for event in await following.next(5)] == [FINAL_ID]


async def test_who_is_slow_costs_no_memory_and_misses_nothing(valkey_url: str) -> None:
    """What is not taken is dropped, and read from the stream when there is room."""
    async with (
        open_client(valkey_url) as redis,
        multiplexed(valkey_url) as plexer,
        plexer.follow("r", is_new=True) as following,
    ):
        text = "y" * 20_000
        for event_id in IDS:
            await write(redis, "r", event_id, text)
        await asyncio.sleep(0.2)
        assert following._pending_bytes <= MOST_PENDING_BYTES + 30_000
        found: list[str] = []
        while not following.is_over:
            found += [event.stream_id for event in await following.next(5)]
        assert found == IDS


async def test_what_is_said_while_the_connection_is_away_is_found() -> None:
    """The streams have it all."""
    async with proxied() as (redis, proxy, plexer):
        task = asyncio.create_task(all_ids(plexer.follow("r"), seconds=30))
        for number, event_id in enumerate(IDS):
            await write(redis, "r", event_id)
            if number % 20 == 10:
                await proxy.drop()
            await asyncio.sleep(0.01)
        assert await task == IDS


async def test_nothing_is_heard_of_a_server_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told in time, and what may have been added meanwhile is cancelled."""
    monkeypatch.setattr("llm_routerd.client.multiplexer.PATIENCE_SECONDS", 0.3)
    async with proxied() as (redis, proxy, plexer):
        proxy.swallows = True
        with pytest.raises(BrokerError, match="Redis"):
            await plexer.submit("r", b'{"id":"r"}')
        with pytest.raises(BrokerError, match="Redis"):
            async with plexer.follow("s"):
                pass
        proxy.swallows = False
        await proxy.drop()
        ended = await redis.xread({"llm:events:r": "0"}, block=30_000)
        assert ended[0][1][0][0] == FINAL_ID
        assert 0 < await redis.ttl("llm:events:r") <= 3600


async def test_what_somebody_may_come_back_for_is_not_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its sender was told that Redis was away, or has gone: under the same id it may be asked again, and is answered."""
    monkeypatch.setattr("llm_routerd.client.multiplexer.PATIENCE_SECONDS", 0.3)
    async with proxied() as (redis, proxy, plexer):
        proxy.swallows = True
        with pytest.raises(BrokerError, match="Redis"):
            await plexer.submit("r", b'{"id":"r"}', is_new=False)
        left = asyncio.create_task(plexer.submit("s", b'{"id":"s"}', is_new=False))
        await asyncio.sleep(0)
        left.cancel()
        with pytest.raises(asyncio.CancelledError):
            await left
        proxy.swallows = False
        await proxy.drop()
        await eventually(lambda: not plexer.trouble)
        await plexer.submit("t", b'{"id":"t"}')
        waiting = [json.loads(fields["data"])["id"] for _, fields in await redis.xrange("llm:requests")]
        assert waiting[-1] == "t"
        assert await redis.exists("llm:events:r", "llm:events:s") == 0


async def test_a_thousand_requests_share_two_connections(valkey_url: str) -> None:
    """Not one each."""
    async with open_client(valkey_url) as redis, multiplexed(valkey_url) as plexer:
        before = len(await redis.client_list())
        tasks = [asyncio.create_task(all_ids(plexer.follow(f"r{n}", is_new=True), seconds=60)) for n in range(1000)]
        await asyncio.sleep(1)
        assert len(await redis.client_list()) == before
        for n in range(1000):
            await write(redis, f"r{n}", "1-0")
            await write(redis, f"r{n}", FINAL_ID)
        assert await asyncio.gather(*tasks) == [["1-0", FINAL_ID]] * 1000


async def test_all_who_have_missed_something_take_turns(valkey_url: str) -> None:
    """The connection comes back, and each of them reads its stream: with one connection each it would soon go again."""
    async with multiplexed(valkey_url) as plexer, open_client(valkey_url) as redis:
        followings = [plexer.follow(f"r{n}", is_new=True) for n in range(400)]
        for following in followings:
            await following.__aenter__()
        waiting = [asyncio.create_task(following.next(30)) for following in followings]
        hears = next(each["id"] for each in await redis.client_list() if each["sub"] != "0")
        before = (await redis.info("stats"))["total_connections_received"]
        await redis.client_kill_filter(_id=hears)
        await eventually(lambda: plexer.trouble)
        for n in range(400):
            await write(redis, f"r{n}", "1-0", publishes=False)
        for events in await asyncio.wait_for(asyncio.gather(*waiting), 20):
            assert [event.stream_id for event in events] == ["1-0"]
        assert (await redis.info("stats"))["total_connections_received"] - before < 100
        for following in followings:
            plexer.leave(following)


async def test_what_was_not_heard_is_missed_by_the_next_event(valkey_url: str) -> None:
    """Events of an attempt are counted; the end has the whole text anyway."""
    async with (
        open_client(valkey_url) as redis,
        multiplexed(valkey_url) as plexer,
        plexer.follow("r", is_new=True) as following,
    ):
        await write(redis, "r", "1-0", publishes=False)
        await write(redis, "r", "1-1", publishes=False)
        await write(redis, "r", "1-2")
        await write(redis, "r", "1-3")
        found: list[str] = []
        while len(found) < 4:
            found += [event.stream_id for event in await following.next(0.5)]
        await write(redis, "r", "2-0", publishes=False)
        await write(redis, "r", "2-1")
        while len(found) < 6:
            found += [event.stream_id for event in await following.next(0.5)]
        assert found == ["1-0", "1-1", "1-2", "1-3", "2-0", "2-1"]
