"""Runs that somebody ends from outside, wherever they are: nobody is asked for them any more, and all is told once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llm_routerd.protocol.events import FINAL_ID
from tests.support.eventually import eventually
from tests.support.fakes import FakeBackend, hangs
from tests.support.queue import open_client
from tests.support.runs import (
    ADD,
    BOTH,
    SWITCH,
    adds,
    agree,
    answer,
    answers,
    calls,
    counts,
    event_of,
    is_gone,
    metrics_all,
    next_call,
    register,
    submit,
    turns,
)
from tests.support.wire import cancellation, check_everything, eventually_true, final_of, metrics_of
from tests.support.workers import run_worker

if TYPE_CHECKING:
    from llm_routerd.protocol.call import Call


async def cancel(client: Any, name: str = "r1") -> None:
    """As anybody does who may."""
    await client.xadd(f"llm:events:{name}", cancellation(name), id=FINAL_ID)


async def test_cancelled_while_it_waits(broker_url: str) -> None:
    """Calls that nobody has begun are deleted, `cancelled` stays, and what it has cost is told, once."""
    model = FakeBackend(turns(BOTH, answers("done")))
    async with open_client(broker_url) as client, run_worker(broker_url, {"local": model}) as worker:
        await register(client, add=ADD, switch=SWITCH)
        await submit(client, tenant_id="ada")
        _, call = await next_call(client, "add")
        asked = await event_of(client, "r1", "tool_call", 2)
        await eventually(lambda: worker.in_flight == 0)
        await cancel(client)
        await eventually_true(lambda: is_gone(client, "llm:tools:add"))
        await eventually_true(lambda: is_gone(client, "llm:requests"))
        metrics = await metrics_of(client, "r1")
        await answer(client, "r1", call["call_id"], "2")
        await agree(client, asked)
        assert (metrics["type"], metrics["tenant_id"]) == ("cancelled", "ada")
        await counts(worker, 'requests_total{type="cancelled",code=""}', 1)
        assert worker.resting() == (0, 0)
        assert len(await metrics_all(client)) == 1
        assert (await final_of(client, "r1"))[0] == "cancelled"
        assert not await client.exists("llm:tools:switch")
        assert len(model.calls) == 1
        await check_everything(client)


async def test_cancelled_run_tells_of_its_turns(redis_url: str) -> None:
    """Its attempts were paid for."""
    async with open_client(redis_url) as client, run_worker(redis_url, {"local": adds()}) as worker:
        await register(client, add=ADD)
        await submit(client)
        await event_of(client, "r1", "turn")
        await eventually(lambda: worker.in_flight == 0)
        await cancel(client)
        metrics = await metrics_of(client, "r1")
        assert (metrics["turns"], metrics["tool_calls"], len(metrics["attempts"])) == (1, 1, 1)
        await counts(worker, 'runs_total{end="cancelled"}', 1)


async def test_cancelled_while_a_model_works_on_a_later_turn(broker_url: str) -> None:
    """It is stopped, and nothing more is asked."""

    async def script(backend: FakeBackend, call: Call) -> Any:
        made = sum(message["role"] == "assistant" for message in call.messages)
        async for each in (hangs() if made else turns(calls("add", a=1, b=1)))(backend, call):
            yield each

    model = FakeBackend(script)
    async with open_client(broker_url) as client, run_worker(broker_url, {"local": model}) as worker:
        await register(client, add=ADD)
        await submit(client)
        _, call = await next_call(client, "add")
        await answer(client, "r1", call["call_id"], "2")
        await eventually(lambda: len(model.calls) == 2)
        await cancel(client)
        await eventually(lambda: model.running == 0)
        await metrics_of(client, "r1")
        await counts(worker, 'requests_total{type="cancelled",code=""}', 1)
        assert len(await metrics_all(client)) == 1
        assert await is_gone(client, "llm:requests")
        await check_everything(client)


async def test_cancelled_while_no_worker_is_there(broker_url: str) -> None:
    """Whoever comes next takes the calls back."""
    async with open_client(broker_url) as client:
        async with run_worker(broker_url, {"local": adds()}) as worker:
            await register(client, add=ADD)
            await submit(client)
            await event_of(client, "r1", "turn")
            await eventually(lambda: worker.in_flight == 0)
            worker.stop()
        await cancel(client)
        assert await client.xlen("llm:tools:add") == 1
        async with run_worker(broker_url, {"local": adds()}, consumer="w2"):
            await eventually_true(lambda: is_gone(client, "llm:tools:add"))
            await metrics_of(client, "r1")
            await eventually_true(lambda: is_gone(client, "llm:requests"))


async def test_run_that_is_cancelled_as_it_wakes(redis_url: str) -> None:
    """It finds that out by itself, and takes its calls back at once."""
    async with open_client(redis_url) as client, run_worker(redis_url, {"local": adds()}) as worker:
        await register(client, add=ADD)
        await submit(client)
        await event_of(client, "r1", "turn")
        await eventually(lambda: worker.resting() == (1, 0))
        served = worker.shards[0]
        (item,) = served.in_flight
        await cancel(client)
        served._mailroom._wakes([item])
        item.stop("sealed")
        await eventually(lambda: not list(served.in_flight))
        assert await is_gone(client, "llm:tools:add")
        assert await is_gone(client, "llm:requests")
