"""The client of a queue that is spread over shards, and of one whose number of shards has changed."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster

from llm_routerd.client import Client, Result, as_text
from llm_routerd.client.dead_letters import DeadLetters, Verdict
from llm_routerd.errors import UnknownRequestError
from llm_routerd.protocol.events import FINAL_ID
from llm_routerd.protocol.keys import Keys, Layout

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

LAYOUT = Layout("llm", 4)
OLD = Layout("llm", 1)
IDS = [f"r{number}" for number in range(12)]


@pytest.fixture
async def client(broker_url: str) -> AsyncIterator[Client]:
    """A client of an empty queue of four shards, which had one before."""
    async with Client(broker_url, shards=4, draining=[1]) as client:
        yield client


async def write(client: Client, keys: Keys, request_id: str, event_id: str = FINAL_ID, type_: str = "result") -> None:
    """Write one event as the daemon does."""
    fields: dict[Any, Any] = {"type": type_, "data": json.dumps({"content": "blue", "text": "blue"})}
    await client.redis.xadd(keys.events(request_id), fields, id=event_id)


async def bury(client: Client, keys: Keys, entry: str, request_id: str) -> None:
    """Write a dead letter as the daemon does."""
    letter: dict[Any, Any] = {"entry": "1-1", "lane": "low", "id": request_id, "reason": "poisoned"}
    letter["data"] = json.dumps({"fields": {"id": request_id, "prompt": "Why?"}, "history": []})
    await client.redis.xadd(keys.dead, letter, id=entry)


async def kinds(client: Client, request_id: str, last_id: str = "0-0") -> list[str]:
    """The types of a request's events, up to its end."""
    async with asyncio.timeout(10):
        return [event.type async for event in client.follow(request_id, last_id)]


async def test_request_stands_and_is_followed_in_the_shard_of_its_id(client: Client) -> None:
    """Whoever knows the id knows the shard; the number of lanes adds up."""
    for request_id in IDS:
        await client.submit(id=request_id, prompt="Why?")
        await write(client, LAYOUT.keys_of(request_id), request_id)
    lengths = [await client.redis.xlen(keys.requests("normal")) for keys in LAYOUT.keys]
    assert lengths == [sum(LAYOUT.shard_of(each) == shard for each in IDS) for shard in range(4)]
    assert [(lane.lane, lane.waiting) for lane in await client.lanes()] == [("high", 0), ("normal", 12), ("low", 0)]
    for request_id in IDS:
        assert await kinds(client, request_id) == ["result"]
        assert isinstance(await client.final(request_id), Result) or (await client.result(request_id)).type == "result"
    assert not await client.redis.exists("llm:requests")


async def test_request_of_an_earlier_layout_is_found_where_it_was_added(client: Client) -> None:
    """It is followed, read and cancelled there, queued or begun; one that nobody knows is not."""
    await write(client, OLD.keys[0], "answered")
    assert (await client.result("answered", 5)).type == "result"
    assert (await client.final("answered")) is not None
    assert (await client.cancel("answered")).type == "result"

    await client.redis.xadd("llm:requests:low", {"id": "queued", "prompt": "Why?"})
    assert (await client.look_up("queued")).prefix == "llm"
    assert (await client.cancel("queued")).type == "cancelled"
    assert await client.redis.exists(OLD.keys[0].events("queued"))
    assert not await client.redis.exists(LAYOUT.keys_of("queued").events("queued"))

    with pytest.raises(UnknownRequestError):
        await client.cancel("nobody")


@pytest.mark.parametrize("earlier", [True, False], ids=["earlier", "in force"])
async def test_who_waits_for_events_sees_them_in_whichever_layout_they_come(client: Client, earlier: bool) -> None:
    """Nothing stands anywhere when the waiting begins; what comes later is read on where it began."""
    keys = OLD.keys[0] if earlier else LAYOUT.keys_of("late")
    following = asyncio.create_task(kinds(client, "late"))
    await asyncio.sleep(0.05)
    await write(client, keys, "late", "1-0", "attempt")
    await asyncio.sleep(0.05)
    await write(client, keys, "late", "2-0", "token")
    await write(client, keys, "late")
    assert await following == ["attempt", "token", "result"]
    assert await kinds(client, "late", "1-0") == ["token", "result"]


async def test_request_without_an_id_of_its_own_is_found_in_any_shard(client: Client) -> None:
    """It goes by the ID that XADD gave, of which no shard follows; a cancellation without a look reaches it, too."""
    for shard, keys in enumerate(LAYOUT.keys):
        entry = as_text(await client.redis.xadd(keys.requests("normal"), {"prompt": "Why?"}))
        assert (await client.look_up(entry)).prefix == keys.prefix
        await write(client, keys, entry, "1-0", "attempt")
        assert (await client.cancel(entry, anyway=bool(shard % 2))).type == "cancelled"
        assert await kinds(client, entry) == ["attempt", "cancelled"]
        assert [await client.redis.exists(each.events(entry)) for each in LAYOUT.keys].count(1) == 1


async def test_cancellation_without_a_look_holds_wherever_the_request_turns_up(client: Client) -> None:
    """It is dead on arrival in each layout in force."""
    assert (await client.cancel("r", anyway=True)).type == "cancelled"
    assert await client.redis.exists(OLD.keys[0].events("r"), LAYOUT.keys_of("r").events("r")) == 2
    assert (await client.cancel("r")).type == "cancelled"


async def test_letters_of_all_shards_are_listed_and_queued_again_in_their_own(client: Client) -> None:
    """A letter goes by its shard and its entry; an entry alone may be that of several."""
    first, other = LAYOUT.keys_of("r0"), LAYOUT.keys_of("r1")
    assert first != other
    await bury(client, first, "5-1", "r0")
    await bury(client, other, "5-1", "r1")
    await bury(client, OLD.keys[0], "6-1", "old")
    async with DeadLetters(client) as letters:
        names = [letter.name async for letter in letters.all()]
        assert sorted(names) == sorted([f"{first.prefix}/5-1", f"{other.prefix}/5-1", "llm/6-1"])
        assert {each.name for each in await letters.find("5-1")} == set(names[:2])
        (location,) = await letters.find(f"{first.prefix}/5-1")
        letter = await letters.get(location)
        assert letter is not None
        assert (await letters.retry(letter)).verdict is Verdict.QUEUED
        assert await client.redis.xlen(first.requests("low")) == 1
        (location,) = await letters.find("6-1")
        assert await letters.drop(location)
        assert [letter.name async for letter in letters.all()] == [f"{other.prefix}/5-1"]
        assert await letters.find("{llm:9}/5-1") == []
        with pytest.raises(ValueError, match="stream ID"):
            await letters.find("{llm:1}/")


async def test_one_pool_leads_to_the_one_server_of_all_shards(broker_url: str) -> None:
    """And a client of a Cluster is refused: its URL is followed, it is not."""
    async with Client(broker_url, shards=16, draining=[4, 1]) as client:
        assert len(client.shards.all) == 17
        assert len({id(shard.redis) for shard in client.shards.all}) == 1
    async with Redis.from_url(broker_url) as theirs, Client(theirs, shards=2) as client:
        await client.submit(id="r1", prompt="Why?")
        assert await theirs.xlen(LAYOUT.keys[0].requests("normal")) + await theirs.xlen("{llm:1}:requests") == 1
    with pytest.raises(TypeError, match=r"redis\+cluster://"):
        Client(RedisCluster(host="127.0.0.1", port=1))  # type: ignore[arg-type]
