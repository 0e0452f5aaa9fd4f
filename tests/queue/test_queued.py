"""That a request waits is written behind what stands, by whoever has it, while it waits, and at no other time."""

from __future__ import annotations

import asyncio
import gc
from typing import TYPE_CHECKING, Any

import pytest

from llm_routerd.protocol.codes import AttemptCode
from llm_routerd.protocol.events import FINAL_ID, AttemptRejected, Queued
from llm_routerd.protocol.outcome import Outcome
from llm_routerd.protocol.reading import read_event
from llm_routerd.queue.connection import Command, ResponseError
from llm_routerd.worker.sink import QueueSink
from tests.support.eventually import eventually
from tests.support.queue import (
    LIMITS,
    add,
    begin,
    commit,
    entry_of,
    events_of,
    no_fence,
    open_broker,
    open_client,
    result,
    started,
    take_one,
    two_workers,
)

if TYPE_CHECKING:
    from llm_routerd.queue.broker import Broker
    from llm_routerd.queue.deliveries import Delivery
    from llm_routerd.queue.outbox import Transcript

NEXT = Queued(position=0, reason="next on attic", estimated_wait_ms=4000, box="attic", deployment="a@attic", model="m")
LATER = Queued(position=2, reason="2 before you on attic", box="attic")
REJECTED = AttemptRejected(
    deployment="local",
    model="m",
    outcome=Outcome.REJECTED,
    code=AttemptCode.UPSTREAM,
    reason="scripted",
    latency_ms=1,
)


async def tell(
    broker: Broker,
    delivery: Delivery,
    event: Queued = NEXT,
    *,
    transcript: Transcript | None = None,
    publish: bool = False,
) -> str:
    """What became of one such event."""
    written = transcript or broker.transcript("r1", publish=publish, fenced=no_fence)
    reply = await broker.tell_queued(delivery, written, event, publish=publish, is_begun=transcript is not None)
    assert isinstance(reply, bytes)
    return reply.decode()


async def ids_of(client: Any, request_id: str = "r1") -> list[tuple[str, str]]:
    """ID and type of each event."""
    return [(event_id, kind) for event_id, kind, _ in await events_of(client, request_id)]


async def test_wait_before_the_first_attempt_stands_before_it(broker_url: str) -> None:
    """With a TTL from birth; the first attempt is number 1, and names its entry as ever."""
    async with open_client(broker_url) as client, open_broker(broker_url) as broker:
        entry = await add(client)
        delivery = await take_one(broker_url, broker)
        assert [await tell(broker, delivery, LATER), await tell(broker, delivery)] == ["told", "told"]
        assert 0 < await client.pttl("llm:events:r1") <= LIMITS.result_ttl_ms
        transcript = await begin(broker, delivery)
        assert transcript.attempt == 1
        events = await events_of(client, "r1")
        assert [each[:2] for each in events] == [("0-1", "queued"), ("0-2", "queued"), ("1-0", "attempt")]
        assert events[2][2]["entry"] == entry
        data = dict(events[1][2])
        assert abs(data.pop("at_ms") - await broker.server_ms()) < 10_000
        assert data == {
            "position": 0,
            "reason": "next on attic",
            "estimated_wait_ms": 4000,
            "box": "attic",
            "deployment": "a@attic",
            "model": "m",
        }
        assert "estimated_wait_ms" not in events[0][2]
        assert await commit(broker, delivery, result("r1"), transcript=transcript, request_ids=("r1",))
        assert (await ids_of(client))[-1] == (FINAL_ID, "result")


async def test_wait_between_two_attempts_stands_between_them(broker_url: str) -> None:
    """Behind the rejection, under the number of the attempt that was."""
    async with open_client(broker_url) as client, open_broker(broker_url) as broker:
        await add(client)
        delivery = await take_one(broker_url, broker)
        transcript = broker.transcript("r1", publish=False, fenced=no_fence)
        sink = QueueSink(broker, delivery, transcript, publish=False)
        assert await sink.begin(started()) == 1
        sink.emit(REJECTED)
        assert not sink.queued(NEXT), "what is pending would be written behind it, under the same ID"
        await eventually(lambda: sink.queued(NEXT))
        assert await sink.begin(started()) == 2
        assert await ids_of(client) == [("1-0", "attempt"), ("1-1", "rejected"), ("1-2", "queued"), ("2-0", "attempt")]


async def test_nothing_is_told_of_a_request_that_was_taken_over(broker_url: str) -> None:
    """Whoever has it now goes on, under the next ID."""
    async with two_workers(broker_url) as (client, broker, other):
        entry = await add(client)
        delivery = await take_one(broker_url, broker)
        assert await tell(broker, delivery, LATER) == "told"
        await client.xclaim("llm:requests", "llm-router", "w2", 0, [entry])
        assert await tell(broker, delivery) == "lost"
        assert await tell(other, delivery) == "told"
        assert await ids_of(client) == [("0-1", "queued"), ("0-2", "queued")]


async def test_wait_after_a_worker_died_in_its_attempt_is_told(broker_url: str) -> None:
    """Should it be asleep only, its late words are refused from there on, so that none is missing between others."""
    async with two_workers(broker_url) as (client, broker, other):
        entry = await add(client)
        transcript = await begin(broker, await take_one(broker_url, broker))
        transcript.text("token", "half an ans")
        await eventually(lambda: not transcript.has_pending and not transcript.under_way)
        await client.xclaim("llm:requests", "llm-router", "w2", 0, [entry], idle=1_000_000, justid=True)
        (again,) = (await other.claim(room=5)).deliveries
        assert await tell(other, again) == "told"
        assert await tell(other, again, LATER) == "told"
        transcript.text("token", "wer, which")
        await eventually(lambda: not transcript.has_pending and not transcript.under_way)
        transcript.text("token", " nobody wants with a hole in it")
        await eventually(lambda: not transcript.has_pending and not transcript.under_way)
        assert await begin(other, again)
        events = await events_of(client, "r1")
        assert [kind for _, kind, _ in events] == ["attempt", "token", "queued", "queued", "attempt"]
        assert (events[1][2], events[-1][0]) == ({"text": "half an ans"}, "2-0")


async def test_nothing_is_told_where_the_group_was_made_again_and_another_is_at_it(broker_url: str) -> None:
    """It may well be alive, and gets its entry back: no word of it is refused for this."""
    async with two_workers(broker_url) as (client, broker, other):
        await add(client)
        transcript = await begin(broker, await take_one(broker_url, broker))
        await client.xgroup_destroy("llm:requests", "llm-router")
        await other.create_groups()
        again = await take_one(broker_url, other)
        assert await tell(other, again) == "foreign"
        transcript.text("token", "mine")
        await eventually(lambda: not transcript.has_pending and not transcript.under_way)
        assert await ids_of(client) == [("1-0", "attempt"), ("1-1", "token")]


@pytest.mark.parametrize("by_hand", [True, False])
async def test_nothing_is_told_behind_the_end(broker_url: str, *, by_hand: bool) -> None:
    """Whoever has cancelled it, and also where another ended it."""
    async with open_client(broker_url) as client, open_broker(broker_url) as broker:
        await add(client)
        delivery = await take_one(broker_url, broker)
        assert await tell(broker, delivery, LATER) == "told"
        if by_hand:
            await client.xadd("llm:events:r1", {"type": "cancelled", "data": "{}"}, id=FINAL_ID)
            assert await tell(broker, delivery) == "sealed"
        else:
            await commit(broker, delivery, result("r1"), transcript=None, request_ids=("r1",))
            assert await tell(broker, delivery) == "lost"
        assert [each[0] for each in await ids_of(client)] == ["0-1", FINAL_ID]


async def test_nothing_is_told_within_an_attempt(broker_url: str) -> None:
    """As when a reply was lost and all is sent again: what has begun since stands before it."""
    async with open_client(broker_url) as client, open_broker(broker_url) as broker:
        await add(client)
        delivery = await take_one(broker_url, broker)
        assert await tell(broker, delivery) == "told"
        assert await tell(broker, delivery) == "told"
        transcript = await begin(broker, delivery)
        assert await tell(broker, delivery) == "begun"
        transcript.text("token", "a")
        await eventually(lambda: not transcript.has_pending and not transcript.under_way)
        assert await tell(broker, delivery, transcript=transcript) == "begun"
        assert await ids_of(client) == [("0-1", "queued"), ("1-0", "attempt"), ("1-1", "token")]


async def test_nothing_is_told_in_the_stream_of_another_entry(broker_url: str) -> None:
    """Two entries of one id: that which waits does not speak for the one that runs."""
    async with two_workers(broker_url) as (client, broker, other):
        await add(client, id="r1", prompt="a")
        first = await take_one(broker_url, broker)
        await add(client, id="r1", prompt="a")
        second = await take_one(broker_url, other)
        await begin(broker, first)
        assert await tell(other, second) == "foreign"
        assert await ids_of(client) == [("1-0", "attempt")]


@pytest.mark.parametrize("last", ["0-999999999999999999", "5-18446744073709551615", "7-1"])
async def test_whatever_others_write_there_costs_no_more_than_the_event(broker_url: str, last: str) -> None:
    """It is refused, or stands; and the request begins all the same."""
    async with open_client(broker_url) as client, open_broker(broker_url) as broker:
        await add(client)
        delivery = await take_one(broker_url, broker)
        await client.xadd("llm:events:r1", {"type": "x", "data": "{}"}, id=last)
        assert await tell(broker, delivery) in {"foreign", "unwritable"}
        assert len(await ids_of(client)) == 1
        transcript = await begin(broker, delivery)
        assert transcript.attempt == int(last.partition("-")[0]) + 1


async def test_key_that_is_no_stream_is_left_alone(broker_url: str) -> None:
    """It is somebody's."""
    async with open_client(broker_url) as client, open_broker(broker_url) as broker:
        await client.set("llm:events:r1", "mine", ex=60)
        await add(client)
        assert await tell(broker, await take_one(broker_url, broker)) == "unwritable"
        assert await client.get("llm:events:r1") == "mine"


async def test_stream_that_has_expired_is_not_made_again(broker_url: str) -> None:
    """By whoever had begun it: an attempt in it that names no entry would be nobody's."""
    async with open_client(broker_url) as client, open_broker(broker_url) as broker:
        await add(client)
        delivery = await take_one(broker_url, broker)
        transcript = await begin(broker, delivery)
        await client.delete("llm:events:r1")
        assert await tell(broker, delivery, transcript=transcript) == "gone"
        assert await client.exists("llm:events:r1") == 0


async def test_server_without_memory_refuses_the_event_and_nothing_else(valkey_url: str) -> None:
    """The pipe does not take it for a command that has to be written."""
    async with open_client(valkey_url) as client, open_broker(valkey_url) as broker:
        await add(client)
        delivery = await take_one(valkey_url, broker)
        try:
            await client.config_set("maxmemory", "1")
            async with asyncio.timeout(5):
                assert await tell(broker, delivery) == "unwritable"
            assert broker.pipe.state.value == "ready"
        finally:
            await client.config_set("maxmemory", "0")
        assert await tell(broker, delivery) == "told"


class Refusing:
    """A broker whose server refuses."""

    def __init__(self) -> None:
        self.replies: list[asyncio.Future[Any]] = []

    def tell_queued(self, *_: object, **__: object) -> asyncio.Future[Any]:
        """Not yet."""
        self.replies.append(asyncio.get_running_loop().create_future())
        return self.replies[-1]


async def test_refusal_costs_an_event_and_the_next_is_tried(valkey_url: str) -> None:
    """Nobody waits for it, and nobody is told of an error that nobody heard."""
    broken: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: broken.append(context))
    async with open_broker(valkey_url) as broker:
        refusing = Refusing()
        transcript = broker.transcript("r1", publish=False, fenced=no_fence)
        sink = QueueSink(refusing, entry_of("1-0"), transcript, publish=False)  # type: ignore[arg-type]  # tells only
        assert sink.queued(NEXT)
        assert not sink.queued(LATER), "one at a time"
        refusing.replies.pop().set_exception(ResponseError("NOPERM"))
        await asyncio.sleep(0)
        assert sink.queued(LATER)
        refusing.replies.pop().cancel()
        await asyncio.sleep(0)
        assert sink.queued(NEXT)
        del sink
        gc.collect()
    assert not broken


async def test_lane_or_group_that_is_gone_is_nobodys_fault(broker_url: str) -> None:
    """The entry is not this worker's then."""
    async with open_client(broker_url) as client, open_broker(broker_url) as broker:
        await add(client)
        delivery = await take_one(broker_url, broker)
        await client.xgroup_destroy("llm:requests", "llm-router")
        assert await tell(broker, delivery) == "lost"
        await client.set("llm:requests", "a string")
        assert await tell(broker, delivery) == "lost"
        assert await client.exists("llm:events:r1") == 0


async def test_event_is_published_as_it_stands(broker_url: str) -> None:
    """With the time that the server has added."""
    async with open_client(broker_url) as client, open_broker(broker_url) as broker, client.pubsub() as pubsub:
        await add(client)
        delivery = await take_one(broker_url, broker)
        await pubsub.subscribe("llm:events:r1")
        async with asyncio.timeout(10):
            while not await pubsub.get_message(timeout=5):  # that it has subscribed
                pass
        assert await tell(broker, delivery, publish=True) == "told"
        async with asyncio.timeout(10):
            while (message := await pubsub.get_message(ignore_subscribe_messages=True, timeout=5)) is None:
                pass
        ((event_id, fields),) = await client.xrange("llm:events:r1")
        assert message["data"] == f'{{"id":"{event_id}","type":"queued","data":{fields["data"]}}}'
        event = read_event(event_id, "queued", fields["data"])
        assert isinstance(event, Queued)
        assert (event.attempt, event.position, event.summary) == (0, 0, "next on attic, about 4 s")


async def test_what_is_sent_while_redis_is_away_goes_before_what_begins(broker_url: str) -> None:
    """Commands keep their order, and one that comes late changes nothing."""
    async with open_client(broker_url) as client, open_broker(broker_url) as broker:
        await add(client)
        delivery = await take_one(broker_url, broker)
        transcript = broker.transcript("r1", publish=False, fenced=no_fence)
        sink = QueueSink(broker, delivery, transcript, publish=False)
        assert sink.queued(NEXT)
        assert await sink.begin(started()) == 1
        late: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        call = broker.tell_queued(delivery, transcript, LATER, publish=False, is_begun=False)
        broker.outbox.send(Command(("PING",), late.set_result))
        assert [await call, await late] == [b"begun", b"PONG"]
        assert await ids_of(client) == [("0-1", "queued"), ("1-0", "attempt")]
