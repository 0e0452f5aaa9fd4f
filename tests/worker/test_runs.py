"""Runs with tools, as a worker drives them: model, tools, model, until there is an answer."""

from __future__ import annotations

import json
from typing import Any

from tests.support.eventually import eventually
from tests.support.fakes import FakeBackend
from tests.support.queue import events_of, open_client
from tests.support.runs import ADD, SWITCH, answer, answers, calls, event_of, next_call, register, turns
from tests.support.wire import check_everything, final_of
from tests.support.workers import run_worker


async def submit(client: Any, name: str = "r1", agent: dict[str, Any] | None = None, **more: str) -> str:
    """A request that may use any tool."""
    fields = {"prompt": "do it", "id": name, "agent": json.dumps(agent or {"tools": ["*"]}), **more}
    await client.xadd("llm:requests", fields)
    return name


async def test_tool_is_called_and_its_result_is_in_the_next_turn(redis_url: str) -> None:
    """The run waits without a place meanwhile, and leaves nothing on the tool's stream."""
    model = FakeBackend(turns(calls("add", a=2, b=3), answers("it is 5")))
    async with open_client(redis_url) as client, run_worker(redis_url, {"local": model}) as worker:
        await register(client, add=ADD)
        await submit(client)
        _, call = await next_call(client, "add")
        assert (call["name"], call["arguments"], call["turn"], call["id"]) == ("add", {"a": 2, "b": 3}, 1, "r1")
        await eventually(lambda: worker.in_flight == 0)  # it waits without a place
        await answer(client, "r1", call["call_id"], "5")
        kind, result = await final_of(client, "r1")
        assert (kind, result["content"], result["turns"], result["attempt"]) == ("result", "it is 5", 2, 2)
        assert result["usage"]["prompt_tokens"] == 12
        kinds = [kind for _, kind, _ in await events_of(client, "r1")]
        assert kinds == ["attempt", "tool_call", "turn", "tool_result", "attempt", "result"]
        told = model.calls[1].messages
        assert told[-2]["tool_calls"][0]["id"] == told[-1]["tool_call_id"] == call["call_id"]
        assert told[-1] == {"role": "tool", "tool_call_id": call["call_id"], "content": "5"}
        assert await client.xlen("llm:tools:add") == 0
        await check_everything(client)


async def test_person_agrees(redis_url: str) -> None:
    """No tool is told before that."""
    model = FakeBackend(turns(calls("switch", lamp="hall"), answers("done")))
    async with open_client(redis_url) as client, run_worker(redis_url, {"local": model}):
        await register(client, switch=SWITCH)
        await submit(client)
        asked = await event_of(client, "r1", "tool_call")
        assert asked["confirm"] is True
        assert not await client.exists("llm:tools:switch")
        word = {"confirm": asked["call_id"], "args_sha256": asked["args_sha256"], "by": "ada"}
        await client.xadd("llm:consent:r1", word)
        _, call = await next_call(client, "switch")
        await answer(client, "r1", call["call_id"], "ok")
        kind, result = await final_of(client, "r1")
        assert (kind, result["content"]) == ("result", "done")
        assert (await event_of(client, "r1", "confirmed"))["by"] == "ada"
        await check_everything(client)
