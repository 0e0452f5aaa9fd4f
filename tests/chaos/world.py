"""The processes of a run: a real Valkey, a stand-in model server, and workers that are killed and started again."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

import orjson
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff, NoBackoff

from tests.chaos.plan import LEASE_SECONDS, WORKERS
from tests.support.eventually import eventually
from tests.support.servers import ValkeyProcess

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_ROOT = Path(__file__).parents[2]
_END_SECONDS = 15.0
_PATIENCE_SECONDS = 15.0
_PATIENCE_TRIES = 5
LASTING = {"appendonly": "yes", "appendfsync": "always"}  # what was acknowledged survives a SIGKILL
_CONFIG = """
[redis]
url = "{url}"
{redis}
[daemon]
concurrency = {concurrency}
lease_seconds = {lease}
drain_seconds = 2.0
[metrics]
listen = ""
channel = "{channel}"
[log]
level = "info"
format = "json"
[deployments.first]
model = "ollama/first-{slot}"
api_base = "{models}"
local = true
timeout = 12.0
idle_timeout = {idle}
stream_timeout = 15.0
concurrency = {concurrency}
[deployments.second]
model = "openai/second-{slot}"
api_base = "{models}/v1"
api_key = "made-up"
local = true
timeout = 12.0
idle_timeout = {idle}
stream_timeout = 15.0
concurrency = {concurrency}
[chains.default]
deployments = ["first", "second"]
"""


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of Unix time, in seconds."""

    start: float
    end: float


@dataclass(slots=True)
class Life:
    """One worker process: when it lived, and when it was stopped meanwhile."""

    pid: int
    start: float
    end: float = float("inf")
    stops: list[Span] = field(default_factory=list)


class Slot:
    """A place for a worker, or for what `command` starts; one process after the other lives in it, never two at once."""

    def __init__(
        self,
        number: int,
        config: Path,
        log: Path,
        environment: dict[str, str],
        *,
        command: str = "serve",
        module: Sequence[str] = (),
    ) -> None:
        """Prepare it; `module`, with arguments, is run in place of the daemon's own command."""
        self.number = number
        self.lock = asyncio.Lock()
        self.lives: list[Life] = []
        self._module = module or ("llm_routerd", command, "--config", str(config))
        self._log = log
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the next worker; it gets a process group of its own."""
        command = [sys.executable, "-m", *self._module]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=_ROOT, env=self._environment, stdout=log, stderr=log, start_new_session=True
            )
        self.lives.append(Life(self._process.pid, time.time()))

    async def ready(self) -> None:
        """Wait until the first worker here has been ready."""
        await eventually(lambda: b'"event":"ready"' in self._log.read_bytes(), seconds=_END_SECONDS)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, unless it has ended by itself."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    async def ended(self) -> int:
        """Wait for its end; returns the exit status."""
        assert self._process is not None, "no worker was started here"
        process = self._process
        await eventually(lambda: process.poll() is not None, seconds=_END_SECONDS)
        self.lives[-1].end = time.time()
        return process.returncode

    async def kill(self) -> None:
        """SIGKILL it, stopped or not."""
        self.signal(signal.SIGKILL)
        await self.ended()

    async def stop_for(self, seconds: float) -> None:
        """SIGSTOP it for a while."""
        self.signal(signal.SIGSTOP)
        began = time.time()
        try:
            await asyncio.sleep(seconds)
        finally:
            self.signal(signal.SIGCONT)
            self.lives[-1].stops.append(Span(began, time.time()))

    def last_words(self, lines: int) -> str:
        """The end of its log."""
        return "\n".join([f"{self._log.stem}:", *self._lines()[-lines:]])

    def complaints(self) -> list[str]:
        """What stands in its log as nobody's fault but its own: errors, and what stands before a traceback."""
        lines = self._lines()
        before = [one for one, other in pairwise(["", *lines]) if other.startswith("Traceback")]
        return before + [line for line in lines if '"level":"error"' in line]

    def _lines(self) -> list[str]:
        return self._log.read_text("utf-8", "replace").splitlines() if self._log.exists() else []

    @property
    def has_ended(self) -> bool:
        """Whether its worker has ended."""
        return self._process is not None and self._process.poll() is not None

    def close(self) -> None:
        """Leave nothing behind."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait(timeout=_END_SECONDS)


class Server(Protocol):
    """What stands for Redis, one process or several."""

    url: str

    def start(self) -> None:
        """Start it, and return when it serves."""

    def close(self) -> None:
        """End it, in whatever state it is."""


class World:
    """All processes of one run; a context manager that leaves none behind."""

    def __init__(
        self,
        server: Server | None = None,
        *,
        redis: str = "",
        channel: str = "llm_router_metrics",
        idle_seconds: float = 1.0,
        concurrency: int = 8,
    ) -> None:
        """Prepare it.

        Args:
            server: what the requests go through; None: a Valkey that keeps what it has acknowledged.
            redis: further lines of the workers' `[redis]`.
            channel: of their metrics.
            idle_seconds: the deployments' `idle_timeout`.
            concurrency: of each worker and of each of its deployments.
        """
        self.channel = channel
        self.server = server or ValkeyProcess(LASTING)
        self.server_lock = asyncio.Lock()
        self.troubles: list[Span] = []  # when the server did not serve
        self.slots: list[Slot] = []
        self.directory = Path(tempfile.mkdtemp(prefix="chaos-"))
        self._redis = redis
        self._idle_seconds = idle_seconds
        self._concurrency = concurrency
        self.models_url = ""
        self._models: subprocess.Popen[bytes] | None = None
        # Its own byte code cache: a worker that starts is to be up at once, also where none is written.
        self._environment = {
            name: value
            for name, value in os.environ.items()
            if name not in {"PYTHONDONTWRITEBYTECODE", "REDIS_URL", "OLLAMA_API_BASE", "OLLAMA_MODEL", "NOTIFY_SOCKET"}
        } | {"PYTHONPYCACHEPREFIX": str(self.directory / "pyc")}

    async def __aenter__(self) -> Self:
        try:
            await asyncio.to_thread(self.server.start)
            await asyncio.to_thread(self._start_models)
            self._make_slots()
        except BaseException:
            self._close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        for slot in self.slots:
            slot.close()
        if self._models is not None:
            self._models.kill()
            self._models.communicate()
        self.server.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def url(self) -> str:
        """Where the workers find the server."""
        return self.server.url

    @property
    def calls_path(self) -> Path:
        """The stand-in's log of calls that have ended."""
        return self.directory / "calls.jsonl"

    def _start_models(self) -> None:
        models = [f"{name}-{slot}" for name in ("first", "second") for slot in range(WORKERS)]
        command = [sys.executable, "-m", "tests.standin", "--log", str(self.calls_path)]
        self._models = subprocess.Popen(
            command + [word for model in models for word in ("--model", model)],
            cwd=_ROOT,
            env=self._environment,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._models.stdout is not None
        self.models_url = orjson.loads(self._models.stdout.readline())["url"]

    def _make_slots(self) -> None:
        for number in range(WORKERS):
            slot = Slot(number, self._config_path(number), self.directory / f"worker-{number}.log", self._environment)
            self.configure(number, self._redis)
            self.slots.append(slot)
            slot.start()

    def configure(self, number: int, redis: str) -> None:
        """Write the configuration of a slot's next worker; `redis` are further lines of its `[redis]`."""
        text = _CONFIG.format(
            url=self.url,
            redis=redis,
            lease=LEASE_SECONDS,
            slot=number,
            models=self.models_url,
            idle=self._idle_seconds,
            concurrency=self._concurrency,
            channel=self.channel,
        )
        self._config_path(number).write_text(text)

    def _config_path(self, number: int) -> Path:
        return self.directory / f"worker-{number}.toml"

    def client(self, *, is_patient: bool = False) -> Any:
        """A plain client that repeats nothing by itself; a patient one is for whoever makes the storm, and judges it."""
        retry = Retry(ConstantBackoff(0.5), _PATIENCE_TRIES) if is_patient else Retry(NoBackoff(), 0)
        seconds = _PATIENCE_SECONDS if is_patient else 3.0
        return Redis.from_url(self.server.url, decode_responses=True, retry=retry, protocol=2, socket_timeout=seconds)

    def lives(self) -> Iterator[tuple[int, Life]]:
        """Every worker process with its slot."""
        for slot in self.slots:
            for life in slot.lives:
                yield slot.number, life

    def worker_log(self, *, lines: int = 15) -> str:
        """The end of each worker's log, for the report of a failure."""
        return "\n".join(slot.last_words(lines) for slot in self.slots)
