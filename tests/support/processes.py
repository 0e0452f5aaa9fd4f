"""The daemon and the stand-in as processes of their own, for the demo and the acceptance tests."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from tests.standin.box import flags_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tests.standin.box import Box

T = TypeVar("T")

ROOT = Path(__file__).parents[2]

_START_SECONDS = 20.0
_STOP_SECONDS = 15.0
_LONGEST_LINE = 2**20
# A child gets these and nothing else: no key, no service manager's socket, no setting of somebody's daemon; but it runs
# the code that we do, also where another one is installed.
_PASSED_ON = ("PATH", "PYTHONPATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "PYTHONDONTWRITEBYTECODE")


class ChildProcess:
    """A Python program as a child, in a session of its own so that a terminal's Ctrl-C is left to us.

    Use it as `async with`: at the end it gets SIGTERM, and SIGKILL where that does not help.

    Attributes:
        output: every line that it has written, to either stream.
    """

    def __init__(self, *arguments: str, environ: Mapping[str, str] | None = None) -> None:
        self._arguments = arguments
        self._environ = {name: os.environ[name] for name in _PASSED_ON if name in os.environ} | dict(environ or {})
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._written = asyncio.Event()
        self.output: list[str] = []

    @property
    def _running(self) -> asyncio.subprocess.Process:
        assert self._process is not None, "the process has not been started"
        return self._process

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._running.pid

    @property
    def has_started(self) -> bool:
        """Whether it runs, or has run."""
        return self._process is not None

    @property
    def exit_status(self) -> int | None:
        """Its exit status; None while it runs, negative where a signal ended it."""
        return self._running.returncode

    async def start(self) -> None:
        """Start it, without waiting for anything."""
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, *self._arguments),
            cwd=ROOT,
            env=self._environ,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
            limit=_LONGEST_LINE,
        )
        self._reading = asyncio.create_task(self._read(), name="read-output")

    async def _read(self) -> None:
        assert self._running.stdout is not None
        async for line in self._running.stdout:
            self.output.append(line.decode(errors="replace").rstrip("\n"))
            self._written.set()
        self._written.set()

    async def until(self, found: Callable[[str], T | None], *, seconds: float = _START_SECONDS, start: int = 0) -> T:
        """Wait for a line of the output of which `found` makes something, from line `start` on.

        Raises:
            RuntimeError: the process has ended, or nothing came in time; the message has its last lines.
        """
        assert self._reading is not None, "the process has not been started"
        position = start
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while True:
                    self._written.clear()
                    while position < len(self.output):
                        if (result := found(self.output[position])) is not None:
                            return result
                        position += 1
                    if self._reading.done():
                        break
                    await self._written.wait()
        raise RuntimeError(f"{' '.join(self._arguments[:3])} did not say what was waited for:\n{self.last_words()}")

    def last_words(self) -> str:
        """The last lines that it wrote."""
        return "\n".join(self.output[-10:])

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal.

        Raises:
            ProcessLookupError: it has ended.
        """
        # Not by subprocess, which first looks whether the process has ended, and so takes its status from asyncio.
        if self._running.returncode is not None:
            raise ProcessLookupError(self._running.pid)
        os.kill(self._running.pid, number)

    async def wait(self, *, seconds: float = _STOP_SECONDS) -> int:
        """Wait until it has ended and all its output is there; return its exit status.

        Raises:
            TimeoutError: it has not ended in time.
        """
        async with asyncio.timeout(seconds):
            status = await self._running.wait()
            if self._reading is not None:
                await self._reading
        return status

    async def stop(self) -> int:
        """End it with SIGTERM, or with SIGKILL where that does not help; return its exit status."""
        process = self._running
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)
            with contextlib.suppress(TimeoutError):
                return await self.wait()
        raise AssertionError("nothing survives SIGKILL")

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._process is not None:
            await self.stop()


class DaemonProcess(ChildProcess):
    """`llm-routerd serve`, its log as JSON.

    Args:
        arguments: of `serve`.
        environ: beyond the few variables that every child gets.
    """

    command = "serve"

    def __init__(self, *arguments: str, environ: Mapping[str, str] | None = None) -> None:
        super().__init__("-m", "llm_routerd", self.command, *arguments, environ=environ)

    async def until_logged(self, event: str, *, start: int = 0, seconds: float = _START_SECONDS) -> dict[str, Any]:
        """Wait for a log line by the name of its event; return its fields.

        Raises:
            RuntimeError: as `until`.
        """

        def found(line: str) -> dict[str, Any] | None:
            record = log_record(line)
            return record if record is not None and record.get("event") == event else None

        return await self.until(found, start=start, seconds=seconds)

    async def until_ready(self) -> None:
        """Wait until it answers requests.

        Raises:
            RuntimeError: as `until`.
        """
        await self.until_logged("ready")

    def logged(self, event: str) -> list[dict[str, Any]]:
        """The log lines so far of one event."""
        records = map(log_record, self.output)
        return [record for record in records if record is not None and record.get("event") == event]


class GatewayProcess(DaemonProcess):
    """`llm-routerd gateway`, likewise."""

    command = "gateway"


class StandInProcess(ChildProcess):
    """The stand-in model server; `url` is there once it has started.

    Args:
        models: each model's name with its directives.
        box: the machine that it is, in place of them.
        port: where it listens; 0: anywhere.
        log: gets a line for each call.
    """

    def __init__(
        self,
        models: Mapping[str, str] | None = None,
        *,
        box: Box | None = None,
        port: int = 0,
        log: Path | None = None,
    ) -> None:
        words = [word for name, told in (models or {}).items() for word in ("--model", f"{name}={told}")]
        where = ["--port", str(port), *(() if log is None else ("--log", str(log)))]
        super().__init__("-m", "tests.standin", *where, *(words if box is None else flags_of(box)))
        self.url = ""

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        try:
            self.url = await self.until(lambda line: (log_record(line) or {}).get("url"))
        except BaseException:
            await self.stop()
            raise
        return self


def log_record(line: str) -> dict[str, Any] | None:
    """The fields of a log line; None: it is none."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


_given: set[int] = set()


def lasting_port() -> int:
    """A port that nobody listens on, and that the kernel gives to no connection: a server finds it again after a pause.

    10,000 above it is one of those as well, and free: the port of a Cluster's bus.  Each of pytest's processes has a
    thousand of its own, and gives none of them twice, for a server may listen a while after it was given its port.
    """
    process = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 10
    while True:
        port = 10_000 + 1000 * process + random.randrange(1000)
        if port in _given:
            continue
        _given.add(port)
        with contextlib.suppress(OSError):
            for number in (port, port + 10_000):
                with socket.create_server(("127.0.0.1", number)):
                    pass
            return port
