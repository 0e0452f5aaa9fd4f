"""The processes of a local fleet: a real Valkey, stand-ins as boxes, daemons; each may be killed and started again.

async with FleetWorld(boxes, config) as world:
    world.boxes["attic"].process.url
    await world.boxes["attic"].kill()
    await world.boxes["attic"].start()          # at the same address, with nothing in memory
"""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import tempfile
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

import aiohttp
from redis.asyncio import Redis

from tests.support.processes import DaemonProcess, StandInProcess, lasting_port
from tests.support.servers import ValkeyProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from tests.standin.box import Box
    from tests.support.processes import ChildProcess

DAEMONS = 2
_PAGE_SECONDS = 5.0


class Place(Protocol):
    """Where one process after the other lives."""

    async def kill(self) -> None:
        """SIGKILL it."""

    async def start(self) -> None:
        """Start the next one, and return when it serves."""


async def _killed(process: ChildProcess) -> None:
    process.send_signal(signal.SIGKILL)
    await process.wait()


class BoxPlace:
    """A box, which has the same address in all its lives.

    Attributes:
        process: that lives here now, or has been killed.
        log: has a line for each call that has ended, of all lives.
        past: states of its former lives, each as it was at its end.
    """

    def __init__(self, name: str, box: Box, directory: Path) -> None:
        self.name = name
        self.log = directory / f"{name}.jsonl"
        self.past: list[dict[str, Any]] = []
        self._box = box
        self._port = lasting_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self.process = self._next()

    def _next(self) -> StandInProcess:
        return StandInProcess(box=self._box, port=self._port, log=self.log)

    async def start(self) -> None:
        """Start it; it has nothing in memory."""
        if self.process.has_started:
            self.process = self._next()
        await self.process.__aenter__()

    async def kill(self) -> None:
        """SIGKILL it."""
        self.past.append(await self.state())
        await _killed(self.process)

    @property
    def is_up(self) -> bool:
        """Whether it runs."""
        return self.process.has_started and self.process.exit_status is None

    async def close(self) -> None:
        """Leave nothing behind."""
        if self.process.has_started:
            await self.process.stop()

    async def state(self) -> dict[str, Any]:
        """The truth about this life."""
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(_PAGE_SECONDS)) as session,
            session.get(f"{self.url}/_standin/state") as response,
        ):
            state: dict[str, Any] = await response.json()
            return state

    async def flap(self, **flap: Any) -> None:
        """Fail in this way from now on; see `tests.standin.flapping`."""
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{self.url}/_standin/flap", json=flap, raise_for_status=True),
        ):
            pass

    async def loads(self) -> Counter[str]:
        """How often each model was loaded, in all its lives."""
        return sum((Counter(each["loads"]) for each in [*self.past, await self.state()]), Counter())

    def calls(self) -> list[dict[str, Any]]:
        """The calls that have ended, other than by its death; see `tests.standin.server`."""
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []


class DaemonPlace:
    """A daemon."""

    def __init__(self, config: Path) -> None:
        self._config = config
        self.process = DaemonProcess("--config", str(config))
        self._past: list[DaemonProcess] = []

    async def start(self) -> None:
        """Start it."""
        if self.process.has_started:
            self._past.append(self.process)
            self.process = DaemonProcess("--config", str(self._config))
        await self.process.start()
        await self.process.until_ready()

    async def kill(self) -> None:
        """SIGKILL it."""
        await _killed(self.process)

    async def close(self) -> None:
        """Leave nothing behind."""
        if self.process.has_started:
            await self.process.stop()

    def logged(self, event: str) -> list[dict[str, Any]]:
        """Log lines of one event, of all lives."""
        return [line for each in (*self._past, self.process) for line in each.logged(event)]

    def complaints(self) -> list[str]:
        """Errors, and what stands before a traceback."""
        lines = [line for each in (*self._past, self.process) for line in each.output]
        return [line for line in lines if '"level":"error"' in line or line.startswith("Traceback")]


class FleetWorld:
    """All of it; a context manager that leaves no process behind.

    Args:
        boxes: by name.
        config: makes the configuration, of the server's address and those of the boxes.
        daemons: how many.
    """

    def __init__(
        self, boxes: Mapping[str, Box], config: Callable[[str, Mapping[str, str]], str], *, daemons: int = DAEMONS
    ) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="fleet-"))
        self.server = ValkeyProcess()
        self.boxes = {name: BoxPlace(name, box, self.directory) for name, box in boxes.items()}
        path = self.directory / "config.toml"
        path.write_text(config(self.server.url, {name: each.url for name, each in self.boxes.items()}))
        self.daemons = [DaemonPlace(path) for _ in range(daemons)]
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            stack.callback(shutil.rmtree, self.directory, ignore_errors=True)
            stack.callback(self.server.close)
            await asyncio.to_thread(self.server.start)
            for places in (self.boxes.values(), self.daemons):
                for place in places:
                    stack.push_async_callback(place.close)
                await asyncio.gather(*(place.start() for place in places))
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def client(self) -> Any:
        """A plain client of the server."""
        return Redis.from_url(self.server.url, decode_responses=True)

    def calls(self) -> Iterable[tuple[str, dict[str, Any]]]:
        """All calls that have ended, each with its box."""
        for name, box in self.boxes.items():
            for call in box.calls():
                yield name, call

    def complaints(self) -> Sequence[str]:
        """What the daemons log as nobody's fault but their own."""
        return [line for daemon in self.daemons for line in daemon.complaints()]
