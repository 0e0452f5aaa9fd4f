"""A real `llama-server` with a model that knows nothing but answers as a model does, and with a small window."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import pytest
from msgspec.structs import replace
from pydantic import Field

from llm_routerd.config.load import load_config
from llm_routerd.protocol.call import BackendError
from llm_routerd.protocol.codes import AttemptCode
from llm_routerd.router import Router
from tests.support.calling import ask, backend_for, tell
from tests.support.engines import llama_server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llm_routerd.protocol.request import Params

_MAKE_MODEL = Path(__file__).with_name("make_tiny_gguf.py")

pytestmark = pytest.mark.engines


@pytest.fixture
def server_url(tmp_path: Path) -> Iterator[str]:
    """Its address; the model has half a megabyte."""
    path = tmp_path / "tiny.gguf"
    subprocess.run([sys.executable, str(_MAKE_MODEL), str(path)], check=True, timeout=60)
    with llama_server(path, "--ctx-size", "512") as url:
        yield url


@pytest.fixture
def caller_url(tmp_path: Path) -> Iterator[str]:
    """Of one whose model calls tools as often as not, with nonsense."""
    path = tmp_path / "caller.gguf"
    subprocess.run([sys.executable, str(_MAKE_MODEL), str(path), "--calls"], check=True, timeout=60)
    with llama_server(path, "--ctx-size", "8192", "--jinja") as url:
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


LIGHTS = {
    "type": "function",
    "function": {
        "name": "lights",
        "parameters": {"type": "object", "properties": {"room": {"type": "string"}}, "required": ["room"]},
    },
}


async def test_model_may_call_beside_a_schema_and_not_in_the_last_turn(caller_url: str) -> None:
    """The server holds all that its model says to a `response_format`, and shows calls that are forbidden as text."""
    schema = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
    called = 0
    async with backend_for("openai", caller_url) as backend:
        for seed in range(8):
            params = {"max_tokens": 400, "seed": seed, "parallel_tool_calls": False}
            told = await tell(backend, ask(schema=schema, tools=(LIGHTS,), params=params))
            called += bool(told.finish.tool_calls)
            told = await tell(backend, ask(schema=schema, tools=(LIGHTS,), tool_choice="none", params=params))
            assert not told.finish.tool_calls
            assert told.finish.finish_reason == "length" or isinstance(orjson.loads(told.text)["a"], str)
    assert called


async def test_conversation_with_faulty_calls_is_taken(caller_url: str) -> None:
    """Left as they are, the server answers 500 to arguments that are no JSON."""
    function = {"name": "no such tool", "arguments": "no JSON"}
    spoken = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "c", "type": "function", "function": function}],
    }
    told = {"role": "tool", "tool_call_id": "c", "content": ""}
    for protocol in ("openai", "anthropic"):
        async with backend_for(protocol, caller_url) as backend:
            call = replace(ask(tools=(LIGHTS,), params={"max_tokens": 8}), messages=(*ask().messages, spoken, told))
            answer = await tell(backend, call)
            assert answer.text or answer.finish.tool_calls


async def test_runs_with_a_model_that_calls_nonsense_all_end(caller_url: str, tmp_path: Path) -> None:
    """With an answer or without; no tool is called with what it does not take, and nothing hangs."""
    path = tmp_path / "config.toml"
    path.write_text(
        f"""
        [deployments.tiny]
        model = "openai/tiny"
        api_base = "{caller_url}"
        local = true
        [chains.default]
        deployments = ["tiny"]
        """
    )
    rooms: list[Any] = []

    # The server's grammar holds its model to all of the parameters but `not`.
    async def lights(room: Annotated[str, Field(json_schema_extra={"not": {"pattern": "<"}})]) -> str:
        """Switch the lights of a room."""
        rooms.append(room)
        return "on"

    ends: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    async with Router(load_config(str(path), {})) as router:
        for seed in range(12):
            params: Params = {"max_tokens": 400, "seed": seed, "parallel_tool_calls": False, "detect_refusal": False}
            run = router.stream_run(prompt="Light!", tools=[lights], max_turns=4, params=params, timeout_ms=60_000)
            async with run as events:
                async for event in events:
                    faults["told"] += event.type == "tool_result" and "parameters" in event.data.get("error", "")
                    faults["rejected"] += event.type == "rejected" and event.data["code"] == "schema_violation"
            ends[event.type] += 1
    assert sum(ends.values()) == 12
    assert ends["result"], ends
    assert faults["told"], faults
    assert faults["rejected"], faults
    assert rooms
    assert not any("<" in room for room in rooms)
