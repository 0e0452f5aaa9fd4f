"""Looks for the page: one for all who look at the same time, and no metrics event twice."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from llm_routerd.client import Client
from llm_routerd.errors import BrokerError
from llm_routerd.gateway.admission import Caller
from llm_routerd.gateway.http import overviews
from llm_routerd.gateway.http.overviews import Overviews
from tests.support.fakes import FakeBackend, says
from tests.support.queue import open_client
from tests.support.workers import make_config, run_worker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from llm_routerd.gateway.overview import Overview, Today

CONFIG = make_config()
ANYBODY = Caller()
STREAM = CONFIG.metrics.channel
NOON = time.mktime((2026, 7, 14, 12, 0, 0, 0, 0, -1))


@pytest.fixture(autouse=True)
def always_new(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look is one."""
    monkeypatch.setattr(overviews, "_KEPT_SECONDS", 0.0)


@pytest.fixture
async def client(broker_url: str) -> AsyncIterator[Client]:
    """Of an empty broker."""
    async with Client(broker_url, patience_seconds=1) as client:
        yield client


async def finished(client: Client, at: float, **more: Any) -> None:
    """Write a metrics event, as at that time."""
    data = json.dumps({"timestamp": at, "type": "result", **more})
    await client.redis.xadd(STREAM, {"data": data}, id=f"{int(at * 1000)}-*")


async def today(looks: Overviews, config: Any = CONFIG) -> Today:
    """What the day has come to."""
    return (await looks.see(config, ANYBODY)).today


async def test_a_worker_and_what_it_has_done_are_seen(valkey_url: str) -> None:
    """Everything at once, as it is in truth."""
    backend = FakeBackend(says("blue"))
    config = make_config(valkey_url)
    async with Client(valkey_url) as client, run_worker(valkey_url, {"local": backend}, config=config):
        looks = Overviews(client)
        assert (await looks.see(config, ANYBODY)).today.sums.requests == 0
        await client.result(await client.submit(prompt="a secret prompt", tenant_id="ada"))
        seen = await looks.see(config, ANYBODY)
        assert [worker.name for worker in seen.workers or ()] == ["w1"]
        assert (seen.today.sums.requests, seen.today.sums.answered, seen.today.known_since) == (1, 1, None)
        assert seen.today.sums.completion_tokens == 5
        assert [(each.name, each.state) for each in seen.deployments] == [("local", "answering"), ("cloud", "none")]
        assert (await looks.see(config, Caller(tenant="bob"))).today.sums.requests == 0
        assert (await looks.see(config, Caller(tenant="ada"))).today.sums.requests == 1


async def test_no_event_is_counted_twice(client: Client) -> None:
    """Nor is one left out, however many looks there are."""
    looks = Overviews(client, now=lambda: NOON)
    for number in range(1, 4):
        await finished(client, NOON + number)
        await finished(client, NOON + number)
        assert (await today(looks)).sums.requests == 2 * number


async def test_what_is_from_yesterday_is_no_part_of_today(client: Client) -> None:
    """A day begins at midnight where the gateway is."""
    for hours in (-13, -11, -1):
        await finished(client, NOON + hours * 3600)
    moment = [NOON]
    looks = Overviews(client, now=lambda: moment[0])
    found = await today(looks)
    assert (found.sums.requests, found.midnight, found.known_since) == (2, NOON - 12 * 3600, None)
    moment[0] += 24 * 3600
    assert (await today(looks)).sums.requests == 0
    await finished(client, moment[0])
    assert (await today(looks)).sums.requests == 1


async def test_more_than_a_page_is_read(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the first look, and at a later one that came late, which begins anew."""
    monkeypatch.setattr(overviews, "_PAGE", 3)
    monkeypatch.setattr(overviews, "_MOST_MISSED", 4)
    looks = Overviews(client, now=lambda: NOON)
    for number in range(7):
        await finished(client, NOON - 90_000 + number)
        await finished(client, NOON + number) if number > 5 else None
    for number in range(10, 17):
        await finished(client, NOON + number)
    assert (await today(looks)).sums.requests == 8
    for number in range(20, 30):
        await finished(client, NOON + number)
    assert (await today(looks)).sums.requests == 18


async def test_a_stream_that_does_not_reach_back_says_since_when_it_does(client: Client) -> None:
    """It is cut at its bound: where it is shorter, nothing has gone."""
    for number in range(4):
        await finished(client, NOON + number)
    assert (await today(Overviews(client, now=lambda: NOON))).known_since is None
    short = replace(CONFIG, metrics=replace(CONFIG.metrics, stream_maxlen=4))
    assert (await today(Overviews(client, now=lambda: NOON), short)).known_since == NOON


async def test_no_more_than_a_bound_is_read_back(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the stream keeps."""
    monkeypatch.setattr(overviews, "_PAGE", 2)
    monkeypatch.setattr(overviews, "_MOST_BACK", 4)
    for number in range(9):
        await finished(client, NOON + number)
    found = await today(Overviews(client, now=lambda: NOON))
    assert (found.sums.requests, found.known_since) == (4, NOON + 5)


async def test_another_configuration_is_taken_over(client: Client) -> None:
    """Its deployments are those that are shown, with what is known of them."""
    looks = Overviews(client, now=lambda: NOON)
    attempt = {"deployment": "new", "outcome": "success"}
    await finished(client, NOON, attempts=[attempt])
    assert [each.name for each in (await looks.see(CONFIG, ANYBODY)).deployments] == ["local", "cloud"]
    other = replace(CONFIG, deployments={"new": replace(CONFIG.deployments["local"], name="new")})
    assert [(each.name, each.state) for each in (await looks.see(other, ANYBODY)).deployments] == [("new", "answering")]


async def test_all_who_look_at_once_are_one_look(
    broker_url: str, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many open pages cost Redis what one does."""
    monkeypatch.setattr(overviews, "_KEPT_SECONDS", 60.0)
    looks = Overviews(client)
    async with open_client(broker_url) as redis:

        async def see(tenant: str | None) -> Overview:
            return await looks.see(CONFIG, Caller(tenant=tenant))

        await asyncio.gather(*(see(tenant) for tenant in (None, "ada", "bob", None)))
        await redis.xadd("llm:requests", {"prompt": "x"})
        assert sum(lane.waiting for lane in (await see(None)).lanes) == 0
        assert sum(lane.waiting for lane in (await Overviews(client).see(CONFIG, ANYBODY)).lanes) == 1


async def test_redis_that_is_away_is_told_and_looked_at_again() -> None:
    """Nothing of before is shown as if it were now."""
    async with Client("redis://127.0.0.1:1/0", patience_seconds=0) as client:
        looks = Overviews(client)
        for _ in range(2):
            with pytest.raises(BrokerError):
                await looks.see(CONFIG, ANYBODY)


async def test_a_failure_is_told_to_all_who_look_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many open pages do not wait for Redis one after the other."""
    monkeypatch.setattr(overviews, "_KEPT_SECONDS", 60.0)
    async with Client("redis://127.0.0.1:1/0", patience_seconds=0.3) as client:
        looks = Overviews(client)
        async with asyncio.timeout(5):
            told = await asyncio.gather(*(looks.see(CONFIG, ANYBODY) for _ in range(100)), return_exceptions=True)
        assert {type(each) for each in told} == {BrokerError}


async def test_redis_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that looks every other second need not be told that it has taken a minute."""
    monkeypatch.setattr(overviews, "_LONGEST_SECONDS", 0.05)
    async with Client("redis://127.0.0.1:1/0", patience_seconds=60) as client:
        with pytest.raises(BrokerError, match="does not answer"):
            await Overviews(client).see(CONFIG, ANYBODY)
