"""A confirmation is no authorisation: what may be called is what the request and the operator say when it is called."""

from __future__ import annotations

import json
from typing import Any

from msgspec.structs import replace

from llm_routerd.config.agents import AgentsConfig
from tests.support.eventually import eventually
from tests.support.fakes import FakeBackend
from tests.support.queue import open_client
from tests.support.runs import SWITCH, answers, calls, event_of, register, turns
from tests.support.wire import check_everything, final_of
from tests.support.workers import make_config, make_test_admission, run_worker


async def agree(client: Any, call_id: str, args_sha256: str) -> None:
    """As a person does."""
    await client.xadd("llm:consent:r1", {"confirm": call_id, "args_sha256": args_sha256, "by": "ada"})


async def test_tool_that_a_reload_forbids_is_not_called_by_a_yes(redis_url: str) -> None:
    """The model is told, and the run goes on."""
    model = FakeBackend(turns(calls("switch", lamp="hall"), answers("sorry")))
    async with open_client(redis_url) as client, run_worker(redis_url, {"local": model}) as worker:
        await register(client, switch=SWITCH)
        await client.xadd("llm:requests", {"prompt": "do it", "id": "r1", "agent": '{"tools": ["switch"]}'})
        asked = await event_of(client, "r1", "tool_call")
        await eventually(lambda: worker.in_flight == 0)
        config = replace(make_config(redis_url), agents=AgentsConfig(tools=("weather",)))
        worker.shards[0]._handler.use(make_test_admission(config, {"local": model}, consumer="w1"))
        await agree(client, asked["call_id"], asked["args_sha256"])
        assert (await final_of(client, "r1"))[1]["content"] == "sorry"
        assert "operator" in (await event_of(client, "r1", "tool_result"))["error"]
        assert not await client.exists("llm:tools:switch")
        await check_everything(client)


async def test_call_that_a_canceller_has_forged_reaches_no_tool_outside_the_list(redis_url: str) -> None:
    """Whoever may cancel may write any event, and somebody may agree to what he is shown."""
    model = FakeBackend(turns(calls("switch", lamp="hall"), answers("sorry")))
    async with open_client(redis_url) as client, run_worker(redis_url, {"local": model}) as worker:
        await register(client, switch=SWITCH, door=SWITCH)
        await client.xadd("llm:requests", {"prompt": "do it", "id": "r1", "agent": '{"tools": ["switch"]}'})
        asked, turn = await event_of(client, "r1", "tool_call"), await event_of(client, "r1", "turn")
        await eventually(lambda: worker.in_flight == 0)
        forged = {**asked, "call_id": "call_" + "f" * 24, "name": "door"}
        for number, (kind, data) in enumerate((("tool_call", forged), ("turn", {**turn, "turn": 2})), 3):
            await client.xadd("llm:events:r1", {"type": kind, "data": json.dumps(data)}, id=f"1-{number}")
        await agree(client, forged["call_id"], forged["args_sha256"])
        assert "operator" in (await event_of(client, "r1", "tool_result"))["error"]
        assert not await client.exists("llm:tools:door")
