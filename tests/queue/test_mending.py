"""Streams whose IDs run ahead of the server's clock are made anew, with all that they hold."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
import redis

from llm_routerd.protocol.cut import parts_of
from llm_routerd.protocol.keys import GROUP, HANDED_BACK
from llm_routerd.queue import mending
from llm_routerd.queue.mending import Ahead, ahead_ms, mend
from tests.support.queue import add, commit, open_broker, open_client, open_reader, result, take, take_one, two_workers

LANE, DEAD, METRICS = "llm:requests", "llm:dead", "llm_router_metrics"
LAST = "18446744073709551615-18446744073709551615"
AHEAD = "18446744073709551614-7"
FAR = "99999999999999-3"


async def state_of(client: Any, key: str, group: str = GROUP) -> dict[str, tuple[str, int]]:
    """Owner and delivery count of each pending entry."""
    pending = await client.xpending_range(key, group, "-", "+", 1000)
    return {each["message_id"]: (each["consumer"], each["times_delivered"]) for each in pending}


async def test_empty_lane_takes_requests_again(broker_url: str) -> None:
    """Also where nothing of the ID is left to be seen: it came with MAXLEN 0, or was answered."""
    async with open_client(broker_url) as client, open_broker(broker_url) as broker:
        await client.xadd(LANE, {"prompt": "x"}, id=LAST, maxlen=0, approximate=False)
        with pytest.raises(redis.ResponseError, match="last possible"):
            await add(client)
        found = await mend(broker, broker.keys.lanes)
        assert found == [Ahead(key=LANE, verdict="mended", moved=0, last_id=LAST)]
        entry = await add(client)
        assert [each.entry for each in await take(broker_url, broker)] == [entry]
        assert await mend(broker, broker.keys.lanes, (broker.keys.dead,)) == []


async def test_answered_entry_leaves_a_lane_that_takes_requests_again(broker_url: str) -> None:
    """After its commit, though XSETID would not go below an ID that was deleted."""
    async with open_client(broker_url) as client, open_broker(broker_url) as broker:
        await client.xadd(LANE, {"prompt": "x"}, id=LAST)
        delivery = await take_one(broker_url, broker)
        assert [each.verdict for each in await mend(broker, (LANE,))] == ["busy"]
        await commit(broker, delivery, result(LAST), transcript=None, request_ids=(LAST,))
        assert [each.verdict for each in await mend(broker, (LANE,))] == ["mended"]
        entry = await add(client)
        assert [each.entry for each in await take(broker_url, broker)] == [entry]


async def test_all_that_a_lane_holds_is_kept(broker_url: str) -> None:
    """What is sound has the ID, owner and delivery count that it had; what lies ahead is moved, in its order."""
    async with two_workers(broker_url) as (client, broker, other):
        running, waiting = await add(client, id="one"), await add(client, id="two")
        assert (await take(broker_url, broker, free=1))[0].entry == running
        await client.xclaim(LANE, GROUP, "w1", 0, [running], idle=7_000, retrycount=2, justid=True)
        await client.xgroup_createconsumer(LANE, GROUP, "w3")
        for number, entry in enumerate((FAR, AHEAD, LAST)):
            await client.xadd(LANE, {"prompt": "x", "id": f"ahead-{number}"}, id=entry)
        (told,) = await mend(broker, (LANE,))
        assert (told.verdict, told.moved, told.last_id) == ("mended", 3, LAST)
        assert await state_of(client, LANE) == {running: ("w1", 2)}
        assert (await client.xpending_range(LANE, GROUP, "-", "+", 1))[0]["time_since_delivered"] >= 7_000
        assert {each["name"] for each in await client.xinfo_consumers(LANE, GROUP)} >= {"w1", "w3"}
        new = await add(client, id="new")
        taken = await take(broker_url, other, free=30)
        assert [parts_of(each.fields)[3] for each in taken] == [b"two", b"ahead-0", b"ahead-1", b"ahead-2", b"new"]
        assert (taken[0].entry, taken[-1].entry) == (waiting, new)
        assert await broker.find_orphans("normal") == []


async def test_what_was_handed_back_is_moved_and_can_be_taken(broker_url: str) -> None:
    """A worker that is given such an entry hands it back, and so nobody is busy with it."""
    async with open_client(broker_url) as client, open_broker(broker_url) as broker:
        await client.xadd(LANE, {"prompt": "x"}, id=FAR)
        await take_one(broker_url, broker)
        await broker.hand_everything_back()
        assert [each.verdict for each in await mend(broker, (LANE,))] == ["mended"]
        (taken,) = (await broker.claim_of(HANDED_BACK, count=5)).deliveries
        assert (taken.deliveries, parts_of(taken.fields)[-1]) == (1, FAR.encode())
        assert not await client.xread({LANE: taken.entry})


async def test_group_that_was_moved_far_ahead_is_brought_back(broker_url: str) -> None:
    """Nothing that came after would ever be new; what it passed over is found as orphans."""
    async with open_client(broker_url) as client, open_broker(broker_url) as broker:
        passed_over = await add(client)
        await client.xgroup_setid(LANE, GROUP, FAR)
        assert [each.verdict for each in await mend(broker, (LANE,))] == ["mended"]
        entry = await add(client)
        assert [each.entry for each in await take(broker_url, broker)] == [entry]
        assert await broker.find_orphans("normal") == [passed_over]


async def test_ids_within_the_time_that_answers_are_kept_are_let_be(broker_url: str) -> None:
    """It may be the clock that was set back: a lane made anew would give IDs a second time under which answers stand."""
    async with open_client(broker_url) as client, open_broker(broker_url) as broker:
        soon = await broker.server_ms() + ahead_ms(broker) - 5_000
        await client.xadd(LANE, {"prompt": "x"}, id=f"{soon}-0")
        assert await mend(broker, broker.keys.lanes) == []


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({"prompt": "x"}, {"prompt": "x", "id": FAR}),
        ({"prompt": "x", "id": "mine"}, {"prompt": "x", "id": "mine"}),
        ({"data": '{"prompt":"x"}'}, {"data": f'{{"id":"{FAR}","prompt":"x"}}'}),
        ({"data": ' {"id":"mine","prompt":"x"}'}, {"data": ' {"id":"mine","prompt":"x"}'}),
        ({"data": " { } "}, {"data": f'{{"id":"{FAR}" }} '}),
        ({"data": '{"id":7}'}, {"data": '{"id":7}', "id": FAR}),
        ({"data": '{"prompt":'}, {"data": '{"prompt":', "id": FAR}),
        ({"data": "[1]"}, {"data": "[1]", "id": FAR}),
        ({"data": "{}", "x": "y"}, {"data": "{}", "x": "y", "id": FAR}),
    ],
)
async def test_moved_request_is_answered_where_its_producer_waits(
    broker_url: str, fields: dict[str, str], kept: dict[str, str]
) -> None:
    """Under its `id`, or under the ID that XADD returned; one that is no request says so there."""
    async with open_client(broker_url) as client, open_broker(broker_url) as broker:
        await client.xadd(LANE, fields, id=FAR)
        await mend(broker, (LANE,))
        ((entry, moved),) = await client.xrange(LANE)
        assert moved == kept
        assert entry != FAR


async def test_id_of_a_long_request_holds_where_it_has_one(broker_url: str) -> None:
    """It is not parsed: of two ids the parser takes the last."""
    async with open_client(broker_url) as client, open_broker(broker_url) as broker:
        await client.xadd(LANE, {"data": json.dumps({"prompt": "x" * 70_000, "id": "mine"})}, id=FAR)
        await mend(broker, (LANE,))
        ((_, moved),) = await client.xrange(LANE)
        assert json.loads(moved["data"])["id"] == "mine"
        assert moved["data"].startswith(f'{{"id":"{FAR}"')


async def test_lane_that_cannot_be_mended_yet_is_let_be(broker_url: str) -> None:
    """What is under way keeps its ID, what was trimmed away has its end first, and what is large holds up nobody."""
    async with open_client(broker_url) as client, open_broker(broker_url) as broker:
        await client.xadd(LANE, {"prompt": "x"}, id=FAR)
        await take_one(broker_url, broker)
        before = await client.xinfo_stream(LANE)
        assert [each.verdict for each in await mend(broker, (LANE,))] == ["busy"]
        assert await client.xinfo_stream(LANE) == before
        await broker.hand_everything_back()
        await client.xtrim(LANE, maxlen=0, approximate=False)
        assert [each.verdict for each in await mend(broker, (LANE,))] == ["busy"]
        await client.xack(LANE, GROUP, FAR)
        await client.xadd(LANE, {f"f{n}": "" for n in range(4_000)}, id=AHEAD)
        assert [each.verdict for each in await mend(broker, (LANE,))] == ["large"]
        assert [entry for entry, _ in await client.xrange(LANE)] == [AHEAD]


async def test_look_at_a_large_lane_does_not_read_what_is_pending(
    valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is repeated every second, by each worker, as long as the lane is large."""
    monkeypatch.setattr(mending, "MOST_ENTRIES", 50)
    async with open_client(valkey_url) as client, open_broker(valkey_url) as broker:
        for _ in range(60):
            await add(client)
        await client.xadd(LANE, {"prompt": "x"}, id=FAR)
        assert len(await take(valkey_url, broker, free=300)) == 61
        await client.config_resetstat()
        assert [each.verdict for each in await mend(broker, (LANE,))] == ["large"]
        stats = await client.info("commandstats")
        assert "cmdstat_xpending" not in stats
        assert stats["cmdstat_xrange"]["calls"] == 1


async def test_dead_letters_and_metrics_are_mended_with_others_groups(broker_url: str) -> None:
    """A dashboard that reads the metrics through a group of its own goes on where it was."""
    async with open_client(broker_url) as client, open_broker(broker_url) as broker:
        await client.xgroup_create(METRICS, "dashboard", "0", mkstream=True)
        for key in (DEAD, METRICS):
            await client.xadd(key, {"n": "1"}, id="5-0")
            await client.xadd(key, {"data": "{}"}, id=LAST)
        await client.xreadgroup("dashboard", "d1", {METRICS: ">"})
        found = await mend(broker, (), (DEAD, METRICS))
        assert [(each.key, each.verdict, each.moved) for each in found] == [(DEAD, "mended", 1), (METRICS, "mended", 1)]
        for key in (DEAD, METRICS):
            (first, one), (_, two) = await client.xrange(key)
            assert (first, one, two) == ("5-0", {"n": "1"}, {"data": "{}"})
            await client.xadd(key, {"n": "3"})
        assert [owner for owner, _ in (await state_of(client, METRICS, "dashboard")).values()] == ["d1", "d1"]
        ((_, new),) = await client.xreadgroup("dashboard", "d1", {METRICS: ">"})
        assert [fields for _, fields in new] == [{"n": "3"}]


async def test_key_of_another_type_and_missing_keys_are_passed_over(broker_url: str) -> None:
    """They are others' business."""
    async with open_client(broker_url) as client, open_broker(broker_url) as broker:
        await client.set(DEAD, "mine")
        await client.xadd(LANE, {"prompt": "x"}, id=LAST, maxlen=0, approximate=False)
        assert [each.key for each in await mend(broker, broker.keys.lanes, (DEAD, METRICS))] == [LANE]


async def test_blocked_reader_goes_on_reading(valkey_url: str) -> None:
    """Whatever the server tells those who wait on a stream that went and came back."""
    async with (
        open_client(valkey_url) as client,
        open_broker(valkey_url) as broker,
        open_reader(valkey_url, broker) as reader,
    ):
        await client.xadd(LANE, {"prompt": "x"}, id=LAST, maxlen=0, approximate=False)
        await reader.read(10)  # connects
        read = asyncio.create_task(reader.read(10))
        async with asyncio.timeout(5):
            while not any(each["cmd"] == "xreadgroup" for each in await client.client_list()):  # noqa: ASYNC110 - Redis tells it
                await asyncio.sleep(0.01)
        await mend(broker, (LANE,))
        entry = await add(client)
        found = await read
        async with asyncio.timeout(10):
            while not found:
                found = await reader.read(10)
        assert [each.entry for each in found] == [entry]
        assert (reader.trouble, await state_of(client, LANE)) == (None, {entry: ("w1", 1)})


async def test_acl_that_would_refuse_a_part_leaves_the_lane_whole(valkey_url: str) -> None:
    """Nothing is lost half way."""
    async with open_client(valkey_url) as client, open_broker(valkey_url) as broker:
        entry = await client.xadd(LANE, {"prompt": "x"}, id=FAR)
        await client.execute_command("ACL", "SETUSER", "default", "-xclaim")
        try:
            assert [each.verdict for each in await mend(broker, (LANE,))] == ["denied"]
        finally:
            await client.execute_command("ACL", "SETUSER", "default", "+xclaim")
        assert [each for each, _ in await client.xrange(LANE)] == [entry]


async def test_full_server_mends_and_loses_nothing(valkey_url: str) -> None:
    """Memory is looked at before a script's first write alone, and that is one which frees some."""
    async with open_client(valkey_url) as client, open_broker(valkey_url) as broker:
        for number in range(5):
            await add(client, id=f"r{number}")
        await client.xadd(LANE, {"prompt": "x"}, id=LAST)
        await client.config_set("maxmemory", "1")
        try:
            assert [each.verdict for each in await mend(broker, (LANE,))] == ["mended"]
        finally:
            await client.config_set("maxmemory", "0")
        assert await client.xlen(LANE) == 6


async def test_orphans_are_told_from_new_entries_whatever_their_ids(broker_url: str) -> None:
    """IDs are larger than Lua counts: those that differ in their last digits are not the same."""
    async with open_client(broker_url) as client, open_broker(broker_url) as broker:
        await client.xadd(LANE, {"prompt": "x"}, id="18446744073709551614-18446744073709551614")
        await take_one(broker_url, broker)
        await client.xadd(LANE, {"prompt": "x"}, id=LAST)
        assert await broker.take_orphans("normal", [LAST], seen_for_ms=100_000) == []
