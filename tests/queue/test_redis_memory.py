"""What a finished request costs Redis: the size of its events, and not of the node that the server allocates."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from llm_routerd.protocol.events import FINAL_ID
from tests.support.queue import add, begin_one, commit, open_broker, open_client, result
from tests.support.wire import eventually_true


async def finish(url: str, request_id: str) -> None:
    """One short request, from the entry to the commit."""
    async with open_broker(url) as broker:
        delivery, transcript = await begin_one(url, broker, request_id)
        committed = await commit(
            broker,
            delivery,
            result(request_id),
            transcript=transcript,
            request_ids=(request_id,),
            metrics=b'{"id":"r1"}',
        )
        assert committed.verdict == "committed"


async def test_finished_request_takes_the_room_of_its_events(valkey_url: str) -> None:
    """A stream's node has 4 KB; what is finished keeps its IDs and its TTL, and a kilobyte."""
    async with open_client(valkey_url) as client:
        await add(client)
        await finish(valkey_url, "r1")
        assert await client.memory_usage("llm:events:r1") < 1024
        assert [event for event, _ in await client.xrange("llm:events:r1")] == ["1-0", FINAL_ID]
        assert 0 < await client.pttl("llm:events:r1") <= 60_000
        assert [key async for key in client.scan_iter("llm:events:*")] == ["llm:events:r1"]


async def test_subscriber_that_waits_is_woken_with_the_final_event(valkey_url: str) -> None:
    """Though the key was exchanged for a smaller one in the same step."""
    async with open_client(valkey_url) as client, open_client(valkey_url) as subscriber:
        await add(client)
        waiting = asyncio.create_task(subscriber.xread({"llm:events:r1": "5-0"}, block=10_000))
        await eventually_true(lambda: blocked(client))
        await finish(valkey_url, "r1")
        ((_, ((event, _),)),) = await waiting
        assert event == FINAL_ID


async def blocked(client: Any) -> bool:
    """Whether somebody waits for an event."""
    return bool((await client.info("clients"))["blocked_clients"])


async def test_stream_that_bears_the_copys_name_is_left_alone(valkey_url: str) -> None:
    """It is that of a request whose id ends so."""
    async with open_client(valkey_url) as client:
        await client.xadd("llm:events:r1:copy", {"type": "attempt", "data": "{}"}, id="1-0")
        await add(client)
        await finish(valkey_url, "r1")
        assert [event for event, _ in await client.xrange("llm:events:r1:copy")] == ["1-0"]
        assert [event for event, _ in await client.xrange("llm:events:r1")] == ["1-0", FINAL_ID]


@pytest.mark.parametrize("command", ["copy", "rename"])
async def test_without_the_right_to_copy_it_is_finished_all_the_same(valkey_url: str, command: str) -> None:
    """And no copy is left."""
    async with open_client(valkey_url) as client:
        await client.execute_command("ACL", "SETUSER", "w", "on", ">pw", "~*", "&*", "+@all", f"-{command}")
        try:
            await add(client)
            await finish(valkey_url.replace("://", "://w:pw@", 1), "r1")
        finally:
            await client.execute_command("ACL", "DELUSER", "w")
        assert [event for event, _ in await client.xrange("llm:events:r1")] == ["1-0", FINAL_ID]
        assert [key async for key in client.scan_iter("llm:events:*")] == ["llm:events:r1"]
