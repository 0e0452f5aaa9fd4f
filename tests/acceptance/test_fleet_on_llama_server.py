"""A box with two tiny models on a real `llama-server`, which has one of them in memory at a time; two daemons."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import urllib.request
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.daemons import producer, running_daemon
from tests.support.engines import llama_server
from tests.support.wire import eventually_true

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llm_routerd.protocol.keys import Lane

_MAKE_MODEL = Path(__file__).with_name("make_tiny_gguf.py")
MODELS = ("tiny1", "tiny2")
COUNT = 24

pytestmark = pytest.mark.engines


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """The folder with both."""
    folder = tmp_path / "models"
    folder.mkdir()
    for seed, name in enumerate(MODELS):
        command = [sys.executable, str(_MAKE_MODEL), str(folder / f"{name}.gguf"), "--seed", str(seed)]
        subprocess.run(command, check=True, timeout=60)
    return folder


@pytest.fixture
def server_url(models: Path) -> Iterator[str]:
    """The server's address."""
    with llama_server(models, "--models-max", "1", "--ctx-size", "512", "--parallel", "2") as url:
        yield url


def config_for(directory: Path, redis_url: str, server_url: str) -> Path:
    """One box, with both models."""
    path = directory / "config.toml"
    deployments = [
        f'[deployments.{name}]\nmodel = "openai/{name}"\nboxes = ["card"]\nlocal = true\ntimeout = 60.0\n'
        f'idle_timeout = 60.0\n[chains.{name}]\ndeployments = ["{name}"]\nretries = 2\n'
        for name in MODELS
    ]
    head = f'[redis]\nurl = "{redis_url}"\n[metrics]\nlisten = ""\n[log]\nformat = "json"\n'
    box = f'[boxes.card]\napi_base = "{server_url}/v1"\nkind = "llamacpp"\nslots = 2\n'
    default = f'[chains.default]\ndeployments = ["{MODELS[0]}"]\n'
    path.write_text("\n".join([head, box, *deployments, default]), encoding="utf-8")
    return path


def in_memory(server_url: str) -> list[str]:
    """The models that the server has loaded."""
    with urllib.request.urlopen(f"{server_url}/models", timeout=5) as reply:  # noqa: S310 - http
        return [each["id"] for each in json.load(reply)["data"] if each["status"]["value"] == "loaded"]


async def test_two_models_on_one_server_are_answered_for_two_daemons(
    tmp_path: Path, valkey_url: str, server_url: str
) -> None:
    """By turns, in all lanes: every request has its answer from the model that it asked, and no slot is left."""
    lanes: tuple[Lane, ...] = ("high", "normal", "low")
    config = config_for(tmp_path, valkey_url, server_url)
    seen: set[str] = set()
    async with running_daemon(config), running_daemon(config), producer(valkey_url) as client:
        asked = [
            (MODELS[number % 2], await client.submit(
                prompt=f"hello {number}", model=MODELS[number % 2], lane=lanes[number % 3],
                params={"max_tokens": 8, "accept_length": True},
            ))
            for number in range(COUNT)
        ]  # fmt: skip
        finals = []
        for model, request in asked:
            finals.append((model, await client.result(request, 60)))
            there = await asyncio.to_thread(in_memory, server_url)
            assert len(there) <= 1
            seen.update(there)
        await eventually_true(lambda: _no_slot_is_held(client.redis))
    assert Counter(final.type for _, final in finals) == {"result": COUNT}
    assert {(model, final.data["deployment"]) for model, final in finals} == {(name, f"{name}@card") for name in MODELS}
    assert seen <= set(MODELS)


async def _no_slot_is_held(redis: object) -> bool:
    held: int = await redis.hlen("llm:boxes:calls")  # type: ignore[attr-defined]
    return held == 0
