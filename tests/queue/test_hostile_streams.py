"""Events streams that others wrote: whatever stands there, a request has one end, and no model is paid twice."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from llm_routerd.protocol.events import FINAL_ID
from tests.support.eventually import eventually
from tests.support.fakes import FakeBackend, says, waits_for
from tests.support.queue import (
    add,
    begin,
    begin_one,
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
)
from tests.support.workers import run_worker

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

BEYOND = ["9007199254740991-7", "9007199254740992-0", "18446744073709551615-18446744073709551615"]
KEY = "llm:events:r1"
# Heads that an events stream of ours never has.
HEADS: list[Any] = [
    "no JSON",
    "[]",
    "7",
    '{"entry":7,"lane":"normal"}',
    '{"entry":{"a":1},"lane":["normal"]}',
    '{"entry":"x-y","lane":"normal"}',
    '{"entry":"1-1","lane":"nowhere"}',
    '{"entry":"1-1","lane":{"a":1}}',
    '{"entry":null,"consumer":{},"delivery":"x"}',
]


async def write(client: Any, event_id: str, data: str = "{}", kind: str = "token") -> None:
    """What a stranger writes."""
    await client.xadd(KEY, {"type": kind, "data": data}, id=event_id)


async def until(ask: Callable[[], Awaitable[Any]], *, empty: bool = False) -> None:
    """Wait for Redis to answer with something, or with nothing."""
    async with asyncio.timeout(10):
        while bool(await ask()) is empty:  # noqa: ASYNC110 - Redis has no event for this
            await asyncio.sleep(0.01)


async def deleted_beyond(client: Any, event_id: str = BEYOND[0]) -> None:
    """An entry beyond the end that is gone again: the stream's last ID stays."""
    await write(client, event_id)
    await client.xdel(KEY, event_id)


async def another_type(client: Any) -> None:
    """No stream at all."""
    await client.set(KEY, "mine", ex=60)


def beyond(event_id: str) -> Callable[[Any], Awaitable[None]]:
    """An event that is the last one for good."""

    async def spoil(client: Any) -> None:
        await write(client, event_id)

    return spoil


SPOILED = [*map(beyond, BEYOND), beyond("9007199254740990-3"), another_type]
NAMES = ["beyond", "far beyond", "the last", "just before the end", "another type"]
spoiled = pytest.mark.parametrize("spoil", SPOILED, ids=NAMES)


async def letters(client: Any) -> list[dict[str, str]]:
    """The dead letters."""
    return [fields for _, fields in await client.xrange("llm:dead")]


@spoiled
async def test_request_whose_stream_takes_no_event_is_a_dead_letter_and_costs_nothing(
    broker_url: str, spoil: Callable[[Any], Awaitable[None]], caplog: pytest.LogCaptureFixture
) -> None:
    """At once, in one line of the log, without a traceback."""
    async with open_client(broker_url) as client:
        await spoil(client)
        entry = await add(client, id="r1")
        backend = FakeBackend(says("x"))
        async with run_worker(broker_url, {"local": backend}) as worker:
            await until(lambda: client.xlen("llm:dead"))
            await eventually(lambda: not worker.in_flight)
        assert not backend.calls
        assert await client.xlen("llm:requests") == 0
        (letter,) = await letters(client)
        assert (letter["entry"], letter["id"], letter["reason"]) == (entry, "r1", "invalid_request")
    assert "Traceback" not in caplog.text


@spoiled
async def test_stream_that_is_spoiled_while_the_model_answers_costs_one_call(
    broker_url: str, spoil: Callable[[Any], Awaitable[None]]
) -> None:
    """It ends as a dead letter too; nobody is asked again."""
    gate = asyncio.Event()
    async with open_client(broker_url) as client:
        backend = FakeBackend(waits_for(gate))
        async with run_worker(broker_url, {"local": backend}) as worker:
            await add(client, id="r1")
            await eventually(lambda: backend.running == 1)
            if spoil is another_type:
                await client.delete(KEY)
            await spoil(client)
            gate.set()
            await until(lambda: client.xlen("llm:requests"), empty=True)
            await eventually(lambda: not worker.in_flight)
        assert len(backend.calls) == 1
        final = [] if spoil is another_type else await client.xrange(KEY, FINAL_ID, FINAL_ID)
        assert len(await letters(client)) + len(final) == 1


@spoiled
async def test_commit_says_that_nothing_can_be_written_and_does_nothing(
    broker_url: str, spoil: Callable[[Any], Awaitable[None]]
) -> None:
    """Without a dead letter; with one it is written, and the entry is done with."""
    async with open_client(broker_url) as client, open_broker(broker_url) as broker:
        await add(client, id="r1")
        delivery = await take_one(broker_url, broker)
        await spoil(client)
        if spoil is not SPOILED[3]:  # a final event fits behind that one
            committed = await commit(broker, delivery, result("r1"), transcript=None, request_ids=("r1",))
            assert committed.verdict in {"unwritable", "duplicate"}
        if spoil in {*SPOILED[:3], another_type}:
            assert await client.xlen("llm:requests") == 1
            letter: tuple[Any, ...] = ("entry", delivery.entry, "reason", "internal")
            await commit(broker, delivery, failure("r1"), transcript=None, request_ids=("r1",), dead_letter=letter)
            assert await client.xlen("llm:requests") == 0
            assert len(await letters(client)) == 1


@pytest.mark.parametrize("event_id", BEYOND)
@pytest.mark.parametrize("when", ["before", "meanwhile"])
async def test_last_id_may_lie_beyond_the_last_entry(valkey_url: str, when: str, event_id: str) -> None:
    """What stood there was deleted: the stream looks sound, and takes nothing (fakeredis has no such memory).

    Whoever may cancel can do that, and it is no more than a line at info.
    """
    gate = asyncio.Event()
    async with open_client(valkey_url) as client:
        backend = FakeBackend(waits_for(gate))
        if when == "before":
            await deleted_beyond(client, event_id)
        with capture_logs() as logs:
            async with run_worker(valkey_url, {"local": backend}) as worker:
                await add(client, id="r1")
                if when == "meanwhile":
                    await eventually(lambda: backend.running == 1)
                    await deleted_beyond(client, event_id)
                    gate.set()
                await until(lambda: client.xlen("llm:requests"), empty=True)
                await eventually(lambda: not worker.in_flight)
        assert {line["log_level"] for line in logs} <= {"debug", "info"}
        assert len(backend.calls) == (when == "meanwhile")
        assert len(await letters(client)) == 1


@pytest.mark.parametrize("event_id", BEYOND)
async def test_event_beyond_the_end_does_not_hide_the_final_one(broker_url: str, event_id: str) -> None:
    """The request had its answer."""
    async with open_client(broker_url) as client, open_broker(broker_url) as broker:
        await write(client, FINAL_ID, "{}", "cancelled")
        await write(client, event_id)
        entry = await add(client, id="r1")
        assert list(await broker.sealed([KEY])) == [0]
        assert list((await broker.renew([(entry_of(entry), KEY)])).sealed) == [0]
        delivery = await take_one(broker_url, broker)
        transcript = broker.transcript("r1", publish=False, fenced=no_fence)
        assert await broker.begin(delivery, transcript, started(), publish=False) == "sealed"
        assert await client.xlen("llm:requests") == 0


@pytest.mark.parametrize("head", HEADS)
async def test_head_that_may_be_anything_keeps_no_request_from_its_answer(broker_url: str, head: str) -> None:
    """It names no entry that waits, so the request goes on behind it."""
    async with open_client(broker_url) as client:
        await write(client, "1-0", head, "attempt")
        backend = FakeBackend(says("x"))
        async with run_worker(broker_url, {"local": backend}):
            await add(client, id="r1")
            await until(lambda: client.xrange(KEY, FINAL_ID, FINAL_ID))
        events = [(event_id, fields["type"]) for event_id, fields in await client.xrange(KEY)]
        assert events[1:] == [("2-0", "attempt"), (FINAL_ID, "result")]
        assert len(backend.calls) == 1


async def test_head_that_names_another_requests_entry_makes_no_duplicate(broker_url: str) -> None:
    """Else a request could be made to vanish: nobody ends it."""
    async with open_client(broker_url) as client, open_broker(broker_url) as broker:
        await client.xadd("llm:requests:low", {"id": "other", "prompt": "x"}, id="3-3")
        await write(client, "1-0", json.dumps({"entry": "3-3", "lane": "low"}), "attempt")
        await add(client, id="r1")
        delivery, _ = await take(broker_url, broker)
        transcript = await begin(broker, delivery)
        assert transcript.attempt == 2


async def test_head_that_names_another_requests_entry_keeps_no_error_back(broker_url: str) -> None:
    """A request that ends before its first attempt gets its final event all the same."""
    async with open_client(broker_url) as client:
        await client.xadd("llm:requests:low", {"id": "other", "prompt": "x"}, id="3-3")
        await write(client, "1-0", json.dumps({"entry": "3-3", "lane": "low"}), "attempt")
        gate = asyncio.Event()
        async with run_worker(broker_url, {"local": FakeBackend(waits_for(gate))}):
            await add(client, id="r1", deadline_ms="1")
            await until(lambda: client.xrange(KEY, FINAL_ID, FINAL_ID))
            gate.set()


async def test_same_id_on_two_lanes_within_a_millisecond_is_a_duplicate(broker_url: str) -> None:
    """And no collision: the id was set."""
    async with open_client(broker_url) as client, open_broker(broker_url) as broker:
        for lane in ("llm:requests", "llm:requests:low"):
            await client.xadd(lane, {"id": "r1", "prompt": "x"}, id="5-0")
        one, other = await take(broker_url, broker)
        transcript = await begin(broker, one)
        again = broker.transcript("r1", publish=False, fenced=no_fence)
        assert await broker.begin(other, again, started(), publish=False) == "duplicate"
        assert (
            await commit(broker, one, result("r1"), transcript=transcript, request_ids=("r1",))
        ).verdict == "committed"
        assert await client.xlen("llm:requests:low") == 0


@pytest.mark.parametrize("number", [10**14, 10**15, 2**53 - 3])
async def test_attempts_have_whole_numbers_however_large(broker_url: str, number: int) -> None:
    """And not `1e+14-0`."""
    async with open_client(broker_url) as client, open_broker(broker_url) as broker:
        await write(client, f"{number}-0", "{}", "attempt")
        await add(client, id="r1")
        _delivery, transcript = await begin_one(broker_url, broker)
        assert transcript.attempt == number + 1
        assert [event_id for event_id, _, _ in await events_of(client, "r1")][-1] == f"{number + 1}-0"


@pytest.mark.parametrize("delivery_number", [1e300, -5, 0.5, "x", None])
async def test_head_that_names_this_entry_and_a_worker_that_never_was(broker_url: str, delivery_number: Any) -> None:
    """The entry goes there, with a sound count, and comes back when its lease has run out."""
    async with open_client(broker_url) as client, open_broker(broker_url) as broker:
        await client.xadd("llm:requests", {"id": "r1", "prompt": "x"}, id="7-7")
        head = {"entry": "7-7", "lane": "normal", "consumer": "nobody", "delivery": delivery_number}
        await write(client, "1-0", json.dumps(head), "attempt")
        delivery = await take_one(broker_url, broker)
        transcript = broker.transcript("r1", publish=False, fenced=no_fence)
        assert await broker.begin(delivery, transcript, started(), publish=False) == "returned"
        ((_, owner, _, count),) = [
            tuple(item.values()) for item in await client.xpending_range("llm:requests", "llm-router", "-", "+", 5)
        ]
        assert owner == "nobody"
        assert 0 <= count <= 1000
