"""What the workers tell each other: the lease that holds, who knows which model; and what becomes of lies."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from llm_routerd.protocol.keys import GROUP, HANDED_BACK, handed_back_for
from llm_routerd.queue import passing
from tests.support.queue import LIMITS, add, open_broker, open_client, take, take_one

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from llm_routerd.queue.broker import Broker
    from llm_routerd.queue.deliveries import Delivery

LANE, REGISTRY = "llm:requests", "llm:workers"
LONG_MS = 20_000


async def pass_on(broker: Broker, delivery: Delivery, model: str) -> str:
    """By a worker that knows what time it is, and all the others."""
    return await passing.pass_on(broker, delivery, model, server_ms=await broker.server_ms())


@asynccontextmanager
async def three(url: str) -> AsyncIterator[tuple[Any, Broker, Broker]]:
    """A client, a worker with a long lease, and one with a short one."""
    async with (
        open_client(url) as client,
        open_broker(url, "w1", limits=replace(LIMITS, lease_ms=LONG_MS)) as patient,
        open_broker(url, "w2") as hasty,
    ):
        yield client, patient, hasty


async def age(client: Any, entry: str, idle_ms: int, owner: str = "w1") -> None:
    """Its owner has not renewed its lease for so long."""
    await client.xclaim(LANE, GROUP, owner, 0, [entry], idle=idle_ms, justid=True)


async def test_longest_lease_of_the_living_holds_for_all(broker_url: str) -> None:
    """Who claims reads it in the same script; a worker that has left takes its lease along."""
    async with three(broker_url) as (client, patient, hasty):
        assert (await patient.renew(())).longest_lease_ms == LONG_MS
        assert (await hasty.renew(())).longest_lease_ms == LONG_MS
        entry = await add(client)
        await take_one(broker_url, patient)
        await age(client, entry, LONG_MS // 2)
        assert (await hasty.claim(room=5)).deliveries == []
        await age(client, entry, LONG_MS + 1)
        assert [each.entry for each in (await hasty.claim(room=5)).deliveries] == [entry]
        await age(client, entry, LONG_MS // 2)
        await patient.retire(oneself=True)
        assert await client.hkeys(REGISTRY) == ["w2"]
        assert [each.entry for each in (await hasty.claim(room=5)).deliveries] == [entry]


async def test_registration_ends_with_its_lease(broker_url: str) -> None:
    """A worker that died is remembered for its own lease and a half, and the whole registry goes with the last one."""
    async with (
        open_client(broker_url) as client,
        open_broker(broker_url, "w1", limits=replace(LIMITS, lease_ms=60)) as dead,
        open_broker(broker_url, "w2", limits=replace(LIMITS, lease_ms=30)) as other,
    ):
        await dead.renew(())
        assert (await other.renew(())).longest_lease_ms == 60
        assert 0 < await client.pttl(REGISTRY) <= 90
        await asyncio.sleep(0.1)
        assert (await other.renew(())).longest_lease_ms == 30
        assert await client.hkeys(REGISTRY) == ["w2"]
        assert 0 < await client.pttl(REGISTRY) <= 45


async def test_orphan_of_a_worker_with_a_longer_lease_is_let_be(broker_url: str) -> None:
    """It may have it back with its next renewal."""
    async with three(broker_url) as (client, patient, hasty):
        await patient.renew(())
        entry = await add(client)
        await take_one(broker_url, patient)
        await client.xgroup_delconsumer(LANE, GROUP, "w1")
        assert await hasty.find_orphans("normal") == [entry]
        assert await hasty.take_orphans("normal", [entry], seen_for_ms=LIMITS.lease_ms) == []
        assert [each.entry for each in await hasty.take_orphans("normal", [entry], seen_for_ms=LONG_MS)] == [entry]


def lie(lease_ms: Any, until_ms: Any, models: Any = ()) -> str:
    """A registration that no worker has written."""
    return f'{{"lease_ms":{lease_ms},"until_ms":{until_ms},"models":{json.dumps(models)}}}'


async def test_registrations_that_no_worker_has_written_count_for_nothing(broker_url: str) -> None:
    """They are removed; and nobody's lease is made endless by one."""
    async with three(broker_url) as (client, patient, hasty):
        now_ms = await hasty.server_ms()
        lies = [
            "", "no JSON", "{}", "[]", lie(-5, now_ms + 1), lie('"x"', now_ms + 1), lie(50_000, now_ms - 1),
            lie(50_000, now_ms + 90_000), lie(10**12, now_ms + 10**11), lie("1e3", "1e300"),
        ]  # fmt: skip
        await client.hset(REGISTRY, mapping={f"liar-{n}": text for n, text in enumerate(lies)})
        entry = await add(client, model="x")
        delivery = await take_one(broker_url, patient)
        await age(client, entry, LIMITS.lease_ms + 1)
        assert await pass_on(patient, delivery, "x") == "unknown"
        assert [each.entry for each in (await hasty.claim(room=5)).deliveries] == [entry]
        assert (await hasty.renew(())).longest_lease_ms == LIMITS.lease_ms
        assert await client.hkeys(REGISTRY) == ["w2"]


@pytest.mark.parametrize("models", [7, None, {"a": "x"}, [["x"]], "x"])
async def test_models_that_are_no_list_of_names_are_known_to_nobody(broker_url: str, models: Any) -> None:
    """Whatever stands there, the request has its end."""
    async with three(broker_url) as (client, patient, _):
        await client.hset(REGISTRY, "liar", lie(50_000, await patient.server_ms() + 40_000, models))
        await add(client, model="x")
        assert await pass_on(patient, await take_one(broker_url, patient), "x") == "unknown"


async def test_registry_of_another_type_is_in_nobodys_way(broker_url: str) -> None:
    """Leases are renewed and taken over as ever, and the worker is told why the others cannot see it."""
    async with three(broker_url) as (client, patient, hasty):
        await client.set(REGISTRY, "mine")
        entry = await add(client)
        delivery = await take_one(broker_url, patient)
        complaints: list[str | None] = []
        patient.on_registration = complaints.append
        assert (await patient.renew(())).longest_lease_ms == LONG_MS
        assert "WRONGTYPE" in str(complaints)
        assert await pass_on(patient, delivery, "x") == "unknown"
        await age(client, entry, LIMITS.lease_ms + 1)
        assert [each.entry for each in (await hasty.claim(room=5)).deliveries] == [entry]
        await hasty.retire(oneself=True)
        assert await client.get(REGISTRY) == "mine"


async def test_full_server_still_registers(valkey_url: str) -> None:
    """Else leases would count as short where memory is short."""
    async with three(valkey_url) as (client, patient, _):
        complaints: list[str | None] = []
        patient.on_registration = complaints.append
        await client.config_set("maxmemory", "1")
        try:
            await patient.renew(())
        finally:
            await client.config_set("maxmemory", "0")
        assert complaints == [None]
        assert await client.hkeys(REGISTRY) == ["w1"]


async def test_request_is_handed_back_for_those_who_know_its_model(broker_url: str) -> None:
    """Nobody else takes it while one of them lives; it costs no delivery, and a repeated command does nothing."""
    async with three(broker_url) as (client, patient, hasty):
        patient.models = ("x", "y")
        await patient.renew(())
        await hasty.renew(())
        entry = await add(client, model="x")
        delivery = await take_one(broker_url, hasty)
        assert await pass_on(hasty, delivery, "z") == "unknown"
        assert await pass_on(hasty, delivery, "x") == "passed"
        assert await pass_on(hasty, delivery, "x") == "lost"
        (pending,) = await client.xpending_range(LANE, GROUP, "-", "+", 10)
        assert (pending["consumer"], pending["times_delivered"]) == (handed_back_for("x"), 0)
        assert (await hasty.claim(room=5)).deliveries == []
        assert (await hasty.claim_of(HANDED_BACK, count=5)).deliveries == []
        assert [(each.entry, each.deliveries) for each in (await patient.claim(room=5)).deliveries] == [(entry, 1)]


async def test_request_handed_back_for_one_who_has_left_is_taken_by_any(broker_url: str) -> None:
    """To tell its producer that nobody knows the model."""
    async with three(broker_url) as (client, patient, hasty):
        patient.models = ("x",)
        await patient.renew(())
        entry = await add(client, model="x")
        assert await pass_on(hasty, await take_one(broker_url, hasty), "x") == "passed"
        patient.models = ()  # it drains
        await patient.renew(())
        (taken,) = (await hasty.claim(room=5)).deliveries
        assert (taken.entry, taken.deliveries) == (entry, 1)
        assert await pass_on(hasty, taken, "x") == "unknown"


async def test_trimmed_request_is_not_handed_on(broker_url: str) -> None:
    """There is nothing left of it that another could take."""
    async with three(broker_url) as (client, patient, hasty):
        patient.models = ("x",)
        await patient.renew(())
        await add(client, model="x")
        delivery = await take_one(broker_url, hasty)
        await client.xtrim(LANE, maxlen=0, approximate=False)
        assert await pass_on(hasty, delivery, "x") == "unknown"


async def test_request_whose_group_is_gone_is_not_refused(broker_url: str) -> None:
    """It comes anew with the next group; unless the lane went too, and with it what could be taken."""
    async with three(broker_url) as (client, patient, hasty):
        patient.models = ("x",)
        await patient.renew(())
        await add(client, model="x")
        delivery = await take_one(broker_url, hasty)
        await client.xgroup_destroy(LANE, GROUP)
        assert (
            await passing.pass_on(hasty, delivery, "x", server_ms=await hasty.server_ms(), is_complete=True) == "lost"
        )
        assert [each.entry for each in await take(broker_url, hasty)] == [delivery.entry]
        await client.delete(LANE)
        assert (
            await passing.pass_on(hasty, delivery, "x", server_ms=await hasty.server_ms(), is_complete=True)
            == "unknown"
        )


@pytest.mark.parametrize(("off_ms", "is_complete"), [(0, False), (60_000, True), (-60_000, True)])
async def test_request_is_put_aside_while_others_may_not_have_told_of_themselves(
    broker_url: str, off_ms: int, is_complete: bool
) -> None:
    """They were cut off, or the server stood still or its clock jumped: that nobody is found proves nothing."""
    async with three(broker_url) as (client, patient, hasty):
        entry = await add(client, model="x")
        delivery = await take_one(broker_url, hasty)
        server_ms = await hasty.server_ms() + off_ms
        assert await passing.pass_on(hasty, delivery, "x", server_ms=server_ms, is_complete=is_complete) == "parked"
        patient.models = ("x",)
        await patient.renew(())
        assert (await hasty.claim(room=5)).deliveries == []
        assert [each.entry for each in (await patient.claim(room=5)).deliveries] == [entry]


async def test_registration_outlives_what_is_begun_before_the_next_renewal(broker_url: str) -> None:
    """The entry's lease begins with it: the longer lease of its worker is to be known until it ends."""
    async with three(broker_url) as (client, patient, _):
        await patient.renew(())
        until_ms = json.loads(await client.hget(REGISTRY, "w1"))["until_ms"]
        next_renewal_ms = await patient.server_ms() + LONG_MS // 3
        assert until_ms >= next_renewal_ms + LONG_MS
