"""Conversations with calls of tools, and the last turn of a run, as each protocol's server gets them: on the wire."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from msgspec.structs import replace

from llm_routerd.backends.answer_format import instruction
from llm_routerd.backends.anthropic.request import messages_request
from llm_routerd.backends.litellm.request import call_arguments
from llm_routerd.backends.openai.request import chat_body
from llm_routerd.protocol.call import Call
from tests.standin.server import StandIn
from tests.support.calling import PROTOCOLS, ask, backend_for, call_to, deployment_of, tell

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
A_MAP = {"type": "object", "additionalProperties": {"type": "integer"}}
TOOL = {"type": "function", "function": {"name": "lights_switch", "description": "d", "parameters": SCHEMA}}
LAST: dict[str, Any] = {"tools": (TOOL,), "tool_choice": "none"}
HUGE = "ü" * 65_536
RESULTS = ('{"degrees": 21.5}', "", HUGE, "snow ☃ \U0001f600")


def _call(number: int, name: str = "lights_switch", arguments: str = '{"a": 1}') -> dict[str, Any]:
    return {"id": f"call_{number}", "type": "function", "function": {"name": name, "arguments": arguments}}


def _turn(*calls: dict[str, Any], content: str | None = None, results: tuple[str, ...] = RESULTS) -> Call:
    """A question, an assistant's message with calls, and a result of each."""
    answers = [
        {"role": "tool", "tool_call_id": call["id"], "content": result}
        for call, result in zip(calls, results, strict=False)
    ]
    spoken = {"role": "assistant", "content": content, "tool_calls": list(calls)}
    return Call(messages=({"role": "user", "content": "Light?"}, spoken, *answers), tools=(TOOL,))


async def _sent(protocol: str, call: Call, **more: Any) -> dict[str, Any]:
    """The body that a server of this protocol gets for a call."""
    async with StandIn() as server, backend_for(protocol, server.url, **more) as backend:
        await tell(backend, replace(call, params={"truncate": True}))  # the stand-in counts the words of one message
    return server.requests[-1]


@pytest.mark.parametrize("content", [None, "", "\n\n", "Let me look."])
async def test_several_results_are_told_in_each_protocols_form(content: str | None) -> None:
    """JSON text, nothing, 128 KiB and astral characters come through as they are, in order, each to its call."""
    call = _turn(*map(_call, range(4)), content=content)
    openai = await _sent("openai", call)
    assert openai["messages"] == orjson.loads(orjson.dumps(call.messages))
    ollama = await _sent("ollama", call)
    assert [message["content"] for message in ollama["messages"][2:]] == list(RESULTS)
    assert {message["tool_name"] for message in ollama["messages"][2:]} == {"lights_switch"}
    assert ollama["messages"][1]["content"] == (content or "")
    assert [each["function"]["arguments"] for each in ollama["messages"][1]["tool_calls"]] == [{"a": 1}] * 4
    spoken, told = (await _sent("anthropic", call))["messages"][1:]
    said = [{"type": "text", "text": content}] if content and content.strip() else []
    uses = [{"type": "tool_use", "id": f"call_{n}", "name": "lights_switch", "input": {"a": 1}} for n in range(4)]
    assert spoken == {"role": "assistant", "content": said + uses}
    assert told["role"] == "user"
    assert [(block["type"], block["tool_use_id"]) for block in told["content"]] == [
        ("tool_result", f"call_{n}") for n in range(4)
    ]
    assert [block.get("content") for block in told["content"]] == [
        [{"type": "text", "text": text}] if text else None for text in RESULTS
    ]


ODD = [
    ("no JSON at all", {"arguments": "no JSON at all"}),
    ("[1]", {"arguments": [1]}),
    ("", {}),
    ('{"a": 12345678901234567890123}', None),  # as it is, to the digit, where it goes as text
]


@pytest.mark.parametrize(("arguments", "told"), ODD)
async def test_arguments_that_servers_would_break_on_are_an_object_that_holds_them(arguments: str, told: Any) -> None:
    """A model may have written anything, and the next one's server parses it."""
    call = _turn(_call(0, "no such tool!", arguments))
    for protocol in PROTOCOLS:
        body = await _sent(protocol, call)
        if protocol == "anthropic":
            (use,) = body["messages"][1]["content"]
            name, given = use["name"], use["input"]
        else:
            (function,) = [each["function"] for each in body["messages"][1]["tool_calls"]]
            name, given = function["name"], function["arguments"]
        assert name == "no_such_tool_"
        if told is None:
            assert protocol != "openai" or given == arguments
        else:
            assert (orjson.loads(given) if protocol == "openai" else given) == told
    sent = call_arguments(deployment_of("openai", "http://x"), call)["messages"][1]["tool_calls"][0]["function"]
    assert sent["name"] == "no_such_tool_"
    assert sent["arguments"] == arguments if told is None else orjson.loads(sent["arguments"]) == told


@pytest.mark.parametrize("name", ["", "ä" * 200, "weather"])
def test_name_in_the_messages_is_one_that_every_provider_takes(name: str) -> None:
    """Providers answer 400 to others, whoever wrote them; one that is sound stays."""
    body = chat_body(deployment_of("openai", "http://x"), _turn(_call(0, name)), genuine=True)
    (call,) = body["messages"][1]["tool_calls"]
    assert call["function"]["name"] == (name if name == "weather" else "_" * min(64, max(1, len(name))))


async def test_last_turn_keeps_the_tools_and_forbids_to_call_them() -> None:
    """Where a protocol can say so: Anthropic demands tools where the messages hold calls.  Ollama cannot."""
    call = Call(messages=_turn(_call(0)).messages, **LAST)
    openai = await _sent("openai", call)
    assert (openai["tools"], openai["tool_choice"]) == ([TOOL], "none")
    anthropic = await _sent("anthropic", call)
    assert [tool["name"] for tool in anthropic["tools"]] == ["lights_switch"]
    assert anthropic["tool_choice"] == {"type": "none"}
    assert "tools" not in await _sent("ollama", call)
    arguments = call_arguments(deployment_of("mistral", "http://x"), call)
    assert (arguments["tools"], arguments["tool_choice"]) == ([TOOL], "none")


FORMATS = {"openai": "response_format", "ollama": "format", "anthropic": "output_config"}


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_schema_does_not_keep_a_model_from_calling(protocol: str) -> None:
    """Servers hold all that a model says to a form: while tools may be called the schema goes in words alone."""
    more = {"model": "anthropic/claude-haiku-4-5"} if protocol == "anthropic" else {}
    models = {"stand-in": "", "claude-haiku-4-5": ""}
    async with StandIn(models) as server, backend_for(protocol, server.url, **more) as backend:
        for choice in (None, "auto", "none"):
            await tell(backend, ask(schema=SCHEMA, tools=(TOOL,), tool_choice=choice, params={"truncate": True}))
    bodies = list(server.requests)
    assert [FORMATS[protocol] in body for body in bodies] == [False, False, True]
    assert all(orjson.dumps(instruction(SCHEMA))[1:-1] in orjson.dumps(body) for body in bodies)


@pytest.mark.parametrize("choice", [None, "none"])
def test_providers_that_keep_form_and_calls_apart_get_both(choice: str | None) -> None:
    """OpenAI and Anthropic themselves hold the answer to the schema, and calls to the tools' parameters."""
    call = ask(schema=SCHEMA, tools=(TOOL,), tool_choice=choice)
    body = chat_body(deployment_of("openai", "http://x"), call, genuine=True)
    assert body["response_format"]["json_schema"]["schema"] == SCHEMA
    deployment = deployment_of("anthropic", "http://x", model="anthropic/claude-haiku-4-5")
    asked = messages_request(deployment, call, genuine=True)
    assert asked.body["output_config"]["format"]["schema"] == SCHEMA
    assert not asked.answers_by_tool


@pytest.mark.parametrize("choice", [None, "none"])
def test_through_litellm_a_schema_goes_in_words_beside_tools(choice: str | None) -> None:
    """Gemini refuses the two together, and for Bedrock litellm makes a tool of the schema, which "none" forbids."""
    arguments = call_arguments(
        deployment_of("gemini", "http://x"), ask(schema=SCHEMA, tools=(TOOL,), tool_choice=choice)
    )
    assert "response_format" not in arguments
    assert arguments["messages"][0] == {"role": "system", "content": instruction(SCHEMA)}


def test_last_answer_of_an_older_claude_is_the_input_of_a_tool_beside_the_others() -> None:
    """Unless one of them has its name."""
    deployment = deployment_of("anthropic", "http://x", model="anthropic/claude-3-5-haiku-latest")
    last = Call(messages=_turn(_call(0)).messages, schema=A_MAP, **LAST)
    asked = messages_request(deployment, last, genuine=True)
    assert asked.answers_by_tool
    assert [tool["name"] for tool in asked.body["tools"]] == ["lights_switch", "answer"]
    assert asked.body["tool_choice"]["name"] == "answer"
    other = {"type": "function", "function": {"name": "answer"}}
    asked = messages_request(deployment, ask(schema=A_MAP, tools=(other,), tool_choice="none"), genuine=True)
    assert not asked.answers_by_tool
    assert "JSON Schema" in asked.body["system"]


def test_claude_that_thinks_up_to_a_budget_does_not_while_a_turn_of_tools_goes_on() -> None:
    """The API wants its signed thoughts back there, which no conversation keeps; adaptive models go on without."""
    params = {"reasoning_effort": "medium"}
    for model, kind in (("claude-haiku-4-5", "enabled"), ("claude-opus-4-8", "adaptive")):
        deployment = deployment_of("anthropic", "http://x", model=f"anthropic/{model}")
        first = call_to(deployment, ask(tools=(TOOL,), params=params))
        assert messages_request(deployment, first, genuine=True).body["thinking"]["type"] == kind
        turn = _turn(_call(0))
        second = Call(messages=turn.messages, tools=(TOOL,), params=params)
        body = messages_request(deployment, second, genuine=True).body
        assert body.get("thinking", {}).get("type") == (None if kind == "enabled" else kind)
        third = Call(messages=(*turn.messages, {"role": "assistant", "content": "On."}, *ask("And now?").messages))
        body = messages_request(
            deployment, call_to(deployment, Call(messages=third.messages, params=params)), genuine=True
        ).body
        assert body["thinking"]["type"] == kind
