"""A probe of our own tells everyone what it finds, and no more than it finds."""

from __future__ import annotations

import asyncio
from typing import Any

from llm_routerd.core.events import Failed, Result
from tests.executor.test_examination import ask, cooled
from tests.support.fakes import says, waits_for


async def test_request_without_time_takes_no_probe_from_others() -> None:
    """Its deadline passes before the probe's answer: that says nothing of the deployment."""
    gate = asyncio.Event()
    executor, _, _ = await cooled(waits_for(gate), says("the answer"), says("the answer"))
    ending = await ask(executor, "hasty", local_only=True, seconds=0.05)
    assert isinstance(ending.event, Failed)
    gate.set()
    await asyncio.sleep(0.05)
    other = await ask(executor, "patient", local_only=True, seconds=10.0)
    assert isinstance(other.event, Result)


async def test_unforeseen_exception_of_a_probe_ends_no_request() -> None:
    """It costs the probe."""

    def breaks(*_: Any) -> Any:
        raise RuntimeError("a bug of ours")

    executor, local, _ = await cooled()
    local.stream = breaks
    ending = await ask(executor, "secret", local_only=True, seconds=5.0)
    assert isinstance(ending.event, Failed)
    assert ending.event.code.value == "local_exhausted"
