"""A run that has killed its workers ends, and no tool acts for nobody then."""

from __future__ import annotations

from llm_routerd.protocol.keys import GROUP
from tests.support.eventually import eventually
from tests.support.fakes import FakeBackend
from tests.support.queue import open_client
from tests.support.runs import ADD, calls, next_call, register, turns
from tests.support.wire import check_everything, final_of
from tests.support.workers import run_worker

LANE = "llm:requests"


async def test_calls_of_a_poisoned_run_are_taken_back(redis_url: str) -> None:
    """What its tools have not begun, and what has been said to it."""
    model = FakeBackend(turns(calls("add", a=2, b=3)))
    async with open_client(redis_url) as client:
        async with run_worker(redis_url, {"local": model}):
            await register(client, add=ADD)
            entry = await client.xadd(LANE, {"prompt": "do it", "id": "r1", "agent": '{"tools":["*"]}'})
            await next_call(client, "add")
        await client.xadd("llm:inbox:r1", {"call_id": "call_0", "result": "forged"})
        await client.xclaim(LANE, GROUP, "dead", 0, [entry], retrycount=9, idle=3_600_000, justid=True)
        async with run_worker(redis_url, {"local": model}) as worker:
            kind, data = await final_of(client, "r1")
            await eventually(lambda: not worker.in_flight)  # it takes back when it has buried
        assert (kind, data["code"]) == ("error", "poisoned")
        assert await client.xlen("llm:tools:add") == 0
        assert await client.xlen("llm:inbox:r1") == 0
        await check_everything(client)
