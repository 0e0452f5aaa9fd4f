"""What there is to be seen of a shard at one look, on fakeredis and on a real Valkey."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from llm_routerd.client import Client, Running, Survey
from llm_routerd.errors import BrokerError
from tests.support.queue import add, begin, open_broker, open_client, take, take_one

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from llm_routerd.queue.broker import Broker

CALL = {"call_id": "c1", "name": "lights.on", "turn": 1, "arguments": {"room": "hall"}, "confirm": True}


@pytest.fixture
async def redis(broker_url: str) -> AsyncIterator[Any]:
    """A plain client."""
    async with open_client(broker_url) as client:
        yield client


@pytest.fixture
async def broker(broker_url: str) -> AsyncIterator[Broker]:
    """The side of a worker, `w1`."""
    async with open_broker(broker_url) as broker:
        yield broker


async def survey(url: str) -> Survey:
    """One look."""
    async with Client(url, patience_seconds=1) as client:
        return await client.shards.all[0].survey()


async def the_one(url: str) -> Running:
    """The one request that runs."""
    (running,) = (await survey(url)).running
    return running


async def take_all(redis: Any) -> None:
    """Have `w1` take what stands in the lane, as no worker does at one look."""
    await redis.xreadgroup("llm-router", "w1", {"llm:requests": ">"})


async def write(redis: Any, event_id: str, kind: str, data: Any) -> None:
    """Write an event of `r1` by hand."""
    await redis.xadd("llm:events:r1", {"type": kind, "data": json.dumps(data)}, id=event_id)


async def test_nothing_is_seen_of_an_empty_server(broker_url: str) -> None:
    """No keys, no groups, no trouble."""
    seen = await survey(broker_url)
    assert (seen.letters, dict(seen.workers), dict(seen.oldest), seen.running) == (0, {}, {}, ())
    assert seen.server_ms > 0


async def test_the_entry_that_has_waited_longest_is_seen(broker_url: str, redis: Any, broker: Broker) -> None:
    """By lane, and not the one that a worker has."""
    await add(redis, id="r1")
    await take_one(broker_url, broker)
    second = await add(redis, id="r2")
    await add(redis, id="r3")
    low = await add(redis, "low")
    assert (await survey(broker_url)).oldest == {"normal": second, "low": low}


async def test_what_was_handed_back_waits(broker_url: str, redis: Any, broker: Broker) -> None:
    """It has an owner, which is no worker."""
    entry = await add(redis, id="r1")
    (delivery,) = await take(broker_url, broker)
    await broker.hand_back([delivery])
    await add(redis, id="r2")
    seen = await survey(broker_url)
    assert (seen.oldest, seen.running) == ({"normal": entry}, ())


async def test_a_running_request_is_seen_with_its_deployment_and_last_event(
    broker_url: str, redis: Any, broker: Broker
) -> None:
    """By its own id, in either form of a request."""
    await redis.xadd("llm:requests", {"data": json.dumps({"id": "r1", "prompt": "a secret"})})
    delivery = await take_one(broker_url, broker)
    begun = await the_one(broker_url)
    assert (begun.request_id, begun.worker, begun.deliveries, begun.last) == ("r1", "w1", 1, "")
    transcript = await begin(broker, delivery)
    running = await the_one(broker_url)
    assert (running.deployment, running.model, running.last) == ("local", "ollama/tiny", "attempt")
    transcript.text("token", "a secret")
    async with asyncio.timeout(10):
        while (await the_one(broker_url)).last != "token":  # noqa: ASYNC110 - it is on its way
            await asyncio.sleep(0.01)
    assert "secret" not in repr(await survey(broker_url))


@pytest.mark.usefixtures("broker")
async def test_no_more_than_a_bound_are_listed(broker_url: str, redis: Any) -> None:
    """Those that have run longest."""
    entries = [await add(redis, id=f"r{number}") for number in range(Survey.most_running + 5)]
    await take_all(redis)
    assert [each.entry for each in (await survey(broker_url)).running] == entries[: Survey.most_running]


async def test_after_large_bodies_no_more_are_listed(valkey_url: str) -> None:
    """The server reads a few megabytes at the most."""
    async with open_client(valkey_url) as redis, open_broker(valkey_url):
        for number in range(6):
            await redis.xadd("llm:requests", {"data": json.dumps({"id": f"r{number}", "prompt": "x" * 2**20})})
        await take_all(redis)
        assert [each.request_id for each in (await survey(valkey_url)).running] == ["r0", "r1", "r2", "r3"]


async def test_a_call_waits_until_a_person_has_answered_it(broker_url: str, redis: Any, broker: Broker) -> None:
    """Whatever else of the same turn has come since."""
    await add(redis, id="r1")
    await begin(broker, await take_one(broker_url, broker))
    await write(redis, "1-1", "tool_call", CALL)
    await write(redis, "1-2", "tool_call", CALL | {"call_id": "c2", "confirm": False})
    await write(redis, "1-3", "tool_call", CALL | {"call_id": "c3"})
    await write(redis, "1-4", "tool_result", {"call_id": "c2", "result": 1})
    assert [json.loads(call)["call_id"] for call in (await the_one(broker_url)).calls] == ["c1", "c3"]
    await write(redis, "1-5", "denied", {"call_id": "c1", "by": "ada"})
    assert [json.loads(call) for call in (await the_one(broker_url)).calls] == [CALL | {"call_id": "c3"}]
    await write(redis, "1-6", "token", {"text": "it goes on"})
    assert (await the_one(broker_url)).calls == ()


async def test_a_turn_stands_after_its_calls_and_hides_none(broker_url: str, redis: Any, broker: Broker) -> None:
    """What is said of them comes after it; those of an earlier turn wait no more."""
    await add(redis, id="r1")
    await begin(broker, await take_one(broker_url, broker))
    await write(redis, "1-1", "tool_call", CALL | {"call_id": "c0"})
    await write(redis, "1-2", "turn", {"turn": 1})
    await write(redis, "2-0", "attempt", {"deployment": "local", "model": "m"})
    await write(redis, "2-1", "token", {"text": "Two lamps."})
    await write(redis, "2-2", "tool_call", CALL)
    await write(redis, "2-3", "tool_call", CALL | {"call_id": "c2"})
    await write(redis, "2-4", "tool_call", CALL | {"call_id": "c3", "confirm": False})
    await write(redis, "2-5", "tool_result", {"call_id": "c3", "error": "no such tool"})
    await write(redis, "2-6", "turn", {"turn": 2})
    running = await the_one(broker_url)
    assert (running.last, [json.loads(call)["call_id"] for call in running.calls]) == ("turn", ["c1", "c2"])
    await write(redis, "2-7", "confirmed", {"call_id": "c2", "by": "ada"})
    assert [json.loads(call)["call_id"] for call in (await the_one(broker_url)).calls] == ["c1"]


async def test_calls_of_a_turn_with_many_are_all_seen(broker_url: str, redis: Any, broker: Broker) -> None:
    """Also behind the results of others."""
    await add(redis, id="r1")
    await begin(broker, await take_one(broker_url, broker))
    for number in range(1, 61):
        await write(redis, f"1-{number}", "tool_call", CALL | {"call_id": f"c{number}", "confirm": number in {1, 60}})
    await write(redis, "1-61", "turn", {"turn": 1})
    for number in range(2, 60):
        await write(redis, f"1-{number + 60}", "tool_result", {"call_id": f"c{number}", "result": 1})
    assert [json.loads(call)["call_id"] for call in (await the_one(broker_url)).calls] == ["c1", "c60"]


async def test_of_runs_with_large_results_no_more_are_looked_at(valkey_url: str) -> None:
    """A look reads a few megabytes at the most, whatever tools have answered."""
    async with open_client(valkey_url) as redis, open_broker(valkey_url):
        for run in range(8):
            await redis.xadd("llm:requests", {"data": json.dumps({"id": f"r{run}", "prompt": "x"})})
            key, result = f"llm:events:r{run}", json.dumps({"call_id": "c", "result": "x" * 2**18})
            await redis.xadd(key, {"type": "tool_call", "data": json.dumps(CALL)}, id="1-1")
            for number in range(2, 10):
                await redis.xadd(key, {"type": "tool_result", "data": result}, id=f"1-{number}")
        await take_all(redis)
        seen = (await survey(valkey_url)).running
    assert [each.request_id for each in seen] == ["r0", "r1"]
    assert len(seen[0].calls) == 1


async def test_arguments_too_long_for_a_look_are_left_out(broker_url: str, redis: Any, broker: Broker) -> None:
    """The call is seen all the same; one whose name alone is too long is not."""
    await add(redis, id="r1")
    await begin(broker, await take_one(broker_url, broker))
    await write(redis, "1-1", "tool_call", CALL | {"arguments": "x" * 20_000})
    await write(redis, "1-2", "tool_call", CALL | {"call_id": "c2", "name": "x" * 20_000})
    (call,) = (await the_one(broker_url)).calls
    assert json.loads(call) == {"call_id": "c1", "name": "lights.on", "turn": 1}


@pytest.mark.parametrize("data", ["", "no json", "[]", "3", '{"confirm": true}', '{"confirm": true, "call_id": []}'])
async def test_events_that_others_have_written_badly_do_no_harm(
    broker_url: str, redis: Any, broker: Broker, data: str
) -> None:
    """The look is for all."""
    await add(redis, id="r1")
    await begin(broker, await take_one(broker_url, broker))
    for event_id, kind in (("1-1", "tool_call"), ("1-2", "confirmed"), ("7-0", "attempt"), ("7-1", "tool_call")):
        await redis.xadd("llm:events:r1", {"type": kind, "data": data}, id=event_id)
    assert (await the_one(broker_url)).last == "tool_call"


async def test_keys_of_another_type_are_passed_over(valkey_url: str) -> None:
    """A lane, an events stream, the dead letters, the registry."""
    async with open_client(valkey_url) as redis, open_broker(valkey_url) as broker:
        await add(redis, id="r1")
        await take_one(valkey_url, broker)
        for key in ("llm:requests:low", "llm:events:r1", "llm:dead", "llm:workers"):
            await redis.delete(key)
            await redis.set(key, "x")
        seen = await survey(valkey_url)
    assert [each.request_id for each in seen.running] == ["r1"]
    assert (seen.letters, dict(seen.workers)) == (0, {})


async def test_workers_and_letters_are_seen(broker_url: str, redis: Any, broker: Broker) -> None:
    """As they have registered."""
    broker.models = ("default",)
    await broker.renew([])
    await redis.xadd("llm:dead", {"reason": "poisoned"})
    seen = await survey(broker_url)
    assert seen.letters == 1
    assert json.loads(seen.workers["w1"])["models"] == ["default"]


async def test_a_server_that_is_away_is_told() -> None:
    """After the client's patience."""
    async with Client("redis://127.0.0.1:1/0", patience_seconds=0) as client:
        with pytest.raises(BrokerError):
            await client.shards.all[0].survey()


async def test_entries_of_a_stream_are_read_from_either_end(broker_url: str, redis: Any) -> None:
    """Page by page."""
    ids = [await redis.xadd("metrics", {"data": str(number)}) for number in range(5)]
    async with Client(broker_url) as client:
        shard = client.shards.all[0]
        assert await shard.newest("metrics", "+", 2) == [(ids[4], b"4"), (ids[3], b"3")]
        assert await shard.newest("metrics", f"({ids[3]}", 9) == [(ids[2], b"2"), (ids[1], b"1"), (ids[0], b"0")]
        assert await shard.since("metrics", ids[1], 2) == [(ids[2], b"2"), (ids[3], b"3")]
        assert await shard.since("nothing", "0-0", 2) == []


async def test_what_a_request_waits_for_is_seen_until_it_begins(broker_url: str, redis: Any, broker: Broker) -> None:
    """What is too long, or no such event, is not."""
    await add(redis, id="r1", prompt="hello")
    delivery = await take_one(broker_url, broker)
    await write(redis, "0-1", "queued", {"position": 2, "reason": "2 before you on attic", "estimated_wait_ms": 9000})
    running = await the_one(broker_url)
    assert running.queued is not None
    assert (running.last, running.deployment, running.queued.summary) == (
        "queued",
        "",
        "2 before you on attic, about 9 s",
    )
    await write(redis, "0-2", "queued", {"position": 2, "reason": "x" * 5000})
    assert (await the_one(broker_url)).queued is None
    await write(redis, "0-3", "queued", {"position": "two"})
    assert (await the_one(broker_url)).queued is None
    await write(redis, "0-4", "queued", {"position": 0, "reason": "next on attic"})
    assert (await the_one(broker_url)).queued is not None
    await begin(broker, delivery)
    assert ((await the_one(broker_url)).last, (await the_one(broker_url)).queued) == ("attempt", None)
