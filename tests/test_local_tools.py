"""What a program may pass to a run in its own process, and what that costs it: threads, the event loop."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from typing import Any

import pytest
from msgspec import convert

from llm_routerd.local_tools import LocalTools
from llm_routerd.protocol.tool import ToolRequest
from tests.support.eventually import eventually
from tests.support.fakes import says
from tests.test_router_run import calls, router_on, unlock

CALL = {
    "id": "r1",
    "name": "look",
    "arguments": {},
    "turn": 1,
    "tenant_id": None,
    "deadline_ms": 0,
    "traceparent": None,
}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"toolz": [unlock]}, "unexpected argument `toolz`; did you mean `tools`?"),
        ({"max_turn": 3}, "unexpected argument `max_turn`; did you mean `max_turns`?"),
        ({"promt": "?"}, "unexpected argument `promt`; did you mean `prompt`?"),
        ({"temperature": 0}, "unexpected argument `temperature`; did you mean `params={'temperature': …}`?"),
        ({"agent": {"tools": ["x"]}}, "unexpected argument `agent`"),
        ({"qwertz": None}, "unexpected argument `qwertz`"),
    ],
)
async def test_property_that_no_run_has_is_a_mistake_of_the_program(
    given: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Python has it of arguments; whatever its value is."""
    async with router_on(calls(("unlock", "{}")), monkeypatch=monkeypatch) as (router, told):
        with pytest.raises(TypeError) as raised:
            await router.run(**{"prompt": "?", "tools": [unlock], **given})
        assert str(raised.value) == message
        with pytest.raises(TypeError) as raised:
            async with router.stream_run(**{"prompt": "?", "tools": [unlock], **given}):
                pass
        assert str(raised.value) == message
        assert not told.local.calls


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"toolz": [unlock]}, "unexpected argument `toolz`; did you mean `tools`?"),
        ({"max_tokens": 5}, "unexpected argument `max_tokens`; did you mean `params={'max_tokens': …}`?"),
        ({"confirm": unlock}, "unexpected argument `confirm`"),
    ],
)
async def test_property_that_no_request_has_is_one_too(
    given: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of `route` and of `stream`."""
    async with router_on(says("x"), monkeypatch=monkeypatch) as (router, told):
        with pytest.raises(TypeError) as raised:
            await router.route(**{"prompt": "?", **given})
        assert str(raised.value) == message
        with pytest.raises(TypeError) as raised:
            async with router.stream(**{"prompt": "?", **given}):
                pass
        assert str(raised.value) == message
        assert not told.local.calls


async def test_first_run_does_not_hold_up_the_event_loop() -> None:
    """What it imports takes 0.3 s; in a process of its own, where nothing has been imported yet."""
    ran = await asyncio.to_thread(
        subprocess.run, (sys.executable, "-c", FIRST_RUN), capture_output=True, text=True, timeout=60, check=True
    )
    begins, on_the_loop = ran.stdout.split()
    assert (begins, on_the_loop) == ("False", "False")


FIRST_RUN = """
import asyncio, builtins, sys, threading
from llm_routerd import NoAnswerError, Router
from llm_routerd.router import load_config

def look() -> None:
    "Look."

async def main():
    began = sys.modules.keys() & {"redis", "pydantic"}
    at = set()
    real = builtins.__import__
    def importing(name, *rest, **more):
        new = name not in sys.modules
        module = real(name, *rest, **more)
        if new and name.partition(".")[0] in {"redis", "pydantic"}:
            at.add(threading.get_ident())
        return module
    builtins.__import__ = importing
    async with Router(load_config(None, {})) as router:
        try:
            await router.run(tools=[look], prompt="")
        except NoAnswerError:
            pass
    assert at, "nothing was imported"
    print(bool(began), threading.get_ident() in at)

asyncio.run(main())
"""


async def test_thousand_calls_leave_no_thread() -> None:
    """Each has a thread of its own, which ends with it."""
    at_once: list[int] = []

    def look() -> str:
        """Look."""
        at_once.append(threading.active_count())
        return "seen"

    served = LocalTools([look])
    before = threading.active_count()
    for number in range(1_000):
        answer = await served.answer(convert(CALL | {"call_id": f"call_{number}"}, ToolRequest), 5)
        assert answer.value == b"seen"
    await eventually(lambda: threading.active_count() <= before)
    assert len(at_once) == 1_000
    assert max(at_once) < before + 50
