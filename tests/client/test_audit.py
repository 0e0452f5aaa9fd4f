"""The audit as a client reads it: of all shards, by time, in pages."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from llm_routerd.client import AuditEntry, Client
from llm_routerd.client.audit import PAGE
from llm_routerd.protocol.keys import Layout
from tests.support.queue import open_client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

LAYOUT = Layout("llm", 3)


async def put(client: Any, stream: str, ms: int, **fields: Any) -> None:
    """An entry that was written at that moment."""
    told = {"kind": "model", "at_ms": ms - 3, "id": f"r{ms}", "outcome": "success", "deployment": "local", **fields}
    await client.xadd(stream, told, id=f"{ms}-*")


async def all_of(entries: AsyncIterator[AuditEntry]) -> list[AuditEntry]:
    """As they come."""
    return [entry async for entry in entries]


async def test_entries_of_all_shards_come_in_the_order_in_which_they_were_written(valkey_url: str) -> None:
    """More than a page of each, every one once, whichever shard it stands in."""
    count = 2 * PAGE + 7
    async with open_client(valkey_url) as redis, Client(valkey_url, shards=3) as client:
        for number in range(1, 3 * count + 1):
            await put(redis, LAYOUT.keys[number * number % 3 if number % 2 else 2].audit, 1000 + number)
        found = await all_of(client.audit())
    assert [entry.at_ms for entry in found] == [998 + number for number in range(3 * count)]


async def test_what_is_asked_for_is_what_comes(valkey_url: str) -> None:
    """By time, by tenant, by request, by kind."""
    async with open_client(valkey_url) as redis, Client(valkey_url) as client:
        await put(redis, "llm:audit", 1000, tenant_id="ada", prompt_tokens=3, cost_usd="7.6e-05")
        await put(redis, "llm:audit", 2000, kind="tool", tool="weather", tenant_id="bob")
        await put(redis, "llm:audit", 3000, tenant_id="ada")
        (first,) = await all_of(client.audit(until_ms=2000))
        assert (first.prompt_tokens, first.cost_usd) == (3, 7.6e-05)
        assert [entry.id for entry in await all_of(client.audit(since_ms=2000))] == ["r2000", "r3000"]
        assert [entry.id for entry in await all_of(client.audit(tenant_id="ada", since_ms=1001))] == ["r3000"]
        assert [entry.id for entry in await all_of(client.audit(kind="tool"))] == ["r2000"]
        assert [entry.id for entry in await all_of(client.audit(request_id="r3000"))] == ["r3000"]
        with pytest.raises(ValueError, match="id"):
            await all_of(client.audit(request_id="no id"))


async def test_what_is_no_entry_is_passed_over(valkey_url: str) -> None:
    """An operator's own, a number that is none, bytes that are no text; and properties of a later release are no harm."""
    async with open_client(valkey_url) as redis, Client(valkey_url) as client:
        await redis.xadd("llm:audit", {"note": "rotated the key"})
        await put(redis, "llm:audit", 9_000_000_000_000, at_ms="yesterday")
        await put(redis, "llm:audit", 9_000_000_000_001, outcome=b"\xff", shoe_size=43)
        (entry,) = await all_of(client.audit())
    assert entry.outcome == "\N{REPLACEMENT CHARACTER}"


async def test_who_follows_sees_what_comes(valkey_url: str) -> None:
    """In every shard, each once."""
    async with open_client(valkey_url) as redis, Client(valkey_url, shards=3) as client:
        await put(redis, LAYOUT.keys[0].audit, 1000)
        entries = client.audit(follow=True)
        async with asyncio.timeout(10):
            assert (await anext(entries)).id == "r1000"
            coming = asyncio.ensure_future(anext(entries))
            await asyncio.sleep(0.05)
            await put(redis, LAYOUT.keys[2].audit, 2000)
            assert (await coming).id == "r2000"
        await entries.aclose()
