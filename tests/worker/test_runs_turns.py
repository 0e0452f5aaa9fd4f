"""The turns of a run: what is wrong with a call, how many turns there are, until when, and what holds in each."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from msgspec.structs import replace

from llm_routerd.protocol.codes import AttemptCode
from tests.support.eventually import eventually
from tests.support.fakes import FakeBackend, fails, hangs, says
from tests.support.queue import add, events_of, open_client
from tests.support.runs import (
    ADD,
    SWITCH,
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
    turns,
)
from tests.support.wire import check_everything, final_of, metrics_of, next_message
from tests.support.workers import DAEMON, make_config, run_worker


async def test_arguments_that_do_not_satisfy_are_told_once(broker_url: str) -> None:
    """Then another faulty call is no answer, and the next deployment is asked."""
    local = FakeBackend(turns(calls("add", a="one"), calls("add", a="two")))
    cloud = FakeBackend(turns(answers("never"), calls("add", a=1, b=1), answers("2")))
    async with open_client(broker_url) as client, run_worker(broker_url, {"local": local, "cloud": cloud}) as worker:
        await register(client, add=ADD)
        await submit(client)
        _, call = await next_call(client, "add")
        assert call["turn"] == 2
        await answer(client, "r1", call["call_id"], "2")
        kind, result = await final_of(client, "r1")
        assert (kind, result["turns"]) == ("result", 3)
        assert "a" in local.calls[1].messages[-1]["content"]
        assert local.calls[1].messages[-1]["content"].startswith("error: ")
        told = [(each["deployment"], each["outcome"]) for each in result["attempts"]]
        assert told[:3] == [("local", "success"), ("local", "invalid"), ("cloud", "success")]
        metrics = await metrics_of(client, "r1")
        assert [each["outcome"] for each in metrics["attempts"]] == [each["outcome"] for each in result["attempts"]]
        assert (metrics["turns"], metrics["tool_calls"]) == (3, 2)
        await counts(worker, 'tool_calls_total{tool="add",outcome="invalid"}', 1)
        await counts(worker, 'tool_calls_total{tool="add",outcome="result"}', 1)
        await check_everything(client)


async def test_arguments_that_are_no_json(broker_url: str) -> None:
    """They stand in the event as the model wrote them, and as an empty object in the message, for providers."""
    model = FakeBackend(turns(calls_all(("add", '{"a": 1,'), ("add", "")), calls("add", a=1, b=1), answers("2")))
    async with open_client(broker_url) as client, run_worker(broker_url, {"local": model}):
        await register(client, add=ADD)
        await submit(client)
        _, call = await next_call(client, "add")
        await answer(client, "r1", call["call_id"], "2")
        assert (await final_of(client, "r1"))[0] == "result"
        events = [data for _, kind, data in await events_of(client, "r1") if kind == "tool_call"]
        assert [event["arguments"] for event in events] == ['{"a": 1,', {}, {"a": 1, "b": 1}]
        made = next(m for m in model.calls[1].messages if m["role"] == "assistant")["tool_calls"]
        assert [each["function"]["arguments"] for each in made] == ["{}", "{}"]
        await check_everything(client)


async def test_rejected_attempts_of_a_turn_that_goes_on_at_once_are_told(broker_url: str) -> None:
    """All attempts of the run are in its result, whether it rested between two turns or not."""
    local = FakeBackend(fails(AttemptCode.CONTEXT_WINDOW))
    cloud = FakeBackend(turns(calls("add", a="one"), answers("no")))
    async with open_client(broker_url) as client, run_worker(broker_url, {"local": local, "cloud": cloud}) as worker:
        await register(client, add=ADD)
        await submit(client)
        kind, result = await final_of(client, "r1")
        assert kind == "result"
        expected = [("local", "rejected"), ("cloud", "success")] * 2
        assert [(each["deployment"], each["outcome"]) for each in result["attempts"]] == expected
        metrics = await metrics_of(client, "r1")
        assert [(each["deployment"], each["outcome"]) for each in metrics["attempts"]] == expected
        await counts(worker, 'attempts_total{deployment="cloud",outcome="success",code=""}', 2)


async def test_operator_bounds_turns(broker_url: str) -> None:
    """As many as it says where the request says nothing; the last answers without a tool."""

    def until_last(call: Any) -> Any:
        return answers("enough") if call.tool_choice == "none" else calls("add", a=1, b=1)

    model = FakeBackend(turns(until_last))
    config = make_config()
    config = replace(config, agents=replace(config.agents, max_turns=3))
    async with open_client(broker_url) as client, run_worker(broker_url, {"local": model}, config=config):
        await register(client, add=ADD)
        await submit(client)
        entry = "0-0"
        for number in (1, 2):
            entry, call = await next_call(client, "add", entry)
            assert call["turn"] == number
            await answer(client, "r1", call["call_id"], "2")
        kind, result = await final_of(client, "r1")
        assert (kind, result["content"], result["turns"]) == ("result", "enough", 3)


async def test_deadline_holds_over_the_whole_run(broker_url: str) -> None:
    """While it waits for a person; the tool is never told, and the call does not wait beyond."""
    model = FakeBackend(turns(calls("add", a=1, b=1), calls("switch", lamp="x")))
    async with open_client(broker_url) as client, run_worker(broker_url, {"local": model}) as worker:
        await register(client, add=ADD, switch=SWITCH)
        await submit(client, timeout_ms="400")
        _, call = await next_call(client, "add")
        assert call["deadline_ms"] <= int((await event_of(client, "r1", "turn"))["deadline_ms"])
        await answer(client, "r1", call["call_id"], "2")
        asked = await event_of(client, "r1", "tool_call", 2)
        kind, error = await final_of(client, "r1")
        assert (kind, error["code"], len(error["attempts"])) == ("error", "deadline_exceeded", 2)
        assert asked["call_id"]
        metrics = await metrics_of(client, "r1")
        assert (metrics["turns"], metrics["tool_calls"]) == (2, 2)
        assert 400 <= metrics["latency_ms"] < 5000
        await counts(worker, 'runs_total{end="deadline_exceeded"}', 1)
        assert not await client.exists("llm:tools:switch")
        await check_everything(client)


async def test_deadline_while_a_tool_is_waited_for(broker_url: str) -> None:
    """Its call is taken back."""
    model = FakeBackend(turns(calls("add", a=1, b=1)))
    async with open_client(broker_url) as client, run_worker(broker_url, {"local": model}):
        await register(client, add=ADD)
        await submit(client, timeout_ms="300")
        kind, error = await final_of(client, "r1")
        assert (kind, error["code"]) == ("error", "deadline_exceeded")
        assert await client.xlen("llm:tools:add") == 0
        await check_everything(client)


async def test_deadline_in_a_later_turn(broker_url: str) -> None:
    """What is left of it is what the model has."""

    async def script(backend: FakeBackend, call: Any) -> Any:
        made = sum(message["role"] == "assistant" for message in call.messages)
        async for each in (turns(calls("add", a=1, b=1)) if not made else hangs())(backend, call):
            yield each

    model = FakeBackend(script)
    async with open_client(broker_url) as client, run_worker(broker_url, {"local": model}):
        await register(client, add=ADD)
        await submit(client, timeout_ms="500")
        _, call = await next_call(client, "add")
        await answer(client, "r1", call["call_id"], "2")
        kind, error = await final_of(client, "r1")
        assert (kind, error["code"]) == ("error", "deadline_exceeded")
        assert error["attempts"][0]["outcome"] == "success"
        await check_everything(client)


async def test_local_only_holds_in_every_turn(broker_url: str) -> None:
    """Nothing that a tool has said leaves the house."""

    async def script(backend: FakeBackend, call: Any) -> Any:
        made = sum(message["role"] == "assistant" for message in call.messages)
        async for each in (turns(calls("add", a=1, b=1)) if not made else fails(AttemptCode.CONTEXT_WINDOW))(
            backend, call
        ):
            yield each

    local, cloud = FakeBackend(script), FakeBackend(says("hi"))
    async with open_client(broker_url) as client, run_worker(broker_url, {"local": local, "cloud": cloud}):
        await register(client, add=ADD)
        await submit(client, local_only="true")
        _, call = await next_call(client, "add")
        await answer(client, "r1", call["call_id"], "2")
        kind, error = await final_of(client, "r1")
        assert (kind, error["code"]) == ("error", "local_exhausted")
        assert not cloud.calls
        await check_everything(client)


async def test_schema_holds_for_the_last_answer(broker_url: str) -> None:
    """A turn that calls need not satisfy it; an answer that does not is rejected, and the next deployment asked."""
    schema = json.dumps({"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]})
    local = FakeBackend(turns(calls("add", a=1, b=1), answers("two")))
    cloud = FakeBackend(turns(answers('{"n": 2}')))
    async with open_client(broker_url) as client, run_worker(broker_url, {"local": local, "cloud": cloud}):
        await register(client, add=ADD)
        await submit(client, schema=schema)
        _, call = await next_call(client, "add")
        await answer(client, "r1", call["call_id"], "2")
        kind, result = await final_of(client, "r1")
        assert (kind, result["content"], result["deployment"]) == ("result", {"n": 2}, "cloud")
        assert [each["code"] for each in result["attempts"]] == [None, "invalid_json", None]
        assert cloud.calls[0].messages[-1]["role"] == "tool"
        await check_everything(client)


async def test_tokens_of_each_turn_are_in_its_attempt(broker_url: str) -> None:
    """Text before a call is of its turn."""

    def once(text: str, finish: Any) -> Any:
        async def script(_backend: FakeBackend, _call: Any) -> Any:
            async for each in says(*text)(_backend, _call):
                if hasattr(each, "finish_reason"):
                    yield replace(finish, text="") if finish is not None else each
                else:
                    yield each

        return script

    model = FakeBackend(once("let me see", calls("add", a=1, b=1)), once("two", None))
    async with open_client(broker_url) as client, run_worker(broker_url, {"local": model}):
        await register(client, add=ADD)
        await submit(client, stream="live")
        _, call = await next_call(client, "add")
        await answer(client, "r1", call["call_id"], "2")
        kind, result = await final_of(client, "r1")
        assert (kind, result["content"]) == ("result", "two")
        events = await events_of(client, "r1")
        text = {n: "".join(d["text"] for i, k, d in events if k == "token" and i.startswith(f"{n}-")) for n in (1, 2)}
        assert text == {1: "let me see", 2: "two"}
        assert (await event_of(client, "r1", "turn"))["message"]["content"] == "let me see"
        kinds = [kind for _, kind, _ in events]
        assert kinds.index("token") < kinds.index("tool_call")
        await check_everything(client)


async def test_every_event_is_published_once(broker_url: str) -> None:
    """With `publish`: in the order of the stream, with its IDs."""
    model = FakeBackend(turns(calls("switch", lamp="x"), answers("done")))
    async with open_client(broker_url) as client, run_worker(broker_url, {"local": model}):
        await register(client, switch=SWITCH)
        pubsub = client.pubsub()
        await pubsub.subscribe("llm:events:r1")
        await submit(client, publish="true")
        await agree(client, await event_of(client, "r1", "tool_call"))
        _, call = await next_call(client, "switch")
        await answer(client, "r1", call["call_id"], "on")
        await final_of(client, "r1")
        events = await events_of(client, "r1")
        heard = [await next_message(pubsub) for _ in events]
        assert [each["type"] for each in heard] == [kind for _, kind, _ in events]
        assert [each["id"] for each in heard] == [event_id for event_id, _, _ in events]
        assert await pubsub.get_message(ignore_subscribe_messages=True, timeout=0.1) is None
        await pubsub.aclose()


async def test_run_that_rests_takes_no_place(broker_url: str) -> None:
    """Twenty wait, of a worker that has one place: a plain request is answered at once."""
    config = make_config(daemon=replace(DAEMON, concurrency=1))
    model = FakeBackend(turns(calls("switch", lamp="x"), answers("done")))
    async with open_client(broker_url) as client, run_worker(broker_url, {"local": model}, config=config) as worker:
        await register(client, switch=SWITCH)
        names = [await submit(client, f"r{number}", {"tools": ["switch"]}) for number in range(20)]
        asked = {name: await event_of(client, name, "tool_call") for name in names}
        await eventually(lambda: worker.in_flight == 0)
        assert worker.resting() == (0, 20)
        model.scripts = [says("hello")]
        entry = await add(client)
        assert (await final_of(client, entry))[0] == "result"
        assert worker.resting() == (0, 20)
        model.scripts = [turns(calls("switch", lamp="x"), answers("done"))]
        for name in names:
            await client.xadd(f"llm:consent:{name}", {"deny": asked[name]["call_id"], "by": "ada"})
        for name in names:
            assert (await final_of(client, name))[0] == "result"
        assert worker.resting() == (0, 0)
        await check_everything(client)


async def test_many_runs_are_due_at_once(broker_url: str) -> None:
    """Forty, of a worker that has two places: all finish, no more than two at once, and new requests are served too."""
    most = 0

    async def script(backend: FakeBackend, call: Any) -> Any:
        nonlocal most
        most = max(most, backend.running)
        await asyncio.sleep(0.005)
        finishes = (
            turns(calls("add", a=1, b=1), calls("add", a=1, b=1), answers("done")) if call.tools else says("hello")
        )
        async for each in finishes(backend, call):
            yield each

    config = make_config(daemon=replace(DAEMON, concurrency=2))
    model = FakeBackend(script)
    async with open_client(broker_url) as client, run_worker(broker_url, {"local": model}, config=config) as worker:
        await register(client, add=ADD)
        names = [await submit(client, f"r{number}", {"tools": ["add"]}) for number in range(40)]
        entry, made = "0-0", []
        for _ in names:
            entry, call = await next_call(client, "add", entry)
            made.append(call)
        await eventually(lambda: worker.in_flight == 0)
        async with client.pipeline() as all_at_once:
            for call in made:
                all_at_once.xadd(f"llm:inbox:{call['id']}", {"call_id": call["call_id"], "result": "2"})
            await all_at_once.execute()
        plain = [await add(client) for _ in range(10)]
        for _ in names:
            entry, call = await next_call(client, "add", entry)
            await answer(client, call["id"], call["call_id"], "2")
        for name in (*names, *plain):
            assert (await final_of(client, name))[0] == "result"
        assert most <= 2
        assert len(model.calls) == 40 * 3 + 10
        await check_everything(client)
