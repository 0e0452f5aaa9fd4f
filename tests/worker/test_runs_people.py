"""What people say to calls: for other arguments, too late, twice, to no call, with arguments of their own."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec.structs import replace

from llm_routerd.agents.calls import sha256_of
from llm_routerd.config.agents import AgentsConfig
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
    calls_all,
    counts,
    event_of,
    next_call,
    register,
    submit,
    turns,
)
from tests.support.wire import check_everything, final_of
from tests.support.workers import make_config, run_worker

IGNORED = "tool_answers_ignored_total"


def switches(*lamps: str) -> FakeBackend:
    """A model that switches one lamp after the other."""
    return FakeBackend(turns(*(calls("switch", lamp=lamp) for lamp in lamps), answers("done")))


async def asked_of(client: Any, number: int = 1) -> dict[str, Any]:
    """The so-manieth call, once its turn stands."""
    asked = await event_of(client, "r1", "tool_call", number)
    await event_of(client, "r1", "turn", number)
    return asked


@pytest.mark.parametrize(
    "word",
    [
        {"confirm": "ID", "args_sha256": sha256_of({"lamp": "cellar"}), "by": "ada"},
        {"confirm": "ID", "by": "ada"},
        {"confirm": "ID", "args_sha256": b"\xff" * 100_000, "by": "ada"},
        {"confirm": "call_" + "0" * 24, "args_sha256": "SHA", "by": "ada"},
        {"deny": "call_" + "0" * 24, "by": "ada"},
        {"confirm": "ID", "args_sha256": "SHA", "by": "ada", "args": "{"},
        {"confirm": "ID", "args_sha256": "SHA", "by": "ada", "args": "[]"},
        {"confirm": "ID", "args_sha256": "SHA", "by": "ada", "args": '{"lamp": 1}'},
        {"confirm": "ID", "args_sha256": "SHA", "by": "ada", "args": "{}"},
        {"confirm": "ID", "args_sha256": "SHA", "by": "ada", "args": json.dumps({"lamp": "x" * 70_000})},
        {"confirm": "ID", "args_sha256": "SHA", "by": "ada", "args": '{"lamp": "x", "y": ' + "[" * 5000 + "]" * 5000 + "}"},
        {"call_id": "ID", "result": "on"},
        {"x": "y"},
    ],
)  # fmt: skip
async def test_word_that_does_not_count(broker_url: str, word: dict[str, Any]) -> None:
    """The call waits on, nothing is written, and the next word counts."""
    model = switches("hall")
    async with open_client(broker_url) as client, run_worker(broker_url, {"local": model}) as worker:
        await register(client, switch=SWITCH)
        await submit(client)
        asked = await asked_of(client)
        own = {"ID": asked["call_id"], "SHA": asked["args_sha256"]}
        await client.xadd("llm:consent:r1", {name: own.get(value, value) for name, value in word.items()})
        await counts(worker, IGNORED, 1)
        assert not await client.exists("llm:tools:switch")
        await agree(client, asked)
        _, call = await next_call(client, "switch")
        assert call["arguments"] == {"lamp": "hall"}
        await answer(client, "r1", call["call_id"], "on")
        assert (await final_of(client, "r1"))[0] == "result"
        kinds = [kind for _, kind, _ in await events_of(client, "r1")]
        assert kinds == ["attempt", "tool_call", "turn", "confirmed", "tool_result", "attempt", "result"]
        await check_everything(client)


async def test_two_agree(broker_url: str) -> None:
    """That is one yes; the second is passed over, and the tool is told once."""
    model = switches("hall")
    async with open_client(broker_url) as client, run_worker(broker_url, {"local": model}) as worker:
        await register(client, switch=SWITCH)
        await submit(client)
        asked = await asked_of(client)
        await agree(client, asked)
        await agree(client, asked, by="bob")
        entry, call = await next_call(client, "switch")
        await counts(worker, IGNORED, 1)
        await client.xadd("llm:consent:r1", {"deny": asked["call_id"], "by": "eve"})
        await answer(client, "r1", call["call_id"], "on")
        assert (await final_of(client, "r1"))[0] == "result"
        assert not await client.xread({"llm:tools:switch": entry})
        assert [kind for _, kind, _ in await events_of(client, "r1")].count("confirmed") == 1
        await counts(worker, 'confirmations_total{outcome="confirmed"}', 1)
        await counts(worker, 'confirmations_total{outcome="denied"}', 0)
        await check_everything(client)


async def test_person_denies(broker_url: str) -> None:
    """The model is told, with the reason; a yes that comes later changes nothing."""
    model = switches("hall")
    async with open_client(broker_url) as client, run_worker(broker_url, {"local": model}) as worker:
        await register(client, switch=SWITCH)
        await submit(client)
        asked = await asked_of(client)
        async with client.pipeline() as both:
            both.xadd("llm:consent:r1", {"deny": asked["call_id"], "by": "ada", "reason": "at night?\x1b[2J"})
            both.xadd("llm:consent:r1", {"confirm": asked["call_id"], "args_sha256": asked["args_sha256"], "by": "bob"})
            await both.execute()
        assert (await final_of(client, "r1"))[0] == "result"
        assert model.calls[1].messages[-1]["content"] == "error: a person denied this call: at night?\ufffd[2J"
        assert not await client.exists("llm:tools:switch")
        await counts(worker, 'tool_calls_total{tool="switch",outcome="denied"}', 1)
        await counts(worker, 'confirmations_total{outcome="denied"}', 1)
        await check_everything(client)


async def test_person_changes_the_arguments(broker_url: str) -> None:
    """The tool gets them, and the model is told that they are not its own; the next call of the tool waits again."""
    model = switches("hall", "cellar")
    config = replace(make_config(), agents=AgentsConfig(result_bytes=256))  # bounds no word of a person
    async with open_client(broker_url) as client, run_worker(broker_url, {"local": model}, config=config):
        await register(client, switch=SWITCH)
        await submit(client)
        attic = "attic" * 100
        await agree(client, await asked_of(client), args=json.dumps({"lamp": attic}))
        _, call = await next_call(client, "switch")
        assert call["arguments"] == {"lamp": attic}
        await answer(client, "r1", call["call_id"], "on")
        asked = await asked_of(client, 2)
        assert (await event_of(client, "r1", "confirmed"))["arguments"] == {"lamp": attic}
        content = model.calls[1].messages[-1]["content"]
        assert content == f'[a person changed the arguments to {{"lamp":"{attic}"}}]\non'
        assert asked["confirm"] is True
        await client.xadd("llm:consent:r1", {"deny": asked["call_id"], "by": "ada"})
        assert (await final_of(client, "r1"))[0] == "result"
        await check_everything(client)


async def test_always_is_of_this_tool_and_this_run(broker_url: str) -> None:
    """The next call of the tool waits for nobody; that of another does, and that of another run."""
    model = FakeBackend(
        turns(
            calls("switch", lamp="a"),
            calls_all(("switch", '{"lamp": "b"}'), ("lock", '{"lamp": "b"}')),
            answers("done"),
        )
    )
    async with open_client(broker_url) as client, run_worker(broker_url, {"local": model}):
        await register(client, switch=SWITCH, lock=SWITCH)
        await submit(client)
        await agree(client, await asked_of(client), always="1")
        entry, first = await next_call(client, "switch")
        await answer(client, "r1", first["call_id"], "on")
        _, second = await next_call(client, "switch", entry)
        assert second["arguments"] == {"lamp": "b"}
        asked = await asked_of(client, 2)  # the event of the second call of `switch`
        locks = await event_of(client, "r1", "tool_call", 3)
        assert ("confirm" in asked, locks["name"], locks["confirm"]) == (False, "lock", True)
        assert not await client.exists("llm:tools:lock")
        await submit(client, "r2")
        assert (await event_of(client, "r2", "tool_call"))["confirm"] is True
        await client.xadd("llm:consent:r1", {"deny": locks["call_id"], "by": "ada"})
        await answer(client, "r1", second["call_id"], "on")
        assert (await final_of(client, "r1"))[0] == "result"
        await check_everything(client)


async def test_yes_after_its_time(broker_url: str) -> None:
    """Nothing is done: the run has ended, and who is late makes no stream that lives for ever."""
    config = replace(make_config(), agents=AgentsConfig(confirmation_seconds=0.1))
    model = switches("hall")
    async with open_client(broker_url) as client, run_worker(broker_url, {"local": model}, config=config):
        await register(client, switch=SWITCH)
        await submit(client)
        asked = await event_of(client, "r1", "tool_call")
        kind, error = await final_of(client, "r1")
        assert (kind, error["code"]) == ("error", "confirmation_expired")
        assert len(error["attempts"]) == 1
        await agree(client, asked)
        await submit(client, "r2", {"tools": ["switch"]})
        await final_of(client, "r2")
        assert not await client.exists("llm:tools:switch")
        assert await client.pttl("llm:consent:r1") > 0
        await check_everything(client)


async def test_late_yes_that_is_heard_first(broker_url: str) -> None:
    """A worker that comes back after the time finds a word that came after it: it does not count."""
    model = switches("hall")
    config = replace(make_config(), agents=AgentsConfig(confirmation_seconds=0.3))
    async with open_client(broker_url) as client:
        async with run_worker(broker_url, {"local": model}, config=config, consumer="w1") as worker:
            await register(client, switch=SWITCH)
            await submit(client)
            asked = await asked_of(client)
            await eventually(lambda: worker.in_flight == 0)
            worker.stop()
        while (await client.time())[0] * 1000 + (await client.time())[1] / 1000 <= asked["expires_at_ms"]:
            pass
        await agree(client, asked)
        async with run_worker(broker_url, {"local": model}, config=config, consumer="w2"):
            kind, error = await final_of(client, "r1")
        assert (kind, error["code"]) == ("error", "confirmation_expired")
        assert not await client.exists("llm:tools:switch")


async def test_request_asks_for_more_confirmation_and_never_for_less(broker_url: str) -> None:
    """What the tool, the operator or the request wants asked is asked."""
    model = FakeBackend(
        turns(calls_all(("add", '{"a": 1, "b": 1}'), ("more", '{"a": 1, "b": 1}'), ("switch", '{"lamp": "x"}')))
    )
    config = replace(make_config(), agents=AgentsConfig(confirm=("m*",)))
    async with open_client(broker_url) as client, run_worker(broker_url, {"local": model}, config=config):
        await register(client, add=ADD, more=ADD, switch=SWITCH)
        await submit(client, agent={"tools": ["*"], "confirm": ["add"]})
        await event_of(client, "r1", "turn")
        told = [data["confirm"] for _, kind, data in await events_of(client, "r1") if kind == "tool_call"]
        assert told == [True, True, True]
        assert await client.keys("llm:tools:*") == []


async def test_one_call_is_denied_and_another_answered(broker_url: str) -> None:
    """Calls of one turn come to their ends apart, in whatever order; the model is told in the order of its calls."""
    model = FakeBackend(turns(calls_all(("switch", '{"lamp": "x"}'), ("add", '{"a": 1, "b": 1}')), answers("done")))
    async with open_client(broker_url) as client, run_worker(broker_url, {"local": model}):
        await register(client, add=ADD, switch=SWITCH)
        await submit(client)
        asked = await asked_of(client)
        _, call = await next_call(client, "add")
        await answer(client, "r1", call["call_id"], "2")
        await event_of(client, "r1", "tool_result")
        await client.xadd("llm:consent:r1", {"deny": asked["call_id"], "by": "ada"})
        assert (await final_of(client, "r1"))[0] == "result"
        assert [message["content"] for message in model.calls[1].messages[-2:]] == [
            "error: a person denied this call",
            "2",
        ]
        await check_everything(client)


async def test_events_stream_that_others_have_filled_to_the_brim(broker_url: str) -> None:
    """No event can follow: no call is made, and the run has its end."""
    model = FakeBackend(turns(calls("switch", lamp="hall"), answers("done")))
    async with open_client(broker_url) as client, run_worker(broker_url, {"local": model}):
        await register(client, switch=SWITCH)
        await submit(client)
        asked = await event_of(client, "r1", "tool_call")
        await client.xadd("llm:events:r1", {"type": "note", "data": "{}"}, id=f"1-{2**64 - 1}")
        word = {"confirm": asked["call_id"], "args_sha256": asked["args_sha256"], "by": "ada"}
        await client.xadd("llm:consent:r1", word)
        kind, error = await final_of(client, "r1")
        assert (kind, error["code"]) == ("error", "invalid_request")
        assert not await client.xlen("llm:tools:switch")


async def test_always_that_somebody_wrote_into_the_events_is_not_believed(broker_url: str) -> None:
    """Whoever may cancel may write there: the next call waits for a person all the same."""
    model = FakeBackend(turns(calls("switch", lamp="hall"), calls("switch", lamp="safe"), answers("done")))
    async with open_client(broker_url) as client, run_worker(broker_url, {"local": model}):
        await register(client, switch=SWITCH)
        await submit(client)
        asked = await event_of(client, "r1", "tool_call")
        await event_of(client, "r1", "turn")
        forged = {"call_id": asked["call_id"], "by": "x", "reason": "", "always": True, "entry": "1-1"}
        await client.xadd("llm:events:r1", {"type": "confirmed", "data": json.dumps(forged)}, id="1-3")
        result = {"call_id": asked["call_id"], "name": "switch", "result": "ok", "latency_ms": 1}
        await client.xadd("llm:events:r1", {"type": "tool_result", "data": json.dumps(result)}, id="1-4")
        await client.xadd("llm:consent:r1", {"deny": "nothing"})  # wakes it
        again = await event_of(client, "r1", "tool_call", 2)
        assert (again["arguments"], again["confirm"]) == ({"lamp": "safe"}, True)
        assert not await client.exists("llm:tools:switch")
