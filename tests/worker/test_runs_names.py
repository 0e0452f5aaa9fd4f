"""What is counted and audited of runs: names of tools, and nothing that a model wrote."""

from __future__ import annotations

import json

from tests.support.fakes import FakeBackend
from tests.support.queue import open_client
from tests.support.runs import ADD, answers, calls_all, register, turns
from tests.support.wire import final_of
from tests.support.workers import run_worker

SECRET = "she_lives_in_elm_street"


async def test_name_that_a_model_made_up_is_neither_counted_nor_audited(redis_url: str) -> None:
    """It is text of a model: a metric would keep it for good, and hundreds of them leave real tools without a name."""
    model = FakeBackend(turns(calls_all((SECRET, "{}"), ("add", "{}")), answers("done")))
    async with open_client(redis_url) as client, run_worker(redis_url, {"local": model}) as worker:
        await register(client, add=ADD)
        await client.xadd("llm:requests", {"prompt": "do it", "id": "r1", "agent": '{"tools": ["*"]}'})
        assert (await final_of(client, "r1"))[1]["content"] == "done"
        audit = [fields for _, fields in await client.xrange("llm:audit")]
    assert [each["tool"] for each in audit if each["kind"] == "tool"] == ["?", "add"]
    assert SECRET not in json.dumps(audit)
    assert worker.metrics._counters.tool_calls == {("?", "invalid"): 1, ("add", "invalid"): 1}
