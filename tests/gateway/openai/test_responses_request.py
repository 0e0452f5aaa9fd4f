"""A response's body becomes a request, or is refused by the name of what cannot be honoured."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_routerd.gateway.doors.openai.responses_request import PROPERTIES, read
from llm_routerd.gateway.fault import Fault
from llm_routerd.protocol.wire import encode
from tests.gateway.openai.asking import CATALOGUE, TOLD, WEATHER, fault_of, hostile, outcome_of, request_of

SAID = {"role": "user", "content": "Wie heißt du? 🦊"}
BODY: dict[str, Any] = {"model": "default", "input": SAID["content"]}
MADE: dict[str, Any] = {"model": "default", "messages": [SAID], "metadata": {"openai": {"model": "default"}}}
TOOL = {"type": "function", "name": "weather", "parameters": WEATHER, "strict": True, "description": None}
CALLED = {"name": "weather", "parameters": WEATHER, "strict": True}
PIXEL = "data:image/png;base64,iVBORw0KGgo="
FILE = "data:application/pdf;base64,JVBERg=="

HONOURED: list[tuple[str, Any, dict[str, Any]]] = [
    ("model", "gpt-5", {"metadata": {"openai": {"model": "gpt-5"}}}),
    ("input", SAID["content"], {}),
    ("input", [SAID], {}),
    ("instructions", "Be brief.", {"messages": [{"role": "system", "content": "Be brief."}, SAID]}),
    ("metadata", {"row": "1"}, {"metadata": {"openai": {"model": "default", "metadata": {"row": "1"}}}}),
    ("temperature", 0.5, {"params": {"temperature": 0.5}}),
    ("top_p", 0.9, {"params": {"top_p": 0.9}}),
    ("top_k", 40, {"params": {"top_k": 40}}),
    ("parallel_tool_calls", False, {"params": {"parallel_tool_calls": False}}),
    ("max_output_tokens", 5, {"params": {"max_tokens": 5, "accept_length": True}}),
    ("reasoning", {"effort": "low", "summary": "auto"}, {"params": {"reasoning_effort": "low"}}),
    ("reasoning", {"effort": None}, {}),
    ("tools", [TOOL], {"tools": [{"type": "function", "function": CALLED}]}),
    ("tool_choice", "auto", {}),
    ("text", {"format": {"type": "text"}, "verbosity": "medium"}, {}),
    ("text", {"format": {"type": "json_object"}}, {"schema": {"type": "object"}}),
    ("text", {"format": {"type": "json_schema", "name": "place", "schema": WEATHER}}, {"schema": WEATHER}),
    ("include", ["reasoning.encrypted_content"], {}),
    ("stream", True, {}),
    ("background", True, {"metadata": {"openai": {"background": True, "model": "default"}}}),
]
IDLE: dict[str, Any] = {
    "client_metadata": {"session": "s"},
    "max_tool_calls": 3,
    "prompt_cache_key": "k",
    "prompt_cache_options": {"mode": "implicit"},
    "prompt_cache_retention": "24h",
    "safety_identifier": "s",
    "service_tier": "auto",
    "store": False,
    "stream_options": {"include_obfuscation": False},
    "user": "u",
}
REFUSED: dict[str, Any] = {
    "context_management": [{"type": "compaction"}],
    "conversation": "conv_1",
    "moderation": {"model": "m"},
    "previous_response_id": "resp_1",
    "prompt": {"id": "pmpt_1"},
    "top_logprobs": 3,
    "truncation": "auto",
}


def test_table_names_every_property() -> None:
    """None is left out, here or there."""
    assert {name for name, _, _ in HONOURED} == PROPERTIES.heeded
    assert IDLE.keys() == PROPERTIES.idle
    assert REFUSED.keys() == PROPERTIES.refused.keys()


def test_table_names_every_property_of_the_official_client() -> None:
    """What OpenAI's client can send is honoured, idle or refused by name, and nothing is forgotten."""
    types = pytest.importorskip("openai.types.responses.response_create_params")
    assert (
        types.ResponseCreateParamsStreaming.__annotations__.keys()
        <= PROPERTIES.heeded | PROPERTIES.idle | PROPERTIES.refused.keys()
    )


@pytest.mark.parametrize(("name", "value", "made"), HONOURED, ids=str)
def test_honoured(name: str, value: Any, made: dict[str, Any]) -> None:
    """What is honoured is in the request, which is sound."""
    ask = read({**BODY, name: value}, CATALOGUE)
    assert ask.fields == {**MADE, **made}
    request_of(ask)


@pytest.mark.parametrize("name", IDLE)
def test_idle(name: str) -> None:
    """What cannot change the answer changes nothing."""
    assert read({**BODY, name: IDLE[name]}, CATALOGUE).fields == MADE


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name: str) -> None:
    """What cannot be honoured is refused, but for null and the values that ask for nothing."""
    fault = fault_of(read, {**BODY, name: REFUSED[name]})
    assert (fault.status, fault.code, fault.param) == (400, "unsupported", name)
    for neutral in (None, *PROPERTIES.refused[name]):
        assert read({**BODY, name: neutral}, CATALOGUE).fields == MADE


@pytest.mark.parametrize(
    ("change", "param", "told"),
    [
        ({"messages": []}, "messages", "no such property"),
        ({"inputs": "x"}, "inputs", "did you mean 'input'?"),
        ({"input": None}, "input", "expected a string or an array"),
        ({"input": 5}, "input", "expected a string or an array"),
        ({"input": ["x"]}, "input.0", "expected an object"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0.type", "`item_reference` is not supported"),
        ({"input": [{"type": 5}]}, "input.0.type", "expected a string"),
        ({"input": [{"role": "user"}]}, "input.0.content", "expected a string or an array"),
        ({"input": [{"content": "x"}]}, "input.0.role", "expected a string"),
        ({"input": [{"type": "function_call"}]}, "input.0.name", "expected a string"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input.0.call_id", "expected a string"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
            "input.0.content.0.file_id",
            "not supported",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_audio"}]}]},
            "input.0.content.0.type",
            "expected `input_text`",
        ),
        ({"instructions": ["x"]}, "instructions", "expected a string"),
        ({"metadata": ["x"]}, "metadata", "expected an object"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type", "no `web_search`"),
        ({"tool_choice": {"type": "file_search"}}, "tool_choice", "not supported"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema", "expected an object"),
        ({"text": {"verbosity": "low"}}, "text.verbosity", "not supported"),
        ({"reasoning": {"mode": "pro"}}, "reasoning.mode", "not supported"),
        ({"include": ["message.output_text.logprobs"]}, "include", "not supported"),
        ({"include": "x"}, "include", "expected an array"),
    ],
    ids=str,
)
def test_refused_with_what_was_expected(change: dict[str, Any], param: str, told: str) -> None:
    """The property is named."""
    fault = fault_of(read, {**BODY, **change})
    assert (fault.status, fault.param) == (400, param)
    assert told in fault.message


def test_body_of_a_coding_agent() -> None:
    """All that Codex sends with functions alone as its tools."""
    message = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Fix it."}]}
    body = {
        "model": "default",
        "instructions": "You are a coding agent.",
        "input": [message],
        "tools": [{"type": "function", "name": "shell", "description": "", "strict": False, "parameters": WEATHER}],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "reasoning": {"effort": "medium", "summary": "auto"},
        "store": False,
        "stream": True,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "k",
        "client_metadata": {"installation": "i"},
    }
    ask = read(body, CATALOGUE)
    request = request_of(ask)
    assert ask.streams
    assert [each["role"] for each in request.messages] == ["system", "user"]
    assert request.params == {"parallel_tool_calls": True, "reasoning_effort": "medium"}


def test_background_has_a_receipt() -> None:
    """Whoever comes back is told at once how to."""
    assert read(BODY, CATALOGUE).receipt is None
    receipt = read({**BODY, "background": True}, CATALOGUE).receipt
    assert receipt is not None
    told = orjson.loads(receipt(TOLD))
    assert (told["id"], told["status"], told["background"], told["output"]) == ("resp_r1", "queued", True, [])


def test_forced_function() -> None:
    """A choice in the form of responses becomes one in chat's."""
    ask = read({**BODY, "tools": [TOOL], "tool_choice": {"type": "function", "name": "weather"}}, CATALOGUE)
    assert request_of(ask).tool_choice == {"type": "function", "function": {"name": "weather"}}


def test_items_of_earlier_responses() -> None:
    """Calls are one message of the assistant's, with its text; what it thought is dropped."""
    items: list[dict[str, Any]] = [
        {"type": "message", "role": "developer", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "input_text", "text": "Here?"},
                {"type": "input_image", "image_url": PIXEL, "detail": "low"},
                {"type": "input_file", "file_data": FILE, "filename": "a.pdf"},
            ],
        },
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {
            "type": "message",
            "id": "msg_1",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": "Wait.", "annotations": []}],
        },
        {"type": "function_call", "id": "fc_1", "call_id": "call_0", "name": "weather", "arguments": "{}"},
        {"type": "function_call", "id": "fc_2", "call_id": "call_1", "name": "time", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "call_0", "output": "rain"},
        {"type": "function_call_output", "call_id": "call_1", "output": [{"type": "input_text", "text": "noon"}]},
        {"type": "function_call", "call_id": "call_2", "name": "time", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "call_2", "output": "one"},
    ]
    ask = read({**BODY, "input": items}, CATALOGUE)
    assert ask.fields["messages"] == [
        {"role": "developer", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Here?"},
                {"type": "image_url", "image_url": {"url": PIXEL, "detail": "low"}},
                {"type": "file", "file": {"file_data": FILE, "filename": "a.pdf"}},
            ],
        },
        {
            "role": "assistant",
            "content": [{"type": "text", "text": "Wait."}],
            "tool_calls": [
                {"id": "call_0", "type": "function", "function": {"name": "weather", "arguments": "{}"}},
                {"id": "call_1", "type": "function", "function": {"name": "time", "arguments": "{}"}},
            ],
        },
        {"role": "tool", "tool_call_id": "call_0", "content": "rain"},
        {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "noon"}]},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "call_2", "type": "function", "function": {"name": "time", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "call_2", "content": "one"},
    ]
    request_of(ask)


HOSTILE = hostile(
    ["type", "name", "content", "role", "call_id", "arguments", "output", "text", "format"],
    ["message", "function_call", "function_call_output", "input_text", "json_schema"],
)


@given(
    st.dictionaries(
        st.sampled_from(sorted(PROPERTIES.heeded | PROPERTIES.idle | PROPERTIES.refused.keys())) | st.text(), HOSTILE
    )
)
def test_whatever_comes_is_read_or_refused(body: dict[str, Any]) -> None:
    """No body makes anything else than an ask, whose fields are JSON, or a refusal of one line."""
    outcome = outcome_of(read, {"model": "default", "input": "x", **body})
    if isinstance(outcome, Fault):
        assert outcome.message.isprintable()
    else:
        encode(outcome.fields)
