"""The stand-in does what its directives say, in every protocol, and its log tells how each call ended."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import urllib.request
from typing import TYPE_CHECKING, Any

import jsonschema
import orjson
import pytest

from llm_routerd.agents.conversation import assistant_message
from llm_routerd.protocol.call import BackendError, Call
from tests.standin.script import REFUSAL, instance_of, script_for
from tests.standin.server import StandIn
from tests.support.calling import PROTOCOLS, ask, backend_for, tell
from tests.support.eventually import eventually

if TYPE_CHECKING:
    from pathlib import Path

TOOL = {"type": "function", "function": {"name": "w", "parameters": {"properties": {"n": {"type": "integer"}}}}}
SCHEMAS: list[Any] = [
    True,
    {"type": "object", "properties": {"a": {"type": "string", "minLength": 20}}, "required": ["a", "b"]},
    {"type": "array", "items": {"type": "integer", "minimum": 5, "maximum": 5}, "minItems": 3},
    {"type": "array", "prefixItems": [{"type": "boolean"}, {"type": "null"}], "items": False},
    {"type": "number", "exclusiveMinimum": 1, "exclusiveMaximum": 2},
    {"type": ["integer", "null"], "multipleOf": 7},
    {"enum": ["x", "y"]},
    {"const": {"deep": [1]}},
    {"oneOf": [{"type": "string", "format": "date-time"}, {"type": "integer"}]},
    {"allOf": [{"properties": {"a": {"const": 1}}, "required": ["a"]}, {"properties": {"b": {"const": 2}}}]},
    {
        "$ref": "#/$defs/n",
        "$defs": {"n": {"type": "object", "properties": {"n": {"anyOf": [{"$ref": "#/$defs/n"}, {"type": "null"}]}}}},
    },
]


@pytest.mark.parametrize("schema", SCHEMAS)
def test_instance_satisfies_its_schema(schema: Any) -> None:
    """Also a recursive one."""
    jsonschema.validate(instance_of(schema, schema), schema)


def test_message_wins_over_model_and_may_be_meant_for_one_model_only() -> None:
    """Directives are merged, in this order."""
    message = "Hello [[tokens=2 id=x]] and [[model=b json=bad answer='one two']]"
    assert script_for("a", "tokens=9 delay_ms=3", message).words == {"tokens": "2", "id": "x", "delay_ms": "3"}
    assert script_for("b", "", message).text("answer") == "one two"


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_answers_follow_their_directives(protocol: str) -> None:
    """Text, length, refusal, thinking, tools, in each protocol's own form."""
    async with StandIn() as server, backend_for(protocol, server.url) as backend:
        told = await tell(backend, ask("[[answer='one two']]"))
        assert (told.text, told.finish.finish_reason) == ("one two", "stop")
        told = await tell(backend, ask("[[reasoning='hm hm' tokens=3]]", params={"max_tokens": 2}))
        assert (told.reasoning, told.text, told.finish.finish_reason) == ("hm hm", "a stand-in", "length")
        assert (await tell(backend, ask("[[refuse]]"))).text == REFUSAL
        assert (await tell(backend, ask("[[empty]]"))).text == ""
        assert (await tell(backend, ask("[[bench tokens=300]]"))).text.count("stand-in") == 23
        told = await tell(backend, ask('[[call tokens=0 args={\\"n\\":3}]]', tools=(TOOL,)))
        (call,) = told.finish.tool_calls
        assert (call.name, call.arguments) == ("w", '{"n":3}')
    assert [call["how"] for call in server.calls] == ["finished"] * 6


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_turns_are_played_from_what_the_conversation_shows(protocol: str) -> None:
    """Two calls, then one, then what the tools said; nothing is remembered, and the log tells which turn was asked for."""
    plan = """[[id=r9 turn1='w {"n":1} w {"n":2}' turn2='w {"n":3}']]"""
    messages: list[dict[str, Any]] = [{"role": "user", "content": plan}]
    async with StandIn() as server, backend_for(protocol, server.url) as backend:
        made = []
        for _ in range(2):
            finish = (await tell(backend, Call(messages=tuple(messages), tools=(TOOL,)))).finish
            made.append([json.loads(call.arguments)["n"] for call in finish.tool_calls])
            messages.append(assistant_message("", finish.tool_calls))
            messages += [
                {"role": "tool", "tool_call_id": call.id, "content": f"did {json.loads(call.arguments)['n']}"}
                for call in finish.tool_calls
            ]
        assert made == [[1, 2], [3]]
        told = await tell(backend, Call(messages=tuple(messages), tools=(TOOL,)))
        assert (told.text, told.finish.tool_calls) == ("The tools say: did 1; did 2; did 3.", ())
        told = await tell(backend, ask(plan, tools=(TOOL,), tool_choice="none"))
        assert (told.text, told.finish.tool_calls) == ("The tools say: .", ())
    assert [call["turn"] for call in server.calls] == [1, 2, 3, 1]


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_answers_to_a_schema_are_as_good_as_asked(protocol: str) -> None:
    """Valid by default, and bad in each way that the router has to notice."""
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    async with StandIn() as server, backend_for(protocol, server.url) as backend:
        texts = {}
        for kind in ("good", "bad", "prose", "wrong", "fence", "think"):
            texts[kind] = (await tell(backend, ask(f"[[json={kind}]]", schema=schema))).text
    jsonschema.validate(orjson.loads(texts["good"]), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(orjson.loads(texts["wrong"]), schema)
    for kind in ("bad", "prose", "fence", "think"):
        with pytest.raises(orjson.JSONDecodeError):
            orjson.loads(texts[kind])
    assert texts["fence"].startswith("```json\n{")
    assert texts["think"].startswith("<think>")


async def test_failures_may_end() -> None:
    """`times` counts by `id`, so that a second try is answered."""
    async with StandIn() as server, backend_for("ollama", server.url) as backend:
        for _ in range(2):
            with pytest.raises(BackendError):
                await tell(backend, ask("[[fail=503 times=2 id=r1]]"))
        assert (await tell(backend, ask("[[fail=503 times=2 id=r1]]"))).text
        assert [call["how"] for call in server.calls] == ["failed", "failed", "finished"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_log_tells_of_a_client_that_left(protocol: str) -> None:
    """With the request's id, and the tokens that were written before."""
    async with StandIn() as server, backend_for(protocol, server.url) as backend:
        stream = backend.stream(ask("[[id=r7 stall_after=2]]"))
        await anext(stream)
        await stream.aclose()
        await eventually(lambda: server.calls[-1]["end"] is not None, seconds=1)
        (call,) = server.calls
        assert (call["id"], call["how"], call["tokens"]) == ("r7", "client_disconnected", 2)
        assert call["start"] <= call["first"] <= call["end"]


async def test_it_runs_as_a_process_and_says_what_it_is(tmp_path: Path) -> None:
    """Its first line holds its address; its log survives it; SIGTERM ends it."""
    log = tmp_path / "calls.jsonl"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.standin", "--port", "0", "--log", str(log)),
        *("--model", "qwen2.5:7b", "--model", "slow=delay_ms=1"),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        hello = json.loads(await process.stdout.readline())
        assert hello["stand-in"] is True
        assert hello["models"] == ["qwen2.5:7b", "slow"]
        async with backend_for("ollama", hello["url"], model="ollama/qwen2.5:7b") as backend:
            assert (await backend.probe()).ok
            assert "stand-in" in (await tell(backend, ask("[[id=r1]]"))).text
        listing = await asyncio.to_thread(lambda: urllib.request.urlopen(f"{hello['url']}/log").read())  # noqa: S310 - ours
        assert [call["id"] for call in json.loads(listing)["calls"]] == ["r1"]
    finally:
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
    (line,) = log.read_text().splitlines()
    assert json.loads(line)["how"] == "finished"
