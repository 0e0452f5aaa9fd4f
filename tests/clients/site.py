"""A gateway that runs, with a queue, a daemon and a model behind it; and whether a client is here.

The stand-in model does what the message says: `[[answer=Hi]]`, `[[call=weather]]`, `[[tokens=500 delay_ms=20]]`,
`[[fail=503]]` and more, as `tests.standin.script` has it.  `CLIENTS_REQUIRED` names clients that must not be left out.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import uuid
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
import pytest_asyncio

from llm_routerd.client import Client
from tests.standin.server import StandIn
from tests.support.daemons import running_daemon, write_config
from tests.support.eventually import eventually
from tests.support.processes import ROOT, ChildProcess, free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from tests.support.servers import ValkeyProcess

HOSTILE_TEXT = "Zürich 日本 🦊👩‍👩‍👧 \u2028\u2029 «\u00a0» e\u0301 \\n </think> data: [DONE]"
"""What must come through to the byte; without a quote, so that it may stand in a directive."""

NODE = ROOT / "tests" / "clients" / "node"
_SECONDS = 20.0
_MORE = """
[gateway]
listen = "127.0.0.1:{port}"
[gateway.aliases]
gpt-5 = "default"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What tests of clients ask, and what stands behind it.

    Attributes:
        url: of the gateway, without a path.
        standin: the model, with the log of its calls.
        queue: a client of the queue, to see what became of a request.
    """

    url: str
    standin: StandIn
    queue: Client

    async def until_hung_up(self, mark: str) -> None:
        """Wait until the model has seen its caller leave, of the call whose message says `[[id=mark]]`."""

        def has_left() -> bool:
            return any(call["id"] == mark and call["how"] == "client_disconnected" for call in self.standin.calls)

        await eventually(has_left, seconds=_SECONDS)


REFUSED = "[[refuse]]"
"""A prompt to which no model has an answer; nor is any of them left alone for it, as after a failure of a server."""

BREAKS = "[[tokens=400 delay_ms=1 length]]"
"""One whose answer is discarded when much of it has been told."""


def slow_prompt() -> tuple[str, str]:
    """A prompt whose answer takes long, and the mark by which its call is found."""
    mark = uuid.uuid4().hex
    return f"[[id={mark} tokens=2000 delay_ms=20]]", mark


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def site(valkey_server: ValkeyProcess, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    """A gateway whose chain `default` is the deployment `local` and then `second`; `gpt-5` is another name for it."""
    port = free_port()
    async with StandIn({"tiny": "", "big": ""}) as standin, Client(valkey_server.url) as queue:
        more = _MORE.format(port=port)
        config = write_config(tmp_path_factory.mktemp("gateway"), valkey_server.url, standin.url, more=more)
        async with (
            running_daemon(config),
            ChildProcess("-m", "llm_routerd", "gateway", "--config", str(config)) as gateway,
        ):
            url = f"http://127.0.0.1:{port}"
            await _until_it_answers(gateway, url)
            yield Site(url=url, standin=standin, queue=queue)


async def _until_it_answers(gateway: ChildProcess, url: str) -> None:
    async with aiohttp.ClientSession() as session, asyncio.timeout(_SECONDS):
        while gateway.exit_status is None:
            try:
                async with session.get(f"{url}/v1/models") as reply:
                    if reply.ok:
                        return
            except aiohttp.ClientConnectionError:
                await asyncio.sleep(0.05)
    raise RuntimeError(f"the gateway has ended:\n{gateway.last_words()}")


def _leave_out(kind: str, why: str) -> None:
    assert kind not in os.environ.get("CLIENTS_REQUIRED", "").replace(",", " ").split(), why
    pytest.skip(why)


@pytest.fixture(scope="session")
def python_client() -> Callable[[str], Any]:
    """Imports a client; the test is left out where it is not installed and nobody requires it."""

    def find(name: str) -> Any:
        if find_spec(name) is None:
            _leave_out("python", f"no {name} here; `make test-clients` installs it")
        return import_module(name)

    return find


@pytest.fixture(scope="session")
def node() -> Callable[..., Awaitable[Any]]:
    """Runs a script of `tests/clients/node`: the JSON that it prints.

    It is given the words, and is killed if the test ends before it does.
    """
    if shutil.which("node") is None or not (NODE / "node_modules").is_dir():
        _leave_out("node", "no Node here, or not its clients; `make test-clients` installs them where npm is")

    async def run(script: str, *words: str) -> Any:
        process = await asyncio.create_subprocess_exec(
            "node", str(NODE / script), *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        try:
            async with asyncio.timeout(60):
                out, errors = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
        assert process.returncode == 0, errors.decode()
        return json.loads(out)

    return run
