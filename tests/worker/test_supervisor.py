"""Which ends of a task are a failure, and of what."""

from __future__ import annotations

import ast
import asyncio
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

import llm_routerd
from llm_routerd.errors import BrokerError
from llm_routerd.worker import supervisor as module
from llm_routerd.worker.supervisor import Supervisor, TaskFailed


async def _raise(error: BaseException) -> None:
    raise error


async def _return() -> str:
    return "done"


async def _for_ever() -> None:
    await asyncio.Event().wait()


async def test_essential_task_that_raises_ends_the_work_and_names_itself_and_nothing_that_it_quotes() -> None:
    """One error with a traceback; the exception's words may quote anything."""
    tasks, is_told = Supervisor(), []
    tasks = Supervisor(on_failure=lambda: is_told.append(True))
    with capture_logs() as logs:
        tasks.essential(_raise(KeyError("secret")), "pipe")
        with pytest.raises(TaskFailed, match=r"task pipe \(KeyError\)") as caught:
            await tasks.guard(_for_ever(), "worker")
    assert "secret" not in str(caught.value)
    (line,) = logs
    assert (line["event"], line["task"], line["log_level"]) == ("daemon_failed", "pipe", "error")
    assert isinstance(line["exc_info"], KeyError)
    assert is_told == [True]


async def test_failure_from_before_the_work_began_ends_it_at_once() -> None:
    """Its first moment counts."""
    tasks = Supervisor()
    tasks.essential(_raise(KeyError()), "watchdog")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert tasks.failure is not None
    with pytest.raises(TaskFailed):
        await tasks.guard(_for_ever(), "worker")


async def test_task_that_somebody_else_cancels_has_failed_and_one_that_we_end_has_not() -> None:
    """A stray cancel leaves a daemon without its pipe."""
    tasks = Supervisor()
    ours = tasks.essential(_for_ever(), "ours")
    await tasks.end(ours)
    assert tasks.failure is None
    stray = tasks.essential(_for_ever(), "stray")
    asyncio.get_running_loop().call_soon(stray.cancel)
    with pytest.raises(TaskFailed, match="stray"):
        await tasks.guard(_for_ever(), "worker")


async def test_work_that_fails_by_a_fault_is_told_and_by_an_error_on_purpose_is_that_error() -> None:
    """What the operator has to mend keeps its own words."""
    with pytest.raises(TaskFailed, match="worker"):
        await Supervisor().guard(_raise(TypeError()), "worker")
    with pytest.raises(BrokerError, match="refused"):
        await Supervisor().guard(_raise(BrokerError("refused")), "worker")
    assert await Supervisor().guard(_return(), "worker") == "done"


async def test_helper_that_raises_is_told_and_ends_nothing() -> None:
    """The work goes on; nothing is told of one that was cancelled or returned."""
    tasks = Supervisor()
    with capture_logs() as logs:
        tasks.helper(_raise(KeyError()), "reload")
        tasks.helper(_return(), "fine")
        tasks.helper(_for_ever(), "cancelled").cancel()
        assert await tasks.guard(_return(), "worker") == "done"
        await tasks.aclose()
    assert [(line["event"], line["task"]) for line in logs] == [("task_failed", "reload")]


async def test_cancelled_work_ends_with_its_watch() -> None:
    """Nothing is left behind, and it is no failure."""
    tasks = Supervisor()
    work = asyncio.create_task(tasks.guard(_for_ever(), "worker"))
    await asyncio.sleep(0.01)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert tasks.failure is None
    assert {task.get_name() for task in asyncio.all_tasks()} & {"worker", "failed"} == set()


async def test_task_that_will_not_end_is_left_behind_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of all does not wait for it."""
    monkeypatch.setattr(module, "CLOSE_SECONDS", 0.05)
    release = asyncio.Event()

    async def stubborn() -> None:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    tasks = Supervisor()
    task = tasks.essential(stubborn(), "stubborn")
    await asyncio.sleep(0)
    with capture_logs() as logs:
        async with asyncio.timeout(5):
            await tasks.aclose()
    assert [(line["event"], line["task"]) for line in logs] == [("task_does_not_end", "stubborn")]
    release.set()
    await task


# Where a task is made beside the supervisor, and why that is its maker's own.
_OWN: dict[str, str] = {
    "worker/supervisor.py": "the supervisor",
    "router.py": "the library has no daemon; a caller's stream waits for its own task",
    "local_run.py": "the library has no daemon; a run waits for its tools' tasks, and ends them with itself",
    "client/tool_worker.py": "a tool worker has no daemon; all of its tasks are one to whoever runs it",
    "client/tool_serving.py": "a tool worker has no daemon; a fault in one ends the worker, one of a tool is told",
    "running/warmth.py": "shared by the requests that wait for it; its faults are logged by it",
    "running/sleeping.py": "one a box, whoever uses it; its faults are logged by it",
    "running/waking.py": "goes on behind whoever wanted the box; its faults are logged by it",
    "running/fleet.py": "shared by the calls that wait for a slot; its faults are logged by it",
    "running/windows.py": "shared by the requests that wait for the answer; what a server tells is no fault of ours",
    "running/examination.py": "shared by the requests that wait for it; its faults are logged by it",
    "service/health_http.py": "one for each connection, as asyncio's server makes them; its faults are logged by it",
    "worker/abandoning.py": "the last connection of a process that ends, which waits for it or breaks it off",
    "queue/connection/silence.py": "a question that its connection waits for; a fault in it is one of the loop's, and logged",
    "queue/connection/pooled.py": "a client has no daemon; it lives while somebody waits for an answer",
    "queue/connection/subscriber.py": "what it writes goes beside what it reads, and ends with its connection",
    "client/multiplexer.py": "all of its tasks are one to whoever runs it, and a fault in one ends that",
    "gateway/http/exchange.py": "a cancellation that no client waits for; what Redis says to it is logged",
    "cli/watch.py": "a command, which waits for all of its tasks",
    "cli/confirming.py": "a command, which waits for all of its tasks",
    "mcp_bridge/bridge.py": "the bridge has no daemon; all of its tasks are one to whoever runs it",
}


def test_no_task_is_started_in_any_other_way() -> None:
    """A new one goes through the supervisor, or onto the list with its reason."""
    root = Path(llm_routerd.__file__).parent
    found = {
        str(path.relative_to(root))
        for path in root.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and _name(node) in {"create_task", "ensure_future", "TaskGroup"}
    }
    assert found == set(_OWN)


def _name(call: ast.Call) -> Any:
    return getattr(call.func, "attr", getattr(call.func, "id", ""))
