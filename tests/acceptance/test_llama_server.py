"""A real `llama-server` with a model that knows nothing but answers as a model does, and with a small window."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import orjson
import pytest

from llm_routerd.protocol.call import BackendError
from llm_routerd.protocol.codes import AttemptCode
from tests.support.calling import ask, backend_for, tell
from tests.support.engines import llama_server

if TYPE_CHECKING:
    from collections.abc import Iterator

_MAKE_MODEL = Path(__file__).with_name("make_tiny_gguf.py")

pytestmark = pytest.mark.engines


@pytest.fixture
def server_url(tmp_path: Path) -> Iterator[str]:
    """Its address; the model has half a megabyte."""
    path = tmp_path / "tiny.gguf"
    subprocess.run([sys.executable, str(_MAKE_MODEL), str(path)], check=True, timeout=60)
    with llama_server(path, "--ctx-size", "512") as url:
        yield url


async def test_real_server_is_understood(server_url: str) -> None:
    """Text, length, usage, schema and a prompt that is too long, through both protocols that it speaks."""
    schema = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
    async with backend_for("openai", server_url) as backend:
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
    async with backend_for("anthropic", server_url) as backend:
        told = await tell(backend, ask(params={"max_tokens": 8}))
        assert told.text
