"""The embedded server is killed again and again, as an OOM killer does, while requests come and run."""

from __future__ import annotations

import asyncio
import os
import random
from typing import TYPE_CHECKING

from llm_routerd.protocol.events import FINAL_ID
from tests.standin.server import StandIn
from tests.support.daemons import kill_server, producer, running_daemon, write_config
from tests.support.processes import free_port
from tests.support.queue import events_of, open_client

if TYPE_CHECKING:
    from pathlib import Path

    from llm_routerd.client import Client

REQUESTS = 24
KILLS = 3


async def add(client: Client, rng: random.Random) -> list[str]:
    """Requests that come one by one, whatever becomes of the server meanwhile."""
    ids = []
    for number in range(REQUESTS):
        directives = f"[[tokens={rng.randint(2, 20)} delay_ms={rng.randint(5, 40)}]]"
        ids.append(await client.submit(id=f"r{number}", prompt=directives, stream=True))
        await asyncio.sleep(rng.uniform(0.0, 0.2))
    return ids


async def test_every_request_has_one_end_while_the_embedded_server_is_killed(tmp_path: Path) -> None:
    """Its answer is what its last attempt showed, and nothing is left."""
    seed = int(os.environ.get("SEED", "7"))
    print(f"seed {seed}")
    rng, url = random.Random(seed), f"redis://127.0.0.1:{free_port()}/0"
    async with StandIn({"tiny": ""}) as models:
        config = write_config(tmp_path, url, models.url, chain=("local",), daemon="concurrency = 4\nlease_seconds = 2")
        embedded = ("--embedded", "--state-directory", str(tmp_path / "state"))
        async with running_daemon(config, *embedded) as daemon, producer(url) as client, open_client(url) as redis:
            adding = asyncio.create_task(add(client, rng))
            for _ in range(KILLS):
                await asyncio.sleep(rng.uniform(0.2, 0.8))
                await kill_server(redis)
            for request_id in await adding:
                final = await client.result(request_id, 20)
                assert final.type == "result", final
                events = await events_of(redis, request_id)
                assert [event_id for event_id, _, _ in events].count(FINAL_ID) == 1
                last = f"{final.data['attempt']}-"
                shown = [data["text"] for at, kind, data in events if kind == "token" and at.startswith(last)]
                assert "".join(shown) == final.data["content"]
            assert await redis.xlen("llm:requests") == 0
            assert len(daemon.logged("embedded_server_ended")) == KILLS
