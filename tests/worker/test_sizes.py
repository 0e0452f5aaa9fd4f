"""Entries that are longer than a request may be: each is refused, and none is in the way of another."""

from __future__ import annotations

import asyncio
import hashlib
import json
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
from msgspec.structs import replace

from llm_routerd.protocol.cut import CutList
from llm_routerd.protocol.events import FINAL_ID
from llm_routerd.protocol.keys import GROUP
from llm_routerd.protocol.schema_files import load_schema
from llm_routerd.queue import reader
from llm_routerd.queue.connection import pipe
from tests.support.endings import final_of, nothing_left
from tests.support.fakes import FakeBackend, says
from tests.support.proxy import open_proxy
from tests.support.queue import add, open_broker, open_client, open_reader, two_workers
from tests.support.schemas import closed
from tests.support.servers import running_valkey
from tests.support.workers import DAEMON, make_config, make_test_admission, run_worker

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_routerd.queue.deliveries import Delivery

# The tests' workers take 65,536 bytes, and a reply of more than four times as many is skimmed.
BIG = 400_000
SCHEMA = closed(load_schema("dead-letter"))


def text(number: int) -> str:
    """A long text, unlike the others."""
    return chr(97 + number) * BIG


async def letter_of(client: Any, request_id: str) -> dict[str, Any]:
    """What the dead letter of a request holds."""
    letters = [fields for _, fields in await client.xrange("llm:dead") if fields["id"] == request_id]
    (letter,) = letters
    data: dict[str, Any] = json.loads(letter["data"])
    jsonschema.validate({**letter, "data": data}, SCHEMA)
    return data


async def refused(client: Any, request_id: str) -> str:
    """The words in which a request was refused for its length."""
    kind, data = await final_of(client, request_id)
    assert (kind, data["code"]) == ("error", "request_too_large")
    return str(data["message"])


def is_cut(deliveries: Sequence[Delivery]) -> list[bool]:
    """Which of them are."""
    return [isinstance(delivery.fields, CutList) for delivery in deliveries]


async def test_long_entries_among_others_are_refused_and_the_others_answered(broker_url: str) -> None:
    """All in one reply; the letters tell the true sizes and hashes."""
    async with open_client(broker_url) as client:
        for number in range(4):
            await client.xadd("llm:requests", {"prompt": text(number), "id": f"big{number}"})
            await client.xadd("llm:requests", {"data": json.dumps({"id": f"json{number}", "prompt": text(number)})})
            await add(client, id=f"small{number}")
        async with run_worker(broker_url, {"local": FakeBackend(says("hi"))}):
            for number in range(4):
                assert (await final_of(client, f"small{number}"))[0] == "result"
                message = await refused(client, f"big{number}")
                assert message == f"$: {BIG + 12} bytes, more than the 65536 that are accepted"
                await refused(client, f"json{number}")
                told = await letter_of(client, f"big{number}")
                assert told["fields"] == {"prompt": text(number)[:4096], "id": f"big{number}"}
                digest = hashlib.sha256(text(number).encode()).hexdigest()
                assert told["cut"] == {
                    "bytes": BIG + 12,
                    "values": {"prompt": {"bytes": BIG, "sha256": digest}},
                    "omitted_fields": 0,
                }
            await nothing_left(client)


@pytest.mark.parametrize("count", [5_000, 30_000])
async def test_entry_of_very_many_fields_is_refused_under_its_id(broker_url: str, count: int) -> None:
    """Though each is short, and the id comes last; whether the reply is skimmed or not."""
    fields = {f"f{number}": "" for number in range(count)} | {"id": "many"}
    async with open_client(broker_url) as client, run_worker(broker_url, {"local": FakeBackend(says("hi"))}):
        await client.xadd("llm:requests", fields)
        assert await refused(client, "many") == f"$: {count + 1} fields, more than the 4096 that are accepted"
        told = await letter_of(client, "many")
        assert (len(told["fields"]), told["cut"]["omitted_fields"]) == (64, count + 1 - 64)
        assert (await final_of(client, await add(client)))[0] == "result"


async def test_field_with_a_long_name_is_refused(broker_url: str) -> None:
    """The letter has its beginning."""
    async with open_client(broker_url) as client, run_worker(broker_url, {"local": FakeBackend(says("hi"))}):
        await client.xadd("llm:requests", {text(0): "1", "id": "named"})
        assert f"{BIG + 8} bytes" in await refused(client, "named")
        assert (await letter_of(client, "named"))["fields"] == {text(0)[:256]: "1", "id": "named"}


async def test_long_entries_of_a_dead_worker_are_refused(valkey_url: str) -> None:
    """They come through the pipe, among the replies to all else."""
    async with open_client(valkey_url) as client:
        await client.xgroup_create("llm:requests", GROUP, "0", mkstream=True)
        for number in range(3):
            await client.xadd("llm:requests", {"prompt": text(number), "id": f"big{number}"})
        await client.xreadgroup(GROUP, "dead", {"llm:requests": ">"})
        async with run_worker(valkey_url, {"local": FakeBackend(says("hi"))}):
            for number in range(3):
                await refused(client, f"big{number}")
                assert (await letter_of(client, f"big{number}"))["cut"]["bytes"] == BIG + 12
            await nothing_left(client)


async def test_long_events_of_others_keep_no_request_from_its_end(broker_url: str) -> None:
    """Whoever may cancel may write any event: one before the first attempt, a final one, one amid a poisoned request."""
    async with open_client(broker_url) as client:
        await client.xgroup_create("llm:requests", GROUP, "0", mkstream=True)
        await client.xadd("llm:events:begun", {"type": "attempt", "data": text(0)}, id="1-0")
        await client.xadd("llm:events:sealed", {"type": text(0), "data": text(1)}, id=FINAL_ID)
        await client.xadd("llm:events:poisoned", {text(2): text(3), "type": "attempt", "data": "{}"}, id="1-0")
        poisoned = await add(client, id="poisoned")
        await client.xreadgroup(GROUP, "dead", {"llm:requests": ">"})
        await client.xclaim("llm:requests", GROUP, "dead", 0, [poisoned], retrycount=9)
        await add(client, id="begun")
        await add(client, id="sealed")
        async with run_worker(broker_url, {"local": FakeBackend(says("hi"))}) as worker:
            assert (await final_of(client, "begun"))[0] == "result"
            worker.shards[0]._intake.receive((await worker.shards[0].broker.claim_of("dead", count=1)).deliveries)
            assert (await final_of(client, "poisoned"))[1]["code"] == "poisoned"
            assert (await letter_of(client, "poisoned"))["history"] == [{"event": "1-0"}]
            await nothing_left(client)


async def test_after_a_long_entry_one_is_read_at_a_time(broker_url: str) -> None:
    """Redis builds a reply whole; as they are short again, reads bring more again."""
    async with (
        open_client(broker_url) as client,
        open_broker(broker_url) as broker,
        open_reader(broker_url, broker) as reading,
    ):
        reading._factory.most_entry_bytes = 65_536
        await reading.read(9)
        for number in range(5):
            await client.xadd("llm:requests", {"prompt": text(number)})
        for _ in range(8):
            await add(client)
        found = [is_cut(await reading.read(9)) for _ in range(6)]
        assert found == [[True] * 3, [True], [True], [False], [False] * 2, [False] * 4]


async def test_claims_end_with_the_entry_that_makes_a_reply_long(valkey_url: str) -> None:
    """Each is claimed once, and those behind it by the next call; one's own all the same."""
    long = 9_000_000
    async with two_workers(valkey_url) as (client, broker, other):
        for number in range(5):
            await client.xadd("llm:requests", {"prompt": chr(97 + number) * long})
        await client.xreadgroup(GROUP, "w1", {"llm:requests": ">"}, count=5)
        own = (await broker.claim_of("w1", count=10)).deliveries
        assert (len(own), len({each.entry for each in own})) == (5, 5)
        assert [each.claimed for each in own] == [False] * 5
        await asyncio.sleep(broker.limits.lease_ms / 1000)
        claims = [(await other.claim(room=10)).deliveries for _ in range(3)]
        assert [len(claim) for claim in claims] == [2, 2, 1]
        assert [each.entry for claim in claims for each in claim] == [each.entry for each in own]
        await client.xgroup_delconsumer("llm:requests", GROUP, "w2")
        orphans = await broker.find_orphans("normal")
        taken = await broker.take_orphans("normal", orphans, seen_for_ms=60_000)
        assert [each.entry for each in taken] == orphans == [each.entry for each in own]


async def test_limit_that_is_raised_holds_for_connections_that_stand(broker_url: str) -> None:
    """A reload is enough."""
    config = make_config()
    async with (
        open_client(broker_url) as client,
        run_worker(broker_url, {"local": FakeBackend(says("hi"), says("hi"))}, config=config) as worker,
    ):
        await client.xadd("llm:requests", {"prompt": text(0), "id": "before"})
        await refused(client, "before")
        larger = make_config(broker_url, daemon=replace(DAEMON, max_request_bytes=1_000_000))
        backends = {"local": FakeBackend(says("hi"))}
        worker.reload(larger, make_test_admission(larger, backends))
        await client.xadd("llm:requests", {"prompt": text(0), "id": "after"})
        assert (await final_of(client, "after"))[0] == "result"


async def test_slow_link_is_no_silent_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long reply takes as long as it takes, on either connection, if only it comes."""
    monkeypatch.setattr(pipe, "BATCH_SECONDS", 0.3)
    monkeypatch.setattr(reader, "BLOCK_MS", 50)
    monkeypatch.setattr(reader, "GRACE_SECONDS", 0.3)
    with running_valkey(tcp=True) as server:
        async with open_client(server.url) as client, open_proxy(server.port) as proxy:
            await client.xgroup_create("llm:requests", GROUP, "0", mkstream=True)
            await client.xadd("llm:requests", {"prompt": text(0) * 3, "id": "claimed"})
            await client.xreadgroup(GROUP, "dead", {"llm:requests": ">"})
            await client.xadd("llm:requests", {"prompt": text(1) * 3, "id": "read"})
            config = make_config(daemon=replace(DAEMON, lease_seconds=30.0))
            proxy.piece_seconds = 0.04
            async with run_worker(proxy.url, {"local": FakeBackend(says("hi"))}, config=config) as worker:
                await refused(client, "read")
                claiming = asyncio.create_task(worker.shards[0].broker.claim_of("dead", count=1))
                worker.shards[0]._intake.receive((await claiming).deliveries)
                await refused(client, "claimed")
                assert proxy.connections == 2


async def test_reader_that_is_stopped_does_not_wait_for_the_end_of_a_long_reply(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It has as long as any reply, and not as long as that one takes; what it brings stays pending, and is handed back."""
    monkeypatch.setattr(reader, "BLOCK_MS", 50)
    monkeypatch.setattr(reader, "GRACE_SECONDS", 0.3)
    with running_valkey(tcp=True) as server:
        async with open_client(server.url) as client, open_proxy(server.port) as proxy:
            await client.xgroup_create("llm:requests", GROUP, "0", mkstream=True)
            await client.xadd("llm:requests", {"prompt": text(0) * 20})
            async with open_broker(server.url) as broker, open_reader(proxy.url, broker) as reading:
                reading._factory.most_entry_bytes = 65_536
                await reading.read(9)
                proxy.piece_seconds = 0.1
                task = asyncio.create_task(reading.read(9))
                async with asyncio.timeout(5):
                    while not (await client.xpending("llm:requests", GROUP))["pending"]:  # noqa: ASYNC110
                        await asyncio.sleep(0.01)
                await reading.stop()
                async with asyncio.timeout(2):
                    assert await task == []
                assert await broker.hand_everything_back() == 1
