"""The processes that are measured, and what can be told of a process from outside."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import orjson
import psutil

from tests.benchmarks.model import PLACEHOLDER
from tests.support.servers import ValkeyProcess

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

System = Literal["floor", "daemon", "peer", "gateway"]
SYSTEMS: tuple[System, ...] = ("floor", "daemon", "peer")
READY_SECONDS = 60.0

LONG_TOKENS = 256
SHORT_TOKENS = 8
TRICKLE_TOKENS = 32
STAMPED_TOKENS = 50
OPEN_TOKENS = 10
JSON_ANSWER = '{"city": "Ulm", "temperature": 21.5, "tags": ["dry", "calm"]}'
JSON_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "temperature": {"type": "number"},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["city", "temperature", "tags"],
    "additionalProperties": False,
}
_STAMPS = " ".join([PLACEHOLDER] * STAMPED_TOKENS)
_FEW_STAMPS = " ".join([PLACEHOLDER] * OPEN_TOKENS)
MODELS = {
    "long": f"bench tokens={LONG_TOKENS}",
    "short": f"bench tokens={SHORT_TOKENS}",
    "short-whole": f"tokens={SHORT_TOKENS}",
    "json": f"bench answer='{JSON_ANSWER}'",
    "json-whole": f"answer='{JSON_ANSWER}'",
    "trickle": f"tokens={TRICKLE_TOKENS} delay_ms=5",
    "stamped": f"answer='{_STAMPS}' delay_ms=100",
    "open": f"tokens={OPEN_TOKENS} delay_ms=1000",
    "open-stamped": f"answer='{_FEW_STAMPS}' delay_ms=1000",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bed:
    """What all systems stand on."""

    redis_url: str
    model_url: str
    directory: Path
    redis_pid: int = 0

    def redis_cpu_seconds(self) -> float:
        """CPU time of the server so far."""
        return cpu_seconds_of(self.redis_pid)


@contextmanager
def make_bed() -> Iterator[Bed]:
    """Start one Valkey without persistence and one stand-in."""
    with ExitStack() as stack:
        valkey = ValkeyProcess(tcp=True)
        stack.callback(valkey.close)
        valkey.start()
        directory = Path(tempfile.mkdtemp(prefix="bench-", dir="/tmp"))
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        models = [word for name, script in MODELS.items() for word in ("--model", f"{name}={script}")]
        model = stack.enter_context(
            subprocess.Popen([sys.executable, "-m", "tests.benchmarks.model", *models], stdout=subprocess.PIPE)
        )
        stack.callback(model.terminate)
        assert model.stdout is not None
        url = orjson.loads(model.stdout.readline())["url"]
        yield Bed(redis_url=valkey.tcp_url, model_url=url, directory=directory, redis_pid=valkey.pid)


def cpu_seconds_of(pid: int) -> float:
    """CPU time of all threads of a process so far, user and system."""
    if sys.platform == "linux":
        # The CPU-time clock of another process, as clock_getcpuclockid(3) makes it: nanoseconds, where
        # /proc has ticks of 10 ms.
        return time.clock_gettime((~pid << 3) | 2)
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


class Running:
    """A process that was started, and what it uses."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], output: int | None = None) -> None:
        """Start it."""
        self._process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        self._psutil = psutil.Process(self._process.pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Kill it: what a measurement wanted to know is known."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def exit_code(self) -> int | None:
        """How it ended; None: it runs."""
        return self._process.poll()

    def cpu_seconds(self) -> float:
        """CPU time of all its threads so far, user and system."""
        return cpu_seconds_of(self._process.pid)

    def rss_bytes(self) -> int:
        """Resident memory."""
        return int(self._psutil.memory_info().rss)


class Process(Running):
    """One measured process, ready for requests.

    Attributes:
        prefix: of its keys.
        start_seconds: from its start to its READY=1.
    """

    def __init__(
        self, bed: Bed, system: System, prefix: str, concurrency: int, *, redis: str = "", more: str = ""
    ) -> None:
        """Start it; `redis` is more of the daemon's table of that name, `more` are more tables."""
        self.prefix = prefix
        command = _command(bed, system, prefix, concurrency, redis, more)
        path = bed.directory / "notify"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
            listener.bind(str(path))
            listener.settimeout(1.0)
            began = time.perf_counter()
            super().__init__(command, _environment(path))
            try:
                self._await_ready(system, listener, began + READY_SECONDS)
            except RuntimeError:
                self.stop()
                raise
            finally:
                path.unlink()
            self.start_seconds = time.perf_counter() - began

    def _await_ready(self, system: System, listener: socket.socket, deadline: float) -> None:
        while True:
            try:
                if b"READY=1" in listener.recv(4096):
                    return
            except TimeoutError:
                if (status := self.exit_code()) is not None:
                    raise RuntimeError(f"{system}: ended with {status}") from None
                if time.perf_counter() > deadline:
                    raise RuntimeError(f"{system}: not ready in {READY_SECONDS:g} s") from None


def _command(bed: Bed, system: System, prefix: str, concurrency: int, redis: str, more: str) -> list[str]:
    if system in {"daemon", "gateway"}:
        config = bed.directory / f"{prefix}.toml"  # read at its start, and overwritten for its neighbour
        config.write_text(_daemon_config(bed, prefix, concurrency, redis) + more)
        verb = "serve" if system == "daemon" else "gateway"
        return [str(Path(sys.executable).with_name("llm-routerd")), verb, "--config", str(config)]
    return [
        sys.executable, "-m", f"tests.benchmarks.{system}", bed.redis_url, bed.model_url, prefix, str(concurrency),
    ]  # fmt: skip


def _daemon_config(bed: Bed, prefix: str, concurrency: int, redis: str) -> str:
    parts = [
        f'[redis]\nurl = "{bed.redis_url}"\nprefix = "{prefix}"\n{redis}',
        f"[daemon]\nconcurrency = {concurrency}\n",
        '[metrics]\nlisten = ""\n[log]\nlevel = "warning"\n',
        '[chains.default]\ndeployments = ["long"]\n',
    ]
    parts += [
        f'[deployments.{name}]\nmodel = "ollama/{name}"\napi_base = "{bed.model_url}"\nlocal = true\n'
        f"concurrency = {concurrency}\n"
        for name in MODELS
    ]
    return "".join(parts)


def _environment(notify_socket: Path) -> dict[str, str]:
    ours = {"NOTIFY_SOCKET": str(notify_socket)}
    # Not this run's switches, but what a user has: bytecode is written once, no address comes from outside.
    foreign = ("PYTHONDONTWRITEBYTECODE", "REDIS_URL", "OLLAMA_API_BASE", "OLLAMA_MODEL", "LLM_ROUTERD_LOG_LEVEL")
    return {name: value for name, value in os.environ.items() if name not in foreign} | ours
