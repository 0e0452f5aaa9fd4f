"""Entries that are trimmed away while a worker has them: they are not forgotten, and the living keep theirs."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from llm_routerd.protocol.keys import HANDED_BACK
from llm_routerd.queue import search
from llm_routerd.queue.deliveries import Delivery
from llm_routerd.queue.search import find_requests
from tests.support.queue import (
    LIMITS,
    add,
    begin,
    commit,
    entry_of,
    events_of,
    failure,
    no_fence,
    open_broker,
    open_client,
    result,
    started,
    take,
    take_one,
    two_workers,
)

if TYPE_CHECKING:
    import pytest


async def pending(client: Any) -> list[str]:
    """The entries of the normal lane that somebody has."""
    found = await client.xpending_range("llm:requests", "llm-router", "-", "+", 100)
    return [each["message_id"] for each in found]


async def outlive_the_lease() -> None:
    """A worker that does nothing meanwhile is dead."""
    await asyncio.sleep(LIMITS.lease_ms / 1000 + 0.05)


async def test_trimmed_entry_of_a_dead_worker_is_reported_and_stays_pending_until_its_request_has_ended(
    broker_url: str,
) -> None:
    """Whoever sees it may die before it has written the final event: the next one sees it too."""
    async with two_workers(broker_url) as (client, broker, other):
        entry = await add(client)
        await take_one(broker_url, broker)
        await client.xtrim("llm:requests", maxlen=0, approximate=False)
        await outlive_the_lease()
        for _ in range(2):
            claim = await other.claim(room=5)
            assert (list(claim.deliveries), [each.entry for each in claim.gone]) == ([], [entry])
            assert await pending(client) == [entry]
        await commit(other, claim.gone[0], failure(entry), transcript=None, request_ids=(entry,))
        assert await pending(client) == []
        assert [kind for _, kind, _ in await events_of(client, entry)] == ["error"]


async def test_trimmed_entry_is_ended_once_whoever_tries_and_however_often(broker_url: str) -> None:
    """Two workers see it at the same time, and a reply is lost."""
    async with two_workers(broker_url) as (client, broker, other):
        await add(client)
        delivery = await take_one(broker_url, broker)
        await begin(broker, delivery, "r1")
        await client.xtrim("llm:requests", maxlen=0, approximate=False)
        gone = Delivery(lane="normal", entry=delivery.entry, fields=())
        for each in (broker, other, other):
            await commit(each, gone, failure("r1"), transcript=None, request_ids=("r1",), dead_letter=("id", "r1"))
        assert [kind for _, kind, _ in await events_of(client, "r1")] == ["attempt", "error"]
        assert await client.xlen("llm:dead") == 1


async def test_renewal_leaves_a_trimmed_entry_pending(broker_url: str) -> None:
    """XCLAIM would drop it, and if its worker died then, nobody would know that it was ever there."""
    async with open_client(broker_url) as client, open_broker(broker_url) as broker:
        entry = await add(client)
        delivery = await take_one(broker_url, broker)
        await client.xtrim("llm:requests", maxlen=0, approximate=False)
        renewal = await broker.renew([(entry_of(entry), "llm:events:r1")])
        assert list(renewal.lost) == []
        assert await pending(client) == [entry]
        transcript = await begin(broker, delivery, "r1")
        assert await pending(client) == [entry]
        committed = await commit(broker, delivery, result("r1"), transcript=transcript, request_ids=("r1",))
        assert committed.verdict == "committed"
        assert await pending(client) == []


async def test_renewal_of_a_trimmed_entry_that_another_has_tells_that_it_is_lost(broker_url: str) -> None:
    """And leaves it pending there."""
    async with open_client(broker_url) as client, open_broker(broker_url) as broker:
        entry = await add(client)
        await take_one(broker_url, broker)
        await client.xclaim("llm:requests", "llm-router", "w2", 0, [entry])
        await client.xtrim("llm:requests", maxlen=0, approximate=False)
        renewal = await broker.renew([(entry_of(entry), "llm:events:r1")])
        assert list(renewal.lost) == [0]
        assert await pending(client) == [entry]


async def test_trimmed_entry_that_is_delivered_once_more_is_answered_there(broker_url: str) -> None:
    """The group was made again: its first worker, which may be dead, cannot have back what does not exist."""
    async with two_workers(broker_url) as (client, broker, other):
        entry = await add(client)
        await begin(broker, await take_one(broker_url, broker), "r1")
        await client.xgroup_destroy("llm:requests", "llm-router")
        await other.create_groups()
        again = await take_one(broker_url, other)
        await client.xtrim("llm:requests", maxlen=0, approximate=False)
        assert (await begin(other, again, "r1")).attempt == 2
        assert await pending(client) == [entry]


async def test_trimmed_entry_of_a_worker_that_renews_is_nobody_elses(valkey_url: str) -> None:
    """Its lease cannot be renewed, but its worker is seen; fakeredis tells another time than the server does."""
    async with two_workers(valkey_url) as (client, broker, other):
        entry = await add(client)
        await take_one(valkey_url, broker)
        await client.xtrim("llm:requests", maxlen=0, approximate=False)
        await outlive_the_lease()
        await broker.renew([(entry_of(entry), "llm:events:r1")])
        claim = await other.claim(room=5)
        assert (list(claim.deliveries), list(claim.gone)) == ([], [])
        await outlive_the_lease()
        assert [each.entry for each in (await other.claim(room=5)).gone] == [entry]


async def test_trimmed_entry_that_is_handed_back_stays_pending(broker_url: str) -> None:
    """A drain does not lose it: it is found when its worker is gone."""
    async with two_workers(broker_url) as (client, broker, other):
        entry = await add(client)
        await take_one(broker_url, broker)
        await client.xtrim("llm:requests", maxlen=0, approximate=False)
        assert await broker.hand_back([entry_of(entry)]) == 0
        assert await broker.hand_everything_back() == 0
        await broker.retire(oneself=True)
        await outlive_the_lease()
        assert [each.entry for each in (await other.claim(room=5)).gone] == [entry]


async def test_entry_that_is_trimmed_after_it_was_handed_back_is_reported_at_once(broker_url: str) -> None:
    """Nobody has it, so there is nobody to wait for."""
    async with open_client(broker_url) as client, open_broker(broker_url) as broker:
        entry = await add(client)
        await take_one(broker_url, broker)
        await broker.hand_everything_back()
        await client.xtrim("llm:requests", maxlen=0, approximate=False)
        claim = await broker.claim_of(HANDED_BACK, count=5)
        assert (list(claim.deliveries), [each.entry for each in claim.gone]) == ([], [entry])


async def test_ones_own_trimmed_entry_is_not_given_up_before_its_lease_is_over(broker_url: str) -> None:
    """The reply that holds it may still be on its way to the reader."""
    async with open_client(broker_url) as client, open_broker(broker_url) as broker:
        entry = await add(client)
        await take_one(broker_url, broker)
        await client.xtrim("llm:requests", maxlen=0, approximate=False)
        assert list((await broker.claim_of("w1", count=5)).gone) == []
        await outlive_the_lease()
        assert [each.entry for each in (await broker.claim(room=5)).gone] == [entry]


async def test_events_streams_are_found_by_the_entry_that_they_name(
    broker_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Among many others, keys of other kinds and other lanes, page by page."""
    monkeypatch.setattr(search, "PAGE_KEYS", 10)
    async with open_client(broker_url) as client, open_broker(broker_url) as broker:
        for number in range(100):
            await client.xadd(f"llm:events:other-{number}", {"type": "attempt", "data": "{}"}, id="1-0")
        await client.set("llm:events:text", "mine")
        await client.xadd("llm:events:odd", {"type": "attempt", "data": "[no JSON"}, id="1-0")
        await client.xadd("llm:requests", {"prompt": "a"}, id="5-0")
        await client.xadd("llm:requests:low", {"prompt": "b"}, id="5-0")
        await client.xadd("llm:requests", {"prompt": "c"}, id="6-0")
        await client.xadd("llm:requests", {"prompt": "d"}, id="7-0")
        deliveries = await take(broker_url, broker)
        for delivery, request_id in zip(deliveries, ("r1", "6-0", "nobody", "r2"), strict=True):
            if request_id != "nobody":
                await begin(broker, delivery, request_id)
        found = await find_requests(broker, deliveries)
        assert (found.ids, found.why_not) == (
            {("normal", "5-0"): "r1", ("normal", "6-0"): "6-0", ("low", "5-0"): "r2"},
            "",
        )


async def test_search_ends_where_the_server_has_too_many_keys(broker_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says so, and does not look for ever."""
    monkeypatch.setattr(search, "PAGE_KEYS", 1)
    monkeypatch.setattr(search, "MAX_PAGES", 2)
    async with open_client(broker_url) as client, open_broker(broker_url) as broker:
        for number in range(100):
            await client.xadd(f"llm:events:other-{number}", {"type": "attempt", "data": "{}"}, id="1-0")
        found = await find_requests(broker, [Delivery(lane="normal", entry="5-0", fields=())])
        assert (found.ids, found.why_not) == ({}, "there are too many keys")


async def test_entry_that_takes_the_place_of_one_that_is_gone_owns_the_events_stream(broker_url: str) -> None:
    """The end of the first is not the end of the second, a third is a duplicate, and the second can be buried."""
    async with open_client(broker_url) as client, open_broker(broker_url) as broker:
        for _ in range(3):
            await add(client, id="r1")
        first, second, third = await take(broker_url, broker)
        await begin(broker, first, "r1")
        await client.xdel("llm:requests", first.entry)
        again = broker.transcript("r1", publish=False, fenced=no_fence)
        for _ in range(2):  # the second time as after a lost reply
            assert await broker.begin(second, again, started(), publish=False) == "begun"
        assert again.attempt == 2
        late = broker.transcript("r1", publish=False, fenced=no_fence)
        assert await broker.begin(third, late, started(), publish=False) == "duplicate"
        gone = Delivery(lane="normal", entry=first.entry, fields=())
        assert (await find_requests(broker, [gone, second])).ids == {("normal", second.entry): "r1"}
        committed = await commit(broker, gone, failure("r1"), transcript=None, request_ids=("r1",))
        assert committed.verdict == "duplicate"
        committed = await commit(broker, second, failure("r1"), transcript=None, request_ids=("r1",))
        assert committed.verdict == "committed"
        assert [kind for _, kind, _ in await events_of(client, "r1")] == ["attempt", "attempt", "error"]
