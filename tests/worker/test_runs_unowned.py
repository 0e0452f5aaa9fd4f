"""Runs whose entries lose their owner in the middle: somebody has deleted the consumer, or made the group anew."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from llm_routerd.protocol.keys import GROUP
from tests.support.fakes import FakeBackend
from tests.support.queue import events_of, open_client
from tests.support.runs import ADD, SWITCH, answer, answers, calls, event_of, next_call, register
from tests.support.wire import check_everything, final_of
from tests.support.workers import run_worker

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from llm_routerd.protocol.call import Call, Delta, Finish

LANE = "llm:requests"


async def delete_consumers(client: Any) -> None:
    """As an operator cleans up who looks dead."""
    for consumer in await client.xinfo_consumers(LANE, GROUP):
        await client.xgroup_delconsumer(LANE, GROUP, consumer["name"])


async def make_anew(client: Any) -> None:
    """As one does who has lost the group."""
    await client.xgroup_destroy(LANE, GROUP)
    await client.xgroup_create(LANE, GROUP, "$")


@pytest.mark.parametrize("disown", [delete_consumers, make_anew])
async def test_turn_stands_whose_entry_nobody_owns(disown: Callable[[Any], Awaitable[None]], redis_url: str) -> None:
    """It was answered for, and nobody else has begun: the model is not asked for it again."""
    is_asked, may_answer = asyncio.Event(), asyncio.Event()

    async def script(_backend: FakeBackend, call: Call) -> AsyncGenerator[Delta | Finish, None]:
        is_asked.set()
        await may_answer.wait()
        is_first = not any(message["role"] == "assistant" for message in call.messages)
        yield calls("add", a=2, b=3) if is_first else answers("it is 5")

    model = FakeBackend(script)
    async with open_client(redis_url) as client, run_worker(redis_url, {"local": model}):
        await register(client, add=ADD)
        await client.xadd(LANE, {"prompt": "do it", "id": "r1", "agent": '{"tools":["*"]}', "stream": "false"})
        await is_asked.wait()
        await disown(client)
        may_answer.set()
        _, call = await next_call(client, "add")
        await answer(client, "r1", call["call_id"], "5")
        assert (await final_of(client, "r1"))[1]["content"] == "it is 5"
        assert len(model.calls) == 2
        assert [kind for _, kind, _ in await events_of(client, "r1")].count("attempt") == 2
        await check_everything(client)


@pytest.mark.parametrize("disown", [delete_consumers, make_anew])
async def test_word_counts_for_a_run_that_nobody_owns(disown: Callable[[Any], Awaitable[None]], redis_url: str) -> None:
    """It rests, is disowned, and a person agrees; no call is put twice."""
    model = FakeBackend(_switching)
    async with open_client(redis_url) as client, run_worker(redis_url, {"local": model}):
        await register(client, switch=SWITCH)
        await client.xadd(LANE, {"prompt": "do it", "id": "r1", "agent": json.dumps({"tools": ["*"]})})
        asked = await event_of(client, "r1", "tool_call")
        await disown(client)
        await client.xadd(
            "llm:consent:r1", {"confirm": asked["call_id"], "args_sha256": asked["args_sha256"], "by": "ada"}
        )
        _, call = await next_call(client, "switch")
        await answer(client, "r1", call["call_id"], "on")
        assert (await final_of(client, "r1"))[1]["content"] == "it is on"
        assert (await client.xinfo_stream("llm:tools:switch"))["entries-added"] == 1
        await check_everything(client)


async def _switching(_backend: FakeBackend, call: Call) -> AsyncGenerator[Delta | Finish, None]:
    is_first = not any(message["role"] == "assistant" for message in call.messages)
    yield calls("switch", lamp="hall") if is_first else answers("it is on")
