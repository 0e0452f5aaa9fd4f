"""Cancelling by the client: what exists, in every form, and nothing else."""

from __future__ import annotations

import asyncio
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from llm_routerd.client import Client, as_text, look_up
from llm_routerd.client.shard import Shard
from llm_routerd.errors import BrokerError, UnknownRequestError
from llm_routerd.protocol.events import FINAL_ID

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


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


async def queue_as(client: Client, form: str) -> str:
    """Add a request as producers do, between others; returns the id under which it is answered."""
    others = [{"data": '{"id": "other", "prompt": "cancel r, please"}'}, {"prompt": "r"}]
    lane = client.keys.requests("low" if form == "low" else "normal")
    for fields in others:
        await client.redis.xadd(lane, fields)  # type: ignore[arg-type]  # redis-py's dict is invariant
    fields = {
        "data": {"data": '{"prompt": "Why?", "tools": [{"id": "other"}], "id" : "r"}'},
        "fields": {"prompt": "Why?", "id": "r"},
        "broken": {"id": "r", "data": "{"},
        "large": {"data": '{"id": "r", "prompt": "' + "x" * 2_200_000 + '"}'},
        "low": {"prompt": "Why?", "id": "r"},
        "without": {"prompt": "Why?"},
        "without, data": {"data": '{"prompt": "Why?"}'},
    }[form]
    entry = await client.redis.xadd(lane, fields)  # type: ignore[arg-type]
    for each in others:
        await client.redis.xadd(lane, each)  # type: ignore[arg-type]
    return as_text(entry) if form.startswith("without") else "r"


@pytest.mark.parametrize("form", ["data", "fields", "broken", "large", "low", "without", "without, data"])
async def test_cancel_seals_queued_request(client: Client, form: str) -> None:
    """The final event is there, whoever follows ends, and the key will go although no daemon knows of it."""
    request_id = await queue_as(client, form)
    assert (await client.look_up(request_id)).is_known
    final = await client.cancel(request_id, "changed my mind")
    assert (final.type, final.data) == ("cancelled", {"id": request_id, "reason": "changed my mind"})
    assert [(event.id, event.type, event.data) async for event in client.follow(request_id)] == [
        (FINAL_ID, "cancelled", {"id": request_id, "reason": "changed my mind"})
    ]
    assert 3500 < await client.redis.ttl(client.keys.events(request_id)) <= 3600


@pytest.mark.parametrize("request_id", ["never-was", "1795163715000-0", "please"])
async def test_what_nobody_knows_is_not_cancelled(client: Client, request_id: str) -> None:
    """A later request of that id would be dead on arrival; whoever insists gets it."""
    await queue_as(client, "fields")
    with pytest.raises(UnknownRequestError, match=f"^nothing is known of {request_id}$") as caught:
        await client.cancel(request_id)
    assert {"r", "other"} <= set(caught.value.others)
    assert not await client.redis.exists(client.keys.events(request_id))
    assert (await client.cancel(request_id, anyway=True)).type == "cancelled"
    assert 3500 < await client.redis.ttl(client.keys.events(request_id)) <= 3600


@pytest.mark.parametrize("taken_to", [FINAL_ID, "1-0"])
async def test_request_that_leaves_its_lane_while_that_is_looked_at_is_cancelled(
    client: Client, monkeypatch: pytest.MonkeyPatch, taken_to: str
) -> None:
    """A worker begins it, or has answered it: it is told what stands, and not that nothing is known."""
    look = client._look_in_lanes

    async def look_too_late(request_id: str) -> Any:
        await write(client, "r", taken_to, "result" if taken_to == FINAL_ID else "attempt", {"content": "blue"})
        return await look(request_id)

    monkeypatch.setattr(client, "_look_in_lanes", look_too_late)
    assert (await client.cancel("r")).type == ("result" if taken_to == FINAL_ID else "cancelled")


async def test_long_lane_is_looked_through_in_pages_and_within_bounds(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By number and by size; what lies beyond the bound may be there."""
    monkeypatch.setattr(look_up, "_PAGE_BYTES", 600)
    monkeypatch.setattr(look_up, "_PAGE_ENTRIES", 7)
    oldest = await client.submit(id="oldest", prompt="x" * 1000)
    for number in range(20):
        await client.submit(id=f"n{number}", prompt="x" * 100)
    assert (await client.look_up(oldest)).is_known
    sighting = await client.look_up("absent")
    assert (sighting.is_known, sighting.why_unsure, len(sighting.others)) == (False, "", 21)
    monkeypatch.setattr(look_up, "MOST_ENTRIES", 20)
    sighting = await client.look_up(oldest)
    assert (sighting.is_known, len(sighting.others)) == (False, 20)
    assert sighting.why_unsure == "it may be queued: 20 entries were looked at, and there are more"
    with pytest.raises(UnknownRequestError, match="it may be queued: 20 entries"):
        await client.cancel(oldest)


async def test_stream_that_takes_no_final_event_is_told(client: Client) -> None:
    """Somebody has written beyond its place: there is no end to wait for."""
    await write(client, "r", "9007199254740991-7", "token", {})
    with pytest.raises(BrokerError, match="cannot take a final event"):
        await client.cancel("r")


async def test_cancel_leaves_ttl_of_running_request(client: Client) -> None:
    """The daemon's TTL may be a day or a minute: it is the daemon's."""
    await write(client, "r", "1-0", "attempt", {"deployment": "local"})
    await client.redis.expire(client.keys.events("r"), 86_400)
    assert (await client.cancel("r")).type == "cancelled"
    assert await client.redis.ttl(client.keys.events("r")) > 3600


async def test_cancel_after_answer_tells_answer(client: Client) -> None:
    """The race is lost: the result stands, unchanged, and is what cancel returns."""
    await write(client, "r", FINAL_ID, "result", {"content": "blue"})
    final = await client.cancel("r")
    assert (final.type, final.data["content"]) == ("result", "blue")
    assert [event.type async for event in client.follow("r")] == ["result"]


async def test_cancel_twice_keeps_first_reason(client: Client) -> None:
    """The second one is told what stands."""
    await client.submit(id="r", prompt="Why?")
    await client.cancel("r", "one")
    assert (await client.cancel("r", "two")).data["reason"] == "one"


async def test_raw_cancel_of_the_readme_leaves_no_key_for_good(valkey_url: str) -> None:
    """Also where nobody knows the id; a life that the key has already stays as it is."""
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    block = text.partition("Cancel by writing")[2].split("```")[1]
    add, *others = [shlex.split(line) for line in block.strip().splitlines()]
    async with Client(valkey_url) as client:
        for command in (add, *others):
            await client.redis.execute_command(*command)  # type: ignore[no-untyped-call]  # redis-py
        assert 0 < await client.redis.ttl(add[1]) <= 3600
        await client.redis.expire(add[1], 60)
        for command in others:
            await client.redis.execute_command(*command)  # type: ignore[no-untyped-call]  # redis-py
        assert await client.redis.ttl(add[1]) <= 60
        await client.redis.delete(add[1])


async def test_looks_through_the_lanes_are_few_at_once(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks for ids that nobody knows would keep the server from all else: a ping took 1.3 s with 60 of them."""
    for n in range(20):
        await client.submit(id=f"r{n}", prompt="hi")
    monkeypatch.setattr(look_up, "_PAGE_ENTRIES", 5)
    under_way = most = 0
    look = Shard.look_in_lanes

    async def counted(shard: Shard, request_id: str) -> look_up.Sighting:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        try:
            return await look(shard, request_id)
        finally:
            under_way -= 1

    monkeypatch.setattr(Shard, "look_in_lanes", counted)
    found = await asyncio.gather(*(client.look_up(f"nobody-{n}") for n in range(30)))
    assert [each.is_known for each in found] == [False] * 30
    assert most == 2
