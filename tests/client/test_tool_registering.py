"""Functions become tools of a worker, and a worker begins to serve: what is refused, and what is told."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from functools import partial
from typing import Any

import pytest

from llm_routerd import ToolRequest, ToolWorker, tool
from llm_routerd.errors import BrokerError
from tests.support.servers import running_valkey
from tests.support.toolcalls import make_worker, open_caller, serving

SECRET = "hunter2-is-the-password"


def _untyped(city) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    """No type."""


def _several(*cities: str) -> None:
    """No names."""


def _options(**options: str) -> None:
    """No known names."""


def _by_place(city: str, /) -> None:
    """No name either."""


def _unreadable(city: Nowhere) -> None:  # type: ignore[name-defined]  # noqa: F821
    """No such type."""


def _silent(city: str) -> None: ...


@pytest.mark.parametrize(
    ("function", "name", "error", "says"),
    [
        (_untyped, None, TypeError, "_untyped: the parameter 'city' needs a type, as in `city: str`"),
        (_several, None, TypeError, "_several: arguments are given by name, .* write `cities: list[…]`"),
        (_options, None, TypeError, "_options: .* unlike `**options`: write `options: dict[str, …]`"),
        (_by_place, None, TypeError, "_by_place: .* leave out the `/`"),
        (_unreadable, None, TypeError, "_unreadable: its types cannot be read .* 'Nowhere' is not defined"),
        (lambda: 1, None, TypeError, "a lambda, .* is a tool only with name=…"),
        (lambda city: city, "x", TypeError, "x: a lambda's parameters have no types"),
        (partial(_silent, "Oslo"), None, TypeError, "a lambda, or what else has no name"),
        (partial(_silent, "Oslo"), "x", TypeError, "x: is no function that has types"),
        (_silent, None, ValueError, "_silent: needs a docstring, or description=…"),
        (_silent, "x", ValueError, "x: needs a docstring, or description=…"),
    ],
)
async def test_function_that_cannot_be_a_tool_is_refused_and_the_way_out_is_told(
    function: Any, name: str | None, error: type[Exception], says: str
) -> None:
    """Alike by who serves it to a daemon, and by who runs it in its own process."""
    pattern = "^" + re.escape(says).replace(re.escape(".*"), ".*")
    with pytest.raises(error, match=pattern):
        ToolWorker().tool(name=name)(function)
    with pytest.raises(error, match=pattern):
        tool(function, name=name)


async def test_lambda_with_all_that_is_missing_is_a_tool(broker_url: str) -> None:
    """It has no types, and needs none; what an async function's wrapper gives is awaited."""
    worker, _ = make_worker(broker_url)

    async def later(what: str) -> str:
        return what

    worker.tool(name="now", description="Now.")(lambda: "now")
    worker.tool(name="later", description="Later.")(lambda: later("later"))
    async with open_caller(broker_url) as caller, serving(worker):
        assert await caller.asked("now") == {"result": "now"}
        assert await caller.asked("later") == {"result": "later"}


async def test_second_tool_of_a_name_is_refused_unless_it_is_to_replace_the_first() -> None:
    """The first would be gone without a word."""
    worker = ToolWorker()

    async def handle(_arguments: dict[str, Any], _call: ToolRequest) -> None: ...

    def look() -> None:
        """Look."""

    worker.tool(look)
    first = worker.tools["look"]
    for again in (lambda: worker.tool(look), lambda: worker.add("look", handle, {"description": "Other."})):
        with pytest.raises(ValueError, match="two tools have the name 'look'"):
            again()
    assert worker.tools == {"look": first}
    worker.add("look", handle, {"description": "Other."}, replace=True)
    assert worker.tools["look"].handler is handle
    await worker.remove("look")
    worker.tool(look)


async def test_url_is_that_of_the_environment_unless_one_is_given(
    monkeypatch: pytest.MonkeyPatch, valkey_url: str
) -> None:
    """As of the daemon and of every command."""
    monkeypatch.setenv("REDIS_URL", "nonsense")
    with pytest.raises(BrokerError):
        ToolWorker()
    ToolWorker("redis://127.0.0.1:1/0")
    monkeypatch.setenv("REDIS_URL", valkey_url)
    worker = ToolWorker()
    worker.tool(name="now", description="Now.")(lambda: "now")
    async with open_caller(valkey_url) as caller, serving(worker):
        assert await caller.asked("now") == {"result": "now"}


SERVES = """
import signal, sys, threading, time
from llm_routerd import ToolWorker
worker = ToolWorker()
{tools}
tell = worker.tell
def told(line, error):
    tell(line, error)
    if line.startswith("serving"):
        signal.raise_signal(signal.SIGTERM)
worker.tell = told
worker.serve()
"""
TWO_TOOLS = """
@worker.tool
def look() -> None:
    "Look."
worker.add("lights.switch", None, {"description": "x"})
"""


@pytest.mark.parametrize(
    ("tools", "served"), [(TWO_TOOLS, "look, lights.switch"), ("", "nothing, for no tool was added,")]
)
async def test_serve_tells_what_is_served_where_and_no_password(tools: str, served: str) -> None:
    """One line on stderr, once it is registered; SIGTERM ends it."""
    with running_valkey(tcp=True) as server:
        async with open_caller(server.url) as caller:
            await caller.redis.acl_setuser(
                "tools", enabled=True, passwords=[f"+{SECRET}"], keys=["*"], commands=["+@all"]
            )
            place = f"127.0.0.1:{server.port}"
            url = f"redis://tools:{SECRET}@{place}/0"
            ran = await asyncio.to_thread(
                subprocess.run,
                (sys.executable, "-c", SERVES.replace("{tools}", tools)),
                capture_output=True,
                text=True,
                timeout=60,
                check=True,
                env=os.environ | {"REDIS_URL": url},
            )
            registered = await caller.redis.hkeys(caller.keys.tools)
    assert ran.stderr == f"llm-routerd tool worker: serving {served} at redis://{place}/0\n"
    assert ran.stdout == ""
    assert set(registered) == ({"look", "lights.switch"} if tools else set())
