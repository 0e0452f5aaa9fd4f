"""Tool workers and Redis are killed, frozen and stopped while calls come; a file counts how often each was acted on."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING

import pytest
import redis

from tests.support.acting import ActingProcess, acts
from tests.support.servers import ValkeyProcess, running_valkey
from tests.support.toolcalls import Caller, open_caller

if TYPE_CHECKING:
    from pathlib import Path

SECONDS = 15.0
WORKERS = 4
CALLS = 250
TOOLS = ("act", "act_again")
UNKNOWN = "unknown outcome: "


async def put_calls(caller: Caller, rng: random.Random) -> dict[str, str]:
    """Put calls on their streams, each once whatever becomes of the reply; returns the tool of each."""
    tools = {}
    for number in range(1, CALLS + 1):
        tool = rng.choice(TOOLS)
        key = caller.keys.tool_calls(tool)
        call = ""
        while True:
            try:
                call = call or await caller.made(tool, {"seconds": rng.choice((0, 0.05, 0.4))}, call_id=f"c{number}")
                await caller.redis.xadd(key, {"call": call}, id=f"{number}-1")
                break
            except redis.ResponseError as error:
                if "equal or smaller" in str(error):
                    break
                raise
            except redis.RedisError:
                await asyncio.sleep(0.05)
        tools[f"c{number}"] = tool
        await asyncio.sleep(SECONDS / CALLS)
    return tools


async def maltreat(workers: list[ActingProcess], valkey: ValkeyProcess, rng: random.Random) -> Counter[str]:
    """One fault after another; at the end all run."""
    faults: Counter[str] = Counter()
    loop = asyncio.get_running_loop()
    until = loop.time() + SECONDS
    while loop.time() < until:
        await asyncio.sleep(rng.uniform(0.3, 0.9))
        worker = rng.choice(workers)
        kind = rng.choice(("SIGKILL", "SIGKILL", "SIGSTOP", "SIGTERM", "redis"))
        faults[kind] += 1
        if kind == "redis":
            await asyncio.to_thread(valkey.kill)
            await asyncio.sleep(rng.uniform(0.0, 0.5))
            await asyncio.to_thread(valkey.start)
            continue
        with suppress(ProcessLookupError):
            worker.send_signal(getattr(signal, kind))
        if kind == "SIGSTOP":
            loop.call_later(rng.uniform(0.3, 2.5), thaw, worker)
        else:
            await worker.wait()
            await worker.start()
    await asyncio.sleep(2.5)
    return faults


def thaw(worker: ActingProcess) -> None:
    """Let it go on, where it has not been killed meanwhile."""
    with suppress(ProcessLookupError):
        worker.send_signal(signal.SIGCONT)


@pytest.mark.timeout(110)
async def test_no_call_is_acted_on_twice_in_a_storm(tmp_path: Path) -> None:
    """Each has an answer; one of a tool that may not be repeated was begun once, or not at all where nobody knows."""
    seed = int(os.environ.get("SEED", "20261128"))
    print(f"chaos: seed {seed}")
    file = tmp_path / "acts"
    with running_valkey({"appendonly": "yes", "appendfsync": "always"}) as valkey:
        async with open_caller(valkey.url) as caller, AsyncExitStack() as stack:
            workers = [ActingProcess(valkey.url, file) for _ in range(WORKERS)]
            for worker in workers:
                await stack.enter_async_context(worker)
            await caller.until_registered(*TOOLS)
            calling = asyncio.create_task(put_calls(caller, random.Random(seed)))
            faults = await maltreat(workers, valkey, random.Random(seed))
            tools = await calling
            for tool in TOOLS:
                await caller.until_done(tool, seconds=40)
            first: dict[str, dict[str, str]] = {}
            for answer in await caller.answers():
                first.setdefault(answer["call_id"], answer)
    begun = acts(file)
    print(dict(faults), Counter("error" if "error" in answer else "result" for answer in first.values()))
    assert set(first) == set(tools)
    for call_id, tool in tools.items():
        error = first[call_id].get("error")
        if tool == "act":
            assert begun[call_id] == 1 if error is None else (begun[call_id] <= 1 and error.startswith(UNKNOWN))
        else:
            assert (error, begun[call_id] >= 1) == (None, True)
