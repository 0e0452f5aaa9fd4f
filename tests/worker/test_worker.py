"""A worker on fake models, on fakeredis and a real Valkey alike."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from llm_routerd.client import Client
from llm_routerd.protocol.codes import AttemptCode
from llm_routerd.protocol.events import FINAL_ID
from llm_routerd.protocol.keys import GROUP, LANES
from llm_routerd.queue.broker import Broker
from llm_routerd.queue.deliveries import Backlog
from llm_routerd.running.run import Run
from llm_routerd.worker.leases import TICKS_PER_LEASE
from llm_routerd.worker.request_log import RequestLog
from tests.support.accounts import scraped_of
from tests.support.endings import final_of, nothing_left
from tests.support.eventually import eventually
from tests.support.fakes import FakeBackend, babbles, fails, hangs, says, waits_for
from tests.support.queue import add, begin_one, events_of, open_broker, open_client
from tests.support.wire import eventually_true
from tests.support.workers import DAEMON, make_config, run_worker

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from llm_routerd.protocol.call import Call, Delta, Finish
    from llm_routerd.protocol.keys import Lane
    from llm_routerd.worker.worker import Worker


async def metrics_of(client: Any, count: int = 1) -> list[dict[str, Any]]:
    """The metrics events, once so many are there."""
    async with asyncio.timeout(20):
        while True:
            found = await client.xrange("llm_router_metrics")
            if len(found) >= count:
                return [json.loads(fields["data"]) for _, fields in found]
            await asyncio.sleep(0.02)


async def test_prompt_is_answered_with_tokens_result_and_metrics(broker_url: str) -> None:
    """The main job: XADD in, tokens and a result out, a metrics event after it."""
    model = FakeBackend(says("The sky ", "is blue", " because of light.", delay=0.01))
    async with open_client(broker_url) as client, run_worker(broker_url, {"local": model}):
        entry = await add(client, stream="true", metadata='{"k":1}', tenant_id="kid", context="test")
        kind, data = await final_of(client, entry)
        assert kind == "result"
        assert data["content"] == data["raw_text"] == "The sky is blue because of light."
        assert (data["model_used"], data["deployment"]) == ("ollama/tiny", "local")
        assert data["usage"] == {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
        assert (data["metadata"], data["tenant_id"], data["context"]) == ({"k": 1}, "kid", "test")
        events = await events_of(client, entry)
        assert events[0][0] == "1-0"
        assert events[0][2]["entry"] == entry
        text = "".join(data["text"] for _, kind, data in events if kind == "token")
        assert text == "The sky is blue because of light."
        (metrics,) = await metrics_of(client)
        assert (metrics["id"], metrics["model_used"], metrics["tenant_id"]) == (entry, "ollama/tiny", "kid")
        assert metrics["queue_ms"] == data["queue_ms"]
        assert metrics["metrics_snapshot"] == {"ollama/tiny": {"success": 1, "fallback": 0, "error": 0}}
        await nothing_left(client)


async def test_request_that_does_not_stream_has_no_token_events(broker_url: str) -> None:
    """Without `stream`, only the attempt and the result are written."""
    async with open_client(broker_url) as client, run_worker(broker_url, {"local": FakeBackend(says("hi"))}):
        entry = await add(client)
        await final_of(client, entry)
        assert [kind for _, kind, _ in await events_of(client, entry)] == ["attempt", "result"]


async def test_answer_that_breaks_the_schema_falls_to_the_next_deployment(broker_url: str) -> None:
    """The discarded attempt is told, the second one answers, and the schema went to both."""
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    local = FakeBackend(says('{"n": ', '"four"}'))
    cloud = FakeBackend(says('```json\n{"n": 4}\n```'))
    backends = {"local": local, "cloud": cloud}
    async with open_client(broker_url) as client, run_worker(broker_url, backends):
        entry = await add(client, schema=json.dumps(schema), stream="true")
        kind, data = await final_of(client, entry)
        assert (kind, data["content"], data["deployment"]) == ("result", {"n": 4}, "cloud")
        assert [(each["deployment"], each["outcome"], each["code"]) for each in data["attempts"]] == [
            ("local", "invalid", "schema_violation"),
            ("cloud", "success", None),
        ]
        rejected = [event for event in await events_of(client, entry) if event[1] == "rejected"]
        assert [(event_id.split("-")[0], data["code"]) for event_id, _, data in rejected] == [("1", "schema_violation")]
        assert local.calls[0].schema == cloud.calls[0].schema == schema


async def test_chain_without_an_answer_ends_in_an_error_with_its_attempts(broker_url: str) -> None:
    """All failed: `chain_exhausted`, with what each said, and metrics with model `none`."""
    backends = {
        "local": FakeBackend(fails(AttemptCode.CONNECT)),
        "cloud": FakeBackend(says("I'm sorry, but I can't help with that.")),
    }
    async with open_client(broker_url) as client, run_worker(broker_url, backends):
        entry = await add(client)
        kind, data = await final_of(client, entry)
        assert (kind, data["code"]) == ("error", "chain_exhausted")
        assert [each["code"] for each in data["attempts"]] == ["connect", "refusal"]
        (metrics,) = await metrics_of(client)
        assert (metrics["model_used"], metrics["type"], metrics["code"]) == (
            "none",
            "error",
            "chain_exhausted",
        )
        await nothing_left(client)


async def test_local_only_request_never_leaves_the_house(broker_url: str) -> None:
    """Not even when the local deployment fails."""
    cloud = FakeBackend(says("from the cloud"))
    backends = {"local": FakeBackend(fails(AttemptCode.UPSTREAM)), "cloud": cloud}
    async with open_client(broker_url) as client, run_worker(broker_url, backends):
        entry = await add(client, local_only="true")
        _, data = await final_of(client, entry)
        assert data["code"] == "local_exhausted"
        assert cloud.calls == []


@pytest.mark.parametrize(
    ("fields", "code", "says_what"),
    [
        ({"data": "{"}, "invalid_request", "JSON"),
        ({"data": "[]"}, "invalid_request", "object"),
        ({"prompt": "a", "messages": "[]"}, "invalid_request", "prompt"),
        ({"tenant_id": "x"}, "invalid_request", "prompt"),
        ({"prompt": "a", "promt": "b"}, "invalid_request", "promt"),
        ({"prompt": "a", "timeout_ms": '"x"'}, "invalid_request", "timeout_ms"),
        ({"prompt": "a", "model": "nope"}, "unknown_model", "default"),
        ({"prompt": "a", "schema": '{"type":"nope"}'}, "invalid_schema", "type"),
        ({"prompt": "a", "schema": '{"$ref":"http://127.0.0.1/x"}'}, "invalid_schema", "$ref"),
        ({"prompt": "a", "schema": '{"type":"string","pattern":"(?=a)"}'}, "invalid_schema", "pattern"),
        ({"prompt": "a" * 70_000}, "request_too_large", "65536"),
        ({"prompt": b"\xff\xfe"}, "invalid_request", "UTF-8"),
        ({"prompt": "a", "id": "no spaces"}, "invalid_request", "id"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_bad_request_gets_an_error_that_names_the_fault_and_a_dead_letter(
    broker_url: str, fields: dict[str, Any], code: str, says_what: str
) -> None:
    """Nothing is dropped, nothing stops, and the next request is answered."""
    async with open_client(broker_url) as client, run_worker(broker_url, {"local": FakeBackend(says("hi"))}):
        entry = await client.xadd("llm:requests", fields)
        kind, data = await final_of(client, entry)
        assert (kind, data["code"]) == ("error", code)
        assert says_what in data["message"]
        ((_, letter),) = await client.xrange("llm:dead")
        assert (letter["entry"], letter["reason"], letter["deliveries"]) == (entry, code, "1")
        assert set(json.loads(letter["data"])["fields"]) == set(fields)
        good = await add(client)
        assert (await final_of(client, good))[0] == "result"
        await nothing_left(client)


async def test_bad_request_is_answered_under_its_id_too(broker_url: str) -> None:
    """Under its own id where one can be read, under its entry ID always."""
    async with open_client(broker_url) as client, run_worker(broker_url, {"local": FakeBackend(says("hi"))}):
        entry = await add(client, id="mine", nonsense="1")
        for request_id in ("mine", entry):
            _, data = await final_of(client, request_id)
            assert (data["id"], data["code"]) == ("mine", "invalid_request")


async def test_cancellation_closes_the_model_within_a_second(broker_url: str) -> None:
    """A running request that streams nothing ends at its producer's word."""
    model = FakeBackend(hangs("word "))
    async with (
        open_client(broker_url) as client,
        run_worker(broker_url, {"local": model}),
        Client(broker_url) as producer,
    ):
        entry = await add(client)
        await eventually(lambda: model.running == 1)
        began = asyncio.get_running_loop().time()
        await producer.cancel(entry)
        await eventually(lambda: model.running == 0)
        assert asyncio.get_running_loop().time() - began < 1.5
        (metrics,) = await metrics_of(client)
        assert (metrics["type"], metrics["model_used"]) == ("cancelled", "none")
        await nothing_left(client)


async def test_cancellation_of_a_queued_request_costs_no_call(broker_url: str) -> None:
    """What is cancelled before it is picked up never reaches a model."""
    model = FakeBackend(says("hi"))
    async with open_client(broker_url) as client, Client(broker_url) as producer:
        entry = await add(client)
        await producer.cancel(entry)
        async with run_worker(broker_url, {"local": model}):
            (metrics,) = await metrics_of(client)
            assert metrics["type"] == "cancelled"
            assert model.calls == []
            await nothing_left(client)


async def test_cancellation_of_a_streaming_request_stops_its_tokens(broker_url: str) -> None:
    """The refused chunk tells the writer at once."""
    model = FakeBackend(babbles(pause=0.01))
    async with (
        open_client(broker_url) as client,
        run_worker(broker_url, {"local": model}),
        Client(broker_url) as producer,
    ):
        entry = await add(client, stream='"live"')
        await eventually(lambda: model.running == 1)
        await producer.cancel(entry)
        await eventually(lambda: model.running == 0, seconds=1.5)
        assert (await events_of(client, entry))[-1][1] == "cancelled"


async def test_deadline_that_has_passed_costs_no_call(broker_url: str) -> None:
    """An answer that nobody wants any more is not asked for."""
    model = FakeBackend(says("hi"))
    async with open_client(broker_url) as client, run_worker(broker_url, {"local": model}):
        entry = await add(client, deadline_ms="1000")
        _, data = await final_of(client, entry)
        assert data["code"] == "deadline_exceeded"
        assert model.calls == []


async def test_timeout_of_the_request_ends_a_running_attempt(broker_url: str) -> None:
    """`timeout_ms` holds from pick-up to the final event, over all attempts."""
    model, cloud = FakeBackend(hangs()), FakeBackend(hangs())
    async with open_client(broker_url) as client, run_worker(broker_url, {"local": model, "cloud": cloud}):
        entry = await add(client, timeout_ms="300")
        _, data = await final_of(client, entry)
        assert data["code"] == "deadline_exceeded"
        assert [each["code"] for each in data["attempts"]] == ["timeout"]
        assert model.running == cloud.running == 0


@pytest.mark.parametrize("when", ["before", "during", "after"])
async def test_same_id_twice_costs_one_call_and_has_one_answer(broker_url: str, when: str) -> None:
    """Idempotency, whenever the second comes."""
    gate = asyncio.Event()
    model = FakeBackend(waits_for(gate))
    async with open_client(broker_url) as client:
        await add(client, id="once")
        if when == "before":
            await add(client, id="once")
        async with run_worker(broker_url, {"local": model}):
            await eventually(lambda: len(model.calls) == 1)
            if when == "during":
                await add(client, id="once")
                await asyncio.sleep(0.2)
            gate.set()
            await final_of(client, "once")
            if when == "after":
                await add(client, id="once")
            await nothing_left(client)
            assert len(model.calls) == 1
            assert len([kind for _, kind, _ in await events_of(client, "once") if kind == "attempt"]) == 1


async def test_drain_finishes_what_runs_and_reads_nothing_more(broker_url: str) -> None:
    """A graceful stop answers what it has begun."""
    gate = asyncio.Event()
    config = make_config(daemon=replace(DAEMON, drain_seconds=20.0))
    async with (
        open_client(broker_url) as client,
        run_worker(broker_url, {"local": FakeBackend(waits_for(gate))}, config=config) as worker,
    ):
        entry = await add(client)
        await eventually(lambda: worker.in_flight == 1)
        worker.stop()
        await asyncio.sleep(2)  # a read that was under way may still bring something: it has ended by now
        late = await add(client)
        gate.set()
        assert (await final_of(client, entry))[0] == "result"
        assert await client.xlen("llm:requests") == 1
        assert await events_of(client, late) == []


async def test_drain_hands_the_rest_back_to_another_worker_at_once(broker_url: str) -> None:
    """What does not end in time goes on elsewhere, as the next attempt, and counts as no crash."""
    config = make_config(daemon=replace(DAEMON, drain_seconds=0.2, lease_seconds=30.0))
    slow, quick = FakeBackend(hangs("half an ")), FakeBackend(says("answer"))
    async with (
        open_client(broker_url) as client,
        run_worker(broker_url, {"local": slow}, config=config) as first,
    ):
        entry = await add(client, stream='"live"')
        await eventually(lambda: slow.running == 1)
        async with run_worker(broker_url, {"local": quick}, consumer="w2", config=config):
            first.stop()
            kind, data = await final_of(client, entry)
            assert (kind, data["content"]) == ("result", "answer")
            assert slow.running == 0
            attempts = [
                (event_id, data) for event_id, kind, data in await events_of(client, entry) if kind == "attempt"
            ]
            assert [(event_id, data["delivery"], data["consumer"]) for event_id, data in attempts] == [
                ("1-0", 1, "w1"),
                ("2-0", 1, "w2"),
            ]


async def test_request_that_kills_its_workers_is_buried(broker_url: str) -> None:
    """After `max_deliveries` crashes there is a final error and a dead letter with the history."""
    model = FakeBackend(says("hi"))
    async with open_client(broker_url) as client:
        await client.xgroup_create("llm:requests", "llm-router", "0", mkstream=True)
        entry = await add(client)
        await client.xreadgroup("llm-router", "gone", {"llm:requests": ">"})
        await client.xclaim("llm:requests", "llm-router", "gone", 0, [entry], retrycount=3, idle=5000, justid=True)
        await client.xadd(
            f"llm:events:{entry}",
            {
                "type": "attempt",
                "data": json.dumps({"entry": entry, "lane": "normal", "deployment": "local"}),
            },
            id="1-0",
        )
        async with run_worker(broker_url, {"local": model}):
            _, data = await final_of(client, entry)
            assert data["code"] == "poisoned"
            ((_, letter),) = await client.xrange("llm:dead")
            assert (letter["reason"], letter["deliveries"]) == ("poisoned", "4")
            assert [each["event"] for each in json.loads(letter["data"])["history"]] == ["1-0"]
            assert model.calls == []


async def test_poisoned_request_that_is_cancelled_meanwhile_is_done_with_at_once(
    valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its end is being written from the moment on at which it is refused: nobody has to take it over once more."""
    looks = []

    async def history(broker: Broker, request_id: str) -> list[Any]:
        looks.append(request_id)
        await broker.pipe.call("XADD", broker.keys.events(request_id), FINAL_ID, "type", "cancelled", "data", "{}")
        await asyncio.sleep(2 * DAEMON.lease_seconds / TICKS_PER_LEASE)  # until somebody has seen that
        return []

    monkeypatch.setattr(Broker, "history", history)
    async with open_client(valkey_url) as client:
        await client.xgroup_create("llm:requests", GROUP, "0", mkstream=True)
        entry = await add(client)
        await client.xreadgroup(GROUP, "gone", {"llm:requests": ">"})
        await client.xclaim("llm:requests", GROUP, "gone", 0, [entry], retrycount=3, idle=5000, justid=True)
        async with run_worker(valkey_url, {}):
            await nothing_left(client)
    assert looks == [entry]


async def test_bug_in_handling_ends_that_request_and_no_other(broker_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of ours is a final `internal`, a line in the log, and not the end of the daemon."""
    async with (
        open_client(broker_url) as client,
        run_worker(broker_url, {"local": FakeBackend(says("hi"))}),
    ):
        until_done = Run.until_done

        async def once_badly(_run: Run) -> Any:
            monkeypatch.setattr(Run, "until_done", until_done)
            raise ZeroDivisionError

        monkeypatch.setattr(Run, "until_done", once_badly)
        bad = await add(client)
        assert (await final_of(client, bad))[1]["code"] == "internal"
        good = await add(client)
        assert (await final_of(client, good))[0] == "result"
        await nothing_left(client)


@pytest.mark.parametrize(
    ("request_", "bug", "code"),
    [({"model": "nobody"}, False, "unknown_model"), ({}, True, "internal")],
    ids=["refused", "given up"],
)
async def test_end_of_a_request_that_was_not_run_is_published_as_well(
    broker_url: str, monkeypatch: pytest.MonkeyPatch, request_: dict[str, Any], bug: bool, code: str
) -> None:
    """Whoever only listens does not wait for ever."""

    async def badly(_run: Run) -> Any:
        raise ZeroDivisionError

    if bug:
        monkeypatch.setattr(Run, "until_done", badly)
    async with open_client(broker_url) as client, run_worker(broker_url, {}), client.pubsub() as pubsub:
        await pubsub.subscribe("llm:events:asked")
        await add(client, id="asked", publish="true", **request_)
        async with asyncio.timeout(10):
            while (message := await pubsub.get_message(ignore_subscribe_messages=True, timeout=1)) is None:
                pass
        published = json.loads(message["data"])
        assert (published["type"], published["data"]["code"]) == ("error", code)


async def test_observer_that_fails_is_in_nobodys_way(broker_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer stands and is counted once, whoever cannot bear to hear of it."""

    def fails_to_hear(_log: RequestLog, _finished: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(RequestLog, "settled", fails_to_hear)
    async with (
        open_client(broker_url) as client,
        run_worker(broker_url, {"local": FakeBackend(says("hi"))}) as worker,
    ):
        assert (await final_of(client, await add(client)))[0] == "result"
        await nothing_left(client)
        assert await client.xlen("llm:dead") == 0
        assert scraped_of(worker)['requests_total{type="result",code=""}'] == 1


async def test_cancelled_request_accounts_for_what_it_has_cost(broker_url: str) -> None:
    """The rejected attempt was paid for, and the one that the cancellation ended is told as `cancelled`."""
    first, second = FakeBackend(says("I cannot help with that.")), FakeBackend(hangs("word "))
    async with (
        open_client(broker_url) as client,
        run_worker(broker_url, {"local": first, "cloud": second}),
        Client(broker_url) as producer,
    ):
        entry = await add(client, tenant_id="kid")
        await eventually(lambda: second.running == 1)
        await producer.cancel(entry)
        (metrics,) = await metrics_of(client)
        assert metrics["type"] == "cancelled"
        assert [each["code"] for each in metrics["attempts"]] == ["refusal", "cancelled"]
        assert metrics["usage_by_deployment"]["local"]["completion_tokens"] == 5
        assert metrics["tenant_totals"]["requests"] == 1


async def test_cancellation_that_beats_an_answer_by_a_hair_is_counted_once_with_what_it_has_cost(
    broker_url: str,
) -> None:
    """Nobody got these answers: five requests, five cancelled, no result; the calls were paid for all the same."""
    gate = asyncio.Event()
    model = FakeBackend(waits_for(gate))
    async with open_client(broker_url) as client, run_worker(broker_url, {"local": model}) as worker:
        entries = [await add(client) for _ in range(5)]
        await eventually(lambda: model.running == 5)
        for entry in entries:
            await client.xadd(f"llm:events:{entry}", {"type": "cancelled", "data": "{}"}, id=FINAL_ID)
        gate.set()
        events = await metrics_of(client, 5)
        assert [event["type"] for event in events] == ["cancelled"] * 5
        assert events[-1]["metrics_snapshot"].get("ollama/tiny", {}).get("success", 0) == 0
        assert events[-1]["tenant_totals"]["requests"] == 5
        samples = scraped_of(worker)
        assert {name: n for name, n in samples.items() if name.startswith("requests_total")} == {
            'requests_total{type="cancelled",code=""}': 5
        }
        assert sum(n for name, n in samples.items() if name.startswith("attempts_total")) == 5


async def test_answer_that_another_workers_answer_beat_is_not_counted(broker_url: str) -> None:
    """Its worker has counted it; here only the calls are."""
    gate = asyncio.Event()
    model = FakeBackend(waits_for(gate))
    async with open_client(broker_url) as client, run_worker(broker_url, {"local": model}) as worker:
        entry = await add(client)
        await eventually(lambda: model.running == 1)
        await client.xadd(f"llm:events:{entry}", {"type": "result", "data": "{}"}, id=FINAL_ID)
        gate.set()
        await nothing_left(client)
        await eventually(lambda: any(name.startswith("attempts_total") for name in scraped_of(worker)))
        assert not any(name.startswith("requests_total") for name in scraped_of(worker))
        assert await client.xlen("llm_router_metrics") == 0


async def test_copies_of_a_cancelled_id_are_one_cancelled_request(broker_url: str) -> None:
    """Also where no attempt says which of the entries the stream belongs to; whatever model they ask for."""
    async with open_client(broker_url) as client, run_worker(broker_url, {}) as worker:
        for request_id in ("q", "odd"):
            await client.xadd(f"llm:events:{request_id}", {"type": "cancelled", "data": "{}"}, id=FINAL_ID)
        for _ in range(3):
            await add(client, id="q")
            await add(client, id="odd", model="nobody-knows-it")
        await nothing_left(client)
        assert [event["type"] for event in await metrics_of(client, 2)] == ["cancelled"] * 2
        await eventually(lambda: not worker.shards[0].in_flight)
        samples = scraped_of(worker)
        assert {name: n for name, n in samples.items() if name.startswith("requests_total")} == {
            'requests_total{type="cancelled",code=""}': 2
        }
        assert await client.xlen("llm:dead") == 0
        assert await client.xlen("llm_router_metrics") == 2


@pytest.mark.parametrize("kind", ["result", "error"])
async def test_copy_of_an_ended_id_is_no_error_where_its_model_is_gone(broker_url: str, kind: str) -> None:
    """A producer's retry: what stands there stands, and nothing is told again."""
    async with open_client(broker_url) as client, run_worker(broker_url, {}) as worker:
        await client.xadd("llm:events:q", {"type": kind, "data": "{}"}, id=FINAL_ID)
        entry = await add(client, id="q", model="nobody-knows-it")
        await nothing_left(client)
        await eventually(lambda: not worker.shards[0].in_flight)
        assert await client.exists(f"llm:events:{entry}", "llm:dead", "llm_router_metrics") == 0
        assert not any(name.startswith("requests_total") for name in scraped_of(worker))
        assert await client.pttl("llm:events:q") > 0


def calls_of(worker: Worker) -> dict[str, float]:
    """How many attempts a worker has counted, by deployment, outcome and code."""
    return {name: n for name, n in scraped_of(worker).items() if name.startswith("attempts_total")}


@pytest.mark.parametrize("how", ["drain", "lost", "answered", "lost between two"])
async def test_call_that_was_made_is_counted_whoever_ends_its_request(valkey_url: str, how: str) -> None:
    """A worker that is stopped, or finds that the request is another's, has paid for what it has asked."""
    config = make_config(daemon=replace(DAEMON, drain_seconds=0.0))
    gate = asyncio.Event()

    async def refuses(backend: FakeBackend, call: Call) -> AsyncGenerator[Delta | Finish, None]:
        await gate.wait()
        async for item in says("I cannot help with that.")(backend, call):
            yield item

    between = how == "lost between two"
    model = FakeBackend(refuses if between else hangs("word "))
    async with (
        open_client(valkey_url) as client,
        run_worker(valkey_url, {"local": model}, config=config) as worker,
    ):
        entry = await add(client, stream="live")
        await eventually(lambda: model.running == 1)
        if how == "drain":
            worker.stop()
        elif how == "answered":
            await client.xadd(f"llm:events:{entry}", {"type": "result", "data": "{}"}, id=FINAL_ID)
        else:
            await client.xclaim("llm:requests", "llm-router", "w2", 0, [entry])
            await client.xadd(f"llm:events:{entry}", {"type": "attempt", "data": '{"consumer":"w2"}'}, id="2-0")
            gate.set()
        code = "refusal" if between else "cancelled"
        await eventually(lambda: calls_of(worker))
        (name,) = calls_of(worker)
        assert f'deployment="local",outcome="rejected",code="{code}"' in name
        assert not any(name.startswith("requests_total") for name in scraped_of(worker))


async def test_result_says_which_attempts_text_it_is(broker_url: str) -> None:
    """Counted over the whole life of the request: one that a dead worker made, one that was rejected, the answer."""
    local, cloud = FakeBackend(says("I cannot help with that.")), FakeBackend(says("fine"))
    async with open_client(broker_url) as client:
        entry = await add(client, stream="live")
        async with open_broker(broker_url, "w0") as broker:
            _delivery, _transcript = await begin_one(broker_url, broker, entry, consumer="w0")
        async with run_worker(broker_url, {"local": local, "cloud": cloud}):
            _, data = await final_of(client, entry)
        ((answer_id, _, _),) = [each for each in await events_of(client, entry) if each[2].get("text") == "fine"]
        assert data["attempt"] == int(answer_id.partition("-")[0]) == 3


async def test_backlog_of_each_lane_is_told(broker_url: str) -> None:
    """What waits unread counts; what is being answered, or has been, does not."""
    gate = asyncio.Event()
    config = make_config(daemon=replace(DAEMON, concurrency=1))
    model = FakeBackend(waits_for(gate))
    async with (
        open_client(broker_url) as client,
        run_worker(broker_url, {"local": model}, config=config) as worker,
    ):
        await add(client, "high")
        await eventually(lambda: model.running == 1)
        lanes: tuple[Lane, ...] = ("low", "normal", "low")
        last = [await add(client, lane) for lane in lanes][-1]
        await eventually_true(lambda: _has_lags(worker, {"high": 0, "normal": 1, "low": 2}))
        gate.set()
        await final_of(client, last)
        await eventually_true(lambda: _has_lags(worker, {"high": 0, "normal": 0, "low": 0}))


async def test_lane_that_cannot_be_told_is_left_out_of_the_backlog(broker_url: str) -> None:
    """It has lost its group, and the others are told all the same."""
    nothing = Backlog(unread=0, handed_back=0)
    async with open_client(broker_url) as client, open_broker(broker_url) as broker:  # no reader to make it again
        await client.delete("llm:requests:low")
        assert [await broker.backlog(lane) for lane in LANES] == [nothing, nothing, None]


async def test_idle_worker_is_seen_as_a_consumer_of_each_lane(broker_url: str) -> None:
    """Also where the server makes nobody one for a blocking read alone, as before Redis 7.2."""
    async with open_client(broker_url) as client, run_worker(broker_url, {}, consumer="w1"):
        for lane in ("llm:requests:high", "llm:requests", "llm:requests:low"):
            await eventually_true(partial(_is_consumer, client, lane))


async def _is_consumer(client: Any, lane: str) -> bool:
    return "w1" in {consumer["name"] for consumer in await client.xinfo_consumers(lane, "llm-router")}


async def _has_lags(worker: Worker, expected: dict[str, int]) -> bool:
    return {lane: each.unread for lane, each in (await worker.backlogs()).items()} == expected


async def test_cancellation_between_two_attempts_costs_no_further_call(broker_url: str) -> None:
    """The next deployment is not asked for a request that has been ended, and its entry is done with."""
    gate = asyncio.Event()

    async def refuses_late(backend: FakeBackend, call: Call) -> AsyncGenerator[Delta | Finish, None]:
        await gate.wait()
        async for item in says("I cannot help with that.")(backend, call):
            yield item

    first, second = FakeBackend(refuses_late), FakeBackend(says("late"))
    async with (
        open_client(broker_url) as client,
        run_worker(broker_url, {"local": first, "cloud": second}),
        Client(broker_url) as producer,
    ):
        entry = await add(client)
        await eventually(lambda: first.running == 1)
        await producer.cancel(entry)
        gate.set()
        (metrics,) = await metrics_of(client)
        assert metrics["type"] == "cancelled"
        assert second.calls == []
        await nothing_left(client)


async def test_entries_of_two_lanes_with_one_id_leave_a_dead_letter_and_a_metrics_event(broker_url: str) -> None:
    """The one that cannot be answered is not forgotten."""
    gate = asyncio.Event()
    async with (
        open_client(broker_url) as client,
        run_worker(broker_url, {"local": FakeBackend(waits_for(gate))}),
    ):
        await client.xadd("llm:requests", {"prompt": "a"}, id="5-0")
        await client.xadd("llm:requests:low", {"prompt": "b"}, id="5-0")
        (metrics,) = await metrics_of(client)
        assert (metrics["type"], metrics["code"]) == ("error", "invalid_request")
        assert await client.xlen("llm:dead") == 1
        gate.set()
        assert (await final_of(client, "5-0"))[0] == "result"


async def test_worker_that_never_reached_redis_stops_at_once() -> None:
    """There is nobody to say goodbye to."""
    loop = asyncio.get_running_loop()
    async with run_worker("redis://127.0.0.1:1/0", {"local": FakeBackend(says("x"))}, until_ready=False):
        await asyncio.sleep(0.1)
        began = loop.time()
    assert loop.time() - began < 1.0


async def test_worker_that_cannot_read_says_so_once_and_is_not_ready(valkey_url: str) -> None:
    """Redis answers, and yet no request comes in: that must not look like an idle evening."""
    async with open_client(valkey_url) as client, run_worker(valkey_url, {"local": FakeBackend(says("x"))}) as worker:
        await client.execute_command("ACL", "SETUSER", "default", "-client|id")
        try:
            for info in await client.client_list(_type="normal"):
                if info["name"].startswith("llm-routerd-read"):
                    await client.client_kill_filter(_id=info["id"])
            await eventually(lambda: not worker.status().ready, seconds=15)
            assert worker.status().why == "NoPermissionError: the user may not run client|id"
        finally:
            await client.execute_command("ACL", "SETUSER", "default", "+client|id")
        await eventually(lambda: worker.status().ready, seconds=15)


async def test_idle_worker_whose_consumer_was_removed_is_there_again(valkey_url: str) -> None:
    """Before anything comes: with its renewals, and not only with what a blocking read brings."""
    config = make_config(daemon=replace(DAEMON, lease_seconds=0.3))
    async with open_client(valkey_url) as client, run_worker(valkey_url, {}, config=config):
        await client.xgroup_delconsumer("llm:requests", GROUP, "w1")

        async def is_seen() -> bool:
            return [each["name"] for each in await client.xinfo_consumers("llm:requests", GROUP)] == ["w1"]

        async with asyncio.timeout(2.0):  # a blocking read lasts longer
            while not await is_seen():  # noqa: ASYNC110 - Redis has no event for this
                await asyncio.sleep(0.02)
