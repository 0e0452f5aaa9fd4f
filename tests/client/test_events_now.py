"""What stands in a request's events now, and a person's word to a tool call; wherever the request stands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from llm_routerd.client import Client
from llm_routerd.errors import BrokerError
from llm_routerd.protocol.events import FINAL_ID
from llm_routerd.protocol.keys import Keys, Layout
from tests.support.queue import open_client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

NOW, BEFORE = Layout("llm", 3).keys_of("a"), Keys("llm")


@pytest_asyncio.fixture
async def opened(valkey_url: str) -> AsyncIterator[tuple[Client, Any]]:
    """A client of a queue in three shards that was in one before, and a plain one."""
    async with Client(valkey_url, shards=3, draining=[1]) as client, open_client(valkey_url) as redis:
        yield client, redis


@pytest.mark.parametrize("keys", [NOW, BEFORE], ids=["now", "before"])
async def test_events_are_found_where_the_request_stands(opened: tuple[Client, Any], keys: Keys) -> None:
    """The last, one by its ID, those after one."""
    client, redis = opened
    assert await client.last("a") is None
    assert await client.at("a", "1-0") is None
    assert await client.events_after("a", "0-0", 10) == []
    for event_id in ("1-0", "1-1", "1-2"):
        await redis.xadd(keys.events("a"), {"type": "token", "data": '{"text":"x"}'}, id=event_id)
    last, first = await client.last("a"), await client.at("a", "1-0")
    assert last is not None
    assert first is not None
    assert (last.stream_id, first.stream_id) == ("1-2", "1-0")
    assert [event.stream_id for event in await client.events_after("a", "1-0", 1)] == ["1-1"]
    assert [event.stream_id for event in await client.events_after("a", "1-0", 9)] == ["1-1", "1-2"]
    await redis.xadd(keys.events("a"), {"type": "cancelled", "data": "{}"}, id=FINAL_ID)
    last = await client.last("a")
    assert last is not None
    assert last.is_final


@pytest.mark.parametrize("keys", [NOW, BEFORE], ids=["now", "before"])
async def test_word_goes_where_the_events_are(opened: tuple[Client, Any], keys: Keys) -> None:
    """And there alone, with a time to live that each word begins anew."""
    client, redis = opened
    await redis.xadd(keys.events("a"), {"type": "token", "data": "{}"}, id="1-0")
    await client.consent("a", {"deny": "c", "by": "ann", "reason": ""})
    await redis.expire(keys.consent("a"), 5)
    await client.consent("a", {"confirm": "c", "by": "bob", "args": b"{}"})
    assert [fields["by"] for _, fields in await redis.xrange(keys.consent("a"))] == ["ann", "bob"]
    assert await redis.ttl(keys.consent("a")) > 5
    assert set(await redis.keys("*consent*")) == {keys.consent("a")}


async def test_word_of_a_person_has_its_fields(opened: tuple[Client, Any]) -> None:
    """As the schema of a consent has them; what cannot be sent is not."""
    client, redis = opened
    await redis.xadd(NOW.events("a"), {"type": "token", "data": "{}"}, id="1-0")
    await client.confirm("a", "c1", args_sha256="ab", by="ann")
    more: dict[str, Any] = {"args": {"lamp": "é"}, "always": True, "reason": "dark"}
    await client.confirm("a", "c1", args_sha256="ab", by="ann", **more)
    await client.deny("a", "c1", by="bob", reason="asleep")
    with pytest.raises(TypeError):
        await client.confirm("a", "c1", args_sha256="ab", by="ann", args={"lamp": object()})
    with pytest.raises(ValueError, match=r"."):
        await client.deny("a b", "c1", by="bob")
    assert [fields for _, fields in await redis.xrange(NOW.consent("a"))] == [
        {"confirm": "c1", "args_sha256": "ab", "by": "ann"},
        {"confirm": "c1", "args_sha256": "ab", "by": "ann", "args": '{"lamp":"é"}', "reason": "dark", "always": "1"},
        {"deny": "c1", "by": "bob", "reason": "asleep"},
    ]


async def test_key_of_another_type_is_named(opened: tuple[Client, Any]) -> None:
    """It is somebody else's, and nothing is done to it."""
    client, redis = opened
    await redis.xadd(NOW.events("a"), {"type": "token", "data": "{}"}, id="1-0")
    await redis.set(NOW.consent("a"), "x")
    with pytest.raises(BrokerError, match="consent"):
        await client.consent("a", {"deny": "c"})
    assert await redis.ttl(NOW.consent("a")) == -1


async def test_what_is_no_id_is_not_asked_for(opened: tuple[Client, Any]) -> None:
    """Of a request, or of an event."""
    client, _ = opened
    for question in (
        client.last("a b"), client.at("a b", "1-0"), client.events_after("a b", "0-0", 1),
        client.events_after("a", "$", 1), client.consent("a b", {}),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"."):
            await question
