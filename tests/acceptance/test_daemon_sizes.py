"""The daemon as a process, with entries in its lane that are far longer than it takes."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from redis import Redis

from tests.standin.server import StandIn
from tests.support.daemons import producer, running_daemon, write_config
from tests.support.queue import open_client

if TYPE_CHECKING:
    from llm_routerd.client import Client

ENTRIES = 10
ENTRY_BYTES = 6_000_000
FIELDS = 250_000
MOST_GROWTH_BYTES = 32_000_000
LONGEST_PAUSE_SECONDS = 0.5  # between two tokens that come every 20 ms, on a machine that does other things too

# Redis makes the entries itself, and all at once.
_ADD = """
local value = string.rep('x', ARGV[2])
for i = 1, ARGV[1] do redis.call('XADD', KEYS[1], '*', 'prompt', value, 'id', 'big' .. i) end
"""


def peak_bytes(pid: int) -> int:
    """The most memory that a process has had resident."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


def cpu_seconds(pid: int) -> float:
    """CPU time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def longest_pause(client: Client, request_id: str, pid: int) -> float:
    """Seconds between two events of an answer that streams, for as long as the daemon was busy with something else.

    A pause in which it did not compute is the machine's, or the model's.
    """
    longest, last = 0.0, None
    async for _ in client.follow(request_id):
        now = time.monotonic(), cpu_seconds(pid)
        if last is not None:
            longest = max(longest, min(now[0] - last[0], now[1] - last[1]))
        last = now
    return longest


def add_many_fields(url: str, fields: dict[str, str]) -> None:
    """XADD it from a thread: the model is in this process, and is not to wait either."""
    with Redis.from_url(url) as redis:
        redis.xadd("llm:requests", fields)


async def test_memory_and_streams_do_not_depend_on_what_others_write(tmp_path: Path, valkey_url: str) -> None:
    """Long entries, and one of very many fields, are refused under their ids, while another request streams on."""
    async with StandIn({"tiny": "", "big": ""}) as models:
        config = write_config(tmp_path, valkey_url, models.url)
        async with running_daemon(config) as daemon, open_client(valkey_url) as redis, producer(valkey_url) as client:
            await client.result(await client.submit(prompt="[[tokens=1]]"), 10)
            before = peak_bytes(daemon.pid)
            streaming = await client.submit(prompt="[[tokens=150 delay_ms=20]]", stream=True)
            pause = asyncio.create_task(longest_pause(client, streaming, daemon.pid))
            await redis.eval(_ADD, 1, "llm:requests", ENTRIES, ENTRY_BYTES)
            ids = [f"big{number}" for number in range(1, ENTRIES + 1)]
            for request_id in ids:
                final = await client.result(request_id, 20)
                assert (final.type, final.data["code"]) == ("error", "request_too_large")
                assert str(ENTRY_BYTES)[:3] in final.data["message"]
            many = {f"f{number}": "v" for number in range(FIELDS)} | {"id": "many"}
            await asyncio.to_thread(add_many_fields, valkey_url, many)
            final = await client.result("many", 20)
            assert (final.data["code"], str(FIELDS + 1) in final.data["message"]) == ("request_too_large", True)
            assert (await client.result(streaming, 20)).type == "result"
            assert await pause < LONGEST_PAUSE_SECONDS
            assert peak_bytes(daemon.pid) - before < MOST_GROWTH_BYTES
            assert await redis.xlen("llm:requests") == 0
            letters = await redis.xrange("llm:dead")
            assert [fields["id"] for _, fields in letters] == [*ids, "many"]
            assert sum(len(fields["data"]) for _, fields in letters) < 200_000
