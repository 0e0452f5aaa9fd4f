"""What the scripts of runs read, and within which bounds."""

from __future__ import annotations

import asyncio
import json

import pytest
from msgspec.structs import replace

from llm_routerd.protocol.events import FINAL_ID, CallDenied, ToolCalled, ToolReturned
from llm_routerd.protocol.keys import GROUP
from llm_routerd.protocol.tool import MOST_REGISTERED, MOST_REGISTRATION_BYTES
from llm_routerd.queue.runs import (
    JOURNAL_PAGE,
    MOST_WORD_BYTES,
    MOST_WORDS,
)
from tests.queue.run_scene import KEEP_MS, begun, called, overtake, seal, told
from tests.support.queue import add, commit, open_broker, open_client, result, take_one


async def test_answers_are_heard_by_their_beginnings(broker_url: str) -> None:
    """The oldest first, and so many at once; of what is neither result nor error it is told that it came."""
    async with begun(broker_url) as run:
        inbox = "llm:inbox:r1"
        await run.client.xadd(inbox, {"call_id": "c1", "result": "x" * 2000})
        await run.client.xadd(inbox, {"call_id": "c2" * 500, "error": "broke", "result": "5"})
        await run.client.xadd(inbox, {"call_id": "c3"})
        await run.client.xadd(inbox, {"result": ""})
        for _ in range(MOST_WORDS):
            await run.client.xadd(inbox, {"call_id": "c4", "result": "5"})
        spoken = await run.hear()
        assert [list(answer[1:]) for answer in spoken.answers[:4]] == [
            [b"c1", b"result", b"x" * 1000, 2000],
            [b"c2" * 128, b"error", b"broke", 5],
            [b"c3", b"", b"", 0],
            [b"", b"result", b"", 0],
        ]
        assert len(spoken.answers) == MOST_WORDS
        assert abs(spoken.now_ms - await run.broker.server_ms()) < 5000


async def test_consents_are_heard_by_what_is_known_of_them(broker_url: str) -> None:
    """However short the results are that are kept; what is too long is one byte longer than it may be."""
    async with begun(broker_url) as run:
        consent = "llm:consent:r1"
        arguments = json.dumps({"x": "y" * 5000})
        await run.client.xadd(consent, {"confirm": "c1", "args": arguments, "x": "y", "always": "1", "by": "ada"})
        await run.client.xadd(consent, {"deny": "c1", "reason": "r" * 100_000})
        first, second = (fields for _, fields in (await run.hear(256)).consents)
        assert first == {b"confirm": b"c1", b"args": arguments.encode(), b"always": b"1", b"by": b"ada"}
        assert len(second[b"reason"]) == MOST_WORD_BYTES + 1
        for _ in range(MOST_WORDS):
            await run.client.xadd(consent, {"deny": "c1"})
        assert len((await run.hear()).consents) == MOST_WORDS


async def test_journal_leaves_out_what_models_said(broker_url: str) -> None:
    """Over any number of pages; the last one tells where the stream ends."""
    async with begun(broker_url) as run:
        pipe = run.client.pipeline()
        for number in range(1, 3 * JOURNAL_PAGE):
            kind = "reasoning" if number % 2 else "token"
            pipe.xadd("llm:events:r1", {"type": kind, "data": '{"text":"x"}'}, id=f"1-{number}")
        await pipe.execute()
        run.transcript._seq = 3 * JOURNAL_PAGE
        await run.dispatch(called("add"), called("add", 2))
        found = [event async for event in run.broker.journal("r1")]
        assert [(event.stream_id, event.type) for event in found] == [
            ("1-0", "attempt"),
            ("1-1501", "tool_call"),
            ("1-1502", "tool_call"),
            ("1-1502", ""),
        ]
        await run.client.xadd("llm:events:r1", {"type": "token", "data": '{"text":"x"}'}, id="2-1")
        assert [event.stream_id async for event in run.broker.journal("r1")][-1] == "2-1"


@pytest.mark.parametrize("count", [JOURNAL_PAGE - 1, JOURNAL_PAGE, JOURNAL_PAGE + 1])
async def test_journal_ends_where_a_page_does(broker_url: str, count: int) -> None:
    """Each event once."""
    async with begun(broker_url) as run:
        pipe = run.client.pipeline()
        for number in range(1, count):
            pipe.xadd("llm:events:r1", {"type": "denied", "data": '{"call_id":"c"}'}, id=f"1-{number}")
        await pipe.execute()
        found = [event.stream_id async for event in run.broker.journal("r1")]
        assert found[:-1] == [f"1-{number}" for number in range(count)]
        assert found[-1] == found[-2]
        assert [event async for event in run.broker.journal("unknown")] == []


async def test_journal_has_no_end_in_it_and_nothing_that_is_too_long(broker_url: str) -> None:
    """What others wrote there is as long as they like."""
    async with begun(broker_url) as run:
        await run.client.xadd("llm:events:r1", {"type": "denied", "data": "x" * 34_000_000}, id="1-1")
        await run.client.xadd("llm:events:r1", {"type": "denied", "data": "no JSON"}, id="1-2")
        await seal(run)
        found = [event async for event in run.broker.journal("r1")]
        assert [event.stream_id for event in found] == ["1-0", "1-2", FINAL_ID]
        assert not isinstance(found[1], CallDenied)


@pytest.mark.parametrize("count", [20, 64])
async def test_journal_may_hold_any_number_of_long_results(broker_url: str, count: int) -> None:
    """Together they are longer than a request may be, and yet each is read whole."""
    async with begun(broker_url) as run:
        long = {"call_id": "call_add1", "name": "add", "result": "x" * 99_000}
        for number in range(1, count):
            await run.client.xadd("llm:events:r1", {"type": "tool_result", "data": json.dumps(long)}, id=f"1-{number}")
        found = [event async for event in run.broker.journal("r1")]
        assert len(found) == count + 1
        assert {len(event.result) for event in found if isinstance(event, ToolReturned)} == {99_000}


async def test_turn_may_have_any_number_of_long_calls(broker_url: str) -> None:
    """What the script says of them is longer than a request may be."""
    async with begun(broker_url) as run:
        long = {"x": "y" * 65_000}
        words = [
            replace(called("add", number), event=replace(told("add", number), arguments=long)) for number in range(96)
        ]
        wrote = await run.dispatch(*words)
        assert (wrote.verdict, len(wrote.events)) == ("done", 96)
        assert all(isinstance(event, ToolCalled) and event.arguments == long for event in wrote.events)


async def test_registry_is_bounded(broker_url: str) -> None:
    """In the order of names; of what is too long the size is told, and a long name is passed over."""
    async with begun(broker_url) as run:
        names = {f"t{number:04}": "{}" for number in range(MOST_REGISTERED)}
        long = "x" * (MOST_REGISTRATION_BYTES + 1)
        await run.client.hset(
            "llm:tools", mapping={"zz": "{}", "a" * 65: "{}", "a": long, "b": long[:-1], **names, "c\x00": "{}"}
        )
        found = await run.broker.tools()
        assert list(found) == sorted(["a", "b", "c\x00", *names])[:MOST_REGISTERED]
        assert found["a"] == MOST_REGISTRATION_BYTES + 1
        assert found["b"] == long[:-1].encode()


async def test_news_is_what_has_ended_or_been_answered(broker_url: str) -> None:
    """By position; a key of another type in the place of events is looked at, in the place of an ear it says nothing."""
    async with begun(broker_url) as run:
        await run.client.set("other", "x")
        await run.client.xadd("llm:events:r2", {"type": "cancelled", "data": "{}"}, id=FINAL_ID)
        await run.client.xadd("llm:events:r3", {"type": "x", "data": "{}"}, id=f"{2**53 + 5}-0")
        await run.client.xadd("llm:inbox:r2", {"call_id": "c"})
        await run.client.xgroup_create("llm:inbox:r3", GROUP, "$", mkstream=True)
        events = ["llm:events:none", "llm:events:r2", "llm:events:r1", "other", "llm:events:r3"]
        ears = ["llm:inbox:none", "llm:inbox:r3", "other", "llm:inbox:r2"]
        assert await run.broker.news(events, ears) == ([1, 3, 4], [3])
        assert await run.broker.news((), ears[:3]) == ([], [])
        assert await run.broker.news(events[:1], ()) == ([], [])


async def test_what_is_taken_back_is_called_by_nobody(broker_url: str) -> None:
    """The calls of a run that is over go, those of others stay; it hears nothing more, and that for a while."""
    async with begun(broker_url) as run:
        other = await run.client.xadd("llm:tools:add", {"call": "{}"})
        await run.dispatch(called("add"), called("clock"), called("add", 2))
        (_, (first, _), (second, _)) = await run.calls()
        ((clock, _),) = await run.calls("clock")
        await run.client.xadd("llm:inbox:r1", {"call_id": "c", "result": "5"})
        await run.client.xadd("llm:consent:r1", {"deny": "c"})
        for _ in range(2):
            await run.broker.withdraw("r1", [("add", first), ("clock", clock), ("add", second)])
            assert [entry for entry, _ in await run.calls()] == [other]
            assert await run.calls("clock") == []
            for ear in ("llm:inbox:r1", "llm:consent:r1"):
                assert await run.client.xlen(ear) == 0
                assert 0 < await run.client.pttl(ear) <= 60_000
        await run.client.delete("llm:tools:add", "llm:inbox:r1")
        await run.client.set("llm:tools:add", "mine")
        await run.client.set("llm:inbox:r1", "mine", px=100_000)
        await run.broker.withdraw("r1", [("add", first), ("clock", "")])
        assert await run.client.get("llm:tools:add") == "mine"


async def test_look_begins_nothing(broker_url: str) -> None:
    """It says whether there is something to be gone on with, and whose it is."""
    async with open_client(broker_url) as client, open_broker(broker_url) as broker:
        await add(client, id="r1")
        delivery = await take_one(broker_url, broker)
        looked = await broker.look(delivery, "r1")
        assert (looked.verdict, looked.is_ours) == ("begun", False)
        assert not await client.exists("llm:events:r1")
        await client.flushall()
    async with begun(broker_url) as run:
        before = await run.everything()
        looked = await run.broker.look(run.delivery, "r1")
        assert (looked.verdict, looked.is_ours) == ("begun", True)
        assert await run.everything() == before
        await commit(run.broker, run.delivery, result("r1"), request_ids=("r1",))
        assert (await run.broker.look(run.delivery, "r1")).verdict == "lost"


async def test_two_workers_dispatch_and_one_of_them_has(broker_url: str) -> None:
    """Of one that slept through its lease nothing stands, in whichever order they come."""
    async with begun(broker_url) as run, open_broker(broker_url, "w2") as other:
        await overtake(run)
        slept, wrote = await asyncio.gather(
            run.dispatch(called("add")),
            other.observe(run.delivery, "r1", after="1-0", words=[called("clock")], publish=False, keep_ms=KEEP_MS),
        )
        assert (slept.verdict, wrote.verdict) == ("lost", "done")
        assert not await run.client.exists("llm:tools:add")
        assert len(await run.calls("clock")) == 1
