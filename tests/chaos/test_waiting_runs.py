"""Thousands of runs that wait for a person, on a worker process: what they cost while they do, and how they end.

Figures of the whole process, and bounds that a machine which is busy with other tests keeps too.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from llm_routerd.protocol.events import FINAL_ID
from tests.support.daemons import running_daemon, write_config
from tests.support.processes import StandInProcess
from tests.support.queue import open_client
from tests.support.runs import SWITCH, register
from tests.support.servers import running_valkey
from tests.support.wire import cancellation, check_everything

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

RUNS = int(os.environ.get("WAITING_RUNS", "2000"))  # `make chaos-runs` has 5,000
WARM = 300  # that have come and gone before anything is measured
CONFIRMATION_SECONDS = 75.0
MOST_BYTES = 6000  # of the worker's memory, for each
MOST_SHARE = 0.10  # of a core, while all of them wait; of Redis as well
IDLE_SECONDS = 10.0
NOTICED_SECONDS = 2.5  # a look at all of them takes place each second
PAGE = 500
_PLAN = """turn1='switch {"lamp":"hall"}'"""

Stream = list[tuple[str, dict[str, str]]]


async def submit(client: Any, ids: Sequence[str]) -> None:
    """Runs that come to a call which waits."""
    for at in range(0, len(ids), PAGE):
        pipe = client.pipeline(transaction=False)
        for each in ids[at : at + PAGE]:
            pipe.xadd(
                "llm:requests", {"id": each, "prompt": "do it", "agent": '{"tools":["switch"]}', "stream": "false"}
            )
        await pipe.execute()


async def events_of_all(client: Any, ids: Sequence[str]) -> dict[str, Stream]:
    """Their events, by id."""
    found: list[Stream] = []
    for at in range(0, len(ids), PAGE):
        pipe = client.pipeline(transaction=False)
        for each in ids[at : at + PAGE]:
            pipe.xrange(f"llm:events:{each}")
        found += await pipe.execute()
    return dict(zip(ids, found, strict=True))


async def until_all_have(client: Any, ids: Sequence[str], last: str, *, seconds: float) -> dict[str, Stream]:
    """Wait until the last event of each is of a type; returns their events."""
    async with asyncio.timeout(seconds):
        while True:
            events = await events_of_all(client, ids)
            if all(stream and stream[-1][1]["type"] == last for stream in events.values()):
                return events
            await asyncio.sleep(0.5)


def call_in(stream: Stream) -> dict[str, Any]:
    """The call of a run."""
    call: dict[str, Any] = next(json.loads(fields["data"]) for _, fields in stream if fields["type"] == "tool_call")
    return call


def cpu_seconds(processes: Iterable[psutil.Process]) -> list[float]:
    """What each has taken so far."""
    return [sum(process.cpu_times()[:2]) for process in processes]


async def deny(client: Any, events: dict[str, Stream]) -> None:
    """Say no to all of these."""
    for each, stream in events.items():
        await client.xadd(f"llm:consent:{each}", {"deny": call_in(stream)["call_id"], "by": "ada", "reason": "no"})


async def seconds_until_confirmed(client: Any, request_id: str, stream: Stream) -> float:
    """Say yes, and wait until it stands."""
    call, began = call_in(stream), time.monotonic()
    word = {"confirm": call["call_id"], "args_sha256": call["args_sha256"], "by": "ada"}
    await client.xadd(f"llm:consent:{request_id}", word)
    ((_, ((_, fields),)),) = await client.xread({f"llm:events:{request_id}": stream[-1][0]}, count=1, block=10_000)
    assert fields["type"] == "confirmed"
    return time.monotonic() - began


async def seconds_until_let_go(client: Any, request_id: str) -> float:
    """Cancel it, and wait until its entry is gone."""
    waiting, began = await client.xlen("llm:requests"), time.monotonic()
    await client.xadd(f"llm:events:{request_id}", cancellation(request_id), id=FINAL_ID)
    async with asyncio.timeout(10):
        while True:
            if await client.xlen("llm:requests") < waiting:
                return time.monotonic() - began
            await asyncio.sleep(0.01)


@pytest.mark.timeout(240)
async def test_runs_that_wait_for_a_person_cost_next_to_nothing_and_all_expire(tmp_path: Path) -> None:
    """No memory to speak of, no connection each, an idle CPU; a word is heard at once, and each ends once."""
    ids = [f"r{number}" for number in range(RUNS)]
    more = f"[agents]\nconfirmation_seconds = {CONFIRMATION_SECONDS}\n"
    with running_valkey() as valkey:
        async with StandInProcess({"tiny": _PLAN, "big": ""}) as standin, open_client(valkey.url) as client:
            config = write_config(tmp_path, valkey.url, standin.url, chain=("local",), more=more)
            async with running_daemon(config) as daemon:
                worker, server = psutil.Process(daemon.pid), psutil.Process(valkey.pid)
                await register(client, switch=SWITCH)
                warm = [f"w{number}" for number in range(WARM)]
                await submit(client, warm)
                await deny(client, await until_all_have(client, warm, "turn", seconds=30))
                await until_all_have(client, warm, "result", seconds=30)
                bytes_before, connections = worker.memory_info().rss, len(await client.client_list())

                await submit(client, ids)
                events = await until_all_have(client, ids, "turn", seconds=CONFIRMATION_SECONDS - 20)
                grown = (worker.memory_info().rss - bytes_before) / RUNS
                assert len(await client.client_list()) <= connections + 1
                before = cpu_seconds((worker, server))
                await asyncio.sleep(IDLE_SECONDS)
                shares = [
                    (after - earlier) / IDLE_SECONDS
                    for earlier, after in zip(before, cpu_seconds((worker, server)), strict=True)
                ]
                yes = [await seconds_until_confirmed(client, each, events[each]) for each in ids[:5]]
                gone = [await seconds_until_let_go(client, each) for each in ids[5:10]]
                print(f"{grown:.0f} bytes each; worker {shares[0]:.1%} and server {shares[1]:.1%} of a core")
                print(f"heard after {max(yes):.2f} s at most, let go after {max(gone):.2f} s at most")
                assert grown <= MOST_BYTES
                assert max(shares) <= MOST_SHARE
                assert max(*yes, *gone) <= NOTICED_SECONDS

                events = await until_all_have(client, ids[10:], "error", seconds=CONFIRMATION_SECONDS + 60)
                codes = Counter(json.loads(stream[-1][1]["data"])["code"] for stream in events.values())
                assert codes == {"confirmation_expired": RUNS - 10}
                assert {sum(event_id == FINAL_ID for event_id, _ in stream) for stream in events.values()} == {1}
                late = [
                    entry_ms - call_in(events[each])["expires_at_ms"]
                    for entry, fields in await client.xrange("llm_router_metrics")
                    if (each := json.loads(fields["data"])["id"]) in events
                    for entry_ms in [int(entry.partition("-")[0])]
                ]
                assert len(late) == RUNS - 10
                assert min(late) >= 0
                print(f"expired {max(late) / 1000:.2f} s late at most")
                assert max(late) < 5000
                assert (await check_everything(client))["error"] == RUNS - 10
