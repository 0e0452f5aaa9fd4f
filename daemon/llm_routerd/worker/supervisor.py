"""Watches every task of the process, from its first moment to its last.

The rule, for whoever starts a task:

- `essential` is what the daemon does for everybody, for as long as it lives: the pipe, leases, orphans, the watchdog,
  following the embedded server.  Should it end by an exception, or be cancelled by anybody but us, the daemon looks
  alive and keeps no promise.  So that ends the daemon: one error with its traceback, what is in flight goes back, and a
  failure's exit code, so that the service manager starts it afresh.  The main work is essential too.
- `helper` is what is done once, or for one request: getting ready, a reload, giving entries back, a request itself.
  Should it end by an exception, that is one error with its traceback, and the daemon lives.
- `first_of` waits for one of several things, and `all_of` for all; they leave no task behind.

No task is started in any other way.  Timers (`call_later`) set their next before they do anything that may fail.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

from llm_routerd.errors import RouterdError
from llm_routerd.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

T = TypeVar("T")

log = get_logger()

CLOSE_SECONDS = 1.0  # longest wait for a task that has been cancelled


class TaskFailed(RouterdError):  # noqa: N818 - said of a task, and not of an error
    """A fault of ours has ended what the daemon cannot do without: report it.  Its traceback is in the log."""


class Supervisor:
    """The tasks of one event loop.

    Args:
        on_failure: called once, when an essential task has ended by a fault.

    Attributes:
        failure: what has ended an essential task; None: nothing has.  A `RouterdError` of its own is no fault of ours:
            it is raised as it is, and needs no traceback.
    """

    def __init__(self, on_failure: Callable[[], object] = lambda: None) -> None:
        self._on_failure = on_failure
        self._tasks: dict[asyncio.Task[Any], bool] = {}  # whether it is essential
        self._expected: set[asyncio.Task[Any]] = set()  # those that we have cancelled
        self._failed = asyncio.Event()
        self.failure: RouterdError | None = None

    def essential(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Start what the daemon cannot do without; it may return, if it does so on purpose."""
        return self._start(work, name, is_essential=True)

    def helper(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Start what it can do without."""
        return self._start(work, name, is_essential=False)

    async def guard(self, work: Coroutine[Any, Any, T], name: str) -> T:
        """Do the main work for as long as every essential task lives.

        Raises:
            TaskFailed: one has ended, or the work has, by a fault; the work has been cancelled.
            RouterdError: the work's own, or that of an essential task.
        """
        task = asyncio.create_task(work, name=name)
        failed = asyncio.create_task(self._failed.wait(), name="failed")
        try:
            await asyncio.wait((task, failed), return_when=asyncio.FIRST_COMPLETED)
        finally:
            failed.cancel()
            if not task.done():
                await self.end(task)
        if self.failure is None:
            fault = _fault_of(task)
            if fault is None or isinstance(fault, RouterdError):
                return task.result()
            self._fail(task, fault)
        raise self.failure or AssertionError

    async def end(self, *tasks: asyncio.Task[Any]) -> None:
        """Cancel tasks, and wait until they have ended; one that will not in good time is left behind, and named."""
        running = [task for task in tasks if not task.done()]
        if not running:
            return
        self._expected.update(running)
        for task in running:
            task.cancel()
        _, pending = await asyncio.wait(running, timeout=CLOSE_SECONDS)
        for task in pending:
            log.error("task_does_not_end", task=task.get_name())

    async def aclose(self) -> None:
        """End all of them."""
        await self.end(*self._tasks)

    def _start(self, work: Coroutine[Any, Any, T], name: str, *, is_essential: bool) -> asyncio.Task[T]:
        task = asyncio.create_task(work, name=name)
        self._tasks[task] = is_essential
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        is_essential = self._tasks.pop(task)
        fault = _fault_of(task)
        if task in self._expected:
            self._expected.discard(task)
            if isinstance(fault, asyncio.CancelledError):
                return
        if fault is None:
            return
        if is_essential:
            self._fail(task, fault)
        elif not isinstance(fault, asyncio.CancelledError):
            log.error("task_failed", task=task.get_name(), exc_info=fault)

    def _fail(self, task: asyncio.Task[Any], fault: BaseException) -> None:
        if self.failure is not None:
            return
        if isinstance(fault, RouterdError):
            self.failure = fault
        else:
            name = task.get_name()
            log.error("daemon_failed", task=name, exc_info=fault)
            self.failure = TaskFailed(f"a fault in llm-routerd has ended its task {name} ({type(fault).__name__})")
        self._failed.set()
        self._on_failure()


async def first_of(*works: Coroutine[Any, Any, object], timeout_seconds: float | None = None) -> None:
    """Return when the first of these is over, or the time is; the others are cancelled.

    Raises:
        Exception: what has ended one of those that are over.
    """
    tasks = [asyncio.create_task(work, name="first-of") for work in works]
    try:
        await asyncio.wait(tasks, timeout=timeout_seconds, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task.done():
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=CLOSE_SECONDS)


async def all_of(*works: Coroutine[Any, Any, object]) -> None:
    """Return when all of these are over.

    Raises:
        BaseException: what has ended the first that failed, or was cancelled; the others are cancelled.
    """
    left = {asyncio.create_task(work, name="all-of") for work in works}
    try:
        while left:
            over, left = await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)
            for task in over:
                task.result()
    finally:
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=CLOSE_SECONDS)


def _fault_of(task: asyncio.Task[Any]) -> BaseException | None:
    """What has ended a task that is done; None: it returned."""
    return asyncio.CancelledError() if task.cancelled() else task.exception()
