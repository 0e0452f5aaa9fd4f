"""Runs that are given up, or lost, while their calls wait: no tool acts for nobody, or is told of a call twice."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from llm_routerd.config.tree import Chain
from llm_routerd.protocol.keys import GROUP, HANDED_BACK
from tests.support.eventually import eventually
from tests.support.fakes import FakeBackend
from tests.support.queue import open_client
from tests.support.runs import ADD, answer, answers, calls_all, next_call, register, turns
from tests.support.wire import check_everything, final_of
from tests.support.workers import make_config, make_test_admission, run_worker

if TYPE_CHECKING:
    import pytest

    from llm_routerd.worker.worker import Worker

TWO = calls_all(("add", '{"a": 1, "b": 2}'), ("add", '{"a": 1, "b": 3}'))


async def rests(client: Any, worker: Worker) -> dict[str, Any]:
    """A run that waits for two calls; the first of them."""
    await register(client, add=ADD)
    fields = {"prompt": "do it", "id": "r1", "model": "local", "agent": json.dumps({"tools": ["add"]})}
    await client.xadd("llm:requests", fields)
    _, call = await next_call(client, "add")
    await eventually(lambda: worker.in_flight == 0)
    return call


async def calls_gone(client: Any) -> None:
    """Nothing stands on the tool's stream, and nothing is heard."""
    async with asyncio.timeout(5):
        while True:
            if not await client.xlen("llm:tools:add") and not await client.xlen("llm:inbox:r1"):
                return
            await asyncio.sleep(0.01)


async def test_calls_are_taken_back_whose_model_a_reload_has_removed(redis_url: str) -> None:
    """The run ends where it wakes."""
    async with open_client(redis_url) as client, run_worker(redis_url, {"local": FakeBackend(turns(TWO))}) as worker:
        call = await rests(client, worker)
        config = make_config(redis_url)
        config = replace(
            config,
            deployments={"cloud": config.deployments["cloud"]},
            chains={"default": Chain(name="default", deployments=("cloud",))},
        )
        worker.shards[0]._handler.use(make_test_admission(config, {}, consumer="w1"))
        await answer(client, "r1", call["call_id"], "3")
        kind, error = await final_of(client, "r1")
        assert (kind, error["code"]) == ("error", "unknown_model")
        await calls_gone(client)
        await check_everything(client)


async def test_calls_are_taken_back_whose_request_was_trimmed(redis_url: str) -> None:
    """What was asked is gone, and so is whoever wanted them."""
    async with open_client(redis_url) as client, run_worker(redis_url, {"local": FakeBackend(turns(TWO))}) as worker:
        call = await rests(client, worker)
        await client.xtrim("llm:requests", maxlen=0)
        await answer(client, "r1", call["call_id"], "3")
        kind, error = await final_of(client, "r1")
        assert (kind, error["code"]) == ("error", "internal")
        await calls_gone(client)


async def test_clock_that_is_set_back_asks_for_no_turn_again(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry that lies ahead gives way before it is begun; a run that wakes has been."""
    model = FakeBackend(turns(TWO, answers("done")))
    async with open_client(redis_url) as client, run_worker(redis_url, {"local": model}) as worker:
        await rests(client, worker)
        waiting = [json.loads(fields["call"]) for _, fields in await client.xrange("llm:tools:add")]
        clock = worker.shards[0].clock
        clock.set(round(clock.server_ms()) - 3 * 3_600_000)
        monkeypatch.setattr(clock, "set", lambda _server_ms: None)
        for call in waiting:
            await answer(client, "r1", call["call_id"], "3")
        kind, result = await final_of(client, "r1")
        assert (kind, result["turns"], len(model.calls)) == ("result", 2, 2)
        assert HANDED_BACK not in [each["name"] for each in await client.xinfo_consumers("llm:requests", GROUP)]


async def test_run_that_was_lost_waits_here_no_more(redis_url: str) -> None:
    """It may wait for days, and is not to be kept, and counted, for as long by all who ever had it."""
    async with open_client(redis_url) as client, run_worker(redis_url, {"local": FakeBackend(turns(TWO))}) as worker:
        await rests(client, worker)
        shard = worker.shards[0]
        (lost,) = shard.in_flight
        await eventually(lambda: shard.resting() == (1, 0))
        ((entry, _),) = await client.xrange("llm:requests")
        await client.xclaim("llm:requests", GROUP, "w9", 0, [entry], justid=True)  # which dies at once
        await eventually(lambda: any(item is not lost and item.rest for item in shard.in_flight))  # taken back
        await eventually(lambda: shard.resting() == (1, 0))
