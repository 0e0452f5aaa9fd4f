"""Runs with tools, as a worker drives them: model, tools, model, until there is an answer."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from llm_routerd.config.agents import AgentsConfig, Tenant
from tests.support.eventually import eventually
from tests.support.fakes import FakeBackend
from tests.support.queue import events_of, open_client
from tests.support.runs import (
    ADD,
    SWITCH,
    agree,
    answer,
    answers,
    calls,
    counts,
    event_of,
    next_call,
    register,
    submit,
    turns,
)
from tests.support.wire import check_everything, final_of, metrics_of
from tests.support.workers import make_config, run_worker


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
        await agree(client, asked)
        _, call = await next_call(client, "switch")
        await answer(client, "r1", call["call_id"], "ok")
        kind, result = await final_of(client, "r1")
        assert (kind, result["content"]) == ("result", "done")
        assert (await event_of(client, "r1", "confirmed"))["by"] == "ada"
        await check_everything(client)


async def ends_in(client: Any, code: str, name: str = "r1") -> dict[str, Any]:
    """The error of this code in which a run has ended: in its final event and in its metrics."""
    kind, error = await final_of(client, name)
    metrics = await metrics_of(client, name)
    assert (kind, error["code"], metrics["type"], metrics["code"]) == ("error", code, "error", code)
    assert error["message"]
    await check_everything(client)
    return metrics


async def test_turns_exhausted(broker_url: str) -> None:
    """In the last turn no tool is offered; a model that calls one all the same has no answer."""
    model = FakeBackend(turns(calls("add", a=1, b=1)))
    async with open_client(broker_url) as client, run_worker(broker_url, {"local": model, "cloud": model}) as worker:
        await register(client, add=ADD)
        await submit(client, agent={"tools": ["add"], "max_turns": 2})
        _, call = await next_call(client, "add")
        await answer(client, "r1", call["call_id"], "2")
        metrics = await ends_in(client, "turns_exhausted")
        assert (metrics["turns"], metrics["tool_calls"]) == (2, 1)
        assert [call.tool_choice for call in model.calls[-2:]] == ["none", "none"]  # of both deployments
        assert await client.xlen("llm:tools:add") == 0
        await counts(worker, 'runs_total{end="turns_exhausted"}', 1)


async def test_confirmation_expired(broker_url: str) -> None:
    """The tool is never told, and the model is not asked again."""
    config = replace(make_config(), agents=AgentsConfig(confirmation_seconds=0.2))
    model = FakeBackend(turns(calls("switch", lamp="hall"), answers("done")))
    async with open_client(broker_url) as client, run_worker(broker_url, {"local": model}, config=config) as worker:
        await register(client, switch=SWITCH)
        await submit(client)
        metrics = await ends_in(client, "confirmation_expired")
        assert (metrics["turns"], metrics["tool_calls"], len(metrics["attempts"])) == (1, 1, 1)
        assert not await client.exists("llm:tools:switch")
        assert len(model.calls) == 1
        await counts(worker, 'confirmations_total{outcome="expired"}', 1)


@pytest.mark.parametrize("wanted", ["nope", "nope.*", "broken"])
async def test_unknown_tool(broker_url: str, wanted: str) -> None:
    """It is not registered, or what is registered is none: no model is asked."""
    model = FakeBackend(turns(answers("done")))
    async with open_client(broker_url) as client, run_worker(broker_url, {"local": model}):
        await register(client, add=ADD)
        await client.hset("llm:tools", "broken", "{")
        await submit(client, agent={"tools": ["add", wanted]})
        await ends_in(client, "unknown_tool")
        assert not model.calls


async def test_tool_not_allowed(broker_url: str) -> None:
    """Neither one that nobody may use, nor one that this tenant may not."""
    agents = AgentsConfig(tools=("add", "lights.*"))
    tenants = {"eve": Tenant(name="eve", tools=("lights.*",))}
    config = replace(make_config(), agents=agents, tenants=tenants)
    model = FakeBackend(turns(answers("done")))
    async with open_client(broker_url) as client, run_worker(broker_url, {"local": model}, config=config):
        await register(client, add=ADD, switch=SWITCH)
        await submit(client, "r1", {"tools": ["switch"]})
        await ends_in(client, "tool_not_allowed")
        await submit(client, "r2", {"tools": ["add"]}, tenant_id="eve")
        await ends_in(client, "tool_not_allowed", "r2")
        assert not model.calls
        await submit(client, "r3", {"tools": ["add"]}, tenant_id="bob")
        assert (await final_of(client, "r3"))[0] == "result"
