"""A producer while another server takes over: what it waits for comes, and what it submits is queued once."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from llm_routerd.cli.exits import Exit
from llm_routerd.cli.main import main
from llm_routerd.client import Client
from llm_routerd.protocol.events import FINAL_ID
from llm_routerd.protocol.keys import Keys
from tests.support.eventually import eventually

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.support.clusters import Cluster
    from tests.support.sentinels import Sentinels

SECONDS = 60.0
KEYS, SLOT = Keys("{llm}"), 7494
TOKEN = {"type": "token", "data": '{"text": "a"}'}
RESULT = {"type": "result", "data": json.dumps({"content": "blue"})}


async def stays_with_it(url: str, change: Callable[[], Awaitable[Any]]) -> list[dict[str, Any]]:
    """Follow one request and submit others while `change` makes another server the one; returns what is queued."""
    async with (
        asyncio.timeout(SECONDS),
        Client(url, prefix=KEYS.prefix) as client,
        Client(url, prefix=KEYS.prefix) as by,
    ):
        seen: list[str] = []
        submitted: list[str] = []
        is_over = asyncio.Event()

        async def follow() -> None:
            async for event in client.follow("r"):
                seen.append(event.id)  # noqa: PERF401 - read while it grows

        async def submit() -> None:
            while not is_over.is_set():
                submitted.append(await client.submit(prompt="Why?"))
                await asyncio.sleep(0.05)

        async def write(event_id: str, fields: Any) -> None:
            await by.patiently(lambda: by.redis.xadd(KEYS.events("r"), fields, id=event_id))
            # Who wrote before the replica had it would have to write it again.
            await by.patiently(lambda: by.redis.wait(1, 1000))

        await write("1-1", TOKEN)
        following, submitting = asyncio.create_task(follow()), asyncio.create_task(submit())
        await eventually(lambda: seen and len(submitted) > 2)
        await change()
        before = len(submitted)
        await eventually(lambda: len(submitted) > before + 2, seconds=SECONDS)
        is_over.set()
        await submitting
        await write("1-2", TOKEN)
        await write(FINAL_ID, RESULT)
        await following
        assert seen == ["1-1", "1-2", FINAL_ID]
        assert (await client.result("r")).type == "result"
        entries: Any = await by.patiently(lambda: by.redis.xrange(KEYS.requests("normal")))
        queued = [json.loads(fields[b"data"]) for _, fields in entries]
        assert submitted[-1] in [each["id"] for each in queued]
        return [each["id"] for each in queued if each["id"] in submitted]


@pytest.mark.parametrize("how", ["asked", "killed", "stopped"])
async def test_primary_that_sentinels_replace_is_followed(sentinels: Sentinels, how: str) -> None:
    """Whether it goes in good order, dies or hangs; a blocked read ends, and goes on at the new one."""

    def change() -> None:
        if how == "asked":
            sentinels.failover()
            sentinels.settled()  # before, the old one accepts what it will lose
        else:
            before = sentinels.kill_primary() if how == "killed" else sentinels.stop_primary()
            sentinels.promoted(before)

    queued = await stays_with_it(sentinels.url, lambda: asyncio.to_thread(change))
    assert len(queued) >= 3


@pytest.mark.parametrize("how", ["asked", "killed"])
async def test_node_that_takes_over_our_slot_is_followed(cluster: Cluster, how: str) -> None:
    """The nodes are asked anew, from whichever one is left."""

    def change() -> None:
        if how == "asked":
            cluster.failover(SLOT)
            cluster.settled()
        else:
            before = cluster.node_of(SLOT)
            cluster.kill(before)
            cluster.promoted(SLOT, before)

    # Of its URL only a seed is known that has other slots.
    seed = next(number for number, node in enumerate(cluster.nodes) if node is not cluster.node_of(SLOT))
    queued = await stays_with_it(cluster.seeds[seed], lambda: asyncio.to_thread(change))
    assert len(queued) >= 3


async def test_shards_of_a_node_that_dies_are_found_at_its_replica(cluster: Cluster) -> None:
    """The other shards are served all the while."""
    async with Client(cluster.url, shards=16) as client, asyncio.timeout(SECONDS):
        for number in range(32):
            await client.submit(id=f"a{number}", prompt="Why?")
        before = await asyncio.to_thread(cluster.node_of, SLOT)
        cluster.kill(before)
        ids = [f"b{number}" for number in range(32)]
        assert await asyncio.gather(*(client.submit(id=each, prompt="Why?") for each in ids)) == ids
        assert sum(lane.waiting for lane in await client.lanes()) >= 32


def test_every_command_takes_such_a_url(
    sentinels: Sentinels, cluster: Cluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As an option, or from the environment."""
    for number, url in enumerate((sentinels.url, cluster.url)):
        for form in ("option", "environment"):
            where = ["--prefix", "{llm}"]
            if form == "option":
                where += ["--redis", url]
            else:
                monkeypatch.setenv("REDIS_URL", url)
            request_id = f"{form}-{number}"
            assert main(["submit", "Why?", "--id", request_id, "--no-wait", *where]) == Exit.OK
            assert main(["cancel", request_id, *where]) == Exit.OK
            assert main(["follow", request_id, *where]) == Exit.FAILED
            assert main(["dead", "list", *where]) == Exit.OK
    capsys.readouterr()
