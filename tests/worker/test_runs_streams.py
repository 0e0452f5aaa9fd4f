"""Streams and keys of runs that somebody fills, replaces or writes to."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tests.support.eventually import eventually
from tests.support.fakes import FakeBackend
from tests.support.queue import open_client
from tests.support.runs import (
    ADD,
    SWITCH,
    adds_once,
    agree,
    answer,
    answers,
    calls,
    calls_all,
    counts,
    event_of,
    next_call,
    register,
    submit,
    told,
    turns,
)
from tests.support.wire import check_everything, final_of
from tests.support.workers import run_worker

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from llm_routerd.protocol.call import Call, Delta, Finish


async def test_inbox_full_of_huge_answers(valkey_url: str) -> None:
    """Somebody writes many of ten megabytes: the server does not copy them all for one look, and the run goes on."""
    model = adds_once()
    async with open_client(valkey_url) as client, run_worker(valkey_url, {"local": model}) as worker:
        await register(client, add=ADD)
        await submit(client, "other")
        await event_of(client, "other", "turn")
        huge = "x" * 10_000_000
        async with client.pipeline() as all_at_once:
            for number in range(12):
                all_at_once.xadd("llm:inbox:other", {"call_id": f"call_{number}", "result": huge})
            await all_at_once.execute()
        _, call = await next_call(client, "add")
        await answer(client, "other", call["call_id"], "5")
        assert (await final_of(client, "other"))[0] == "result"
        assert told(model) == ["5"]
        await counts(worker, "tool_answers_ignored_total", 12)


async def test_stream_of_a_tool_that_is_none(broker_url: str) -> None:
    """The model is told that the call could not be made; other calls of the turn are."""
    both = calls_all(("bad", "{}"), ("add", '{"a": 1, "b": 1}'))
    model = FakeBackend(turns(both, answers("done")))
    async with open_client(broker_url) as client, run_worker(broker_url, {"local": model}):
        await register(client, add=ADD, bad={"description": "x"})
        await client.set("llm:tools:bad", "mine")
        await submit(client)
        _, call = await next_call(client, "add")
        await answer(client, "r1", call["call_id"], "2")
        assert (await final_of(client, "r1"))[0] == "result"
        assert told(model) == ["error: the call could not be made: the stream of this tool's calls is none", "2"]
        assert await client.get("llm:tools:bad") == "mine"
        await check_everything(client)


async def test_stream_of_a_tool_that_is_none_once_a_person_has_agreed(broker_url: str) -> None:
    """Likewise, and the person is not asked again."""
    model = FakeBackend(turns(calls("switch", lamp="hall"), answers("done")))
    async with open_client(broker_url) as client, run_worker(broker_url, {"local": model}):
        await register(client, switch=SWITCH)
        await client.set("llm:tools:switch", "mine")
        await submit(client)
        await agree(client, await event_of(client, "r1", "tool_call"))
        assert (await final_of(client, "r1"))[0] == "result"
        assert told(model)[0].startswith("error: the call could not be made")
        await check_everything(client)


async def test_stream_of_a_tool_that_becomes_none_while_it_is_called(broker_url: str) -> None:
    """The run does not hang."""
    model = adds_once()
    async with open_client(broker_url) as client, run_worker(broker_url, {"local": model}):
        await register(client, add={**ADD, "timeout_ms": 300})
        await submit(client)
        _, call = await next_call(client, "add")
        await client.delete("llm:tools:add")
        await client.set("llm:tools:add", "mine")
        assert call["call_id"]
        assert (await final_of(client, "r1"))[0] == "result"
        assert told(model)[0].startswith("error: unknown outcome")
        await check_everything(client)


async def test_inbox_that_is_no_stream(broker_url: str) -> None:
    """Its run hears nothing and ends in time; the others are heard as ever."""
    model = adds_once()
    async with open_client(broker_url) as client, run_worker(broker_url, {"local": model}):
        await register(client, add={**ADD, "timeout_ms": 3000})
        await client.set("llm:inbox:r1", "mine", px=60_000)
        await client.set("llm:consent:r1", "mine", px=60_000)
        await submit(client, "r1")
        entry, _ = await next_call(client, "add")
        await submit(client, "r2")
        _, call = await next_call(client, "add", entry)
        await answer(client, "r2", call["call_id"], "5")
        assert (await final_of(client, "r2"))[1]["content"] == "so be it"
        assert told(model) == ["5"]
        assert (await final_of(client, "r1"))[0] == "result"
        assert await client.get("llm:inbox:r1") == "mine"
        await check_everything(client)


async def test_run_of_many_long_results_is_replayed(broker_url: str) -> None:
    """What its events hold together is far longer than a request may be."""
    two = calls_all(("add", '{"a": 1, "b": 1}'), ("add", '{"a": 2, "b": 2}'))
    model = FakeBackend(turns(two, two, two, two, answers("done")))
    async with open_client(broker_url) as client, run_worker(broker_url, {"local": model}):
        await register(client, add=ADD)
        await submit(client)
        entry = "0-0"
        for number in range(8):
            entry, call = await next_call(client, "add", entry)
            await answer(client, "r1", call["call_id"], str(number) * 60_000)
        assert (await final_of(client, "r1"))[0] == "result"
        assert told(model, 5) == [str(number) * 60_000 for number in range(8)]
        await check_everything(client)


async def test_somebody_writes_events_into_a_run(broker_url: str) -> None:
    """Of its types or of none, while it waits and while a model works: they count as little as can be, and it ends."""
    gate = asyncio.Event()

    async def script(backend: FakeBackend, call: Call) -> AsyncGenerator[Delta | Finish, None]:
        if any(message["role"] == "tool" for message in call.messages):
            await gate.wait()
        async for each in turns(calls("add", a=1, b=1), answers("done"))(backend, call):
            yield each

    model = FakeBackend(script)
    async with open_client(broker_url) as client, run_worker(broker_url, {"local": model}) as worker:
        await register(client, add=ADD)
        await submit(client)
        _, call = await next_call(client, "add")
        await eventually(lambda: worker.in_flight == 0)
        for fields in ({"x": "y"}, {"type": "turn", "data": "{"}, {"type": "tool_result", "data": b"\xff"}):
            await client.xadd("llm:events:r1", fields, id="1-*")
        await answer(client, "r1", call["call_id"], "2")
        await eventually(lambda: len(model.calls) == 2)
        await client.xadd("llm:events:r1", {"type": "nope", "data": "{}"}, id="2-1000")
        gate.set()
        kind, result = await final_of(client, "r1")
        assert (kind, result["content"]) == ("result", "done")
        assert told(model) == ["2"]


async def test_key_of_all_tools_becomes_another_while_a_run_waits(broker_url: str) -> None:
    """No tool is offered any more; what was called is answered, and the run ends."""
    model = adds_once()
    async with open_client(broker_url) as client, run_worker(broker_url, {"local": model}) as worker:
        await register(client, add=ADD)
        await submit(client)
        _, call = await next_call(client, "add")
        await eventually(lambda: worker.in_flight == 0)
        await client.delete("llm:tools")
        await client.set("llm:tools", "mine")
        await answer(client, "r1", call["call_id"], "2")
        assert (await final_of(client, "r1"))[0] == "result"
        assert told(model) == ["2"]
