"""Runs that outlive things: drained, taken over, trimmed, flushed, submitted twice."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from llm_routerd.protocol.events import FINAL_ID
from llm_routerd.protocol.keys import GROUP, TOOL_GROUP, Layout
from llm_routerd.worker import shard
from tests.support.eventually import eventually
from tests.support.fakes import FakeBackend, hangs
from tests.support.queue import events_of, open_client
from tests.support.runs import (
    ADD,
    BOTH,
    SWITCH,
    adds,
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
from tests.support.servers import running_valkey
from tests.support.wire import check_everything, eventually_true, final_of
from tests.support.workers import DAEMON, make_config, make_test_admission, run_worker

if TYPE_CHECKING:
    from llm_routerd.protocol.call import Call

SHORT = make_config(daemon=replace(DAEMON, lease_seconds=0.4))


async def test_drain_while_fifty_wait(broker_url: str) -> None:
    """They hinder nobody from leaving, and the next worker goes on with each; no model is asked for a turn again."""
    model = FakeBackend(turns(BOTH, answers("done")))
    names = [f"r{number}" for number in range(50)]
    config = make_config(daemon=replace(DAEMON, drain_seconds=30.0))
    async with open_client(broker_url) as client:
        await register(client, add=ADD, switch=SWITCH)
        async with run_worker(broker_url, {"local": model}, config=config) as worker:
            for name in names:
                await submit(client, name)
            asked = {name: await event_of(client, name, "tool_call", 2) for name in names}
            await eventually(lambda: worker.in_flight == 0 and worker.resting() == (0, 50))
            async with asyncio.timeout(5):
                worker.stop()
                await eventually_true(lambda: has_left(client, "w1"))
        made = [json.loads(fields["call"]) for _, fields in await client.xrange("llm:tools:add")]
        for call in made:
            await answer(client, call["id"], call["call_id"], "2")
        for name in names[:25]:
            await client.xadd(f"llm:consent:{name}", {"deny": asked[name]["call_id"], "by": "ada"})
        async with run_worker(broker_url, {"local": model}, consumer="w2", config=config) as worker:
            for name in names[:25]:
                assert (await final_of(client, name))[0] == "result"
            await eventually(lambda: worker.resting() == (0, 25))
            for name in names[25:]:
                await client.xadd(f"llm:consent:{name}", {"deny": asked[name]["call_id"], "by": "ada"})
            for name in names:
                assert (await final_of(client, name))[1]["turns"] == 2
        assert len(model.calls) == 100
        assert await client.xlen("llm:tools:add") == 0
        await check_everything(client)


async def has_left(client: Any, consumer: str) -> bool:
    """Whether a worker owns nothing any more."""
    found = await client.xinfo_consumers("llm:requests", GROUP)
    return all(each["pending"] == 0 for each in found if each["name"] == consumer)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that are stopped do not wait for a server that is silent."""
    monkeypatch.setattr(shard, "GOODBYE_SECONDS", 0.05)


@pytest.mark.usefixtures("hasty")
async def test_run_that_waits_is_no_poison(valkey_url: str) -> None:
    """However many of its workers die meanwhile: it was not what they died of."""
    config = replace(SHORT, daemon=replace(SHORT.daemon, max_deliveries=2, drain_seconds=0.05))
    async with open_client(valkey_url) as client:
        await register(client, add={**ADD, "timeout_ms": 60_000})
        await submit(client)
        for number in range(3):
            name = f"w{number}"
            async with run_worker(valkey_url, {"local": adds()}, consumer=name, config=config) as worker:
                await eventually_true(lambda name=name: owns(client, name))  # type: ignore[misc]
                await eventually(lambda worker=worker: worker.resting() == (1, 0))  # type: ignore[misc]
                await die(worker)
        _, call = await next_call(client, "add")
        await answer(client, "r1", call["call_id"], "2")
        async with run_worker(valkey_url, {"local": adds()}, consumer="last", config=config):
            assert (await final_of(client, "r1"))[0] == "result"
        await check_everything(client)


async def owns(client: Any, consumer: str) -> bool:
    """Whether a worker has the one request."""
    found = await client.xinfo_consumers("llm:requests", GROUP)
    return any(each["name"] == consumer and each["pending"] == 1 for each in found)


async def die(worker: Any) -> None:
    """Nothing more comes from this worker: it has no time to hand anything back."""

    async def silent(*_: Any) -> None:
        await asyncio.Event().wait()

    for each in worker.shards:
        each.pipe._one_batch = silent
        each.pipe.leave()
        each._reader._connection = None


@pytest.mark.usefixtures("hasty")
async def test_run_that_kills_its_worker_in_a_turn_is_poison(valkey_url: str) -> None:
    """After so many; what it has left on tools' streams is nothing, and all is told."""
    config = replace(SHORT, daemon=replace(SHORT.daemon, max_deliveries=2, drain_seconds=0.05))

    async def script(backend: FakeBackend, call: Call) -> Any:
        made = sum(message["role"] == "assistant" for message in call.messages)
        async for each in (hangs() if made else turns(calls("add", a=1, b=1)))(backend, call):
            yield each

    async with open_client(valkey_url) as client:
        await register(client, add=ADD)
        await submit(client)
        for number in range(2):
            name, model = f"w{number}", FakeBackend(script)
            async with run_worker(valkey_url, {"local": model}, consumer=name, config=config) as worker:
                if not number:
                    _, call = await next_call(client, "add")
                    await eventually(lambda worker=worker: worker.in_flight == 0)  # type: ignore[misc]
                    await answer(client, "r1", call["call_id"], "2")
                turn = 2 - number
                await eventually(lambda model=model, turn=turn: len(model.calls) == turn)  # type: ignore[misc]
                await die(worker)
        async with run_worker(valkey_url, {"local": adds()}, consumer="last", config=config):
            kind, error = await final_of(client, "r1")
        assert (kind, error["code"]) == ("error", "poisoned")
        assert await client.xlen("llm:dead") == 1
        await check_everything(client)


async def test_same_id_again_while_it_waits(broker_url: str) -> None:
    """The second is passed over; the run goes on as if nothing had come."""
    model = adds()
    async with open_client(broker_url) as client, run_worker(broker_url, {"local": model}) as worker:
        await register(client, add=ADD)
        await submit(client)
        _, call = await next_call(client, "add")
        await eventually(lambda: worker.in_flight == 0)
        before = await events_of(client, "r1")
        await submit(client)
        await eventually_true(lambda: has_one(client))
        assert await events_of(client, "r1") == before
        await answer(client, "r1", call["call_id"], "2")
        assert (await final_of(client, "r1"))[0] == "result"
        assert len(model.calls) == 2
        assert len(await metrics_all(client)) == 1
        await check_everything(client)


async def has_one(client: Any) -> bool:
    """Whether one request is left."""
    return bool(await client.xlen("llm:requests") == 1)


async def test_entry_is_trimmed_while_it_waits(broker_url: str) -> None:
    """What was asked is gone: the run ends in an error as soon as it wakes, and no tool acts for nobody."""
    async with open_client(broker_url) as client, run_worker(broker_url, {"local": adds()}) as worker:
        await register(client, add=ADD, switch=SWITCH)
        await submit(client, agent={"tools": ["add"]})
        await next_call(client, "add")
        await eventually(lambda: worker.in_flight == 0)
        await client.xtrim("llm:requests", maxlen=0, approximate=False)
        await answer(client, "r1", "call_" + "0" * 24, "wake up")
        kind, error = await final_of(client, "r1")
        assert (kind, error["code"]) == ("error", "internal")
        assert "trimmed" in error["message"]
        await eventually_true(lambda: is_gone(client, "llm:tools:add"))
        assert worker.resting() == (0, 0)
        await check_everything(client)


async def test_events_are_deleted_while_it_waits(broker_url: str) -> None:
    """The run has lost its memory, and begins anew: it ends all the same."""
    model = adds()
    async with open_client(broker_url) as client, run_worker(broker_url, {"local": model}) as worker:
        await register(client, add={**ADD, "timeout_ms": 300})
        await submit(client)
        entry, _ = await next_call(client, "add")
        await eventually(lambda: worker.in_flight == 0)
        await client.delete("llm:events:r1")
        _, call = await next_call(client, "add", entry)
        await answer(client, "r1", call["call_id"], "2")
        assert (await final_of(client, "r1"))[0] == "result"
        await check_everything(client)


async def test_events_become_another_key_while_it_waits(broker_url: str) -> None:
    """No event can be written any more: a dead letter tells."""
    async with open_client(broker_url) as client, run_worker(broker_url, {"local": adds()}) as worker:
        await register(client, add={**ADD, "timeout_ms": 300})
        await submit(client)
        await next_call(client, "add")
        await eventually(lambda: worker.in_flight == 0)
        await client.delete("llm:events:r1")
        await client.set("llm:events:r1", "mine", px=60_000)
        await eventually_true(lambda: client.xlen("llm:dead"))
        await eventually_true(lambda: is_gone(client, "llm:requests"))
        assert worker.resting() == (0, 0)


async def test_reload_while_it_waits(broker_url: str) -> None:
    """The next turn is asked of the models that there are by then, and what a tool may say is bounded as they say."""
    old, new = adds(), adds()
    async with open_client(broker_url) as client, run_worker(broker_url, {"local": old}) as worker:
        await register(client, add=ADD)
        await submit(client)
        _, call = await next_call(client, "add")
        await eventually(lambda: worker.in_flight == 0)
        config = make_config(broker_url)
        config = replace(config, agents=replace(config.agents, result_bytes=256))
        worker.reload(config, make_test_admission(config, {"local": new}, consumer="w1"))
        await answer(client, "r1", call["call_id"], "x" * 300)
        assert (await final_of(client, "r1"))[0] == "result"
        assert (len(old.calls), len(new.calls)) == (1, 1)
        assert "[cut here: 300 bytes" in new.calls[0].messages[-1]["content"]
        await check_everything(client)


async def test_chain_goes_by_a_reload_while_it_waits(broker_url: str) -> None:
    """The run ends in an error, and no tool acts for nobody."""
    async with open_client(broker_url) as client, run_worker(broker_url, {"local": adds()}) as worker:
        await register(client, add={**ADD, "timeout_ms": 300})
        await submit(client, model="default")
        await next_call(client, "add")
        await eventually(lambda: worker.in_flight == 0)
        config = make_config(broker_url)
        config = replace(config, chains={"other": replace(config.chains["default"], name="other")})
        worker.reload(config, make_test_admission(config, {"local": adds()}, consumer="w1"))
        kind, error = await final_of(client, "r1")
        assert (kind, error["code"]) == ("error", "unknown_model")
        await eventually_true(lambda: is_gone(client, "llm:tools:add"))
        await check_everything(client)


async def test_runs_of_several_shards(valkey_url: str) -> None:
    """Each has its own tools, calls, inboxes and metrics."""
    layout = Layout("llm", 2)
    config = make_config()
    config = replace(config, redis=replace(config.redis, shards=2))
    names = [f"r{number}" for number in range(8)]
    async with open_client(valkey_url) as client, run_worker(valkey_url, {"local": adds()}, config=config) as worker:
        for keys in layout.keys:
            await register(client, keys.prefix, add=ADD)
        for name in names:
            fields = {"prompt": "x", "id": name, "agent": '{"tools": ["*"]}'}
            await client.xadd(layout.keys_of(name).requests("normal"), fields)
        served = 0
        for keys in layout.keys:
            count, entry = sum(layout.keys_of(name) == keys for name in names), "0-0"
            assert count
            for _ in range(count):
                entry, call = await next_call(client, "add", entry, keys.prefix)
                assert layout.keys_of(call["id"]) == keys
                await answer(client, call["id"], call["call_id"], "2", prefix=keys.prefix)
                served += 1
        assert served == len(names)
        for name in names:
            key = layout.keys_of(name).events(name)
            await eventually_true(lambda key=key: client.xrange(key, FINAL_ID, FINAL_ID))  # type: ignore[misc]
        await counts(worker, 'runs_total{end="result"}', 8)
        for keys in layout.keys:
            await check_everything(client, keys.prefix)


async def test_redis_is_restarted_while_they_wait() -> None:
    """With its data: inboxes and calls are there still, and each run goes on; a call is not made again."""
    model = FakeBackend(turns(BOTH, answers("done")))
    names = [f"r{number}" for number in range(10)]
    with running_valkey({"appendonly": "yes", "appendfsync": "always"}) as server:
        async with run_worker(server.url, {"local": model}) as worker:
            async with open_client(server.url) as client:
                await register(client, add=ADD, switch=SWITCH)
                for name in names:
                    await submit(client, name)
                asked = {name: await event_of(client, name, "tool_call", 2) for name in names}
                await eventually(lambda: worker.in_flight == 0)
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
            async with open_client(server.url) as client:
                made = [json.loads(fields["call"]) for _, fields in await client.xrange("llm:tools:add")]
                assert len(made) == len(names)
                for call in made:
                    await answer(client, call["id"], call["call_id"], "2")
                for name in names:
                    await client.xadd(f"llm:consent:{name}", {"deny": asked[name]["call_id"], "by": "ada"})
                for name in names:
                    assert (await final_of(client, name))[0] == "result"
                assert len(model.calls) == 2 * len(names)
                await check_everything(client)


async def test_group_of_a_tool_goes_while_a_call_waits(broker_url: str) -> None:
    """Nobody has taken the call then, as far as can be told."""
    async with open_client(broker_url) as client, run_worker(broker_url, {"local": adds()}):
        await register(client, add={**ADD, "timeout_ms": 300})
        await client.xgroup_create("llm:tools:add", TOOL_GROUP, "$", mkstream=True)
        await submit(client)
        await next_call(client, "add")
        await client.xgroup_destroy("llm:tools:add", TOOL_GROUP)
        result = await event_of(client, "r1", "tool_result")
        assert result["error"].startswith("no tool took the call")
        assert (await final_of(client, "r1"))[0] == "result"


async def test_run_that_is_lost_as_it_wakes(redis_url: str) -> None:
    """A task that is cancelled before its first step leaves nothing behind, and keeps nobody from waking."""
    async with open_client(redis_url) as client, run_worker(redis_url, {"local": adds()}) as worker:
        await register(client, add=ADD)
        await submit(client)
        await event_of(client, "r1", "turn")
        await eventually(lambda: worker.resting() == (1, 0))
        served = worker.shards[0]
        (item,) = served.in_flight
        served._mailroom._wakes([item])
        item.stop("lost")
        await eventually(lambda: not list(served.in_flight))
        assert not served._mailroom._awake


async def test_another_worker_has_ended_it_long_ago(broker_url: str) -> None:
    """Nothing is left of the request: who wakes and finds that, has nothing to tell of it."""
    async with open_client(broker_url) as client, run_worker(broker_url, {"local": adds()}) as worker:
        await register(client, add=ADD)
        await submit(client)
        await event_of(client, "r1", "turn")
        await eventually(lambda: worker.resting() == (1, 0))
        ((entry, _),) = await client.xrange("llm:requests")
        await client.xack("llm:requests", GROUP, entry)
        await client.xdel("llm:requests", entry)
        await client.delete("llm:events:r1")
        await answer(client, "r1", "any", "2")
        await eventually(lambda: not list(worker.shards[0].in_flight))
        entry = await client.xadd("llm:requests", {"prompt": "hi", "id": "r2"})  # all that went before is done then
        await final_of(client, "r2")
        assert not await client.exists("llm:dead")
        assert await client.keys("llm:events:*") == ["llm:events:r2"]
