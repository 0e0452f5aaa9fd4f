"""The wire protocol, row by row, on a worker with fake models; and everything that it writes, against `schemas/`.

Here, in `test_wire_requests.py` (R), in `test_wire_codes.py` (C), and with more of the unhappy paths in
`tests/worker/test_worker.py` (W) and `test_queue.py` (Q):

| row | test that would fail without it |
|---|---|
| keys: the three lanes and their group | `test_each_lane_has_its_group_from_the_beginning` |
| keys: `P:events:<id>` | `test_everything_written_satisfies_its_schema` |
| keys: `P:dead` | `test_dead_letter_holds_the_original_and_stays` |
| keys: `llm_router_metrics` | `test_metrics_event_is_the_same_on_channel_and_stream` |
| keys: a TTL from birth, no other key | `test_running_request_has_one_key_with_a_ttl` |
| keys: another prefix | `tests/acceptance/test_daemon.py::test_prefix_names_every_key` |
| request: both forms, every property | R `test_property_has_its_effect_in_both_forms`, `test_every_property_is_tested` |
| request: values of `stream` | R `test_stream_says_whether_there_are_tokens`, `test_probe_holds_an_opening_that_live_shows` |
| request: an id used twice | W `test_same_id_twice_costs_one_call_and_has_one_answer` |
| request: an unknown property, malformed ones | W `test_bad_request_gets_an_error_that_names_the_fault_and_a_dead_letter` |
| events: every type, its ID and its data | `test_everything_written_satisfies_its_schema` |
| events: `attempt`, numbered from 1, `entry` on the first only | `test_attempts_are_numbered_over_the_whole_life` |
| events: `token` and `reasoning`, per attempt, never empty | `test_text_belongs_to_its_attempt` |
| events: `rejected` | C `test_attempt_code_is_written` |
| events: the final ID, resuming | `test_subscriber_resumes_anywhere` |
| events: exactly one final event | `test_nothing_follows_the_final_event`, Q `test_chunk_...` and `test_commit_...` |
| cancelling: the command, the TTL | `test_cancellation_by_plain_xadd_gets_its_ttl` |
| cancelling: within a second, queued, streaming or not | W, the three tests `test_cancellation_of...`, `..._closes_the_model_...` |
| cancelling: one wins | Q `test_commit_loses_to_a_cancellation_and_says_so` |
| error codes | C `test_error_code_is_written`, `test_every_code_is_tested` |
| codes of an attempt | C `test_attempt_code_is_written`, `test_every_code_is_tested` |
| malformed: under both ids, a copy, nothing dropped | W `test_bad_request_is_answered_under_its_id_too`, `test_bad_requests_of_one_...` |
| metrics: every property, every end | `test_metrics_event_tells_of_every_end`, `test_queue_time_ends_with_the_pick_up` |
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from llm_routerd.protocol.call import Call, Delta, Finish
from llm_routerd.protocol.codes import AttemptCode
from llm_routerd.protocol.events import FINAL_ID
from llm_routerd.protocol.outcome import ToolCall
from tests.support.eventually import eventually
from tests.support.fakes import USAGE, FakeBackend, fails, hangs, says, waits_for
from tests.support.queue import add, events_of, open_client
from tests.support.wire import (
    cancellation,
    check,
    check_everything,
    eventually_true,
    final_of,
    metrics_of,
    next_message,
)
from tests.support.workers import DAEMON, make_config, run_worker

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator


_LANES = ("llm:requests:high", "llm:requests", "llm:requests:low")
_SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
_TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def thinks(reasoning: str, *texts: str) -> Any:
    """Reasoning, then an answer."""

    async def script(_backend: FakeBackend, _call: Call) -> AsyncGenerator[Delta | Finish, None]:
        yield Delta("", reasoning)
        for text in texts:
            yield Delta(text)
        yield Finish(finish_reason="stop", usage=USAGE)

    return script


def calls_tool(_backend: FakeBackend, _call: Call) -> AsyncGenerator[Delta | Finish, None]:
    """A call of the tool."""

    async def script() -> AsyncGenerator[Delta | Finish, None]:
        call = ToolCall.of(id="c1", name="weather", arguments='{"city":"Oslo"}')
        yield Finish(finish_reason="tool_calls", usage=USAGE, tool_calls=(call,))

    return script()


# ---------------------------------------------------------------------- keys


async def test_each_lane_has_its_group_from_the_beginning(broker_url: str) -> None:
    """`llm-router` on all three, at 0: what was added before the first start is answered, on every lane."""
    async with open_client(broker_url) as client:
        entries = {lane: await client.xadd(lane, {"prompt": "hi", "id": lane.replace(":", "-")}) for lane in _LANES}
        async with run_worker(broker_url, {"local": FakeBackend(says("hi"))}):
            for lane, entry in entries.items():
                request_id = lane.replace(":", "-")
                assert (await final_of(client, request_id))[0] == "result"
                began = (await events_of(client, request_id))[0][2]
                assert (began["entry"], began["lane"]) == (
                    entry,
                    lane.removeprefix("llm:requests").strip(":") or "normal",
                )
                assert [group["name"] for group in await client.xinfo_groups(lane)] == ["llm-router"]
                assert await client.xlen(lane) == 0


async def test_running_request_has_one_key_with_a_ttl(broker_url: str) -> None:
    """From birth: whatever becomes of the daemon, nothing of a request stays for ever."""
    gate = asyncio.Event()
    model = FakeBackend(waits_for(gate))
    async with open_client(broker_url) as client, run_worker(broker_url, {"local": model}):
        await add(client, id="r1")
        await eventually(lambda: model.running == 1)
        assert set(await client.keys("*")) - {*_LANES, "llm:workers", "llm:audit", "llm_router_metrics"} == {
            "llm:events:r1"
        }
        assert await client.pttl("llm:events:r1") > 0
        gate.set()
        await final_of(client, "r1")


async def test_dead_letter_holds_the_original_and_stays(broker_url: str) -> None:
    """Original fields, reason and delivery count; no TTL, for an operator is to act."""
    async with open_client(broker_url) as client, run_worker(broker_url, {"local": FakeBackend(says("hi"))}):
        entry = await client.xadd("llm:requests:low", {"prompt": "original", "colour": b"\xff"})
        await final_of(client, entry)
        ((_, letter),) = await client.xrange("llm:dead")
        assert (letter["entry"], letter["lane"], letter["reason"], letter["deliveries"]) == (
            entry,
            "low",
            "invalid_request",
            "1",
        )
        assert json.loads(letter["data"])["fields"] == {"prompt": "original", "colour": {"base64": "/w=="}}
        assert await client.pttl("llm:dead") == -1
        await check_everything(client)


async def test_bad_requests_of_one_entry_id_on_two_lanes_are_both_kept(broker_url: str) -> None:
    """Two XADDs in one millisecond share the events stream of their ID; the second loses its answer, not its copy."""
    async with open_client(broker_url) as client:
        for lane in ("llm:requests:high", "llm:requests:low"):
            await client.xadd(lane, {"prompt": "hi", "nonsense": lane}, id="5-0")
        async with run_worker(broker_url, {"local": FakeBackend(says("hi"))}):
            await eventually_true(lambda: _is_empty(client, *_LANES))
        letters = [letter for _, letter in await client.xrange("llm:dead")]
        assert sorted((letter["entry"], letter["lane"]) for letter in letters) == [("5-0", "high"), ("5-0", "low")]


async def _is_empty(client: Any, *streams: str) -> bool:
    return not any([await client.xlen(stream) for stream in streams])


async def test_metrics_event_is_the_same_on_channel_and_stream(broker_url: str) -> None:
    """For an answer, an error and a cancellation alike."""
    gate = asyncio.Event()
    async with open_client(broker_url) as client, client.pubsub() as pubsub:
        await pubsub.subscribe("llm_router_metrics")
        model = FakeBackend(says("hi"), waits_for(gate))
        async with run_worker(broker_url, {"local": model}):
            answered = await add(client)
            await final_of(client, answered)
            refused = await add(client, nonsense="1")
            await final_of(client, refused)
            cancelled = await add(client)
            await eventually(lambda: model.running == 1)
            await client.xadd(f"llm:events:{cancelled}", cancellation(cancelled), id=FINAL_ID)
            for request_id, kind in ((answered, "result"), (refused, "error"), (cancelled, "cancelled")):
                published = await next_message(pubsub)
                assert (published["id"], published["type"]) == (request_id, kind)
                assert await metrics_of(client, request_id) == published
                check("metrics", published)


# ---------------------------------------------------------------------- events


async def test_everything_written_satisfies_its_schema(broker_url: str) -> None:
    """Every kind of request on every lane; every event, dead letter and metrics event, by another validator."""
    gate = asyncio.Event()
    local = FakeBackend(
        thinks("hm ", "he", "llo"), says('{"n": "x"}'), says("I cannot help with that."), fails(AttemptCode.CONNECT),
        calls_tool, fails(AttemptCode.UPSTREAM), waits_for(gate),
    )  # fmt: skip
    cloud = FakeBackend(says('{"n": 4}'), fails(AttemptCode.AUTH), says("from the cloud"))
    async with open_client(broker_url) as client, run_worker(broker_url, {"local": local, "cloud": cloud}):
        requests: tuple[dict[str, str], ...] = (
            {"stream": "live", "metadata": '{"k": 1}', "tenant_id": "kid", "context": "c"},
            {"schema": json.dumps(_SCHEMA), "stream": "true"},
            {},
            {"publish": "true"},
            {"tools": json.dumps([_TOOL])},
            {"local_only": "true"},
            {"nonsense": "1", "metadata": "[]"},
            {"model": "nope", "metadata": '{"k": 1}'},
            {"schema": '{"type": 1}'},
            {"prompt": "x" * 70_000},
            {"deadline_ms": "1"},
        )
        for number, fields in enumerate(requests):
            await client.xadd(_LANES[number % 3], {"prompt": "hi", "id": f"r{number}", **fields})
            await final_of(client, f"r{number}")
        await add(client, id="cancelled")
        await eventually(lambda: local.running == 1)
        await client.xadd("llm:events:cancelled", cancellation("cancelled"), id=FINAL_ID)
        await metrics_of(client, "cancelled")
        seen = await check_everything(client)
    assert set(seen) == {"attempt", "token", "reasoning", "rejected", "result", "error", "cancelled", "dead", "metrics"}
    assert (seen["metrics"], seen["dead"], seen["cancelled"]) == (12, 4, 1)


async def test_attempts_are_numbered_over_the_whole_life(broker_url: str) -> None:
    """Across fallbacks and across a redelivery after a crash; only the first names the entry."""
    async with open_client(broker_url) as client:
        await client.xgroup_create("llm:requests", "llm-router", "0", mkstream=True)
        entry = await add(client)
        await client.xreadgroup("llm-router", "gone", {"llm:requests": ">"})
        await client.xclaim("llm:requests", "llm-router", "gone", 0, [entry], idle=5000, justid=True)
        began = {
            "entry": entry,
            "lane": "normal",
            "deployment": "local",
            "model": "m",
            "delivery": 1,
            "consumer": "gone",
        }
        key = f"llm:events:{entry}"
        await client.xadd(key, {"type": "attempt", "data": json.dumps(began)}, id="1-0")
        await client.expire(key, 60)
        backends = {"local": FakeBackend(fails(AttemptCode.UPSTREAM)), "cloud": FakeBackend(says("hi"))}
        async with run_worker(broker_url, backends):
            assert (await final_of(client, entry))[0] == "result"
            attempts = [
                (event_id, data["deployment"], data["delivery"], data["consumer"])
                for event_id, kind, data in await events_of(client, entry)
                if kind == "attempt"
            ]
            assert attempts == [("1-0", "local", 1, "gone"), ("2-0", "local", 2, "w1"), ("3-0", "cloud", 2, "w1")]
            await check_everything(client)


async def test_text_belongs_to_its_attempt(broker_url: str) -> None:
    """A higher attempt replaces a lower one; the final event has the last one's text, and no reasoning."""
    local = FakeBackend(thinks("let me see", "first ", "half"), fails(AttemptCode.UPSTREAM))
    local.scripts[0] = fails(AttemptCode.TRUNCATED, after=("first ", "half"))
    backends = {"local": local, "cloud": FakeBackend(thinks("let me see", "the ", "", "answer"))}
    async with open_client(broker_url) as client, run_worker(broker_url, backends):
        entry = await add(client, stream="live")
        _, result = await final_of(client, entry)
        texts: dict[tuple[str, str], str] = {}
        for event_id, kind, data in await events_of(client, entry):
            if kind in {"token", "reasoning"}:
                assert data["text"]
                place = (event_id.partition("-")[0], kind)
                texts[place] = texts.get(place, "") + data["text"]
        assert texts == {("1", "token"): "first half", ("2", "reasoning"): "let me see", ("2", "token"): "the answer"}
        assert result["content"] == result["raw_text"] == "the answer"


async def test_subscriber_resumes_anywhere(broker_url: str) -> None:
    """From the last ID it saw, at any time, also after the end: the rest, once and in order."""
    async with open_client(broker_url) as client, run_worker(broker_url, {"local": FakeBackend(says("a", "b", "c"))}):
        entry = await add(client, stream="live")
        await final_of(client, entry)
        key = f"llm:events:{entry}"
        ids = [event_id for event_id, _ in await client.xrange(key)]
        assert (ids[0], ids[-1]) == ("1-0", FINAL_ID)
        for position, last_id in enumerate(["0-0", *ids[:-1]]):
            ((_, entries),) = await client.xread({key: last_id}, block=1000)
            assert [event_id for event_id, _ in entries] == ids[position:]
        ((event_id, fields),) = await client.xrange(key, FINAL_ID, FINAL_ID)
        assert (event_id, fields["type"]) == (FINAL_ID, "result")


@pytest.mark.parametrize("late", [FINAL_ID, "1-99", "9007199254740990-5"])
async def test_nothing_follows_the_final_event(broker_url: str, late: str) -> None:
    """Redis itself refuses a second final event, and whatever comes late."""
    async with open_client(broker_url) as client, run_worker(broker_url, {"local": FakeBackend(says("a"))}):
        entry = await add(client)
        await final_of(client, entry)
        with pytest.raises(Exception, match="equal or smaller"):
            await client.xadd(f"llm:events:{entry}", cancellation(entry), id=late)


# ---------------------------------------------------------------------- cancelling


@pytest.mark.parametrize("when", ["queued", "running"])
async def test_cancellation_by_plain_xadd_gets_its_ttl(broker_url: str, when: str) -> None:
    """The protocol's one command, without EXPIRE: the daemon gives the key its TTL, and takes the entry away."""
    model = FakeBackend(hangs())
    async with open_client(broker_url) as client:
        await client.xgroup_create("llm:requests", "llm-router", "0", mkstream=True)
        await add(client, id="r1")
        if when == "queued":
            await client.xadd("llm:events:r1", cancellation("r1"), id=FINAL_ID)
        async with run_worker(broker_url, {"local": model}):
            if when == "running":
                await eventually(lambda: model.running == 1)
                await client.xadd("llm:events:r1", cancellation("r1"), id=FINAL_ID)
            assert (await metrics_of(client, "r1"))["type"] == "cancelled"
            await eventually(lambda: model.running == 0)
            assert len(model.calls) == (when == "running")
            await eventually_true(lambda: _has_ttl(client, "llm:events:r1"))
            assert await client.xlen("llm:requests") == 0
            assert await final_of(client, "r1") == ("cancelled", {"id": "r1", "reason": "enough"})


async def _has_ttl(client: Any, key: str) -> bool:
    return int(await client.pttl(key)) > 0


# ---------------------------------------------------------------------- metrics


async def test_metrics_event_tells_of_every_end(broker_url: str) -> None:
    """Who answered after whom, how long each part took, what it cost, and the counts since start."""
    local = FakeBackend(fails(AttemptCode.UPSTREAM), says("slow ", "answer", delay=0.15))
    backends = {"local": local, "cloud": FakeBackend(says("from the cloud"))}
    config = make_config(daemon=replace(DAEMON, concurrency=1))
    async with open_client(broker_url) as client, run_worker(broker_url, backends, config=config):
        first = await add(client, tenant_id="kid", context="test", model="default")
        await final_of(client, first)
        second, third = await add(client), await add(client)
        _, result = await final_of(client, third)
        one, two, three = [await metrics_of(client, each) for each in (first, second, third)]
    assert (one["type"], one["model_used"], one["chain"], one["code"]) == ("result", "anthropic/big", "default", None)
    assert [(each["model"], each["outcome"]) for each in one["attempts"]] == [
        ("ollama/tiny", "rejected"),
        ("anthropic/big", "success"),
    ]
    assert one["metrics_snapshot"] == {
        "ollama/tiny": {"success": 0, "fallback": 1, "error": 0},
        "anthropic/big": {"success": 1, "fallback": 0, "error": 0},
    }
    assert three["metrics_snapshot"]["ollama/tiny"] == {"success": 2, "fallback": 1, "error": 0}
    assert two["usage"] == {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    assert two["cost_usd"] == 0
    assert two["consumer"] == "w1"
    assert 300 <= two["latency_ms"] < 2000
    assert 150 <= two["ttft_ms"] < two["latency_ms"]
    # The third has waited for the second, and then took as long as that: the wait is not its latency.
    for told in (three, result):
        assert 150 <= told["queue_ms"] < 1000 + two["latency_ms"]
        assert 300 <= told["latency_ms"] < 300 + two["latency_ms"]
    assert one["timestamp"] < two["timestamp"] < three["timestamp"]


async def test_queue_time_ends_with_the_pick_up(redis_url: str) -> None:
    """A request that is picked up at once has not waited, however long its answer takes; result and metrics agree."""
    async with open_client(redis_url) as client, run_worker(redis_url, {"local": FakeBackend(says("a", delay=0.4))}):
        entry = await add(client)
        _, result = await final_of(client, entry)
        metrics = await metrics_of(client, entry)
        assert result["queue_ms"] < 300
        assert metrics["queue_ms"] == result["queue_ms"]
