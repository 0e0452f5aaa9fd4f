"""The scripts and what is built on them, on fakeredis and a real Valkey alike."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from llm_routerd.protocol.codes import ErrorCode
from llm_routerd.protocol.events import FINAL_ID
from llm_routerd.protocol.keys import LANES
from llm_routerd.queue.deliveries import Delivery
from llm_routerd.queue.marks import counts_cancellation
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
    from llm_routerd.queue.outbox import Transcript


def held(delivery: Delivery, request_id: str | None = None) -> tuple[Delivery, str]:
    """A delivery as lease renewal takes it."""
    return delivery, f"llm:events:{request_id or delivery.entry}"


async def test_begin_writes_first_attempt_with_entry_lane_and_ttl(broker_url: str) -> None:
    """The first attempt is `1-0`, names its entry, and the stream has a TTL from birth."""
    async with open_client(broker_url) as client, open_broker(broker_url) as broker:
        entry = await add(client)
        _delivery, _transcript = await begin_one(broker_url, broker)
        ((event_id, kind, data),) = await events_of(client, "r1")
        assert (event_id, kind) == ("1-0", "attempt")
        assert data == {
            "deployment": "local", "model": "ollama/tiny", "delivery": 1, "consumer": "w1",
            "entry": entry, "lane": "normal",
        }  # fmt: skip
        assert 0 < await client.pttl("llm:events:r1") <= 60_000


async def test_begin_repeated_after_a_lost_reply_changes_nothing(broker_url: str) -> None:
    """The same begin twice is one attempt."""
    async with open_client(broker_url) as client, open_broker(broker_url) as broker:
        await add(client)
        delivery = await take_one(broker_url, broker)
        transcript = broker.transcript("r1", publish=False, fenced=no_fence)
        for _ in range(2):
            assert await broker.begin(delivery, transcript, started(), publish=False) == "begun"
        assert transcript.attempt == 1
        assert len(await events_of(client, "r1")) == 1


async def test_begin_after_a_cancellation_acknowledges_and_gives_the_key_its_ttl(broker_url: str) -> None:
    """A queued request that was cancelled is done with, and the producer's stray key will go."""
    async with open_client(broker_url) as client, open_broker(broker_url) as broker:
        await client.xadd("llm:events:r1", {"type": "cancelled", "data": "{}"}, id=FINAL_ID)
        await add(client)
        delivery = await take_one(broker_url, broker)
        transcript = broker.transcript("r1", publish=False, fenced=no_fence)
        assert await broker.begin(delivery, transcript, started(), publish=False) == "sealed"
        assert await client.xlen("llm:requests") == 0
        assert (await client.xpending("llm:requests", "llm-router"))["pending"] == 0
        assert await client.pttl("llm:events:r1") > 0


async def test_second_entry_with_the_same_id_is_dropped_while_the_first_lives(broker_url: str) -> None:
    """An idempotency key that is being answered is not answered twice."""
    async with open_client(broker_url) as client, open_broker(broker_url) as broker:
        await add(client, id="r1")
        await client.xadd("llm:requests", {"data": '{"id":"r1","prompt":"x"}'})
        first, second = await take(broker_url, broker)
        await begin(broker, first)
        again = broker.transcript("r1", publish=False, fenced=no_fence)
        assert await broker.begin(second, again, started(), publish=False) == "duplicate"
        assert [entry for entry, _ in await client.xrange("llm:requests")] == [first.entry]


async def test_second_entry_takes_over_when_the_first_was_trimmed_away(broker_url: str) -> None:
    """A duplicate of a request that is gone unanswered is answered itself."""
    async with open_client(broker_url) as client, open_broker(broker_url) as broker:
        await add(client)
        await add(client)
        first, second = await take(broker_url, broker)
        transcript = broker.transcript("r1", publish=False, fenced=no_fence)
        await broker.begin(first, transcript, started(), publish=False)
        await client.xdel("llm:requests", first.entry)
        again = broker.transcript("r1", publish=False, fenced=no_fence)
        assert await broker.begin(second, again, started(), publish=False) == "begun"
        assert again.attempt == 2


async def test_entries_of_two_lanes_with_one_id_do_not_mix(broker_url: str) -> None:
    """Two XADDs in one millisecond on two lanes: the second is told apart, and the first is untouched."""
    async with open_client(broker_url) as client, open_broker(broker_url) as broker:
        await client.xadd("llm:requests", {"prompt": "a"}, id="5-0")
        await client.xadd("llm:requests:low", {"prompt": "b"}, id="5-0")
        one, other = await take(broker_url, broker)
        await begin(broker, one, "5-0")
        again = broker.transcript("5-0", publish=False, fenced=no_fence)
        assert await broker.begin(other, again, started(), publish=False) == "collision"
        assert len(await events_of(client, "5-0")) == 1


async def test_begin_of_an_entry_that_another_owns_is_refused(broker_url: str) -> None:
    """A worker that has lost its lease does not begin."""
    async with two_workers(broker_url) as (client, broker, other):
        await add(client)
        delivery = await take_one(broker_url, broker)
        transcript = other.transcript("r1", publish=False, fenced=no_fence)
        assert await other.begin(delivery, transcript, started("w2"), publish=False) == "lost"


async def test_commit_writes_final_event_once_with_ttl_metrics_and_acknowledgement(broker_url: str) -> None:
    """The final event has the one ID, the entry is gone, the metrics event is in its stream."""
    async with open_client(broker_url) as client, open_broker(broker_url) as broker:
        await add(client)
        delivery, transcript = await begin_one(broker_url, broker)
        for _ in range(2):  # the second time as after a lost reply
            committed = await commit(
                broker, delivery, result("r1"), transcript=transcript, request_ids=("r1",), metrics=b'{"id":"r1"}'
            )
            assert committed.verdict == "committed"
        (event,) = await client.xrange("llm:events:r1", FINAL_ID, FINAL_ID)
        assert event[1]["type"] == "result"
        assert await client.pttl("llm:events:r1") > 0
        assert await client.xlen("llm:requests") == 0
        assert (await client.xpending("llm:requests", "llm-router"))["pending"] == 0
        assert [fields for _, fields in await client.xrange("llm_router_metrics")] == [{"data": '{"id":"r1"}'}]


async def test_commit_loses_to_a_cancellation_and_says_so(broker_url: str) -> None:
    """Result and cancellation race in Redis, and exactly one wins."""
    async with open_client(broker_url) as client, open_broker(broker_url) as broker:
        await add(client)
        delivery, transcript = await begin_one(broker_url, broker)
        await client.xadd("llm:events:r1", {"type": "cancelled", "data": "{}"}, id=FINAL_ID)
        committed = await commit(broker, delivery, result("r1"), transcript=transcript, request_ids=("r1",))
        assert (committed.verdict, committed.sealed_by) == ("sealed", "cancelled")
        assert await client.xlen("llm:requests") == 0


async def test_zombie_that_answers_first_is_accepted(broker_url: str) -> None:
    """An answer is valid whoever brings it; the new owner's is then refused."""
    async with (
        open_client(broker_url) as client,
        open_broker(broker_url) as zombie,
        open_broker(broker_url, "w2") as other,
    ):
        await add(client)
        delivery, transcript = await begin_one(broker_url, zombie)
        await asyncio.sleep(0.55)
        (claimed,) = (await other.claim(room=5)).deliveries
        taken_over = other.transcript("r1", publish=False, fenced=no_fence)
        assert await other.begin(claimed, taken_over, started("w2", 2), publish=False) == "begun"
        assert taken_over.attempt == 2
        first = await commit(zombie, delivery, result("r1", "zombie"), transcript=transcript, request_ids=("r1",))
        second = await commit(other, claimed, result("r1", "new"), transcript=taken_over, request_ids=("r1",))
        assert (first.verdict, second.verdict, second.sealed_by) == ("committed", "sealed", "result")


async def test_refusal_is_written_under_the_id_and_the_entry_id_with_one_dead_letter(broker_url: str) -> None:
    """A malformed request is answered wherever its producer may look, and kept."""
    async with open_client(broker_url) as client, open_broker(broker_url) as broker:
        entry = await add(client)
        delivery = await take_one(broker_url, broker)
        for _ in range(2):  # the second time as after a lost reply
            await commit(
                broker,
                delivery,
                failure("r1"),
                transcript=None,
                request_ids=("r1", entry),
                dead_letter=("entry", entry, "reason", "invalid_request"),
            )
        for request_id in ("r1", entry):
            ((event_id, kind, data),) = await events_of(client, request_id)
            assert (event_id, kind, data["code"]) == (FINAL_ID, "error", "invalid_request")
            assert await client.pttl(f"llm:events:{request_id}") > 0
        assert await client.xlen("llm:dead") == 1


async def test_equal_end_of_another_worker_is_not_ones_own(broker_url: str) -> None:
    """A refusal has the same bytes from whoever makes it; repeated after a lost reply it is the first one's all the same."""
    async with (
        open_client(broker_url) as client,
        open_broker(broker_url) as first,
        open_broker(broker_url, "w2") as second,
    ):
        await add(client, id="r1")
        delivery = await take_one(broker_url, first)
        verdicts = [
            (
                await commit(
                    broker,
                    delivery,
                    failure("r1"),
                    transcript=None,
                    request_ids=("r1",),
                    metrics=b"{}",
                    dead_letter=("a", "b"),
                )
            ).verdict
            for broker in (first, second, first, second)
        ]
        assert verdicts == ["committed", "sealed", "committed", "sealed"]
        assert (await client.xlen("llm_router_metrics"), await client.xlen("llm:dead")) == (1, 1)
        assert [kind for _, kind, _ in await events_of(client, "r1")] == ["error"]


async def test_refusal_does_not_end_another_request_of_the_same_id(broker_url: str) -> None:
    """A malformed duplicate is answered under its entry ID only."""
    async with open_client(broker_url) as client, open_broker(broker_url) as broker:
        await add(client, id="r1")
        second_entry = await add(client, id="r1")
        first, second = await take(broker_url, broker)
        transcript = broker.transcript("r1", publish=False, fenced=no_fence)
        await broker.begin(first, transcript, started(), publish=False)
        await commit(broker, second, failure("r1"), transcript=None, request_ids=("r1", second_entry))
        assert [kind for _, kind, _ in await events_of(client, "r1")] == ["attempt"]
        assert [kind for _, kind, _ in await events_of(client, second_entry)] == ["error"]


async def test_end_without_attempt_leaves_a_duplicates_first_alone(broker_url: str) -> None:
    """A request that got no deployment is dropped where another entry of its id is being answered."""
    async with open_client(broker_url) as client, open_broker(broker_url) as broker:
        await add(client, id="r1")
        await add(client, id="r1")
        first, second = await take(broker_url, broker)
        transcript = broker.transcript("r1", publish=False, fenced=no_fence)
        await broker.begin(first, transcript, started(), publish=False)
        failed = failure("r1", ErrorCode.CHAIN_EXHAUSTED)
        committed = await commit(broker, second, failed, transcript=None, request_ids=("r1",))
        assert committed.verdict == "duplicate"
        assert [kind for _, kind, _ in await events_of(client, "r1")] == ["attempt"]


async def test_cancellation_is_counted_by_the_first_to_ask(broker_url: str) -> None:
    """Of two workers and two entries; a reply that was lost is asked for again."""
    async with (
        open_client(broker_url) as client,
        open_broker(broker_url) as first,
        open_broker(broker_url, "w2") as second,
    ):
        await client.xadd("llm:events:r1", {"type": "cancelled", "data": "{}"}, id=FINAL_ID)
        one, other = (Delivery(lane="normal", entry=entry, fields=()) for entry in ("1-0", "2-0"))
        asked = [(first, one), (first, one), (first, other), (second, one)]
        counts = [await counts_cancellation(broker, delivery, "r1") for broker, delivery in asked]
        assert counts == [True, True, False, False]
        assert await counts_cancellation(first, one, "has-expired")
        assert await client.exists("llm:events:has-expired") == 0


async def test_cancellation_is_counted_by_the_entry_that_was_begun(broker_url: str) -> None:
    """It knows what its calls have cost; a copy that asks before it does not."""
    async with open_client(broker_url) as client, open_broker(broker_url) as broker:
        await add(client, id="r1")
        await add(client, id="r1")
        own, copy = await take(broker_url, broker)
        transcript = broker.transcript("r1", publish=False, fenced=no_fence)
        await broker.begin(own, transcript, started(), publish=False)
        await client.xadd("llm:events:r1", {"type": "cancelled", "data": "{}"}, id=FINAL_ID)
        assert [await counts_cancellation(broker, each, "r1") for each in (copy, own)] == [False, True]


async def write_tokens(transcript: Transcript, *texts: str) -> None:
    """Text, each part after the last one has been written."""
    for text in texts:
        transcript.text("token", text)
        await asyncio.sleep(0)


async def test_text_that_waits_together_becomes_one_event(broker_url: str) -> None:
    """Tokens are coalesced, in order, never lost; reasoning is kept apart."""
    async with open_client(broker_url) as client, open_broker(broker_url) as broker:
        await add(client)
        delivery, transcript = await begin_one(broker_url, broker)
        transcript.text("reasoning", "hm")
        for text in ("a", "b", "c"):
            transcript.text("token", text)
        await commit(broker, delivery, result("r1"), transcript=transcript, request_ids=("r1",))
        events = await events_of(client, "r1")
        assert [(event_id, kind, data.get("text")) for event_id, kind, data in events[1:3]] == [
            ("1-1", "reasoning", "hm"),
            ("1-2", "token", "abc"),
        ]
        assert events[3][0] == FINAL_ID


async def test_chunk_after_the_end_is_refused_and_the_writer_told(broker_url: str) -> None:
    """Whoever writes into a sealed stream learns it from the refusal."""
    fences: list[str] = []
    async with open_client(broker_url) as client, open_broker(broker_url) as broker:
        await add(client)
        delivery = await take_one(broker_url, broker)
        transcript = broker.transcript("r1", publish=False, fenced=fences.append)
        await broker.begin(delivery, transcript, started(), publish=False)
        await client.xadd("llm:events:r1", {"type": "cancelled", "data": "{}"}, id=FINAL_ID)
        transcript.text("token", "late")
        await eventually(lambda: fences == ["sealed"])
        assert [kind for _, kind, _ in await events_of(client, "r1")] == ["attempt", "cancelled"]


async def test_chunk_of_an_overtaken_attempt_is_refused_and_the_writer_told(broker_url: str) -> None:
    """A late chunk of an older attempt never lands behind a newer attempt."""
    fences: list[str] = []
    async with open_client(broker_url) as client, open_broker(broker_url) as broker:
        await add(client)
        delivery = await take_one(broker_url, broker)
        transcript = broker.transcript("r1", publish=False, fenced=fences.append)
        await broker.begin(delivery, transcript, started(), publish=False)
        await client.xadd("llm:events:r1", {"type": "attempt", "data": "{}"}, id="2-0")
        transcript.text("token", "late")
        await eventually(lambda: fences == ["overtaken"])


async def test_chunk_of_a_vanished_stream_does_not_make_a_key_without_ttl(broker_url: str) -> None:
    """A stream that was flushed comes back with the final event only, and that has its TTL."""
    async with open_client(broker_url) as client, open_broker(broker_url) as broker:
        await add(client)
        delivery, transcript = await begin_one(broker_url, broker)
        await client.delete("llm:events:r1")
        transcript.text("token", "x")
        await broker.pipe.call("PING")
        assert not await client.exists("llm:events:r1")
        await commit(broker, delivery, result("r1"), transcript=transcript, request_ids=("r1",))
        assert [event_id for event_id, _, _ in await events_of(client, "r1")] == [FINAL_ID]
        assert await client.pttl("llm:events:r1") > 0


async def test_idle_entry_is_claimed_by_second_worker_with_its_count(broker_url: str) -> None:
    """A lease that ran out is taken over, and counts as a crash."""
    async with two_workers(broker_url) as (client, broker, other):
        entry = await add(client, "low")
        await take_one(broker_url, broker)
        assert (await other.claim(room=5)).deliveries == []
        await asyncio.sleep(0.55)
        (claimed,) = (await other.claim(room=5)).deliveries
        assert (claimed.entry, claimed.lane, claimed.deliveries, claimed.claimed) == (entry, "low", 2, True)
        assert claimed.fields == [b"prompt", b"hello"]


async def test_renewed_lease_is_not_claimed(broker_url: str) -> None:
    """Never while its worker lives."""
    async with two_workers(broker_url) as (client, broker, other):
        await add(client)
        delivery = await take_one(broker_url, broker)
        for _ in range(3):
            await asyncio.sleep(0.25)
            renewal = await broker.renew([held(delivery)])
            assert not renewal.lost
            assert (await other.claim(room=5)).deliveries == []


async def test_renewal_tells_a_lost_lease_and_takes_the_crash_back(broker_url: str) -> None:
    """The old owner plainly lives, so its silence was no crash; and it does not steal the entry back."""
    async with two_workers(broker_url) as (client, broker, other):
        await add(client)
        delivery = await take_one(broker_url, broker)
        await asyncio.sleep(0.55)
        await other.claim(room=5)
        renewal = await broker.renew([held(delivery)])
        assert list(renewal.lost) == [0]
        (pending,) = await client.xpending_range("llm:requests", "llm-router", "-", "+", 10)
        assert (pending["consumer"], pending["times_delivered"]) == ("w2", 1)


async def test_renewal_tells_sealed_requests_and_the_servers_time(broker_url: str) -> None:
    """A cancellation is found also for a request that writes nothing."""
    async with open_client(broker_url) as client, open_broker(broker_url) as broker:
        await add(client)
        delivery = await take_one(broker_url, broker)
        await client.xadd("llm:events:r1", {"type": "cancelled", "data": "{}"}, id=FINAL_ID)
        renewal = await broker.renew([held(delivery, "r1")])
        assert (list(renewal.lost), list(renewal.sealed)) == ([], [0])
        assert abs(renewal.server_ms - await broker.server_ms()) < 5000
        assert list(await broker.sealed(["llm:events:other", "llm:events:r1"])) == [1]


async def test_dropped_group_comes_back_and_the_living_worker_keeps_its_entry(broker_url: str) -> None:
    """A request that runs on a living worker is not run by another when the group is made again."""
    async with two_workers(broker_url) as (client, broker, other):
        await add(client)
        delivery, _transcript = await begin_one(broker_url, broker)
        await client.xgroup_destroy("llm:requests", "llm-router")
        await other.create_groups()
        again = await take_one(broker_url, other)  # created at 0: it is delivered as if new
        assert again.entry == delivery.entry
        late = other.transcript("r1", publish=False, fenced=no_fence)
        assert await other.begin(again, late, started("w2"), publish=False) == "returned"
        assert not (await broker.renew([held(delivery, "r1")])).lost
        (pending,) = await client.xpending_range("llm:requests", "llm-router", "-", "+", 10)
        assert pending["consumer"] == "w1"


async def test_renewal_takes_its_entries_back_into_a_new_group(broker_url: str) -> None:
    """Whoever renews first after the group was dropped owns its entries again."""
    async with open_client(broker_url) as client, open_broker(broker_url) as broker:
        await add(client)
        delivery = await take_one(broker_url, broker)
        await client.xgroup_destroy("llm:requests", "llm-router")
        await broker.create_groups()
        assert not (await broker.renew([held(delivery)])).lost
        (pending,) = await client.xpending_range("llm:requests", "llm-router", "-", "+", 10)
        assert pending["consumer"] == "w1"


async def test_handed_back_entry_is_taken_at_once_and_does_not_count(broker_url: str) -> None:
    """A drain is no crash, and nobody waits for a lease."""
    async with two_workers(broker_url) as (client, broker, other):
        await add(client)
        delivery = await take_one(broker_url, broker)
        assert await broker.hand_back([delivery]) == 1
        (claimed,) = (await other.claim(room=5)).deliveries
        assert claimed.deliveries == 1
        await broker.retire(oneself=True)
        names = {consumer["name"] for consumer in await client.xinfo_consumers("llm:requests", "llm-router")}
        assert "w1" not in names


async def test_lost_reply_is_found_in_ones_own_pending_entries(broker_url: str) -> None:
    """A new connection first looks at what was delivered and never seen; that counts as no crash."""
    async with open_client(broker_url) as client, open_broker(broker_url) as broker:
        entry = await add(client)
        await take_one(broker_url, broker)
        async with open_reader(broker_url, broker) as reader:
            (again,) = await reader.read(5)
        assert (again.entry, again.deliveries) == (entry, 1)


async def test_urgent_lanes_are_read_first_and_never_more_than_asked(broker_url: str) -> None:
    """With little room, what is urgent gets it."""
    async with open_client(broker_url) as client, open_broker(broker_url) as broker:
        for lane in reversed(LANES):
            for _ in range(2):
                await add(client, lane)
        async with open_reader(broker_url, broker) as reader:
            await reader.read(2)
            lanes = [[each.lane for each in await reader.read(2)] for _ in range(3)]
        assert lanes == [["high", "high"], ["normal", "normal"], ["low", "low"]]


async def test_reader_is_stopped_between_two_reads(broker_url: str) -> None:
    """As where all places of its worker are taken: there is nothing to end, and no read waits any more."""
    async with (
        open_client(broker_url) as client,
        open_broker(broker_url) as broker,
        open_reader(broker_url, broker) as reader,
    ):
        await add(client)
        await reader.read(1)
        assert len(await reader.read(1)) == 1
        await reader.stop()
        async with asyncio.timeout(1):
            assert await reader.read(1) == []


@pytest.mark.parametrize("kind", ["attempt", "token"])
async def test_published_events_carry_id_type_and_data(broker_url: str, kind: str) -> None:
    """With `publish`, the channel named as the stream has every event."""
    async with (
        open_client(broker_url) as client,
        open_broker(broker_url) as broker,
        client.pubsub() as pubsub,
    ):
        await pubsub.subscribe("llm:events:r1")
        await add(client)
        delivery = await take_one(broker_url, broker)
        transcript = broker.transcript("r1", publish=True, fenced=no_fence)
        await broker.begin(delivery, transcript, started(), publish=True)
        transcript.text("token", "hé")
        await commit(broker, delivery, result("r1"), transcript=transcript, request_ids=("r1",), publish=True)
        messages: list[dict[str, Any]] = []
        while len(messages) < 3:
            message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=5)
            if message is not None:
                messages.append(json.loads(message["data"]))
        assert [(each["id"], each["type"]) for each in messages] == [
            ("1-0", "attempt"),
            ("1-1", "token"),
            (FINAL_ID, "result"),
        ]
        stored = {event_id: data for event_id, _, data in await events_of(client, "r1")}
        published = next(each for each in messages if each["type"] == kind)
        assert published["data"] == stored[published["id"]]
