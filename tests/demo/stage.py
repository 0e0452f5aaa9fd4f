"""What the demo needs to be running: a model server, the daemon with its embedded Valkey, a gateway, a client.

The configuration has four deployments.  `local` and `careful` are the model: Ollama's where one answers, else the
stand-in's.  `careless` and `caller` are the stand-in always: one's answer breaks the schema, the other calls tools,
which no real model does on demand.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import sys
import tempfile
import time
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp

from llm_routerd.client import Client
from llm_routerd.config.load import load_config
from tests.support.processes import ROOT, DaemonProcess, GatewayProcess, StandInProcess, free_port, lasting_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

_LOOK_SECONDS = 1.0
_METRICS_SECONDS = 5.0
_LEASE_SECONDS = 3.0  # so that what a killed daemon had is soon taken up
_TOOLS_SECONDS = 15.0
_TOOLS = 2
_END_SECONDS = 5.0

STANDIN_MODEL = "stand-in"
CARELESS_MODEL = "stand-in-careless"
_CAREFUL_MODEL = "stand-in-careful"
CALLER_MODEL = "stand-in-caller"
NOTE = "The lamp in the hall is broken."
_PROSE = (
    "Nothing thinks here, this is the stand-in's canned text: sunlight meets air, and air scatters blue light about "
    "four times as strongly as red, so the sky is blue wherever you look."
)
CARELESS_ANSWER = (
    '{"capital": "Oslo", "population": "about seven hundred thousand, and rather more of them in summer, when the '
    'days are long and the ferries run late"}'
)
_CAREFUL_ANSWER = '{"capital": "Oslo", "population": 717710}'


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """The model behind `local` and `careful`.

    Attributes:
        address: of its server; "" for the stand-in, whose address is not known yet.
        why: what there is to say about the choice, for the screen.
    """

    address: str
    name: str
    why: str

    @property
    def is_standin(self) -> bool:
        """Whether no model runs."""
        return not self.address


@dataclass(slots=True, kw_only=True)
class Stage:
    """Everything that runs, for the acts.

    Attributes:
        ready_seconds: from the daemon's start until it answered requests.
        metrics: the metrics events that came on the channel, by request id.
    """

    model: Model
    standin: StandInProcess
    daemon: DaemonProcess
    gateway: GatewayProcess
    client: Client
    directory: Path
    config_path: Path
    port: int
    gateway_port: int
    ready_seconds: float
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    metrics_came: asyncio.Event = field(default_factory=asyncio.Event)

    async def metrics_of(self, request_id: str) -> dict[str, Any]:
        """The metrics event of a request, once it has come.

        Raises:
            TimeoutError: it has not.
        """
        async with asyncio.timeout(_METRICS_SECONDS):
            while request_id not in self.metrics:
                self.metrics_came.clear()
                await self.metrics_came.wait()
        return self.metrics[request_id]

    async def entries(self, key: str) -> list[tuple[str, dict[str, str]]]:
        """What stands in a stream: stream ID and fields."""
        entries: Any = await self.client.redis.xrange(key)
        return [
            (entry_id.decode(), {name.decode(): value.decode() for name, value in fields.items()})
            for entry_id, fields in entries
        ]

    async def ended_call(self, model: str) -> dict[str, Any]:
        """The stand-in's own record of the newest call to a model, once that call has ended.

        Raises:
            TimeoutError: it has not.
        """
        async with asyncio.timeout(_METRICS_SECONDS):
            while True:
                calls = await self.calls(model)
                if calls and calls[-1]["end"] is not None:
                    return calls[-1]
                await asyncio.sleep(0.01)

    async def calls(self, model: str) -> list[dict[str, Any]]:
        """The stand-in's own record of all calls to a model."""
        async with aiohttp.ClientSession() as session, session.get(f"{self.standin.url}/log") as response:
            return [dict(call) for call in (await response.json())["calls"] if call["model"] == model]

    async def kill_gateway(self) -> None:
        """SIGKILL; returns when it is gone."""
        self.gateway.send_signal(signal.SIGKILL)
        await self.gateway.wait()

    async def start_gateway(self) -> None:
        """Start it again, at the same address.

        Raises:
            RuntimeError: it did not come to listen.
        """
        start = len(self.gateway.output)
        await self.gateway.start()
        await self.gateway.until_logged("ready", start=start)

    async def replace_daemon(self) -> None:
        """SIGKILL it, with which its Valkey ends too; returns when the next one answers.

        Raises:
            RuntimeError: it does not come to that.
        """
        start = len(self.daemon.output)
        self.daemon.send_signal(signal.SIGKILL)
        await self.daemon.wait()
        await self.daemon.start()
        await self.daemon.until_logged("ready", start=start)

    async def llm_routerd(self, command: str, *words: str) -> str:
        """What a command of ours prints.

        Raises:
            RuntimeError: it failed; the message has what it printed.
        """
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "llm_routerd", command, "--config", str(self.config_path), *words),
            cwd=ROOT,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        printed = (await process.communicate())[0].decode(errors="replace")
        if process.returncode:
            raise RuntimeError(f"llm-routerd {command}: {printed}")
        return printed

    @asynccontextmanager
    async def serving_tools(self) -> AsyncIterator[str]:
        """A tool worker from `examples/` beside the rest: gives its command line; what it notes stands in `notes`.

        Raises:
            TimeoutError: it does not come to register its tools.
        """
        command = await tool_worker_command()
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=ROOT,
            env={
                **{name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ},
                "TMPDIR": str(self.directory),
                "REDIS_URL": f"redis://127.0.0.1:{self.port}/0",
                "TOOL_FILE": str(self.notes),
            },
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(_TOOLS_SECONDS):
                while True:
                    if await self._count_tools() == _TOOLS:
                        break
                    await asyncio.sleep(0.05)
            yield shlex.join([Path(command[0]).name, *command[1:]])
        finally:
            for number in (signal.SIGTERM, signal.SIGKILL):
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, number)  # also the redis-cli that it waits for
                with suppress(TimeoutError):
                    async with asyncio.timeout(_END_SECONDS):
                        await process.wait()

    async def _count_tools(self) -> int:
        tools: Any = self.client.redis.hlen("llm:tools")
        return int(await tools)

    @property
    def notes(self) -> Path:
        """The file that the tool `note` writes to."""
        return self.directory / "notes"


@asynccontextmanager
async def set_up(model: Model, *, token_ms: int) -> AsyncIterator[Stage]:
    """Start everything; afterwards nothing of it is left, neither process nor file."""
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="llm-demo-")))
        standin = await stack.enter_async_context(StandInProcess(_standin_models(token_ms)))
        port, gateway_port = free_port(), lasting_port()
        config_path = directory / "config.toml"
        config_path.write_text(_configuration(model, standin.url, port, gateway_port), encoding="utf-8")
        began = time.monotonic()
        daemon = await stack.enter_async_context(
            DaemonProcess("--config", str(config_path), "--embedded", "--state-directory", str(directory / "state"))
        )
        await daemon.until_ready()
        ready_seconds = time.monotonic() - began
        gateway = await stack.enter_async_context(GatewayProcess("--config", str(config_path)))
        await gateway.until_ready()
        client = await stack.enter_async_context(Client(f"redis://127.0.0.1:{port}/0", patience_seconds=5.0))
        stage = Stage(
            model=model,
            standin=standin,
            daemon=daemon,
            gateway=gateway,
            client=client,
            directory=directory,
            config_path=config_path,
            port=port,
            gateway_port=gateway_port,
            ready_seconds=ready_seconds,
        )
        subscription = await stack.enter_async_context(client.redis.pubsub())
        await subscription.subscribe("llm_router_metrics")
        listening = asyncio.create_task(_listen(subscription, stage), name="metrics")
        stack.push_async_callback(_end, listening)
        yield stage


async def _listen(subscription: Any, stage: Stage) -> None:
    async for message in subscription.listen():
        if message["type"] == "message":
            event = json.loads(message["data"])
            stage.metrics[event["id"]] = event
            stage.metrics_came.set()


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _standin_models(token_ms: int) -> dict[str, str]:
    pace = f"first_ms={4 * token_ms} delay_ms={token_ms}"
    return {
        STANDIN_MODEL: f'{pace} answer="{_PROSE}"',
        CARELESS_MODEL: f"{pace} answer='{CARELESS_ANSWER}'",
        _CAREFUL_MODEL: f"{pace} answer='{_CAREFUL_ANSWER}'",
        CALLER_MODEL: f"""{pace} turn1='echo {{"text":"hello"}}' turn2='note {{"text":"{NOTE}"}}'""",
    }


def _configuration(model: Model, standin_url: str, port: int, gateway_port: int) -> str:
    address = model.address or standin_url
    names = (STANDIN_MODEL, _CAREFUL_MODEL) if model.is_standin else (model.name, model.name)
    deployments = {
        "local": (address, names[0]),
        "careless": (standin_url, CARELESS_MODEL),
        "careful": (address, names[1]),
        "caller": (standin_url, CALLER_MODEL),
    }
    tables = [
        f"[deployments.{name}]\nmodel = {json.dumps(f'ollama/{served}')}\napi_base = {json.dumps(base)}\nlocal = true\n"
        # A real model on a small machine takes its time.
        f"timeout = 20.0\nload_timeout = 25.0\n"
        for name, (base, served) in deployments.items()
    ]
    return "\n".join(
        [
            f'[redis]\nurl = "redis://127.0.0.1:{port}/0"\n',
            f'[gateway]\nlisten = "127.0.0.1:{gateway_port}"\n',
            '[metrics]\nlisten = ""\n',
            f"[daemon]\nlease_seconds = {_LEASE_SECONDS}\n",
            '[log]\nformat = "json"\n',
            *tables,
            '[chains.default]\ndeployments = ["local"]\n',
            '[chains.checked]\ndeployments = ["careless", "careful"]\n',
            '[chains.tools]\ndeployments = ["caller"]\n',
        ]
    )


async def tool_worker_command() -> list[str]:
    """What serves the tools `echo` and `note`: a shell script, or the same in Python without redis-cli (7) and jq."""
    with suppress(FileNotFoundError):
        for program, *options in (("redis-cli", "-e", "--version"), ("jq", "--version")):
            nothing = asyncio.subprocess.DEVNULL
            tried = await asyncio.create_subprocess_exec(program, *options, stdout=nothing, stderr=nothing)
            if await tried.wait():
                break
        else:
            return ["sh", "examples/shell/tool-worker.sh"]
    return [sys.executable, "examples/python/tool_worker.py"]


async def find_model(environ: Mapping[str, str] = os.environ) -> Model:
    """Ollama's where one answers at `OLLAMA_API_BASE` and has a model (`OLLAMA_MODEL`, or the first), else the stand-in.

    Raises:
        ConfigError: `OLLAMA_API_BASE` is no address.
    """
    given = {name: environ[name] for name in ("OLLAMA_API_BASE", "OLLAMA_MODEL") if environ.get(name)}
    base = str(load_config(os.devnull, given).deployments["local"].api_base)
    installed = await _installed_models(base)
    if installed is None:
        return standin(f"no Ollama answers at {base}")
    if not installed:
        return standin(f"the Ollama at {base} has no model for text")
    wanted = given.get("OLLAMA_MODEL", "")
    for name in installed:
        if name in {wanted, f"{wanted}:latest"}:
            return Model(address=base, name=name, why=f"{name}, on the Ollama at {base}")
    missing = f" ({wanted} is not installed)" if wanted else ""
    return Model(address=base, name=installed[0], why=f"{installed[0]}, on the Ollama at {base}{missing}")


def standin(reason: str) -> Model:
    """No model at all."""
    why = f"none: {reason}. A stand-in server speaks Ollama's wire protocol and answers with canned text."
    return Model(address="", name=STANDIN_MODEL, why=why)


async def _installed_models(base: str) -> list[str] | None:
    """Names of the models that write text; None: nobody answers there as Ollama does."""
    timeout = aiohttp.ClientTimeout(total=_LOOK_SECONDS)
    try:
        async with aiohttp.ClientSession(timeout=timeout) as session, session.get(f"{base}/api/tags") as response:
            response.raise_for_status()
            models = (await response.json(content_type=None))["models"]
            # Those of the BERT family only compute embeddings.
            return [
                str(each["name"]) for each in models if "bert" not in str((each.get("details") or {}).get("family"))
            ]
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError, TypeError, KeyError, AttributeError):
        return None
