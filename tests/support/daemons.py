"""Configurations and surroundings for the daemon as a process: a file, a service manager, a look at its pages."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Self

import aiohttp
from redis.exceptions import RedisError

from llm_routerd.client import Client
from tests.support.processes import DaemonProcess

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from pathlib import Path

_WAIT_SECONDS = 15.0


def write_config(
    directory: Path,
    redis_url: str,
    standin_url: str,
    *,
    chain: tuple[str, ...] = ("local", "second"),
    daemon: str = "",
    listen: str = "",
    level: str = "info",
    more: str = "",
) -> Path:
    """Write `config.toml`: `local` is the stand-in's model `tiny` by Ollama's protocol, `second` its `big` by OpenAI's.

    `daemon` holds lines of the table `[daemon]`, and `more` further tables.
    """
    path = directory / "config.toml"
    path.write_text(
        f"""
[redis]
url = {json.dumps(redis_url)}
[daemon]
{daemon}
[metrics]
listen = {json.dumps(listen)}
[log]
level = {json.dumps(level)}
format = "json"
[deployments.local]
model = "ollama/tiny"
api_base = {json.dumps(standin_url)}
local = true
[deployments.second]
model = "openai/big"
api_base = {json.dumps(f"{standin_url}/v1")}
[chains.default]
deployments = {json.dumps(chain)}
{more}
""",
        encoding="utf-8",
    )
    return path


@asynccontextmanager
async def running_daemon(
    config: Path, *arguments: str, environ: Mapping[str, str] | None = None
) -> AsyncIterator[DaemonProcess]:
    """A daemon that answers requests; stopped at the end, if it has not ended by then."""
    async with DaemonProcess("--config", str(config), *arguments, environ=environ) as daemon:
        await daemon.until_ready()
        yield daemon


@asynccontextmanager
async def producer(url: str) -> AsyncIterator[Client]:
    """A client that gives up before the test does."""
    async with Client(url, patience_seconds=_WAIT_SECONDS) as client:
        yield client


async def page(port: int, path: str) -> tuple[int, str]:
    """A page of the health endpoint: status and text."""
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}{path}") as response:
        return response.status, await response.text()


class ServiceManager:
    """The other end of `$NOTIFY_SOCKET`.

    Attributes:
        environ: what systemd would set for its service.
        messages: what came, in order, one set of assignments each.
    """

    def __init__(self, directory: Path, *, watchdog_seconds: float | None = None) -> None:
        self._path = directory / "notify"
        self.environ = {"NOTIFY_SOCKET": str(self._path)}
        if watchdog_seconds is not None:
            self.environ["WATCHDOG_USEC"] = str(round(watchdog_seconds * 1e6))
        self.messages: list[dict[str, str]] = []
        self._came = asyncio.Event()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

    def _receive(self) -> None:
        lines = self._socket.recv(65_536).decode().splitlines()
        self.messages.append(dict(line.split("=", 1) for line in lines))
        self._came.set()

    async def __aenter__(self) -> Self:
        self._socket.bind(str(self._path))
        self._socket.setblocking(False)
        asyncio.get_running_loop().add_reader(self._socket, self._receive)
        return self

    async def __aexit__(self, *_: object) -> None:
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()

    def told(self, name: str) -> list[str]:
        """Every value that was sent for a name."""
        return [message[name] for message in self.messages if name in message]

    async def until(self, condition: Callable[[ServiceManager], object]) -> None:
        """Wait for messages until the condition holds."""
        async with asyncio.timeout(_WAIT_SECONDS):
            while not condition(self):
                self._came.clear()
                await self._came.wait()


async def kill_server(redis: Any) -> None:
    """As an OOM killer does; returns when it has been started again."""
    number = (await redis.info("server"))["process_id"]
    os.kill(number, signal.SIGKILL)
    async with asyncio.timeout(20):
        while True:
            try:
                if (await redis.info("server"))["process_id"] != number:
                    return
            except (RedisError, OSError):
                await asyncio.sleep(0.05)
