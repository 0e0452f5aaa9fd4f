"""The client of the wire protocol, on fakeredis and on a real Valkey."""

from __future__ import annotations

import asyncio
import json
import time
from importlib import resources
from typing import TYPE_CHECKING, Any

import pytest
from redis.asyncio import Redis

from llm_routerd.client import Client, ClientEvent, RequestFields
from llm_routerd.client.events import event_of
from llm_routerd.errors import BrokerError
from llm_routerd.protocol.events import FINAL_ID, Result, Token
from llm_routerd.queue.connection import pooled
from tests.support.queue import result, started
from tests.support.servers import running_valkey

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

NOWHERE = "redis://127.0.0.1:1/0"


@pytest.fixture
async def client(broker_url: str) -> AsyncIterator[Client]:
    """A client of an empty broker."""
    async with Client(broker_url) as client:
        yield client


async def write(client: Client, request_id: str, event_id: str, type_: str, data: dict[str, Any]) -> None:
    """Write one event as the daemon does."""
    fields: dict[Any, Any] = {"type": type_, "data": json.dumps(data)}
    await client.redis.xadd(client.keys.events(request_id), fields, id=event_id)
    await client.redis.expire(client.keys.events(request_id), 600)


async def write_answer(client: Client, request_id: str, content: str = "blue") -> None:
    """Write the final event of a request that succeeded."""
    await write(client, request_id, FINAL_ID, "result", {"id": request_id, "content": content, "raw_text": content})


async def read_all(client: Client, request_id: str, last_id: str = "0-0") -> list[ClientEvent]:
    """Every event of a request from `last_id` to its end."""
    async with asyncio.timeout(10):
        return [event async for event in client.follow(request_id, last_id)]


async def until(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - any condition, without an event of its own
            await asyncio.sleep(0.005)


async def requests(client: Client, lane: str = "llm:requests") -> list[dict[str, Any]]:
    """What producers added to a lane."""
    return [json.loads((fields or {})[b"data"]) for _, fields in await client.redis.xrange(lane) or []]


def test_request_fields_are_those_of_the_schema() -> None:
    """What the client lets through is what the daemon knows."""
    schema = json.loads(resources.files("llm_routerd").joinpath("schemas/request.schema.json").read_text())
    assert set(RequestFields.__annotations__) == set(schema["properties"])


@pytest.mark.parametrize(
    ("lane", "key"), [("high", "llm:requests:high"), ("normal", "llm:requests"), ("low", "llm:requests:low")]
)
async def test_submit_adds_to_its_lane(client: Client, lane: Any, key: str) -> None:
    """The request lies in the lane's stream as one JSON object, with the id that was returned."""
    request_id = await client.submit(prompt="Why?", stream=True, lane=lane)
    assert await requests(client, key) == [{"id": request_id, "prompt": "Why?", "stream": True}]


async def test_submit_keeps_given_id_and_prefix(broker_url: str) -> None:
    """An idempotency key is the producer's to choose, and the prefix names the queue."""
    async with Client(broker_url, prefix="{other}") as client:
        assert await client.submit(id="a.b:c-1", prompt="Why?") == "a.b:c-1"
        assert await requests(client, "{other}:requests") == [{"id": "a.b:c-1", "prompt": "Why?"}]


async def test_generated_ids_differ(client: Client) -> None:
    """Two requests without an id are two requests."""
    assert await client.submit(prompt="Why?") != await client.submit(prompt="Why?")


@pytest.mark.parametrize("bad", ["a b", "ä", "x" * 129, "a\n", "../x"])
async def test_bad_id_is_refused_before_redis(client: Client, bad: str) -> None:
    """Nobody could answer under such an id, so nothing is added and nothing is waited for."""
    with pytest.raises(ValueError, match="1 to 128 characters"):
        await client.submit(id=bad, prompt="Why?")
    with pytest.raises(ValueError, match="1 to 128 characters"):
        await client.cancel(bad)
    with pytest.raises(ValueError, match="1 to 128 characters"):
        await read_all(client, bad)
    assert await client.redis.dbsize() == 0


async def test_follow_yields_everything_and_ends(client: Client) -> None:
    """Events come in order while they are written; the final one is the last."""
    reading = asyncio.create_task(read_all(client, "r"))
    await write(client, "r", "1-0", "attempt", {"deployment": "local", "model": "m"})
    await write(client, "r", "1-1", "token", {"text": "bl"})
    await write(client, "r", "1-2", "token", {"text": "ue"})
    await write_answer(client, "r")
    events = await reading
    assert [(event.id, event.type) for event in events] == [
        ("1-0", "attempt"),
        ("1-1", "token"),
        ("1-2", "token"),
        (FINAL_ID, "result"),
    ]
    assert [event.data["text"] for event in events[1:3]] == ["bl", "ue"]
    assert [event.is_final for event in events] == [False, False, False, True]
    assert [event.attempt for event in events[:3]] == [1, 1, 1]


async def test_events_are_those_of_the_library(client: Client) -> None:
    """Equal to what was written, typed, and each with its place."""
    written = [started(), Token("do"), result("r")]
    for event, place in zip(written, ("1-0", "1-1", FINAL_ID), strict=True):
        await write(client, "r", place, event.type, event.data)
    events = await read_all(client, "r")
    assert events == written
    assert [event.stream_id for event in events] == ["1-0", "1-1", FINAL_ID]
    match await client.result("r"):
        case Result(answer=answer):
            assert answer.content == "done"
        case other:
            pytest.fail(f"no result: {other}")


async def test_follow_resumes_after_last_id(client: Client) -> None:
    """Nothing that was seen comes again, also when everything is over long since."""
    await write(client, "r", "1-1", "token", {"text": "a"})
    await write(client, "r", "1-2", "token", {"text": "b"})
    await write_answer(client, "r")
    assert [event.id for event in await read_all(client, "r", "1-1")] == ["1-2", FINAL_ID]
    assert await read_all(client, "r", FINAL_ID) == []


@pytest.mark.parametrize("bad", ["$", "", "x", "1-", "-1", "1-2-3"])
async def test_follow_refuses_what_is_no_stream_id(client: Client, bad: str) -> None:
    """`$` would silently lose what came before."""
    with pytest.raises(ValueError, match="stream ID"):
        await read_all(client, "r", bad)


async def test_follow_reads_transcript_longer_than_one_read(client: Client) -> None:
    """The position advances over as many reads as it takes."""
    pipe = client.redis.pipeline(transaction=False)
    for number in range(1, 1201):
        pipe.xadd(client.keys.events("r"), {"type": "token", "data": '{"text":"x"}'}, id=f"1-{number}")
    await pipe.execute()
    await write_answer(client, "r")
    assert len(await read_all(client, "r")) == 1201


@pytest.mark.parametrize("data", [b"\xff", b"not json", b"[1]", b'"text"'])
async def test_badly_written_final_event_still_ends(client: Client, data: bytes) -> None:
    """What a person cancelled by hand is over, even if the data is no JSON object."""
    await client.redis.xadd(client.keys.events("r"), {"type": "cancelled", "data": data}, id=FINAL_ID)
    [event] = await read_all(client, "r")
    assert (event.type, event.data, event.is_final) == ("cancelled", {}, True)


async def test_result_waits_for_final_event_alone(client: Client) -> None:
    """Tokens do not wake it; the result does."""
    waiting = asyncio.create_task(client.result("r", timeout_seconds=10))
    await write(client, "r", "1-1", "token", {"text": "a"})
    await write_answer(client, "r", "green")
    event = await waiting
    assert (event.type, event.data["content"]) == ("result", "green")


async def test_result_times_out(client: Client) -> None:
    """Nobody answers: TimeoutError, and the client goes on working."""
    with pytest.raises(TimeoutError):
        await client.result("r", timeout_seconds=0.05)
    assert await client.final("r") is None
    await write_answer(client, "r")
    final = await client.final("r")
    assert final is not None
    assert final.type == "result"


async def test_lanes_tell_queue_and_workers(client: Client) -> None:
    """Absent streams, streams without a group, and a worker's share."""
    assert [(lane.lane, lane.has_group, lane.waiting) for lane in await client.lanes()] == [
        ("high", False, 0),
        ("normal", False, 0),
        ("low", False, 0),
    ]
    await client.submit(prompt="1")
    await client.submit(prompt="2")
    assert (await client.lanes())[1].waiting == 2
    await client.redis.xgroup_create("llm:requests", "llm-router", id="0")
    await client.redis.xreadgroup("llm-router", "w1", {"llm:requests": ">"}, count=1)
    lane = (await client.lanes())[1]
    assert (lane.has_group, lane.waiting, lane.running, lane.workers) == (True, 1, 1, frozenset({"w1"}))


async def test_server_time_is_unix_ms(client: Client) -> None:
    """In milliseconds, about now."""
    assert abs(await client.server_time_ms() - time.time() * 1000) < 60_000


@pytest.mark.parametrize("options", [{}, {"decode_responses": True}, {"protocol": 3}, {"socket_timeout": 0.2}])
async def test_client_of_caller_is_used_and_left_open(broker_url: str, options: dict[str, Any]) -> None:
    """Whatever its decoding, protocol and timeout; a short timeout shortens the blocking read."""
    theirs = Redis.from_url(broker_url, **options)
    async with Client(theirs) as client:
        reading = asyncio.create_task(read_all(client, "r"))
        await asyncio.sleep(0.3 if "socket_timeout" in options else 0)
        await write(client, "r", "1-1", "token", {"text": "ä"})
        await write_answer(client, "r")
        assert [event.type for event in await reading] == ["token", "result"]
        assert (await client.cancel("r")).type == "result"
        assert [lane.waiting for lane in await client.lanes()] == [0, 0, 0]
    assert await theirs.ping()
    await theirs.aclose()


async def test_swallowed_cancellation_is_not_lost() -> None:
    """What Python 3.11 does within redis-py now and then: the cancelled call returns as if nothing were."""
    called = asyncio.Event()

    async def swallow() -> str:
        called.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "a reply"
        raise AssertionError

    async with Client(NOWHERE) as client:
        task = asyncio.create_task(client.patiently(swallow))
        await called.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_silent_server_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that stands and never answers is tried anew, and given up in the end."""
    monkeypatch.setattr(pooled, "REPLY_SECONDS", 0.05)
    with running_valkey() as server:
        async with Client(server.url, patience_seconds=0.2) as client, asyncio.timeout(5):
            await client.ping()
            server.freeze()
            with pytest.raises(BrokerError, match="does not answer; check whether its process is stopped"):
                await client.submit(prompt="Why?")
            server.thaw()
            assert await client.final("r") is None


async def test_wrong_type_is_no_reason_to_try_again(valkey_url: str) -> None:
    """The server refuses for good: BrokerError at once, with the key."""
    async with Client(valkey_url) as client, asyncio.timeout(5):
        await client.redis.set(client.keys.events("r"), "not a stream")
        for call in (client.cancel("r"), client.final("r"), read_all(client, "r")):
            with pytest.raises(BrokerError, match="llm:events:r is not a stream but a key of another type"):
                await call


async def test_absent_server_is_told_at_once_or_after_patience() -> None:
    """`ping` has no patience, everything else has as much as it was given."""
    async with Client(NOWHERE, patience_seconds=0.2) as client, asyncio.timeout(5):
        with pytest.raises(BrokerError):
            await client.ping()
        with pytest.raises(BrokerError):
            await client.submit(prompt="Why?")


@pytest.mark.parametrize("url", ["http://x:secret@h", "redis://u:secret@h:port/0", "redis://u:secret@h/0?db=x"])
async def test_bad_url_is_refused_without_its_password(url: str) -> None:
    """A URL that cannot be parsed is not quoted, wherever it is wrong."""
    with pytest.raises(BrokerError) as caught:
        Client(url)
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None


async def test_wrong_password_is_no_reason_to_try_again(valkey_url: str) -> None:
    """Who may not enter is told so at once."""
    url = valkey_url.replace("unix://", "unix://nobody:secret@")
    async with Client(url) as client, asyncio.timeout(5):
        with pytest.raises(BrokerError) as caught:
            await client.submit(prompt="Why?")
    assert "secret" not in str(caught.value)


async def test_follow_and_submit_survive_restart() -> None:
    """The server goes and comes back with its data: nothing is lost, seen twice or added twice."""
    with running_valkey({"appendonly": "yes", "appendfsync": "always"}) as server:
        seen: list[str] = []
        async with Client(server.url) as client:

            async def follow() -> None:
                async for event in client.follow("r"):
                    seen.append(event.id)  # noqa: PERF401 - read while it grows

            following = asyncio.create_task(follow())
            await write(client, "r", "1-1", "token", {"text": "a"})
            await until(lambda: seen == ["1-1"])
            server.kill()
            submitting = asyncio.create_task(client.submit(prompt="Why?"))
            await asyncio.sleep(0.15)
            assert not submitting.done()
            server.start()
            request_id = await submitting
            assert [request["id"] for request in await requests(client)] == [request_id]
            await write_answer(client, "r")
            await following
            assert seen == ["1-1", FINAL_ID]


def test_event_tells_whose_answer_a_result_is() -> None:
    """Only a result does; one of an older daemon, or a stranger's, tells nothing."""
    assert event_of((FINAL_ID, {"type": "result", "data": '{"attempt": 2}'})).answer_attempt == 2
    assert event_of((FINAL_ID, {"type": "result", "data": '{"attempt": "2"}'})).answer_attempt is None
    assert event_of((FINAL_ID, {"type": "result", "data": "{}"})).answer_attempt is None
    assert event_of((FINAL_ID, {"type": "error", "data": '{"attempt": 2}'})).answer_attempt is None


_LARGE = {"a": 2**64, "b": [-(2**63) - 1, 1], "c": {"d": 10**30}}


async def test_metadata_is_returned_untouched(client: Client) -> None:
    """Integers beyond 64 bits included, there and back, of a result and of an error."""
    for kind in ("result", "error"):
        request_id = await client.submit(id=kind, prompt="Why?", metadata=_LARGE)
        (request,) = [each for each in await requests(client) if each["id"] == request_id]
        assert request["metadata"] == _LARGE
        await write(client, request_id, FINAL_ID, kind, {"metadata": request["metadata"]})
        final = await client.final(request_id)
        assert final is not None
        assert repr(final.data["metadata"]) == repr(_LARGE)
        assert [event.data for event in await read_all(client, request_id)] == [final.data]


@pytest.mark.parametrize(
    "metadata", [{"a": b"x", "b": 2**70}, {"a": {1}, "b": 2**70}, {"a": object()}, {"a": 2**64, "b": object()}]
)
async def test_metadata_that_is_not_json_is_refused(client: Client, metadata: dict[str, Any]) -> None:
    """Large integers or not."""
    with pytest.raises(TypeError):
        await client.submit(prompt="Why?", metadata=metadata)
    assert await client.redis.dbsize() == 0


@pytest.mark.parametrize("metadata", ["1e300", "[1e300]", '{"a": ' + "[" * 950 + "1e300" + "]" * 950 + "}"])
def test_metadata_of_strangers_is_read_all_the_same(metadata: str) -> None:
    """No daemon writes such; whoever may cancel may."""
    event = event_of((FINAL_ID.encode(), {b"type": b"result", b"data": f'{{"metadata": {metadata}}}'.encode()}))
    assert "metadata" in event.data
