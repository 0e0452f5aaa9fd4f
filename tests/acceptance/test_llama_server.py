"""A real `llama-server`, where one is installed, with a model that knows nothing but answers as a model does."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import orjson
import pytest

from llm_routerd.core.errors import BackendError
from llm_routerd.core.outcome import AttemptCode
from tests.support.calling import ask, backend_for, tell

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_LLAMA_SERVER = shutil.which("llama-server")
_MAKE_MODEL = Path(__file__).parent.parent / "support" / "make_tiny_gguf.py"

pytestmark = pytest.mark.skipif(_LLAMA_SERVER is None, reason="no llama-server is installed")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model of half a megabyte."""
    path = tmp_path / "tiny.gguf"
    subprocess.run([sys.executable, str(_MAKE_MODEL), str(path)], check=True, timeout=60)
    return path


@pytest.fixture
async def llama_server(model: Path) -> AsyncIterator[str]:
    """Its address, once it has loaded the model."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = await asyncio.create_subprocess_exec(
        *(str(_LLAMA_SERVER), "--model", str(model), "--host", "127.0.0.1", "--port", str(port), "--ctx-size", "512"),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        async with asyncio.timeout(60), backend_for("openai", url) as backend:
            while True:
                with suppress(BackendError):
                    await tell(backend, ask(params={"max_tokens": 1}))
                    break
                await asyncio.sleep(0.1)
        yield url
    finally:
        process.terminate()
        await process.wait()


async def test_real_server_is_understood(llama_server: str) -> None:
    """Text, length, usage, schema and a prompt that is too long, through both protocols that it speaks."""
    schema = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
    async with backend_for("openai", llama_server) as backend:
        assert (await backend.probe()).ok
        told = await tell(backend, ask(params={"max_tokens": 8}))
        assert told.text
        assert told.finish.usage is not None
        assert 0 < told.finish.usage.completion_tokens <= 8
        told = await tell(backend, ask(schema=schema, params={"max_tokens": 400}))
        assert told.finish.finish_reason == "length" or isinstance(orjson.loads(told.text)["a"], str)
        with pytest.raises(BackendError) as raised:
            await tell(backend, ask("Hello " * 4000))
        assert raised.value.code is AttemptCode.CONTEXT_WINDOW
    async with backend_for("anthropic", llama_server) as backend:
        told = await tell(backend, ask(params={"max_tokens": 8}))
        assert told.text
