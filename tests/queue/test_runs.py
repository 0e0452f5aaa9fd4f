"""The scripts of runs with tools: at once or not at all, once, and by nobody but whose run it is."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from llm_routerd.protocol.events import CallConfirmed, ToolCalled
from llm_routerd.protocol.keys import GROUP, TOOL_GROUP
from llm_routerd.queue import scripts
from llm_routerd.queue.runs import (
    End,
    Word,
)
from tests.queue.run_scene import KEEP_MS, Run, begun, called, overtake, request, returned, seal, told
from tests.support.queue import events_of


async def test_dispatch_writes_the_turn_and_puts_its_calls_on_their_streams(broker_url: str) -> None:
    """Behind what its attempt has said; each event tells where its call stands; inbox and consent are there."""
    async with begun(broker_url) as run:
        run.transcript.text("token", "let me see")
        wrote = await run.dispatch(called("add"), Word(event=told("lamp")), called("clock"), called("add", 2))
        assert (wrote.verdict, wrote.unaudited) == ("done", None)
        events = await events_of(run.client, "r1")
        assert [event_id for event_id, _, _ in events] == ["1-0", "1-1", "1-2", "1-3", "1-4", "1-5"]
        assert [kind for _, kind, _ in events] == ["attempt", "token"] + ["tool_call"] * 4
        (first, sent), (second, _) = await run.calls()
        ((clock, _),) = await run.calls("clock")
        assert [data.get("entry") for _, _, data in events[2:]] == [first, None, clock, second]
        assert [event.entry for event in wrote.events if isinstance(event, ToolCalled)] == [first, None, clock, second]
        assert (sent["call_id"], sent["arguments"], sent["id"]) == ("call_add1", {"n": 1}, "r1")
        assert not await run.client.exists("llm:tools:lamp")
        for ear in ("llm:inbox:r1", "llm:consent:r1"):
            assert await run.client.xlen(ear) == 0
            assert 0 < await run.client.pttl(ear) <= KEEP_MS
        assert len(await run.client.xrange("llm:audit")) == 1


async def test_dispatch_that_is_repeated_does_nothing_and_says_the_same(broker_url: str) -> None:
    """Its reply was lost: no call is put on its stream twice, and nothing is audited twice."""
    async with begun(broker_url) as run:
        run.transcript.text("token", "let me see")
        words = called("add"), Word(event=told("lamp")), called("clock")
        first = await run.dispatch(*words)
        before = await run.everything()
        for _ in range(2):
            again = await run.dispatch(*words)
            assert (again.verdict, again.events) == ("done", first.events)
            assert [event.raw for event in again.events] == [event.raw for event in first.events]
            assert await run.everything() == before


async def test_dispatch_publishes_what_it_writes(broker_url: str) -> None:
    """With where the call stands, and once."""
    async with begun(broker_url) as run:
        pubsub = run.client.pubsub()
        await pubsub.subscribe("llm:events:r1")
        await pubsub.get_message(timeout=5)
        await run.dispatch(called("add"), publish=True)
        await run.dispatch(called("add"), publish=True)
        message = await pubsub.get_message(timeout=5)
        said = json.loads(message["data"])
        ((entry, _),) = await run.calls()
        assert (said["id"], said["type"], said["data"]["entry"]) == ("1-1", "tool_call", entry)
        assert await pubsub.get_message(timeout=0.1) is None
        await pubsub.aclose()


async def go_on(run: Run) -> None:
    """Others have written there."""
    await run.client.xadd("llm:events:r1", {"type": "attempt", "data": "{}"}, id="7-0")


async def lose_events(run: Run) -> None:
    """Its stream has gone."""
    await run.client.delete("llm:events:r1")


async def lose_entry(run: Run) -> None:
    """Somebody is done with it."""
    await run.client.xack("llm:requests", GROUP, run.delivery.entry)
    await run.client.xdel("llm:requests", run.delivery.entry)


async def make_other_type(run: Run) -> None:
    """Its events are a string."""
    await run.client.delete("llm:events:r1")
    await run.client.set("llm:events:r1", "x")


FENCES = [
    (overtake, "lost"),
    (lose_entry, "lost"),
    (lose_events, "lost"),
    (make_other_type, "lost"),
    (seal, "sealed"),
    (go_on, "stale"),
]


@pytest.mark.parametrize(("happens", "verdict"), FENCES)
async def test_dispatch_of_a_run_that_is_no_longer_ours_does_nothing(
    broker_url: str, happens: Any, verdict: str
) -> None:
    """No event, no call, no audit; the inbox is not made."""
    async with begun(broker_url) as run:
        await happens(run)
        before = await run.everything()
        assert (await run.dispatch(called("add"))).verdict == verdict
        assert await run.everything() == before


@pytest.mark.parametrize(("happens", "verdict"), FENCES)
async def test_observing_a_run_that_is_no_longer_ours_does_nothing(broker_url: str, happens: Any, verdict: str) -> None:
    """What was said stays to be heard by whose it is, and the call stays on its stream."""
    async with begun(broker_url) as run:
        await run.dispatch(called("add"))
        ((entry, _),) = await run.calls()
        said = await run.client.xadd("llm:inbox:r1", {"call_id": "call_add1", "result": "5"})
        await happens(run)
        before = await run.everything()
        ends = [End(tool="add", entry=entry)]
        wrote = await run.observe(Word(event=returned(result=5)), called("clock"), ends=ends, heard=[said])
        assert wrote.verdict == verdict
        assert (await run.observe()).verdict == verdict
        assert await run.everything() == before


async def test_dispatch_waits_for_what_was_sent_before(broker_url: str) -> None:
    """A gap: the events that are under way have not come, and nothing goes before them."""
    async with begun(broker_url) as run:
        before = await run.everything()
        keys = run.broker.keys
        call = scripts.dispatch(
            lanes=keys.lanes, events="llm:events:r1", inbox="llm:inbox:r1", consent="llm:consent:r1",
            streams=["llm:tools:add"], consumer="w1", entry=run.delivery.entry, lane="normal", under_way="1-3",
            after="1-4", ttl_ms=1000, keep_ms=1000, publishes=False, audit_key="llm:audit", audit_maxlen=10,
            last_words=("1-4", "token", "{}"), words=("1-5", "tool_call", '{"a":1}', 1, "{}"), audit=(),
        )  # fmt: skip
        assert await run.broker.pipe.run_script(call) == [b"gap"]
        assert await run.everything() == before
        await run.client.xadd("llm:events:r1", {"type": "token", "data": "{}"}, id="1-3")
        assert (await run.broker.pipe.run_script(call))[0] == b"done"
        assert [event_id for event_id, _, _ in await events_of(run.client, "r1")] == ["1-0", "1-3", "1-4", "1-5"]


async def test_stream_that_takes_no_call_is_named_and_nothing_is_done(broker_url: str) -> None:
    """The run can then go on without it."""
    async with begun(broker_url) as run:
        await run.client.set("llm:tools:clock", "mine")
        before = await run.everything()
        words = called("add"), called("clock"), called("add", 2)
        wrote = await run.dispatch(*words)
        assert (wrote.verdict, wrote.tool) == ("unusable", "clock")
        assert await run.everything() == before
        assert (await run.dispatch(words[0], Word(event=told("clock")), words[2])).verdict == "done"
        observed = await run.observe(Word(event=returned(result=5)), ends=[End(tool="clock", entry="1-1")])
        assert (observed.verdict, observed.tool) == ("unusable", "clock")
        assert len(await run.calls()) == 2
        assert await run.client.get("llm:tools:clock") == "mine"


async def test_stream_that_has_given_its_last_id_takes_no_call(broker_url: str) -> None:
    """Nothing can be added to it ever again."""
    async with begun(broker_url) as run:
        await run.client.xadd("llm:tools:clock", {"x": "y"}, id=f"{2**64 - 1}-{2**64 - 1}")
        before = await run.everything()
        wrote = await run.dispatch(called("add"), called("clock"))
        assert (wrote.verdict, wrote.tool) == ("unusable", "clock")
        assert await run.everything() == before


async def test_ears_of_another_type_are_left_alone(broker_url: str) -> None:
    """The run goes on, and hears nothing there."""
    async with begun(broker_url) as run:
        await run.client.set("llm:inbox:r1", "mine")
        await run.client.set("llm:consent:r1", "mine")
        assert (await run.dispatch(called("add"))).verdict == "done"
        spoken = await run.hear()
        assert (spoken.answers, spoken.consents) == ([], [])
        assert (await run.observe(Word(event=returned(result=5)), heard=["1-1"], agreed=["1-1"])).verdict == "done"
        assert await run.client.get("llm:inbox:r1") == "mine"


async def test_audit_that_is_refused_is_in_nobodys_way(broker_url: str) -> None:
    """Why is told."""
    async with begun(broker_url) as run:
        await run.client.set("llm:audit", "mine")
        wrote = await run.dispatch(called("add"))
        assert wrote.verdict == "done"
        assert "WRONGTYPE" in (wrote.unaudited or "")
        assert "WRONGTYPE" in ((await run.observe(Word(event=returned(result=5)))).unaudited or "")


async def test_full_server_puts_a_turn_down_whole_or_not_at_all(valkey_url: str) -> None:
    """No call without its event, no event without its call; it is tried again until there is room."""
    async with begun(valkey_url) as run:
        before = await run.everything()
        await run.client.config_set("maxmemory", "1")
        try:
            dispatching = asyncio.create_task(run.dispatch(called("add"), called("clock")))
            _, pending = await asyncio.wait((dispatching,), timeout=0.5)
            assert pending
            assert await run.everything() == before
        finally:
            await run.client.config_set("maxmemory", "0")
        assert (await dispatching).verdict == "done"
        assert (len(await run.calls()), len(await run.calls("clock"))) == (1, 1)
        assert await run.client.exists("llm:inbox:r1")


# ---------------------------------------------------------------------- observe


async def test_what_was_said_becomes_events_and_is_done_with(broker_url: str) -> None:
    """The answered call goes from its stream, the words go from theirs; what was agreed to is put on its stream."""
    async with begun(broker_url) as run:
        await run.dispatch(called("add"), Word(event=told("lamp")))
        ((entry, _),) = await run.calls()
        said = await run.client.xadd("llm:inbox:r1", {"call_id": "call_add1", "result": "5"})
        later = await run.client.xadd("llm:inbox:r1", {"call_id": "call_add1", "result": "6"})
        agreed = await run.client.xadd("llm:consent:r1", {"confirm": "call_lamp1"})
        yes = Word(event=CallConfirmed(call_id="call_lamp1", by="ada", deadline_ms=9), call=request("lamp"))
        wrote = await run.observe(
            Word(event=returned(result=5)), yes, ends=[End(tool="add", entry=entry)], heard=[said], agreed=[agreed]
        )
        ((sent, _),) = await run.calls("lamp")
        assert [event.stream_id for event in wrote.events] == ["1-3", "1-4"]
        confirmed = wrote.events[1]
        assert isinstance(confirmed, CallConfirmed)
        assert (confirmed.entry, confirmed.by) == (sent, "ada")
        assert await run.calls() == []
        assert [entry for entry, _ in await run.client.xrange("llm:inbox:r1")] == [later]
        assert await run.client.xlen("llm:consent:r1") == 0


async def test_observe_that_is_repeated_does_nothing_and_says_the_same(broker_url: str) -> None:
    """Its reply was lost: what somebody has agreed to is not put on its stream twice."""
    async with begun(broker_url) as run:
        await run.dispatch(called("add"), Word(event=told("lamp")))
        ((entry, _),) = await run.calls()
        said = await run.client.xadd("llm:inbox:r1", {"call_id": "call_add1", "result": "5"})
        yes = Word(event=CallConfirmed(call_id="call_lamp1", deadline_ms=9), call=request("lamp"))
        more = {"ends": [End(tool="add", entry=entry)], "heard": [said]}
        first = await run.observe(Word(event=returned(result=5)), yes, **more)
        before = await run.everything()
        for _ in range(2):
            again = await run.observe(Word(event=returned(result=5)), yes, **more)
            assert (again.verdict, again.events) == ("done", first.events)
            assert await run.everything() == before


async def read_call(run: Run) -> None:
    """By a worker of the tool."""
    await run.client.xgroup_create("llm:tools:add", TOOL_GROUP, "0")
    await run.client.xreadgroup(TOOL_GROUP, "t1", {"llm:tools:add": ">"}, count=1)


async def test_late_call_stands_as_what_became_of_it(broker_url: str) -> None:
    """Nobody has read it: it was not made.  Else its outcome is unknown; deleted it was too, by whoever had it."""

    async def nobody(run: Run) -> None:
        """Not even a group is there."""

    async def idle_group(run: Run) -> None:
        await run.client.xgroup_create("llm:tools:add", TOOL_GROUP, "0")

    async def acknowledged(run: Run) -> None:
        await read_call(run)
        ((entry, _),) = await run.calls()
        await run.client.xack("llm:tools:add", TOOL_GROUP, entry)

    async def deleted(run: Run) -> None:
        ((entry, _),) = await run.calls()
        await run.client.xdel("llm:tools:add", entry)

    async def gone(run: Run) -> None:
        await run.client.delete("llm:tools:add")

    async def second_group(run: Run) -> None:
        await run.client.xgroup_create("llm:tools:add", "idle", "0")
        await read_call(run)

    for happens, is_taken in (
        (nobody, False), (idle_group, False), (read_call, True), (acknowledged, True), (deleted, True), (gone, True),
        (second_group, True),
    ):  # fmt: skip
        async with begun(broker_url) as run:
            await run.dispatch(called("add"))
            ((entry, _),) = await run.calls()
            await happens(run)
            late, untaken = returned(error="unknown outcome"), returned(error="not made")
            ends = [End(tool="add", entry=entry, word=1, untaken=untaken)]
            wrote = await run.observe(Word(event=returned(number=9, result=1)), Word(event=late), ends=ends)
            assert wrote.events[1] == (late if is_taken else untaken), happens
            assert wrote.events[0] == returned(number=9, result=1)
            assert await run.calls() == []
            await run.client.flushall()


async def test_late_call_that_is_told_again_stands_as_it_was_told_first(broker_url: str) -> None:
    """The entry is gone with the first time, and would look as if a tool had it."""
    async with begun(broker_url) as run:
        await run.dispatch(called("add"))
        ((entry, _),) = await run.calls()
        untaken = returned(error="not made")
        ends = [End(tool="add", entry=entry, word=0, untaken=untaken)]
        for _ in range(2):
            wrote = await run.observe(Word(event=returned(error="unknown outcome")), ends=ends)
            assert wrote.events == (untaken,)


async def test_call_before_one_that_was_read_is_not_taken_for_unread(broker_url: str) -> None:
    """Of several calls each has its own end."""
    async with begun(broker_url) as run:
        await run.dispatch(called("add"), called("add", 2))
        (first, _), (second, _) = await run.calls()
        await read_call(run)
        ends = [
            End(tool="add", entry=entry, word=at, untaken=returned(number=at + 1, error="not made"))
            for at, entry in enumerate((first, second))
        ]
        wrote = await run.observe(*(Word(event=returned(number=n, error="unknown")) for n in (1, 2)), ends=ends)
        assert [getattr(event, "error", None) for event in wrote.events] == ["unknown", "not made"]


async def test_run_that_rests_has_its_deliveries_forgiven_and_its_ears_kept(broker_url: str) -> None:
    """Its worker has not died of it; nothing else changes."""
    async with begun(broker_url) as run:
        await run.dispatch(called("add"))
        await run.client.xclaim("llm:requests", GROUP, "w1", 0, [run.delivery.entry], retrycount=4, justid=True)
        before = await run.everything()
        await run.client.pexpire("llm:inbox:r1", 10)
        wrote = await run.broker.observe(run.delivery, "r1", after=run.after, publish=False, keep_ms=KEEP_MS)
        assert (wrote.verdict, wrote.events) == ("done", ())
        (pending,) = await run.client.xpending_range("llm:requests", GROUP, "-", "+", 9)
        assert pending["times_delivered"] == 1
        assert await run.client.pttl("llm:inbox:r1") > 1000
        assert await run.everything() == before


async def test_run_whose_entry_was_trimmed_stays_pending(broker_url: str) -> None:
    """XCLAIM would drop it, and nobody would end the request."""
    async with begun(broker_url) as run:
        await run.client.xdel("llm:requests", run.delivery.entry)
        assert (await run.dispatch(called("add"))).verdict == "done"
        assert (await run.client.xpending("llm:requests", GROUP))["pending"] == 1


async def test_event_beyond_which_nothing_can_be_written_costs_no_call(broker_url: str) -> None:
    """Whoever may cancel may write such an ID: the run is left to end as one that nobody can go on with."""
    async with begun(broker_url) as run:
        await run.dispatch(Word(event=told("lamp")))
        run.after = f"1-{2**64 - 1}"
        await run.client.xadd("llm:events:r1", {"type": "x", "data": "{}"}, id=run.after)
        yes = Word(event=CallConfirmed(call_id="call_lamp1", deadline_ms=9), call=request("lamp"))
        before = await run.everything()
        assert (await run.observe(yes)).verdict == "unwritable"
        assert await run.everything() == before
