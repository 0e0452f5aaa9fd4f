"""A producer adds with an ID of his own, far ahead of the clock: he gets his answer, and stops nobody."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis
from msgspec.structs import replace
from structlog.testing import capture_logs

from llm_routerd.accounting.gauges import Gauges
from llm_routerd.protocol.events import FINAL_ID
from llm_routerd.queue.mending import mend
from tests.support.endings import final_of, nothing_left
from tests.support.eventually import eventually
from tests.support.fakes import FakeBackend, says, waits_for
from tests.support.queue import add, open_broker, open_client, take
from tests.support.workers import DAEMON, make_config, make_test_admission, run_worker

if TYPE_CHECKING:
    from llm_routerd.worker.worker import Worker

ACL = (Path(__file__).parents[2] / "systemd" / "users.acl").read_text(encoding="utf-8")
LANE = "llm:requests"
LAST = "18446744073709551615-18446744073709551615"
NEXT_TO_LAST = "18446744073709551615-18446744073709551614"


async def add_when_possible(client: Any) -> str:
    """XADD as a producer does who tries again; fails where the lane is stopped for good."""
    async with asyncio.timeout(5):
        while True:
            try:
                return await add(client)
            except redis.ResponseError:
                await asyncio.sleep(0.01)


def mended(worker: Worker) -> int:
    """How many streams it has made anew."""
    page = worker.metrics.render_prometheus(Gauges())
    (line,) = (line for line in page.splitlines() if line.startswith("llm_routerd_streams_mended_total "))
    return int(line.rpartition(" ")[2])


async def test_entry_that_gave_way_may_come_back_while_its_lane_is_still_being_mended(
    broker_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over a slow link the worker's own claim takes it before: it is answered at once, and not after a lease."""
    gate = asyncio.Event()

    async def slow(*args: Any) -> Any:
        await gate.wait()
        return await mend(*args)

    monkeypatch.setattr("llm_routerd.worker.mending.mend", slow)
    # So long that no renewal falls between: it would find the entry handed back, and begin it anew by itself.
    config = make_config(daemon=replace(DAEMON, lease_seconds=20.0))
    async with (
        open_client(broker_url) as client,
        run_worker(broker_url, {"local": FakeBackend(says("x"))}, config=config) as worker,
    ):
        leases = worker.shards[0]._leases
        await eventually(lambda: leases._steady_since > leases._renewed_at > 0)  # the first tick has renewed
        with capture_logs() as logs:
            await client.xadd(LANE, {"prompt": "hello"}, id="99999999999999-0")
            await eventually(lambda: {"request_from_ahead", "request_claimed"} <= {line["event"] for line in logs})
        assert worker.in_flight == 1
        gate.set()
        async with asyncio.timeout(1):
            assert (await final_of(client, "99999999999999-0"))[0] == "result"


@pytest.mark.parametrize("entry", [LAST, "99999999999999-0"])
async def test_request_from_ahead_is_answered_where_its_producer_waits(broker_url: str, entry: str) -> None:
    """Once, while others are added behind it; it costs no crash, and its wait is no absurd figure."""
    backend = FakeBackend(says("x"))
    with capture_logs() as logs:
        async with open_client(broker_url) as client, run_worker(broker_url, {"local": backend}) as worker:
            await client.xadd(LANE, {"prompt": "hello"}, id=entry)
            behind = await add_when_possible(client)
            kind, data = await final_of(client, entry)
            assert (kind, data["id"]) == ("result", entry)
            assert 0 <= data["queue_ms"] < 10_000
            assert (await final_of(client, behind))[0] == "result"
            await eventually(lambda: mended(worker) == 1)
            assert int((await add(client)).partition("-")[0]) < 10**13
            await eventually(lambda: len(backend.calls) == 3 and not worker.in_flight)
            await nothing_left(client)
    (line,) = (line for line in logs if line["event"] == "stream_mended")
    assert (line["key"], line["last_id"].partition("-")[0]) == (LANE, entry.partition("-")[0])
    assert "whoever may add" in line["why"]


async def test_how_far_ahead_is_too_far_follows_a_reload(valkey_url: str) -> None:
    """What is handed back is what is then mended."""
    config = make_config(valkey_url, daemon=replace(DAEMON, result_ttl_seconds=3600))
    backends = {"local": FakeBackend(says("x"))}
    with capture_logs() as logs:
        async with open_client(valkey_url) as client, run_worker(valkey_url, backends) as worker:
            worker.reload(config, make_test_admission(config, backends))
            entry = await client.xadd(LANE, {"prompt": "x"}, id=f"{(await client.time())[0] + 600}000-0")
            assert (await final_of(client, entry))[0] == "result"
    assert [line for line in logs if line["event"] == "request_from_ahead"] == []


async def test_lane_is_mended_while_an_answer_from_before_is_under_way(broker_url: str) -> None:
    """The producers behind do not wait for it, and it is not asked for twice."""
    gate = asyncio.Event()
    backend = FakeBackend(waits_for(gate), says("x"))
    async with open_client(broker_url) as client, run_worker(broker_url, {"local": backend}) as worker:
        slow = await add(client)
        await eventually(lambda: backend.running == 1)
        await client.xadd(LANE, {"prompt": "hello"}, id=NEXT_TO_LAST)
        await client.xadd(LANE, {"prompt": "hello"}, id=LAST)
        behind = await add_when_possible(client)
        for request_id in (NEXT_TO_LAST, LAST, behind):
            assert (await final_of(client, request_id))[0] == "result"
        gate.set()
        assert (await final_of(client, slow))[0] == "result"
        assert len(backend.calls) == 4
        await eventually(lambda: not worker.in_flight)
        await nothing_left(client)


async def test_entry_that_is_under_way_is_answered_and_the_lane_mended_after_it(broker_url: str) -> None:
    """A worker of an older release had begun it, and died: it keeps its ID."""
    async with open_client(broker_url) as client, open_broker(broker_url, "dead") as dead:
        await client.xadd(LANE, {"prompt": "hello"}, id=LAST)
        assert await take(broker_url, dead)
        backend = FakeBackend(says("x"))
        with capture_logs() as logs:
            async with run_worker(broker_url, {"local": backend}):
                assert (await final_of(client, LAST))[0] == "result"
                behind = await add_when_possible(client)
                assert (await final_of(client, behind))[0] == "result"
        assert len(backend.calls) == 2
    events = [line["event"] for line in logs]
    assert events.index("stream_ahead_of_clock") < events.index("stream_mended")
    assert events.count("stream_ahead_of_clock") == 1


async def test_malformed_request_from_ahead_is_told_so_where_its_producer_waits(broker_url: str) -> None:
    """And is kept as any other."""
    async with open_client(broker_url) as client, run_worker(broker_url, {}):
        await client.xadd(LANE, {"promt": "hello"}, id=LAST)
        kind, data = await final_of(client, LAST)
        assert (kind, data["code"]) == ("error", "invalid_request")
        await nothing_left(client)
        assert len(await client.xrange("llm:dead")) == 1


async def test_dead_letters_and_metrics_that_take_nothing_more_stand_in_nobodys_way(broker_url: str) -> None:
    """Answers and errors stand at once; the streams are mended, and have what comes after."""
    async with open_client(broker_url) as client:
        for key in ("llm:dead", "llm_router_metrics"):
            await client.xadd(key, {"data": "{}"}, id=LAST)
        async with run_worker(broker_url, {"local": FakeBackend(says("x"))}) as worker:
            assert (await final_of(client, await add(client)))[0] == "result"
            assert (await final_of(client, await client.xadd(LANE, {"promt": "x"})))[0] == "error"
            await eventually(lambda: mended(worker) == 2)
            again = await client.xadd(LANE, {"promt": "x"})
            await final_of(client, again)
            await nothing_left(client)
            assert worker.status().ready
        letters = [fields.get("entry") for _, fields in await client.xrange("llm:dead")]
        assert letters[-1] == again
        told = [json.loads(fields["data"]).get("id") for _, fields in await client.xrange("llm_router_metrics")]
        assert told[-1] == again


async def test_cancelled_request_ends_where_the_metrics_take_nothing(broker_url: str) -> None:
    """What cannot be told is in the log; no task dies of it, and the request is not given up."""
    backend = FakeBackend(waits_for(asyncio.Event()))
    with capture_logs() as logs:
        async with open_client(broker_url) as client, run_worker(broker_url, {"local": backend}) as worker:
            entry = await add(client)
            await eventually(lambda: backend.running == 1)
            await client.set("llm_router_metrics", "mine")
            await client.xadd(f"llm:events:{entry}", {"type": "cancelled", "data": "{}"}, id=FINAL_ID)
            await eventually(lambda: not worker.in_flight)
            assert await client.xlen(LANE) == 0
    events = [line["event"] for line in logs]
    assert "metrics_refused" in events
    assert not {"redis_refused", "request_failed"} & set(events)


async def test_acl_that_we_ship_allows_the_mending(valkey_url: str) -> None:
    """A worker that may do what the user `daemon` may, and nothing else, mends a lane, the dead letters, the metrics."""
    rules = next(line for line in ACL.splitlines() if line.startswith("user daemon ")).split()[2:]
    async with open_client(valkey_url) as client:
        await client.execute_command("ACL", "SETUSER", "daemon", *rules, ">pw")
        try:
            for key in (LANE, "llm:dead", "llm_router_metrics"):
                await client.xadd(key, {"prompt": "hello"}, id=LAST)
            backend = FakeBackend(says("x"))
            async with run_worker(
                valkey_url.replace("unix://", "unix://daemon:pw@"), {"local": backend}, until_ready=False
            ) as worker:
                await eventually(lambda: mended(worker) == 3)
                assert (await final_of(client, LAST))[0] == "result"
        finally:
            await client.execute_command("ACL", "DELUSER", "daemon")
