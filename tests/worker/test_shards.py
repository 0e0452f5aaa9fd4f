"""A worker that serves several shards."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace
from structlog.contextvars import clear_contextvars, merge_contextvars
from structlog.testing import capture_logs

from llm_routerd.protocol.events import FINAL_ID
from llm_routerd.protocol.keys import GROUP, HANDED_BACK, Layout
from llm_routerd.queue.connection import PipeState
from llm_routerd.worker.places import Capacity, Places
from tests.support.eventually import eventually
from tests.support.fakes import FakeBackend, hangs, says, waits_for
from tests.support.queue import open_client
from tests.support.servers import running_valkey
from tests.support.workers import DAEMON, make_config, make_test_admission, run_worker

if TYPE_CHECKING:
    from llm_routerd.config.tree import Config

LAYOUT = Layout("llm", 4)


def sharded(concurrency: int = 8, **redis: Any) -> Config:
    """Four shards, unless told otherwise."""
    config = make_config(daemon=replace(DAEMON, concurrency=concurrency))
    return replace(config, redis=replace(config.redis, **({"shards": 4} | redis)))


async def submit(client: Any, request_id: str, layout: Layout = LAYOUT, lane: str = "") -> str:
    """Add a request where it belongs."""
    key = layout.keys_of(request_id).requests("normal") + lane
    entry: str = await client.xadd(key, {"data": json.dumps({"id": request_id, "prompt": "hello"})})
    return entry


async def final_in(client: Any, prefix: str, request_id: str) -> dict[str, Any]:
    """The final event of a request in a shard."""
    key = f"{prefix}:events:{request_id}"
    for _ in range(500):
        if found := await client.xrange(key, FINAL_ID, FINAL_ID):
            ((_, fields),) = found
            return {"type": fields["type"], **json.loads(fields["data"])}
        await asyncio.sleep(0.02)
    raise AssertionError("there is no final event")


async def test_requests_of_all_shards_are_answered_each_in_its_slot(valkey_url: str) -> None:
    """Nothing is left in the lanes, and each shard's metrics stand beside it."""
    ids = [f"r{number}" for number in range(24)]
    async with (
        open_client(valkey_url) as client,
        run_worker(valkey_url, {"local": FakeBackend(says("hi"))}, config=sharded()),
    ):
        for request_id in ids:
            await submit(client, request_id)
        for request_id in ids:
            final = await final_in(client, LAYOUT.keys_of(request_id).prefix, request_id)
            assert final["type"] == "result"
        counts = [await client.xlen(LAYOUT.metrics_channel(shard, "llm_router_metrics")) for shard in range(4)]
        assert counts == [sum(LAYOUT.shard_of(each) == shard for each in ids) for shard in range(4)]
        assert sum(counts) == len(ids)
        assert [await client.xlen(keys.requests("normal")) for keys in LAYOUT.keys] == [0] * 4
        assert not await client.exists("llm:requests", "llm_router_metrics")


async def test_request_in_another_shard_than_its_own_is_refused_there(valkey_url: str) -> None:
    """Whoever put it there looks for its events there."""
    async with (
        open_client(valkey_url) as client,
        run_worker(valkey_url, {"local": FakeBackend(says("hi"))}, config=sharded()),
    ):
        await client.xadd("{llm:1}:requests", {"id": "a", "prompt": "hello"})
        final = await final_in(client, "{llm:1}", "a")
        assert (final["code"], "{llm:3}:requests" in final["message"]) == ("invalid_request", True)
        assert await client.xlen("{llm:1}:dead") == 1


async def test_request_without_an_id_is_answered_where_it_was_put(valkey_url: str) -> None:
    """By its entry's ID, whatever shard that would be in."""
    async with (
        open_client(valkey_url) as client,
        run_worker(valkey_url, {"local": FakeBackend(says("hi"))}, config=sharded()),
    ):
        for keys in LAYOUT.keys:
            entry = await client.xadd(keys.requests("normal"), {"prompt": "hello"})
            assert (await final_in(client, keys.prefix, entry))["type"] == "result"


async def test_worker_serves_the_shards_that_it_is_told_and_no_other(valkey_url: str) -> None:
    """The others are another's."""
    config = sharded(serve=(3,))
    async with (
        open_client(valkey_url) as client,
        run_worker(valkey_url, {"local": FakeBackend(says("hi"))}, config=config),
    ):
        await submit(client, "123456789")  # shard 3
        await submit(client, "r2")
        assert LAYOUT.shard_of("r2") != 3
        assert (await final_in(client, "{llm:3}", "123456789"))["type"] == "result"
        await asyncio.sleep(0.1)
        assert await client.xlen(LAYOUT.keys_of("r2").requests("normal")) == 1
        assert not await client.exists("{llm:0}:workers")


async def test_what_stands_in_the_layout_before_is_answered_while_the_new_one_fills(valkey_url: str) -> None:
    """Both of one queue, and from two shards to four."""
    before, plain = Layout("llm", 2), Layout("llm", 1)
    async with open_client(valkey_url) as client:
        ids = [f"r{number}" for number in range(12)]
        for layout in (plain, before, LAYOUT):
            for request_id in ids:
                await submit(client, f"{request_id}-{layout.shards}", layout)
        async with run_worker(valkey_url, {"local": FakeBackend(says("hi"))}, config=sharded(draining=(1, 2))):
            for layout in (plain, before, LAYOUT):
                for each in ids:
                    request_id = f"{each}-{layout.shards}"
                    final = await final_in(client, layout.keys_of(request_id).prefix, request_id)
                    assert final["type"] == "result"


async def test_same_id_in_two_layouts_is_one_request_only_where_both_have_it_in_one_shard(valkey_url: str) -> None:
    """`{llm:1}` is a shard of two and of four: half of all ids stay where they were when a queue is doubled."""
    before, model = Layout("llm", 2), FakeBackend(says("hi"))
    stays = [each for each in (f"r{number}" for number in range(40)) if before.keys_of(each) == LAYOUT.keys_of(each)]
    moves = [each for each in (f"r{number}" for number in range(40)) if each not in stays]
    async with (
        open_client(valkey_url) as client,
        run_worker(valkey_url, {"local": model}, config=sharded(draining=(2,))),
    ):
        for request_id in (*stays[:4], *moves[:4]):
            for layout in (before, LAYOUT):
                await submit(client, request_id, layout)
                final = await final_in(client, layout.keys_of(request_id).prefix, request_id)
                assert final["type"] == "result"
        await submit(client, "last")
        await final_in(client, LAYOUT.keys_of("last").prefix, "last")
        assert len(model.calls) == 4 + 8 + 1
        assert 10 <= len(stays) <= 30


async def test_shards_share_the_places_of_their_worker(valkey_url: str) -> None:
    """However many of them have requests, no more are taken than there are places, and none goes without."""
    model = FakeBackend(hangs())
    config = sharded(concurrency=6)
    async with open_client(valkey_url) as client:
        for number in range(60):
            await submit(client, f"r{number}")
        async with run_worker(valkey_url, {"local": model}, config=config):
            await eventually(lambda: len(model.calls) >= 6)
            await asyncio.sleep(0.2)  # one that each neighbour has read meanwhile is in flight, and waits for its place
            assert 6 <= len(model.calls) <= 8  # as with one shard, two that crossed may be above


async def test_one_busy_shard_may_have_all_places(valkey_url: str) -> None:
    """What its neighbours wait for is kept from nobody."""
    model = FakeBackend(hangs())
    ids = [each for each in (f"r{number}" for number in range(200)) if LAYOUT.shard_of(each) == 2][:8]
    async with open_client(valkey_url) as client, run_worker(valkey_url, {"local": model}, config=sharded()) as worker:
        await asyncio.sleep(0.3)  # all of them wait
        for request_id in ids:
            await submit(client, request_id)
        await eventually(lambda: worker.in_flight == len(ids) == 8)


async def test_busy_shard_does_not_starve_its_neighbours(valkey_url: str) -> None:
    """With one place: of twelve in one shard and one in another that one is not the last."""
    order: list[tuple[float, str]] = []
    layout = Layout("llm", 2)
    ids = [f"r{number}" for number in range(100)]
    busy = [each for each in ids if layout.shard_of(each) == 0][:12]
    alone = next(each for each in ids if layout.shard_of(each) == 1)
    config = sharded(concurrency=1, shards=2)
    async with open_client(valkey_url) as client:
        for request_id in busy:
            await submit(client, request_id, layout)
        await submit(client, alone, layout)
        async with run_worker(valkey_url, {"local": FakeBackend(says("hi", delay=0.03))}, config=config):
            for request_id in (*busy, alone):
                await final_in(client, layout.keys_of(request_id).prefix, request_id)
        for shard in range(2):
            for _, fields in await client.xrange(layout.metrics_channel(shard, "llm_router_metrics")):
                told = json.loads(fields["data"])
                order.append((told["timestamp"], told["id"]))
        position = [request_id for _, request_id in sorted(order)].index(alone)
        assert position <= 4


async def test_lines_of_the_log_name_the_shard(valkey_url: str) -> None:
    """Where there are several."""
    clear_contextvars()
    config = sharded(serve=(1,))
    with capture_logs(processors=[merge_contextvars]) as logs:
        async with (
            open_client(valkey_url) as client,
            run_worker(valkey_url, {"local": FakeBackend(says("hi"))}, config=config),
        ):
            await client.xadd("{llm:1}:requests", {"id": "a", "prompt": "hello"})
            await final_in(client, "{llm:1}", "a")
    assert {line.get("shard") for line in logs if line["event"] in {"redis_ready", "request_finished"}} == {"{llm:1}"}


async def test_what_is_being_read_takes_the_place_of_other_reads_until_it_waits() -> None:
    """So that two shards that look at once do not bring twice what there is room for."""
    capacity = Capacity(concurrency=4, taken=lambda: 1)
    one, other = Places(capacity), Places(capacity)
    with one.reads(3):
        assert (other.free_to_read(), other.free()) == (0, 3)
        one.waits()
        assert other.free_to_read() == 3
        with other.reads(2):
            assert one.free_to_read() == 1
    assert (one.free_to_read(), capacity.reading) == (3, 0)


async def test_places_are_given_by_turns() -> None:
    """A shard that is served goes to the end of the queue; one that cannot read keeps nobody waiting."""
    taken = [2]
    capacity = Capacity(concurrency=2, taken=lambda: taken[0])
    one, two = Places(capacity), Places(capacity)
    turns = [asyncio.ensure_future(places.turn()) for places in (one, two)]
    await asyncio.sleep(0)
    taken[0] = 1
    capacity.changed()
    await asyncio.gather(*turns)
    assert (one.free_to_read(), two.free_to_read()) == (1, 0)
    one.pass_over()
    assert two.free_to_read() == 1
    with two.reads(1):
        assert one.free_to_read() == 0


async def test_read_that_redis_does_not_answer_keeps_no_places() -> None:
    """A server that stands still is the trouble of its shard alone."""
    capacity = Capacity(concurrency=4, taken=lambda: 0)
    one, other = Places(capacity), Places(capacity)
    with one.reads(4):
        assert other.free_to_read() == 0
        await eventually(lambda: other.free_to_read() == 4)


async def test_few_requests_may_wait_for_a_place_and_the_others_are_handed_back() -> None:
    """One of each lane of each other shard, in their order; one that is stopped meanwhile waits no more."""
    taken = [4]
    capacity = Capacity(concurrency=2, taken=lambda: taken[0])
    places = Places(capacity)
    assert places.keep() is None  # one shard has no others
    Places(capacity)
    first, second, third = (places.keep() for _ in range(3))
    assert first is not None
    assert second is not None
    assert third is not None
    assert places.keep() is None
    taken[0] = 5  # these three, and two that run
    first.cancel()
    await asyncio.sleep(0)
    taken[0] = 3  # that one has gone, and one of those that run
    capacity.changed()
    assert (second.done(), third.done()) == (True, False)
    taken[0] = 1
    capacity.changed()
    assert third.done()


async def test_burst_on_all_shards_at_once_leaves_nothing_behind(valkey_url: str) -> None:
    """What crossed is neither lost nor handed about: all are answered long before the next tick would take it up."""
    config = sharded(concurrency=4)
    model = FakeBackend(says("hi", delay=0.005))
    with capture_logs() as logs:
        async with open_client(valkey_url) as client, run_worker(valkey_url, {"local": model}, config=config) as worker:
            for round_ in range(3):
                ids = [f"b{round_}-{number}" for number in range(40)]
                pipeline = client.pipeline(transaction=False)  # one connection: a test's server takes few at once
                for each in ids:
                    await submit(pipeline, each)
                await pipeline.execute()
                for each in ids:
                    final = await final_in(client, LAYOUT.keys_of(each).prefix, each)
                    assert final["type"] == "result"
            await eventually(lambda: worker.in_flight == 0)
    assert [line for line in logs if line["event"] == "request_claimed"] == []


@pytest.mark.parametrize("how", ["away", "full"])
async def test_shard_that_cannot_be_served_keeps_no_place_for_what_it_was_to_take_over(
    valkey_url: str, how: str
) -> None:
    """With one place, which its neighbour needs: nobody knows how long that server is away, or full."""
    layout, gate = Layout("llm", 2), asyncio.Event()
    config = sharded(concurrency=1, shards=2)
    model = FakeBackend(waits_for(gate))
    ids = [each for each in (f"r{number}" for number in range(50)) if layout.shard_of(each) == 1]
    with running_valkey({}, tcp=True) as other:
        url = other.tcp_url
        async with (
            open_client(valkey_url) as client,
            open_client(url) as there,
            run_worker(valkey_url, {"local": model}, config=config) as worker,
        ):
            lost, key = worker.shards[0], layout.keys[0].requests("normal")
            await there.xgroup_create(key, GROUP, "0", mkstream=True)
            at_other = replace(config, redis=replace(config.redis, url=url))
            lost.use(at_other, make_test_admission(at_other, {"local": model}, consumer="w1"))
            await eventually(lambda: lost.pipe.generation == 2)
            await submit(client, ids[0], layout)
            await eventually(lambda: model.running == 1)
            await there.xadd(key, {"prompt": "hello"})
            await there.xreadgroup(GROUP, HANDED_BACK, {key: ">"})
            await asyncio.sleep(0.5)  # it has seen that there is something
            if how == "away":
                other.kill()
            else:
                await there.config_set("maxmemory", 1)
                lost.pipe.call("SET", "k", "v")
            await eventually(lambda: lost.pipe.state is (PipeState.AWAY if how == "away" else PipeState.OUT_OF_MEMORY))
            for request_id in ids[1:4]:
                await submit(client, request_id, layout)
            gate.set()
            async with asyncio.timeout(20):  # where it keeps the place there is no end
                for request_id in ids[:4]:
                    assert (await final_in(client, layout.keys[1].prefix, request_id))["type"] == "result"


async def test_status_tells_of_one_shard_what_is_wrong_and_why(valkey_url: str) -> None:
    """Of the one whose server is away, though another has its own trouble."""
    config = sharded(shards=2)
    async with open_client(valkey_url) as client, run_worker(valkey_url, {}, config=config) as worker:
        await client.delete("{llm:0}:requests")
        await client.set("{llm:0}:requests", "no stream")
        await eventually(lambda: "{llm:0}:requests" in worker.status().why)
        at_nobody = replace(config, redis=replace(config.redis, url="redis://127.0.0.1:1"))
        worker.shards[1].use(at_nobody, make_test_admission(at_nobody, {}, consumer="w1"))
        await eventually(lambda: worker.status().redis is PipeState.AWAY)
        assert worker.status().why.startswith("{llm:1}: ConnectionError")
