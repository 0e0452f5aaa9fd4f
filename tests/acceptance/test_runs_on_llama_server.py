"""Runs with tools on a real `llama-server` whose model calls them at random: the daemon, and a tool worker."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from llm_routerd import ToolWorker
from tests.support.daemons import producer, running_daemon
from tests.support.engines import llama_server
from tests.support.wire import eventually_true

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llm_routerd.protocol.tool import ToolRequest

_MAKE_MODEL = Path(__file__).with_name("make_tiny_gguf.py")

pytestmark = pytest.mark.engines


@pytest.fixture
def server_url(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """Its address; the model has half a megabyte, and is made with the test's options."""
    path = tmp_path / "tiny.gguf"
    options = getattr(request, "param", ())
    subprocess.run([sys.executable, str(_MAKE_MODEL), str(path), *options], check=True, timeout=60)
    with llama_server(path, "--ctx-size", "4096" if options else "512") as url:
        yield url


_ADD = {
    "description": "Adds two numbers.",
    "parameters": {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        "required": ["a", "b"],
        "additionalProperties": False,
    },
}
_ENDS = {"chain_exhausted", "turns_exhausted", "local_exhausted", "deadline_exceeded"}


@pytest.mark.parametrize("protocol", ["openai", "anthropic"])
@pytest.mark.parametrize(
    "server_url", [("--calls", "--ctx", "4096"), ("--ctx", "4096")], indirect=True, ids=["calls", "babbles"]
)
async def test_nonsense_calls_are_told_or_rejected_and_nothing_hangs(
    tmp_path: Path, valkey_url: str, server_url: str, protocol: str
) -> None:
    """Runs of a model that calls at random: no tool gets arguments that it does not take, and every run has an end."""
    base = f"{server_url}/v1" if protocol == "openai" else server_url
    config = tmp_path / "config.toml"
    config.write_text(
        f'[redis]\nurl = "{valkey_url}"\n[metrics]\nlisten = ""\n[agents]\nmax_turns = 3\n'
        f'[deployments.tiny]\nmodel = "{protocol}/tiny"\napi_base = "{base}"\nlocal = true\ntimeout = 20\n'
        'idle_timeout = 20\n[chains.default]\ndeployments = ["tiny"]\nretries = 1\n'
    )
    sums: list[dict[str, int]] = []

    async def add(arguments: dict[str, int], _call: ToolRequest) -> int:
        sums.append(arguments)
        return arguments["a"] + arguments["b"]

    tools = ToolWorker(valkey_url)
    tools.add("add", add, {**_ADD, "idempotent": True})  # type: ignore[typeddict-item]
    serving = asyncio.create_task(tools.run())
    try:
        async with running_daemon(config), producer(valkey_url) as client:
            await eventually_true(lambda: client.redis.exists("llm:tools"))
            requests = [
                await client.submit(
                    prompt=f"What is {number} and 2?",
                    agent={"tools": ["add"]},
                    params={"max_tokens": 200, "seed": number},
                    timeout_ms=60_000,
                )
                for number in range(12)
            ]
            finals = [await client.result(request, 90) for request in requests]
    finally:
        tools.stop()
        await serving
    assert all(final.type == "result" or final.data["code"] in _ENDS for final in finals)
    assert all(set(each) == {"a", "b"} and {type(value) for value in each.values()} == {int} for each in sums)
