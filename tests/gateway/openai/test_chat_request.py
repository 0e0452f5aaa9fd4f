"""A chat completion's body becomes a request, or is refused by the name of what cannot be honoured."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_routerd.gateway.doors.openai.chat_request import PROPERTIES, read
from llm_routerd.gateway.fault import Fault
from llm_routerd.protocol.wire import encode
from tests.gateway.openai.asking import CATALOGUE, WEATHER, fault_of, hostile, outcome_of, request_of

SAID = [{"role": "user", "content": "Wie heißt du? 🦊"}]
BODY: dict[str, Any] = {"model": "default", "messages": SAID}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": WEATHER, "strict": None}}]
PIXEL = "data:image/png;base64,iVBORw0KGgo="

# Each property that is honoured, with a value, and what of the request it makes.
HONOURED: list[tuple[str, Any, dict[str, Any]]] = [
    ("model", "gpt-5", {"model": "default"}),
    ("messages", SAID, {"messages": SAID}),
    ("temperature", 0.5, {"params": {"temperature": 0.5}}),
    ("top_p", 0.9, {"params": {"top_p": 0.9}}),
    ("top_k", 40, {"params": {"top_k": 40}}),
    ("seed", 7, {"params": {"seed": 7}}),
    ("presence_penalty", -1, {"params": {"presence_penalty": -1}}),
    ("frequency_penalty", 1, {"params": {"frequency_penalty": 1}}),
    ("parallel_tool_calls", False, {"params": {"parallel_tool_calls": False}}),
    ("stop", "END", {"params": {"stop": "END"}}),
    ("stop", ["END", "\n\n"], {"params": {"stop": ["END", "\n\n"]}}),
    ("stop", [], {}),
    ("reasoning_effort", "low", {"params": {"reasoning_effort": "low"}}),
    ("max_tokens", 5, {"params": {"max_tokens": 5, "accept_length": True}}),
    ("max_completion_tokens", 5, {"params": {"max_tokens": 5, "accept_length": True}}),
    ("tools", TOOLS, {"tools": [{"type": "function", "function": {"name": "weather", "parameters": WEATHER}}]}),
    ("tools", [], {}),
    ("tool_choice", "none", {}),
    ("response_format", {"type": "text"}, {}),
    ("response_format", {"type": "json_object"}, {"schema": {"type": "object"}}),
    (
        "response_format",
        {"type": "json_schema", "json_schema": {"name": "place", "strict": True, "schema": WEATHER}},
        {"schema": WEATHER},
    ),
    ("stream", False, {}),
    ("stream_options", {"include_usage": True, "include_obfuscation": False}, {}),
]
IDLE: dict[str, Any] = {
    "metadata": {"row": "1"},
    "prediction": {"type": "content", "content": "x"},
    "prompt_cache_key": "k",
    "prompt_cache_options": {"mode": "implicit"},
    "prompt_cache_retention": "24h",
    "safety_identifier": "s",
    "service_tier": "auto",
    "store": True,
    "user": "u",
}
REFUSED: dict[str, Any] = {
    "audio": {"voice": "alloy", "format": "mp3"},
    "function_call": {"name": "weather"},
    "functions": [{"name": "weather"}],
    "logit_bias": {"50256": -100},
    "logprobs": True,
    "modalities": ["text", "audio"],
    "moderation": {"model": "m"},
    "n": 2,
    "top_logprobs": 3,
    "verbosity": "low",
    "web_search_options": {},
}


def test_table_names_every_property() -> None:
    """None is left out, here or there."""
    assert {name for name, _, _ in HONOURED} | {"tool_choice"} == PROPERTIES.heeded
    assert IDLE.keys() == PROPERTIES.idle
    assert REFUSED.keys() == PROPERTIES.refused.keys()


def test_table_names_every_property_of_the_official_client() -> None:
    """What OpenAI's client can send is honoured, idle or refused by name, and nothing is forgotten."""
    types = pytest.importorskip("openai.types.chat.completion_create_params")
    assert (
        types.CompletionCreateParamsStreaming.__annotations__.keys()
        <= PROPERTIES.heeded | PROPERTIES.idle | PROPERTIES.refused.keys()
    )


@pytest.mark.parametrize(("name", "value", "made"), HONOURED, ids=str)
def test_honoured(name: str, value: Any, made: dict[str, Any]) -> None:
    """What is honoured is in the request, which is sound."""
    ask = read({**BODY, name: value}, CATALOGUE)
    assert ask.fields == {**BODY, **made}
    request_of(ask)


@pytest.mark.parametrize("name", IDLE)
def test_idle(name: str) -> None:
    """What cannot change the answer changes nothing."""
    assert read({**BODY, name: IDLE[name]}, CATALOGUE).fields == BODY


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name: str) -> None:
    """What cannot be honoured is refused, but for null and the values that ask for nothing."""
    fault = fault_of(read, {**BODY, name: REFUSED[name]})
    assert (fault.status, fault.code, fault.param) == (400, "unsupported", name)
    for neutral in (None, *PROPERTIES.refused[name]):
        assert read({**BODY, name: neutral}, CATALOGUE).fields == BODY


@pytest.mark.parametrize(
    ("change", "param", "told"),
    [
        ({"max_token": 5}, "max_token", "did you mean 'max_tokens'?"),
        ({"zzzzzzzz": 5}, "zzzzzzzz", "no such property"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens", "give one of them"),
        ({"messages": None}, "messages", "expected an array"),
        ({"messages": ["hello"]}, "messages.0", "expected an object"),
        ({"messages": [{"role": "user", "content": [1]}]}, "messages.0.content.0", "expected an object"),
        ({"messages": [{"role": "assistant", "function_call": {}}]}, "messages.0.function_call", "not supported"),
        ({"tools": {}}, "tools", "expected an array"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools.0.type", "no `custom`"),
        ({"tools": [{"function": {"name": "x"}}]}, "tools.0.type", "expected a string"),
        ({"tool_choice": {"type": "function"}}, "tool_choice", "expected the name"),
        ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice", "not supported"),
        ({"response_format": "json"}, "response_format", "expected an object"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "expected `text`"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "expected an object"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "response_format.json_schema.schema",
            "expected an object",
        ),
        ({"stream": "yes"}, "stream", "expected true or false"),
        ({"stream_options": {"continuous_usage_stats": True}}, "stream_options.continuous_usage_stats", "no such"),
        ({"model": None}, "model", "expected the name"),
        ({"model": 5}, "model", "expected the name"),
    ],
    ids=str,
)
def test_refused_with_what_was_expected(change: dict[str, Any], param: str, told: str) -> None:
    """The property is named, and the message has nothing of what was sent but names."""
    fault = fault_of(read, {**BODY, **change})
    assert (fault.status, fault.param) == (400, param)
    assert told in fault.message


def test_unknown_model_is_not_found() -> None:
    """The nearest name is told."""
    fault = fault_of(read, {**BODY, "model": "defautl"})
    assert (fault.status, fault.code) == (404, "unknown_model")
    assert "'default'" in fault.message


def test_limit_with_schema_is_not_where_the_answer_may_end() -> None:
    """Half of a JSON value is none."""
    ask = read({**BODY, "max_tokens": 5, "response_format": {"type": "json_object"}}, CATALOGUE)
    assert ask.fields["params"] == {"max_tokens": 5}
    assert ask.is_held


@pytest.mark.parametrize("choice", ["auto", "none", "required", {"type": "function", "function": {"name": "weather"}}])
def test_choice_of_tools(choice: Any) -> None:
    """It goes on as it is."""
    request = request_of(read({**BODY, "tools": TOOLS, "tool_choice": choice}, CATALOGUE))
    assert request.tool_choice == choice


def test_conversation_with_calls_and_images() -> None:
    """What a client sends back of an earlier answer is read; what says nothing is left out."""
    call = {"id": "call_0", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    messages = [
        {"role": "developer", "content": "Be brief.", "name": None},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Here?", "cache_control": {"type": "ephemeral"}},
                {"type": "image_url", "image_url": {"url": PIXEL, "detail": "low"}},
            ],
        },
        {
            "role": "assistant",
            "content": None,
            "refusal": None,
            "annotations": [],
            "audio": None,
            "function_call": None,
            "tool_calls": [call],
        },
        {"role": "tool", "tool_call_id": "call_0", "content": "rain"},
        {"role": "assistant", "content": None, "refusal": "No."},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
    ]
    ask = read({**BODY, "messages": messages}, CATALOGUE)
    assert ask.fields["messages"] == [
        {"role": "developer", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Here?"},
                {"type": "image_url", "image_url": {"url": PIXEL, "detail": "low"}},
            ],
        },
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_0", "content": "rain"},
        {"role": "assistant", "content": "No."},
        {"role": "assistant", "content": [{"type": "text", "text": "No."}]},
    ]
    request_of(ask)


HOSTILE = hostile(
    ["type", "function", "name", "content", "role", "json_schema", "refusal", "x"],
    ["function", "text", "refusal", "json_schema", "message", "function_call"],
)


@given(
    st.dictionaries(
        st.sampled_from(sorted(PROPERTIES.heeded | PROPERTIES.idle | PROPERTIES.refused.keys())) | st.text(), HOSTILE
    )
)
def test_whatever_comes_is_read_or_refused(body: dict[str, Any]) -> None:
    """No body makes anything else than an ask, whose fields are JSON, or a refusal of one line."""
    outcome = outcome_of(read, {"model": "default", **body})
    if isinstance(outcome, Fault):
        assert outcome.message.isprintable()
    else:
        encode(outcome.fields)
