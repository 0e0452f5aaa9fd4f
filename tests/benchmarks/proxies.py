"""What people put in front of a model instead: LiteLLM's proxy and Portkey's gateway, of one release each.

Each is installed into a folder of its own under build/, never beside the project's packages, and only where it is asked
for.  Both get what keeps them quiet: no telemetry, no prices or tools from elsewhere, no database, no log of requests.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from tests.benchmarks.systems import MODELS, READY_SECONDS, Bed, Running, cpu_seconds_of
from tests.support.processes import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_FOLDER = Path("build/proxies").absolute()
# It listens on all addresses, and has no switch: it is for us alone here.
_ON_LOOPBACK = (
    'data:text/javascript,import net from "node:net"; const listen = net.Server.prototype.listen; '
    'net.Server.prototype.listen = function (port, _host, done) { return listen.call(this, port, "127.0.0.1", done); };'
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A proxy, and how it is run.

    Attributes:
        install: puts this release into a folder.
        command: of its server, given its folder, the bed, a port.
        environment: beside the usual.
        headers: of each request, given the model server's address.
        share: of our requests that it is given in a burst, because it is slow.
    """

    name: str
    title: str
    version: str
    install: Callable[[Path], None]
    command: Callable[[Path, Bed, int], list[str]]
    environment: Mapping[str, str]
    share: float
    headers: Callable[[str], dict[str, str]] = field(default=lambda _url: {})

    def folder(self) -> Path:
        """Where it is, installed if it was not."""
        folder = _FOLDER / f"{self.name}-{self.version}"
        if not (stamp := folder / ".installed").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            print(f"Installing {self.title} {self.version} into {folder}", file=sys.stderr, flush=True)
            self.install(folder)
            stamp.touch()
        return folder


class Proxy(Running):
    """One proxy, ready for requests.

    Attributes:
        port: where it listens, on 127.0.0.1.
        headers: of each request.
    """

    def __init__(self, bed: Bed, kind: Kind) -> None:
        """Start it."""
        self.port = free_port()
        self.headers = kind.headers(bed.model_url)
        command = kind.command(kind.folder(), bed, self.port)
        super().__init__(command, {**os.environ, **kind.environment}, subprocess.DEVNULL)
        try:
            self._await_ready(kind)
        except RuntimeError:
            self.stop()
            raise

    def _await_ready(self, kind: Kind) -> None:
        deadline = time.perf_counter() + READY_SECONDS
        while not self._listens():
            if (status := self.exit_code()) is not None:
                raise RuntimeError(f"{kind.title}: ended with {status}")
            if time.perf_counter() > deadline:
                raise RuntimeError(f"{kind.title}: not ready in {READY_SECONDS:g} s")
            time.sleep(0.1)

    def _listens(self) -> bool:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/")
            connection.getresponse()
        except OSError:
            return False
        finally:
            connection.close()
        return True

    def cpu_seconds(self) -> float:
        """CPU time of it and of its children so far, user and system."""
        return super().cpu_seconds() + sum(cpu_seconds_of(child.pid) for child in self._psutil.children(recursive=True))


def _install_litellm(folder: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    wanted = f"litellm[proxy]=={LITELLM.version}"
    subprocess.run([folder / "bin" / "pip", "install", "-qq", "--only-binary", ":all:", wanted], check=True)


def _litellm_command(folder: Path, bed: Bed, port: int) -> list[str]:
    config = bed.directory / "litellm.json"  # YAML that is JSON
    to_model = {"api_base": f"{bed.model_url}/v1", "api_key": "none"}
    models = [{"model_name": name, "litellm_params": {"model": f"openai/{name}", **to_model}} for name in MODELS]
    document = {
        "model_list": models,
        "litellm_settings": {"telemetry": False, "num_retries": 0, "request_timeout": 120},
        "router_settings": {"num_retries": 0, "disable_cooldowns": True},
    }
    config.write_bytes(orjson.dumps(document))
    logs = bed.directory / "litellm-logs.json"  # a line for each request is not what is measured
    silent = {"version": 1, "disable_existing_loggers": False, "loggers": {"uvicorn.access": {"level": "CRITICAL"}}}
    logs.write_bytes(orjson.dumps(silent))
    server = [str(folder / "bin" / "litellm"), "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    return [*server, "--num_workers", "1", "--telemetry", "False", "--log_config", str(logs)]


LITELLM = Kind(
    name="litellm-proxy",
    title="LiteLLM proxy",
    version="1.102.4",
    install=_install_litellm,
    command=_litellm_command,
    environment={
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True",
        "LITELLM_LOG": "CRITICAL",
        "LITELLM_MODE": "PRODUCTION",
        "HF_HUB_OFFLINE": "1",
        "NO_DOCS": "True",
    },
    share=0.1,
)


def _install_portkey(folder: Path) -> None:
    if (npm := shutil.which("npm")) is None:
        raise RuntimeError("Portkey's gateway comes from npm, which is not here: leave it out, or install Node.js")
    package = {
        "private": True,
        "dependencies": {"@portkey-ai/gateway": PORTKEY.version},
        "overrides": {"@hono/node-server": "1.13.8"},  # with those after it every stream of this release fails
    }
    (folder / "package.json").write_bytes(orjson.dumps(package))
    quiet = ("--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")
    subprocess.run([npm, "install", "--prefix", folder, *quiet], check=True, stdout=subprocess.DEVNULL)


def _portkey_command(folder: Path, _bed: Bed, port: int) -> list[str]:
    server = folder / "node_modules" / "@portkey-ai" / "gateway" / "build" / "start-server.js"
    return ["node", "--import", _ON_LOOPBACK, str(server), "--headless", f"--port={port}"]


PORTKEY = Kind(
    name="portkey",
    title="Portkey",
    version="1.15.2",
    install=_install_portkey,
    command=_portkey_command,
    environment={"NODE_ENV": "production", "TRUSTED_CUSTOM_HOSTS": "127.0.0.1"},
    share=0.4,
    headers=lambda url: {"x-portkey-provider": "openai", "x-portkey-custom-host": f"{url}/v1"},
)

KINDS = {kind.name: kind for kind in (LITELLM, PORTKEY)}
