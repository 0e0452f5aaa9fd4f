"""An events stream that has no room for an attempt, and has room for the final event."""

from __future__ import annotations

from tests.support.endings import final_of, nothing_left
from tests.support.fakes import FakeBackend, says
from tests.support.queue import add, open_client
from tests.support.workers import run_worker


async def test_stream_before_the_final_event_gets_it(broker_url: str) -> None:
    """Whoever follows it is told, no model is asked, and the key does not stay for good."""
    backend = FakeBackend(says("hi"))
    async with open_client(broker_url) as client:
        await client.xadd("llm:events:r", {"type": "attempt", "data": "{}"}, id="9007199254740990-5")
        await add(client, id="r")
        async with run_worker(broker_url, {"local": backend}):
            kind, data = await final_of(client, "r")
            await nothing_left(client)
        assert (kind, data["code"]) == ("error", "invalid_request")
        assert await client.xlen("llm:dead") == 1
        assert await client.pttl("llm:events:r") > 0
        assert not backend.calls
