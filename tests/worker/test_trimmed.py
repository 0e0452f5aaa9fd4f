"""A worker dies, and its entry is trimmed before another takes it over: the request has its end all the same."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from structlog.testing import capture_logs

from llm_routerd.protocol.events import FINAL_ID
from tests.support.endings import final_of, nothing_left
from tests.support.eventually import eventually
from tests.support.fakes import FakeBackend, waits_for
from tests.support.queue import add, events_of, no_fence, open_broker, open_client, started, take_one
from tests.support.workers import DAEMON, run_worker

if TYPE_CHECKING:
    from collections.abc import Sequence

ACL = (Path(__file__).parents[2] / "systemd" / "users.acl").read_text(encoding="utf-8")


async def leave_behind(url: str, client: Any, request_id: str | None = None, *, begun: bool = True) -> str:
    """A request whose worker has died, and whose entry was trimmed; returns its entry ID."""
    async with open_broker(url, "dead") as broker:
        entry = await (add(client) if request_id is None else add(client, id=request_id))
        delivery = await take_one(url, broker)
        if begun:
            transcript = broker.transcript(request_id or entry, publish=False, fenced=no_fence)
            assert await broker.begin(delivery, transcript, started("dead"), publish=False) == "begun"
    await client.xtrim("llm:requests", maxlen=0, approximate=False)
    return entry


async def kinds_of(client: Any, request_id: str) -> list[str]:
    """The types of a request's events."""
    return [kind for _, kind, _ in await events_of(client, request_id)]


def told(logs: Sequence[Any], event: str) -> list[Any]:
    """The lines of the log with this event."""
    return [line for line in logs if line["event"] == event]


async def test_request_that_goes_by_its_entry_id_gets_its_error(broker_url: str) -> None:
    """Its subscriber is told why, an operator finds a dead letter, and the metrics count it."""
    async with open_client(broker_url) as client:
        entry = await leave_behind(broker_url, client)
        async with run_worker(broker_url, {}):
            kind, data = await final_of(client, entry)
            assert (kind, data["id"], data["code"]) == ("error", entry, "internal")
            assert "trimmed" in data["message"]
            await nothing_left(client)
        assert await kinds_of(client, entry) == ["attempt", "error"]
        ((_, letter),) = await client.xrange("llm:dead")
        assert (letter["id"], letter["entry"], letter["reason"], letter["lane"]) == (entry, entry, "internal", "normal")
        assert [event["consumer"] for event in json.loads(letter["data"])["history"]] == ["dead"]
        ((_, fields),) = await client.xrange("llm_router_metrics")
        metrics = json.loads(fields["data"])
        assert (metrics["id"], metrics["type"], metrics["code"]) == (entry, "error", "internal")


async def test_request_whose_producer_gave_an_id_gets_its_error_under_that(broker_url: str) -> None:
    """The first event of its stream says which entry it was; the streams of others are let be."""
    async with open_client(broker_url) as client:
        for number in range(300):
            await client.xadd(f"llm:events:other-{number}", {"type": "attempt", "data": "{}"}, id="1-0")
        entry = await leave_behind(broker_url, client, "order-17")
        with capture_logs() as logs:
            async with run_worker(broker_url, {}):
                kind, data = await final_of(client, "order-17")
                assert (kind, data["id"], data["code"]) == ("error", "order-17", "internal")
                await eventually(lambda: told(logs, "trimmed_request_ended"))
        (line,) = told(logs, "trimmed_request_ended")
        assert (line["id"], line["entry"], line["lane"]) == ("order-17", entry, "normal")
        assert await kinds_of(client, "order-17") == ["attempt", "error"]
        assert await client.xlen(f"llm:events:{entry}") == 0
        assert await kinds_of(client, "other-0") == ["attempt"]


async def test_request_that_nobody_began_is_ended_under_its_entry_id(broker_url: str) -> None:
    """Whether it had an id of its own nobody knows any more: the log says so, in one line."""
    with capture_logs() as logs:
        async with open_client(broker_url) as client:
            entry = await leave_behind(broker_url, client, "order-17", begun=False)
            async with run_worker(broker_url, {}):
                assert (await final_of(client, entry))[1]["code"] == "internal"
                await eventually(lambda: told(logs, "trimmed_request_ended_under_its_entry"))
                await nothing_left(client)
    (line,) = told(logs, "trimmed_request_ended_under_its_entry")
    assert (line["entry"], line["why"]) == (entry, "no events stream names it")


async def test_request_that_was_cancelled_meanwhile_has_one_end(broker_url: str) -> None:
    """What stands there stands; its entry is forgotten."""
    async with open_client(broker_url) as client:
        await leave_behind(broker_url, client, "order-17")
        await client.xadd("llm:events:order-17", {"type": "cancelled", "data": "{}"}, id=FINAL_ID)
        async with run_worker(broker_url, {}):
            await nothing_left(client)
        assert await kinds_of(client, "order-17") == ["attempt", "cancelled"]
        assert await client.xlen("llm:dead") == 0


async def test_another_entry_of_the_same_id_is_answered(broker_url: str) -> None:
    """It has taken the place of the one that is gone, whose end is not its."""
    gate = asyncio.Event()
    model = FakeBackend(waits_for(gate))
    with capture_logs() as logs:
        async with open_client(broker_url) as client:
            await leave_behind(broker_url, client, "order-17")
            async with run_worker(broker_url, {"local": model}):
                await add(client, id="order-17")
                await eventually(lambda: told(logs, "trimmed_request_ended_under_its_entry"))
                assert model.running == 1
                gate.set()
                assert (await final_of(client, "order-17"))[0] == "result"
            assert await kinds_of(client, "order-17") == ["attempt", "attempt", "result"]


async def test_living_worker_answers_a_request_whose_entry_was_trimmed(valkey_url: str) -> None:
    """However long that takes, and although another worker looks for what the dead have left."""
    gate = asyncio.Event()
    model = FakeBackend(waits_for(gate))
    async with (
        open_client(valkey_url) as client,
        run_worker(valkey_url, {"local": model}, consumer="w1"),
    ):
        entry = await add(client)
        await eventually(lambda: model.running == 1)
        await client.xtrim("llm:requests", maxlen=0, approximate=False)
        async with run_worker(valkey_url, {}, consumer="w2"):
            await asyncio.sleep(1.6 * DAEMON.lease_seconds)
            gate.set()
            assert (await final_of(client, entry))[0] == "result"
        await nothing_left(client)
        assert await client.xlen("llm:dead") == 0


async def test_request_ends_also_where_the_server_refuses_the_search(valkey_url: str) -> None:
    """An ACL of an older release knows no SCAN: the log names it."""
    with capture_logs() as logs:
        async with open_client(valkey_url) as client:
            entry = await leave_behind(valkey_url, client, "order-17")
            await client.execute_command("ACL", "SETUSER", "default", "-scan")
            try:
                async with run_worker(valkey_url, {}):
                    assert (await final_of(client, entry))[1]["code"] == "internal"
                    await eventually(lambda: told(logs, "trimmed_request_ended_under_its_entry"))
            finally:
                await client.execute_command("ACL", "SETUSER", "default", "+scan")
    (line,) = told(logs, "trimmed_request_ended_under_its_entry")
    assert line["why"].startswith("NoPermissionError")


async def test_acl_that_we_ship_allows_the_search(valkey_url: str) -> None:
    """A worker that may do what the user `daemon` may, and nothing else, finds the request."""
    rules = next(line for line in ACL.splitlines() if line.startswith("user daemon ")).split()[2:]
    async with open_client(valkey_url) as client:
        await leave_behind(valkey_url, client, "order-17")
        await client.execute_command("ACL", "SETUSER", "daemon", *rules, ">pw")
        try:
            async with run_worker(valkey_url.replace("unix://", "unix://daemon:pw@"), {}):
                assert (await final_of(client, "order-17"))[1]["code"] == "internal"
        finally:
            await client.execute_command("ACL", "DELUSER", "daemon")


async def test_published_channel_has_the_error_too(broker_url: str) -> None:
    """Whether the request asked for it is not known any more, and a subscriber who sees nothing else waits for it."""
    async with open_client(broker_url) as client, client.pubsub() as pubsub:
        await pubsub.subscribe("llm:events:order-17")
        await leave_behind(broker_url, client, "order-17")
        async with run_worker(broker_url, {}), asyncio.timeout(10):
            while True:
                message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=5)
                if message is not None and json.loads(message["data"])["id"] == FINAL_ID:
                    break
        assert json.loads(message["data"])["type"] == "error"
