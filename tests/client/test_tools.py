"""What is registered as a tool, and who serves it, on fakeredis and on a real Valkey."""

from __future__ import annotations

import json
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest
import redis as plain

from llm_routerd.agents.registration import Tool, Unsound
from llm_routerd.client import Client, RegisteredTool
from llm_routerd.errors import NotAllowedError
from llm_routerd.protocol.examples import TOOLS
from llm_routerd.protocol.keys import TOOL_GROUP
from tests.support.queue import open_client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

WEATHER, SWITCH = (json.dumps(tool) for tool in TOOLS)


@pytest.fixture
async def redis(broker_url: str) -> AsyncIterator[Any]:
    """A plain client."""
    async with open_client(broker_url) as client:
        yield client


async def tools(url: str, **options: Any) -> dict[str, RegisteredTool]:
    """What is listed, by name."""
    async with Client(url, patience_seconds=1, **options) as client:
        return {tool.name: tool for tool in (await client.tools()).tools}


async def test_nothing_is_registered_at_first(broker_url: str) -> None:
    """No key, no trouble."""
    assert await tools(broker_url) == {}


async def test_registrations_are_read_as_workers_read_them(broker_url: str, redis: Any) -> None:
    """And why one is none is told."""
    await redis.hset("llm:tools", mapping={"weather": WEATHER, "lights.switch": SWITCH})
    unsound = {
        "broken": "{",
        "list": "[1]",
        "typo": json.dumps({**TOOLS[0], "confrim": True}),
        "silent": json.dumps({"parameters": {}}),
        "schema": json.dumps({"description": "x", "parameters": {"type": "nonsense"}}),
        "two words": WEATHER,
    }
    await redis.hset("llm:tools", mapping=unsound)
    found = {name: tool.read() for name, tool in (await tools(broker_url)).items()}
    assert list(found) == sorted([*unsound, "weather", "lights.switch"])
    switch = found["lights.switch"]
    assert isinstance(switch, Tool)
    assert (switch.confirm, switch.timeout_ms, switch.parameters.raw) == (True, 5000, TOOLS[1]["parameters"])
    why = {name: tool.why for name, tool in found.items() if isinstance(tool, Unsound)}
    assert set(why) == set(unsound)
    assert "no JSON" in why["broken"]
    assert "object" in why["list"]
    assert "confrim" in why["typo"]
    assert "description" in why["silent"]
    assert why["schema"].startswith("$.parameters")
    assert "the name does not match" in why["two words"]


async def test_who_serves_a_tool_and_what_waits_is_told(broker_url: str, redis: Any) -> None:
    """Calls that nobody has taken, and those that somebody has."""
    await redis.hset("llm:tools", "weather", WEATHER)
    (nobody,) = (await tools(broker_url)).values()
    assert (nobody.calls, nobody.groups, nobody.idle_ms, nobody.is_served) == (0, (), None, False)
    for _ in range(3):
        await redis.xadd("llm:tools:weather", {"call": "{}"})
    await redis.xgroup_create("llm:tools:weather", TOOL_GROUP, "0")
    (left,) = (await tools(broker_url)).values()
    assert (left.calls, left.groups[0].waiting, left.groups[0].consumers, left.is_served) == (3, 3, (), False)
    await redis.xreadgroup(TOOL_GROUP, "attic", {"llm:tools:weather": ">"}, count=1)
    (tool,) = (await tools(broker_url)).values()
    (group,) = tool.groups
    assert (group.name, group.waiting, group.pending) == (TOOL_GROUP, 2, 1)
    ((name, pending),) = [(each.name, each.pending) for each in group.consumers]
    assert (name, pending, tool.is_served) == ("attic", 1, True)
    assert tool.idle_ms is not None


async def test_calls_that_were_deleted_do_not_wait(valkey_url: str) -> None:
    """As the daemon deletes those that timed out."""
    async with open_client(valkey_url) as redis:
        await redis.hset("llm:tools", "weather", WEATHER)
        entries = [await redis.xadd("llm:tools:weather", {"call": "{}"}) for _ in range(4)]
        await redis.xgroup_create("llm:tools:weather", TOOL_GROUP, "0")
        await redis.xreadgroup(TOOL_GROUP, "attic", {"llm:tools:weather": ">"}, count=1)
        await redis.xdel("llm:tools:weather", entries[2], entries[3])
        (tool,) = (await tools(valkey_url)).values()
        assert (tool.groups[0].waiting, tool.groups[0].pending) == (1, 1)


async def test_streams_that_are_none_are_told(broker_url: str, redis: Any) -> None:
    """No call can be put there; and a hash of tools that is none has none."""
    await redis.hset("llm:tools", "weather", WEATHER)
    await redis.set("llm:tools:weather", "x")
    (tool,) = (await tools(broker_url)).values()
    assert (tool.calls, tool.is_served) == (None, False)
    assert "another type" in tool.trouble
    await redis.delete("llm:tools")
    await redis.set("llm:tools", "x")
    assert await tools(broker_url) == {}


async def test_each_shard_has_its_own(broker_url: str, redis: Any) -> None:
    """Listed one after another."""
    for shard, names in enumerate((("a", "b"), ("b",))):
        for name in names:
            await redis.hset(f"{{llm:{shard}}}:tools", name, WEATHER)
    async with Client(broker_url, shards=2) as client:
        found = await client.tools()
    assert [(tool.name, tool.shard) for tool in found.tools] == [("a", "{llm:0}"), ("b", "{llm:0}"), ("b", "{llm:1}")]


async def test_hostile_registrations_are_not_read(valkey_url: str) -> None:
    """Ten megabytes of one, ten thousand of them, a name of a megabyte: nothing is kept of what is too much."""
    async with open_client(valkey_url) as redis:
        await redis.hset("llm:tools", mapping={"aaa-huge": "x" * 10_000_000, "\x00" * 1_000_000: WEATHER})
        for at in range(0, 10_000, 1_000):
            await redis.hset("llm:tools", mapping={f"tool-{number:05}": "{" for number in range(at, at + 1_000)})
        tracemalloc.start()
        try:
            async with Client(valkey_url) as client:
                found = await client.tools()
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 20_000_000
    assert (len(found.tools), found.more) == (1_000, 9_002)
    by_name = {tool.name: tool for tool in found.tools}
    assert "it has 10000000 bytes" in str(by_name["aaa-huge"].read())
    assert by_name["\x00" * 256].size == len(WEATHER)


async def test_more_than_can_be_sorted_are_counted(valkey_url: str) -> None:
    """Nobody has so many; also where their names alone are megabytes."""
    async with open_client(valkey_url) as redis:
        await redis.hset("llm:tools", mapping={"x" * 1_000_000 + str(number): "{" for number in range(6)})
        async with Client(valkey_url) as client:
            assert ((found := await client.tools()).tools, found.more) == ((), 6)
            await redis.delete("llm:tools")
            for at in range(0, 21_000, 1_000):
                await redis.hset("llm:tools", mapping={str(number): "{" for number in range(at, at + 1_000)})
            assert ((found := await client.tools()).tools, found.more) == ((), 21_000)


async def test_who_may_not_look_is_told(valkey_url: str) -> None:
    """At the hash; at the streams alone the rest is listed."""
    rights = ["+ping", "+hello", "+auth", "+select", "+client|setname", "+hlen", "+hkeys", "+hstrlen", "+hget"]
    with plain.Redis.from_url(valkey_url) as server:
        server.hset("llm:tools", "weather", WEATHER)
        server.acl_setuser("narrow", enabled=True, passwords=["+pw"], keys=["none"], commands=rights)
        url = valkey_url.replace("unix://", "unix://narrow:pw@")
        try:
            with pytest.raises(NotAllowedError):
                await tools(url)
            server.execute_command("ACL", "SETUSER", "narrow", "~llm:tools")
            (tool,) = (await tools(url)).values()
        finally:
            server.acl_deluser("narrow")
    assert isinstance(tool.read(), Tool)
    assert (tool.calls, tool.trouble) == (None, "this user may not look at it")
