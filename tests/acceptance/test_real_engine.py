"""The daemon with a real model on a real llama.cpp server.

What the model says is anybody's guess, so that nothing here rests on its words: an answer is whole and satisfies what
was asked, or it is rejected with a code that is true.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest

from tests.support.calling import ask, backend_for, tell
from tests.support.daemons import producer, running_daemon
from tests.support.engines import busy_slots, llama_server, write_gemma
from tests.support.eventually import eventually
from tests.support.processes import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llm_routerd.client import ClientEvent, Params

pytestmark = pytest.mark.engines

_SCHEMA = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "green", "blue"]}, "n": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["colour", "n"],
    "additionalProperties": False,
}
_TOOL = {
    "type": "function",
    "function": {"name": "set_light", "parameters": {"type": "object", "properties": {"on": {"type": "boolean"}}}},
}
_PATIENCE = "timeout = 60\nidle_timeout = 60\nstream_timeout = 60"
# One sentence; a model that finds no end of it is cut off.
_SENTENCE: dict[str, Any] = {"temperature": 0, "max_tokens": 40, "stop": ["\n", "."]}
# So much that it would take long: who stops early is seen to.
_LONG: Params = {"temperature": 0, "max_tokens": 1500}
_FAULTS_OF_MODELS = {"length", "refusal", "invalid_json", "schema_violation", "truncated", "no_tool_call"}


@pytest.fixture(scope="module")
def engine() -> Iterator[str]:
    """The address of the server; what the model takes of the disk is given back."""
    with tempfile.TemporaryDirectory() as directory:
        model = Path(directory) / "gemma.gguf"
        write_gemma(model)
        with llama_server(model, "--ctx-size", "2048", "--parallel", "2") as url:
            yield url


@pytest.fixture
def config(tmp_path: Path, valkey_url: str, engine: str) -> Path:
    """The server through both protocols that it speaks, and one that it does not."""
    path = tmp_path / "config.toml"
    deployments = (("openai", f"{engine}/v1"), ("anthropic", engine), ("ollama", engine))
    tables = [
        f'[deployments.by_{name}]\nmodel = "{name}/gemma"\napi_base = "{base}"\nlocal = true\n{_PATIENCE}'
        for name, base in deployments
    ]
    head = f'[redis]\nurl = "{valkey_url}"\n[metrics]\nlisten = ""\n[log]\nformat = "json"'
    chain = '[chains.default]\ndeployments = ["by_anthropic", "by_openai"]'
    path.write_text("\n".join([head, *tables, chain]), encoding="utf-8")
    return path


async def run(url: str, **request: Any) -> tuple[ClientEvent, list[ClientEvent]]:
    """Submit, and wait; the final event, and all events."""
    async with producer(url) as client:
        request_id = await client.submit(local_only=True, **request)
        final = await client.result(request_id, 60)
        return final, [event async for event in client.follow(request_id)]


def is_sound(final: ClientEvent, events: list[ClientEvent]) -> bool:
    """Whether it is an answer; a sound one, or else rejected for what the model did."""
    attempts = final.data["attempts"]
    codes = [attempt["code"] for attempt in attempts if attempt["reason"] != "empty answer"]
    if final.type == "error":
        assert final.data["code"] in {"chain_exhausted", "local_exhausted"}
        assert set(codes) <= _FAULTS_OF_MODELS, codes
        return False
    assert final.type == "result"
    assert codes[-1] is None
    assert set(codes[:-1]) <= _FAULTS_OF_MODELS, codes
    assert final.data["usage"]["completion_tokens"] > 0
    assert "estimated" not in final.data["usage"]
    texts = [event.data["text"] for event in events if event.type == "token" and event.attempt == final.answer_attempt]
    assert not texts or "".join(texts) == final.data["raw_text"]
    return True


@pytest.mark.parametrize("stream", [False, "live"])
@pytest.mark.parametrize("protocol", ["openai", "anthropic"])
async def test_answer_is_whole_or_rejected(config: Path, valkey_url: str, protocol: str, stream: bool | str) -> None:
    """Through either protocol, streamed and not."""
    async with running_daemon(config):
        prompt = "Finish this sentence: The sky is"
        final, events = await run(valkey_url, prompt=prompt, model=f"by_{protocol}", stream=stream, params=_SENTENCE)
    if is_sound(final, events):
        assert final.data["content"].strip()
        assert any(event.type == "token" for event in events) == bool(stream)


@pytest.mark.parametrize("stream", [False, "live"])
async def test_schema_is_kept_to_by_constraint(config: Path, valkey_url: str, stream: bool | str) -> None:
    """Llama.cpp lets the model write nothing else."""
    async with running_daemon(config):
        prompt = "Name a colour and a number."
        final, events = await run(
            valkey_url, prompt=prompt, model="by_openai", stream=stream, schema=_SCHEMA, params=_LONG
        )
    if is_sound(final, events):
        jsonschema.validate(final.data["content"], _SCHEMA)


async def test_model_that_sees_the_schema_in_words_is_left_for_the_next_as_soon_as_it_strays(
    config: Path, valkey_url: str, engine: str
) -> None:
    """At `/v1/messages` llama.cpp passes over a schema; what breaks it is ended, long before it would end itself."""
    async with running_daemon(config):
        final, events = await run(
            valkey_url, prompt="Name a colour and a number.", stream="live", schema=_SCHEMA, params=_LONG
        )
        await eventually(lambda: busy_slots(engine) == 0)
    assert is_sound(final, events)
    jsonschema.validate(final.data["content"], _SCHEMA)
    if final.data["deployment"] != "by_anthropic":
        first = final.data["attempts"][0]
        assert first["code"] in {"invalid_json", "schema_violation", "refusal"}
        rejected = [event.attempt for event in events if event.type == "rejected"]
        assert (rejected, final.answer_attempt) == ([1], 2)


async def test_schema_reaches_the_model_in_words(engine: str) -> None:
    """The prompt is longer by the words, which the server has counted."""
    counts = []
    for schema in (None, _SCHEMA):
        async with backend_for("anthropic", engine) as backend:
            told = await tell(backend, ask(schema=schema, params={"max_tokens": 1, "temperature": 0}))
            assert told.finish.usage is not None
            counts.append(told.finish.usage.prompt_tokens)
    assert counts[1] - counts[0] > len(json.dumps(_SCHEMA)) / 8


@pytest.mark.parametrize("protocol", ["openai", "anthropic"])
async def test_prompt_longer_than_the_window_is_told_as_such(config: Path, valkey_url: str, protocol: str) -> None:
    """And is not answered from its rest."""
    async with running_daemon(config):
        final, _ = await run(valkey_url, prompt="word " * 4000, model=f"by_{protocol}", params=_SENTENCE)
    assert [attempt["code"] for attempt in final.data["attempts"]] == ["context_window"]


@pytest.mark.parametrize("protocol", ["openai", "anthropic"])
async def test_call_that_is_demanded_is_a_call_or_a_rejection(config: Path, valkey_url: str, protocol: str) -> None:
    """Never text in its place."""
    async with running_daemon(config):
        final, events = await run(
            *(valkey_url,),
            prompt="Light on!",
            model=f"by_{protocol}",
            tools=[_TOOL],
            tool_choice="required",
            params={"temperature": 0, "max_tokens": 24},
        )
    if is_sound(final, events):
        (call, *_) = final.data["tool_calls"]
        assert call["function"]["name"] == "set_light"
        assert isinstance(json.loads(call["function"]["arguments"]), dict)


async def test_cancellation_frees_the_model(config: Path, valkey_url: str, engine: str) -> None:
    """In the middle of an answer; the server stops, and is not left to write on for nobody."""
    async with running_daemon(config), producer(valkey_url) as client:
        # With tokens that cannot end it, the model writes as long as it may.
        schema = {"type": "array", "items": {"type": "integer"}, "minItems": 300}
        request_id = await client.submit(
            prompt="Count.", model="by_openai", stream="live", schema=schema, params=_LONG, local_only=True
        )
        async for event in client.follow(request_id):
            if event.type == "token":
                break
        assert busy_slots(engine) >= 1
        assert (await client.cancel(request_id)).type == "cancelled"
        await eventually(lambda: busy_slots(engine) == 0)


def test_check_says_what_the_server_is(config: Path) -> None:
    """That a schema goes there in words as well, and which prefix to write in the place of a wrong one."""
    command = [sys.executable, "-m", "llm_routerd", "check", "--json", "--config", str(config)]
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    told = {finding["subject"]: finding for finding in map(json.loads, checked.stdout.splitlines())}
    for name, owner in (("openai", "OpenAI"), ("anthropic", "Anthropic")):
        finding = told[f"deployment by_{name}"]
        assert finding["level"] == "OK"
        assert f"in words as well, since this server is not {owner}'s own" in finding["detail"]
    wrong = told["deployment by_ollama"]
    assert wrong["level"] == "WARN"
    assert 'is not Ollama; it seems to be llama.cpp: write model = "openai/gemma"' in wrong["detail"]
    assert told["chain default"]["level"] == "OK"
