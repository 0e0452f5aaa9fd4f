"""What the queue's order rests on when memory runs out, workers sleep and foreign keys are in the way."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from llm_routerd.protocol.codes import AttemptCode
from llm_routerd.protocol.events import FINAL_ID, AttemptRejected
from llm_routerd.protocol.keys import HANDED_BACK
from llm_routerd.protocol.outcome import Outcome
from llm_routerd.protocol.wire import encode
from llm_routerd.queue import scripts
from tests.support.eventually import eventually
from tests.support.queue import (
    add,
    begin,
    begin_one,
    commit,
    events_of,
    failure,
    no_fence,
    open_broker,
    open_client,
    open_reader,
    result,
    started,
    take,
    take_one,
    two_workers,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

REJECTED = AttemptRejected(
    deployment="local",
    model="ollama/tiny",
    outcome=Outcome.REJECTED,
    code=AttemptCode.UPSTREAM,
    reason="scripted",
    latency_ms=1,
)


@pytest.fixture
async def full_server(valkey_url: str) -> AsyncIterator[str]:
    """A real server that is told to be without memory, until the test is over."""
    yield valkey_url
    async with open_client(valkey_url) as client:
        await client.config_set("maxmemory", "0")


async def test_several_events_of_a_request_are_written_all_or_none_out_of_memory(full_server: str) -> None:
    """Memory that comes back between two commands leaves no hole in a transcript: they are one command."""
    async with open_client(full_server) as client, open_broker(full_server) as broker:
        await add(client)
        _delivery, transcript = await begin_one(full_server, broker)
        await client.config_set("maxmemory", "1")
        transcript.text("reasoning", "hm")
        transcript.text("token", "a")
        (command,) = transcript.take_commands()
        assert command.args[0] == "EVALSHA"
        with pytest.raises(Exception, match="maxmemory"):
            await client.execute_command(*command.args)
        assert [event_id for event_id, _, _ in await events_of(client, "r1")] == ["1-0"]
        await client.config_set("maxmemory", "0")
        await client.execute_command(*command.args)
        assert [event_id for event_id, _, _ in await events_of(client, "r1")] == ["1-0", "1-1", "1-2"]


async def test_commit_waits_for_events_that_were_refused_before_it(broker_url: str) -> None:
    """The final event would shut them out for ever."""
    async with open_client(broker_url) as client, open_broker(broker_url) as broker:
        entry = await add(client)
        _delivery, _transcript = await begin_one(broker_url, broker)
        call = scripts.commit(
            lanes=broker.keys.lanes, letters="llm:dead", metrics_stream="llm_router_metrics", streams=["llm:events:r1"],
            entry=entry, lane="normal", consumer="w1", is_begun=True, under_way="1-3", kind="result", data="{}",
            ttl_ms=60_000, publishes=False, events_prefix="llm:events:", metrics=b"", metrics_maxlen=100,
            most_letters=10, most_letter_bytes=100_000, audit_key="llm:audit", audit_maxlen=10, last_words=(), letter=(),
            audit=(),
        )  # fmt: skip
        assert await broker.pipe.run_script(call) == [b"gap"]
        assert await client.xlen("llm:requests") == 1
        assert [event_id for event_id, _, _ in await events_of(client, "r1")] == ["1-0"]


async def test_answer_after_memory_came_back_has_its_whole_transcript(full_server: str) -> None:
    """What was refused, what came meanwhile, and the final event, in this order."""
    async with open_client(full_server) as client, open_broker(full_server) as broker:
        await add(client)
        delivery, transcript = await begin_one(full_server, broker)
        await client.config_set("maxmemory", "1")
        transcript.text("token", "refused ")
        await eventually(lambda: transcript.under_way)
        transcript.text("token", "and waiting")
        committing = asyncio.create_task(
            commit(broker, delivery, result("r1"), transcript=transcript, request_ids=("r1",))
        )
        await asyncio.sleep(0.1)
        assert not committing.done()
        await client.config_set("maxmemory", "0")
        assert (await committing).verdict == "committed"
        events = await events_of(client, "r1")
        assert [(event_id, data.get("text")) for event_id, _, data in events[1:-1]] == [
            ("1-1", "refused "),
            ("1-2", "and waiting"),
        ]
        assert events[-1][0] == FINAL_ID
        assert broker.outbox.unwritten == 0


async def test_further_attempt_of_a_number_that_another_worker_has_begun_is_none(broker_url: str) -> None:
    """Both are at attempt 1, one sleeps, the other begins 2: the sleeper's 2 must not mix with it."""
    fences: list[str] = []
    async with open_client(broker_url) as client, open_broker(broker_url) as broker:
        await add(client)
        delivery = await take_one(broker_url, broker)
        transcript = broker.transcript("r1", publish=False, fenced=fences.append)
        await broker.begin(delivery, transcript, started(), publish=False)
        other = {"type": "attempt", "data": encode(started("w2", 2))}
        await client.xadd("llm:events:r1", other, id="2-0")
        transcript.event(REJECTED)
        assert not await transcript.next_attempt(started())
        assert fences == ["overtaken"]
        assert [event_id for event_id, _, _ in await events_of(client, "r1")] == ["1-0", "2-0"]


async def test_further_attempt_is_known_to_stand_before_it_is_made(broker_url: str) -> None:
    """When the call is paid for, its attempt is in the stream, after what became of the one before."""
    async with open_client(broker_url) as client, open_broker(broker_url) as broker:
        await add(client)
        _delivery, transcript = await begin_one(broker_url, broker)
        transcript.event(REJECTED)
        assert await transcript.next_attempt(started())
        kinds = [(event_id, kind) for event_id, kind, _ in await events_of(client, "r1")]
        assert kinds == [("1-0", "attempt"), ("1-1", "rejected"), ("2-0", "attempt")]


async def test_event_that_is_refused_is_not_published(broker_url: str) -> None:
    """A late chunk of an overtaken worker reaches no one, on the channel as little as in the stream."""
    fences: list[str] = []
    async with (
        open_client(broker_url) as client,
        open_broker(broker_url) as broker,
        client.pubsub() as pubsub,
    ):
        await add(client)
        delivery = await take_one(broker_url, broker)
        transcript = broker.transcript("r1", publish=True, fenced=fences.append)
        await broker.begin(delivery, transcript, started(), publish=True)
        await client.xadd("llm:events:r1", {"type": "cancelled", "data": "{}"}, id=FINAL_ID)
        await pubsub.subscribe("llm:events:r1", "done")
        transcript.text("token", "late")
        async with asyncio.timeout(10):
            await eventually(lambda: fences)
            await client.publish("done", "")
            while (message := await pubsub.get_message(ignore_subscribe_messages=True, timeout=5)) is None:
                pass
        assert message["channel"] == "done"


async def test_beginning_renews_the_lease(broker_url: str) -> None:
    """An entry may have waited for long in a worker that slept; it is not to be taken over right after."""
    async with two_workers(broker_url) as (client, broker, other):
        entry = await add(client)
        delivery = await take_one(broker_url, broker)
        await client.xclaim("llm:requests", "llm-router", "w1", 0, [entry], idle=100_000, justid=True)
        await begin(broker, delivery)
        assert (await other.claim(room=5)).deliveries == []


async def test_claim_that_gets_there_late_takes_nothing(broker_url: str) -> None:
    """A server that stood still answers it after its thaw, before the renewals of the living."""
    async with two_workers(broker_url) as (client, broker, other):
        entry = await add(client)
        await take_one(broker_url, broker)
        await client.xclaim("llm:requests", "llm-router", "w1", 0, [entry], idle=100_000, justid=True)
        now_ms = await other.server_ms()
        late = await other.claim(room=5, server_ms=now_ms - 1_000)
        assert (late.late, list(late.deliveries)) == (True, [])
        in_time = await other.claim(room=5, server_ms=now_ms)
        assert [each.entry for each in in_time.deliveries] == [entry]


async def test_everything_is_handed_back_also_what_the_worker_never_heard_of(broker_url: str) -> None:
    """A reply may be on its way when a worker leaves; that is no crash."""
    async with two_workers(broker_url) as (client, broker, other):
        entries = [await add(client), await add(client, "low")]
        await take(broker_url, broker)
        assert await broker.hand_everything_back() == 2
        again = (await other.claim_of(HANDED_BACK, count=5)).deliveries
        assert [(each.entry, each.deliveries) for each in again] == [(entry, 1) for entry in entries]


async def test_handing_back_into_a_group_that_is_gone_is_no_fault(broker_url: str) -> None:
    """A drain ends well without it: what is in the lanes will be delivered as new."""
    async with open_client(broker_url) as client, open_broker(broker_url) as broker:
        await add(client)
        delivery = await take_one(broker_url, broker)
        await client.xgroup_destroy("llm:requests", "llm-router")
        assert await broker.hand_back([delivery]) == 0
        assert await broker.hand_everything_back() == 0


async def test_delivery_whose_reply_was_lost_after_the_group_was_dropped_goes_back_to_its_worker(
    broker_url: str,
) -> None:
    """Found as one's own, and yet another is busy with it."""
    async with two_workers(broker_url) as (client, broker, other):
        await add(client)
        _delivery, _transcript = await begin_one(broker_url, broker)
        await client.xgroup_destroy("llm:requests", "llm-router")
        await other.create_groups()
        await take_one(broker_url, other)
        async with open_reader(broker_url, other) as reader:
            (again,) = await reader.read(5)
        late = other.transcript("r1", publish=False, fenced=no_fence)
        assert await other.begin(again, late, started("w2"), publish=False) == "returned"


async def test_key_of_another_kind_in_the_place_of_an_events_stream_harms_nobody(broker_url: str) -> None:
    """Leases of the others are renewed, and its request ends as a dead letter instead of coming back for ever."""
    async with open_client(broker_url) as client, open_broker(broker_url) as broker:
        await client.set("llm:events:r1", "mine", ex=60)
        entry = await add(client)
        delivery = await take_one(broker_url, broker)
        transcript = broker.transcript("r1", publish=False, fenced=no_fence)
        assert await broker.begin(delivery, transcript, started(), publish=False) == "unwritable"
        assert list((await broker.renew([(delivery, "llm:events:r1")])).lost) == []
        assert list(await broker.sealed(["llm:events:r1"])) == []
        letter: tuple[Any, ...] = ("entry", entry, "reason", "internal")
        await commit(broker, delivery, failure("r1"), transcript=None, request_ids=("r1",), dead_letter=letter)
        assert await client.xlen("llm:requests") == 0
        assert [fields["entry"] for _, fields in await client.xrange("llm:dead")] == [entry]
        assert await client.get("llm:events:r1") == "mine"
