"""Tool workers that are killed, frozen and stopped while they act; processes, signals, and a file that counts."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

import pytest

from tests.support.acting import ActingProcess, acts
from tests.support.eventually import eventually
from tests.support.toolcalls import Caller, open_caller

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

_UNKNOWN = {"error": "unknown outcome: the worker that had this call is gone, and may have acted"}


@pytest.fixture
async def caller(valkey_url: str) -> AsyncIterator[Caller]:
    """Who calls."""
    async with open_caller(valkey_url) as caller:
        yield caller


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where acts are noted."""
    return tmp_path / "acts"


async def test_call_whose_worker_was_killed_is_never_acted_on_twice(
    valkey_url: str, caller: Caller, file: Path
) -> None:
    """The model and the person learn that nobody knows; the call is gone from its stream."""
    async with ActingProcess(valkey_url, file) as first:
        await caller.until_registered("act")
        await caller.call("act", {"seconds": 60})
        await eventually(lambda: acts(file)["call_1"])
        async with ActingProcess(valkey_url, file) as second:
            await second.until_ready()
            first.send_signal(signal.SIGKILL)
            assert await caller.answer("call_1") == _UNKNOWN
            assert await caller.asked("act") == {"result": "acted"}
    assert acts(file) == {"call_1": 1, "call_2": 1}
    assert await caller.left("act") == (0, 0)


async def test_call_of_an_idempotent_tool_is_taken_over(valkey_url: str, caller: Caller, file: Path) -> None:
    """And answered once, by whoever lives."""
    async with ActingProcess(valkey_url, file) as first:
        await caller.until_registered("act_again")
        await caller.call("act_again", {"seconds": 60})
        await eventually(lambda: acts(file)["call_1"])
        first.send_signal(signal.SIGKILL)
        async with ActingProcess(valkey_url, file) as second:
            assert await caller.answer("call_1") == {"result": str(second.pid)}
    assert acts(file) == {"call_1": 2}
    assert await caller.left("act_again") == (0, 0)


async def test_worker_that_acts_for_longer_than_a_lease_keeps_its_call(
    valkey_url: str, caller: Caller, file: Path
) -> None:
    """It shows life; another one stands by and takes nothing."""
    async with ActingProcess(valkey_url, file) as first, ActingProcess(valkey_url, file) as second:
        await first.until_ready()
        await second.until_ready()
        await caller.until_registered("act", "act_again")
        for tool in ("act", "act_again"):
            await caller.call(tool, {"seconds": 4})
        assert await caller.answer("call_1") == {"result": "acted"}
        assert "result" in await caller.answer("call_2")
    assert acts(file) == {"call_1": 1, "call_2": 1}


@pytest.mark.parametrize(("tool", "times"), [("act", 1), ("act_again", 2)])
async def test_frozen_worker_finds_its_call_gone_and_goes_on(
    tool: str, times: int, valkey_url: str, caller: Caller, file: Path
) -> None:
    """What it answers late is a second answer, which the daemon passes over; it serves the next call."""
    async with ActingProcess(valkey_url, file) as first:
        await caller.until_registered(tool)
        await caller.call(tool, {"seconds": 2})
        await eventually(lambda: acts(file)["call_1"])
        first.send_signal(signal.SIGSTOP)
        async with ActingProcess(valkey_url, file) as second:
            answer = await caller.answer("call_1")
            assert answer == (_UNKNOWN if tool == "act" else {"result": str(second.pid)})
            await second.stop()
        first.send_signal(signal.SIGCONT)
        assert "result" in await caller.asked(tool)
        await caller.until_done(tool)
    assert acts(file) == {"call_1": times, "call_2": 1}


async def test_stop_finishes_what_has_begun(valkey_url: str, caller: Caller, file: Path) -> None:
    """Four at work are answered; the fifth, which has no place yet, is there for the next worker."""
    async with ActingProcess(valkey_url, file) as first:
        await caller.until_registered("act")
        for _ in range(5):
            await caller.call("act", {"seconds": 1.5})
        await eventually(lambda: len(acts(file)) == 4)
        first.send_signal(signal.SIGTERM)
        assert await first.wait() == 0
        assert [answer["result"] for answer in await caller.answers()] == ["acted"] * 4
    async with ActingProcess(valkey_url, file):
        assert await caller.answer("call_5") == {"result": "acted"}
    assert acts(file) == dict.fromkeys([f"call_{number}" for number in range(1, 6)], 1)


async def test_stop_that_lasts_too_long_tells_what_is_unknown_and_hands_back_what_may_be_repeated(
    valkey_url: str, caller: Caller, file: Path
) -> None:
    """Within the bound, and at once: nobody waits for a lease."""
    async with ActingProcess(valkey_url, file, drain_seconds=0.5) as first:
        await caller.until_registered("act", "act_again")
        await caller.call("act", {"seconds": 60})
        await caller.call("act_again", {"seconds": 60})
        await eventually(lambda: len(acts(file)) == 2)
        first.send_signal(signal.SIGTERM)
        assert await first.wait(seconds=8) == 0
        assert await caller.answer("call_1", seconds=0.5) == _UNKNOWN
    async with ActingProcess(valkey_url, file) as second:
        assert await caller.answer("call_2") == {"result": str(second.pid)}
    assert acts(file) == {"call_1": 1, "call_2": 2}


async def test_workers_share_the_calls(valkey_url: str, caller: Caller, file: Path) -> None:
    """Each is answered once, and both have some."""
    async with ActingProcess(valkey_url, file) as first, ActingProcess(valkey_url, file) as second:
        await first.until_ready()
        await second.until_ready()
        await caller.until_registered("act_again")
        await asyncio.sleep(1.1)  # both read by now
        calls = [await caller.call("act_again", {"seconds": 0.05}) for _ in range(60)]
        by = {(await caller.answer(call))["result"] for call in calls}
        assert by == {str(first.pid), str(second.pid)}
    assert acts(file) == dict.fromkeys(calls, 1)
