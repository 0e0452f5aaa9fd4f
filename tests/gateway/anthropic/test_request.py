"""A body of Anthropic's becomes a request, or is refused by name."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_routerd.gateway.doors.anthropic import ENDPOINTS, blocks, request, thinking, tools, turns
from llm_routerd.gateway.doors.anthropic.request import count, read
from llm_routerd.gateway.fault import RefusedError
from tests.gateway.anthropic.bodies import AGENT, PNG, SHOWN_THINGS, SMALL, WEATHER
from tests.gateway.asking import ANY_VALUES, CATALOGUE, JSON_VALUES, answer, places, put, refusal, sound

if TYPE_CHECKING:
    from llm_routerd.gateway.properties import Properties


def messages(*turns: dict[str, Any], **more: Any) -> list[dict[str, Any]]:
    """What a conversation becomes."""
    ask = read({**SMALL, "messages": list(turns), **more}, CATALOGUE)
    sound(ask)
    return list(ask.fields["messages"])


def user(*content: Any) -> dict[str, Any]:
    """A turn."""
    return {"role": "user", "content": list(content)}


def test_a_small_body() -> None:
    """What it says, and that an answer may end at its limit."""
    ask = read(SMALL, CATALOGUE)
    assert ask.fields == {
        "model": "default",
        "messages": [{"role": "user", "content": "Hello"}],
        "params": {"max_tokens": 64, "accept_length": True},
    }
    assert (ask.streams, ask.shows_reasoning, ask.is_held) == (False, False, False)


def test_what_a_coding_agent_sends() -> None:
    """All of it is heeded or of no consequence; the system's later words are in the user's turns, at their places."""
    ask = read(AGENT, CATALOGUE)
    assert ask.streams
    assert ask.shows_reasoning
    told = sound(ask)
    assert (told.model, told.params["reasoning_effort"], told.params["max_tokens"]) == ("default", "low", 32000)
    assert [tool["function"]["name"] for tool in told.tools] == ["weather", "mcp__files__read"]
    assert told.messages == (
        {
            "role": "system",
            "content": "x-anthropic-billing-header: cc_version=2.1.69.0d9; cc_entrypoint=cli; cch=fa690;\n"
            "You are an agent.",
        },
        {
            "role": "user",
            "content": "<system-reminder>\nBe brief.\n</system-reminder>\nWhat is the weather?\n"
            "<system-reminder>\nAgents: none.\n</system-reminder>",
        },
        {
            "role": "assistant",
            "content": "I will look.",
            "tool_calls": [
                {"id": "toolu_1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Köln"}'}},
                {"id": "toolu_2", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Paris"}'}},
            ],
        },
        {"role": "tool", "tool_call_id": "toolu_1", "content": "12 °C\nrain"},
        {"role": "tool", "tool_call_id": "toolu_2", "content": "Error: no such city"},
        {"role": "user", "content": "Go on.\n<system-reminder>\nSay it in one sentence.\n</system-reminder>"},
    )


def test_images_and_documents() -> None:
    """What lies in the request goes on as a data URL, or as text where it is text."""
    (message,) = messages(*SHOWN_THINGS["messages"])
    assert [part["type"] for part in message["content"]] == [
        *("text", "image_url", "text", "file", "text", "text", "text", "text", "text", "text")
    ]
    assert message["content"][1]["image_url"]["url"] == f"data:image/png;base64,{PNG}"
    assert message["content"][3]["file"]["filename"] == "a b.pdf"
    assert [part["text"] for part in message["content"] if part["type"] == "text"] == [
        *("What is this?", "A contract.", "Notes", "Plain.", "In blocks.", "A book", "shelf 3", "Once.")
    ]


def test_a_tool_may_show_images() -> None:
    """And an error that is one is said to be one."""
    image = SHOWN_THINGS["messages"][0]["content"][1]
    called = {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "weather", "input": {}}]}
    shown = {"type": "tool_result", "tool_use_id": "t", "content": [image], "is_error": True}
    assert messages({"role": "user", "content": "?"}, called, user(shown))[-1]["content"] == [
        {"type": "text", "text": "Error: "},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
    ]
    empty = {"type": "tool_result", "tool_use_id": "t"}
    assert messages({"role": "user", "content": "?"}, called, user(empty))[-1]["content"] == ""


def test_a_word_of_the_system_for_one_turn_is_gone_in_the_next() -> None:
    """One that comes first belongs to the system prompt."""
    told = messages(
        {"role": "system", "content": [{"type": "text", "text": "First."}]},
        {"role": "user", "content": "a"},
        {"role": "system", "clear_at": "next_user_message", "content": "gone"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
        {"role": "user", "content": "d"},
        system="Zeroth.",
    )
    assert [each["content"] for each in told] == ["Zeroth.\nFirst.", "a", "b", "c\nd"]


@pytest.mark.parametrize(
    ("body", "effort", "is_shown"),
    [
        ({}, None, False),
        ({"thinking": {"type": "disabled"}}, "none", False),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "low", True),
        ({"thinking": {"type": "enabled", "budget_tokens": 2048}}, "medium", True),
        ({"thinking": {"type": "enabled", "budget_tokens": 31999}}, "high", True),
        ({"thinking": {"type": "adaptive"}}, "medium", True),
        ({"thinking": {"type": "adaptive", "display": "omitted"}}, "medium", False),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "max"}}, "high", True),
        ({"output_config": {"effort": "low"}}, "low", False),
    ],
)
def test_thinking(body: dict[str, Any], effort: str | None, is_shown: bool) -> None:
    """How long, and whether it is shown."""
    ask = read({**SMALL, **body}, CATALOGUE)
    assert sound(ask).params.get("reasoning_effort") == effort
    assert ask.shows_reasoning is is_shown


def test_an_effort_that_the_system_asks_for_later() -> None:
    """It replaces that of the request."""
    changed = {"role": "system", "content": [], "output_config": {"effort": "low"}}
    body = {**SMALL, "output_config": {"effort": "high"}, "messages": [changed, *SMALL["messages"]]}
    assert read(body, CATALOGUE).fields["params"]["reasoning_effort"] == "low"


@pytest.mark.parametrize(
    ("choice", "told", "is_single"),
    [
        ({"type": "auto"}, "auto", False),
        ({"type": "any", "disable_parallel_tool_use": True}, "required", True),
        ({"type": "none"}, "none", False),
        ({"type": "tool", "name": "weather"}, {"type": "function", "function": {"name": "weather"}}, False),
    ],
)
def test_tool_choice(choice: dict[str, Any], told: Any, is_single: bool) -> None:
    """In OpenAI's words."""
    found = sound(read({**SMALL, "tools": [WEATHER], "tool_choice": choice}, CATALOGUE))
    assert found.tool_choice == told
    assert found.params.get("parallel_tool_calls", True) is not is_single


def test_a_tool_that_is_deferred_is_offered_when_it_has_been_found() -> None:
    """By a search of the client's own, whose result names it."""
    deferred = [WEATHER, *({**WEATHER, "name": name, "defer_loading": True} for name in ("Later", "Never"))]
    call = {"type": "tool_use", "id": "t", "name": "weather", "input": {}}
    reference = {"type": "tool_reference", "tool_name": "Later"}
    turns = [
        *SMALL["messages"],
        {"role": "assistant", "content": [call]},
        user({"type": "tool_result", "tool_use_id": "t", "content": [reference]}),
    ]
    before = sound(read({**SMALL, "tools": deferred}, CATALOGUE))
    after = sound(read({**SMALL, "tools": deferred, "messages": turns}, CATALOGUE))
    assert [tool["function"]["name"] for tool in before.tools] == ["weather"]
    assert [tool["function"]["name"] for tool in after.tools] == ["weather", "Later"]
    assert after.messages[-1]["content"] == "The tool Later can be called now."
    assert refusal(read, {**SMALL, "messages": [user(reference)]}).param == "messages.0.content.0.type"


@pytest.mark.parametrize("name", ["output_format", "output_config"])
def test_a_schema(name: str) -> None:
    """In its place of now and of before; an answer that is cut is none."""
    wanted = {"type": "json_schema", "schema": {"type": "object", "properties": {"n": {"type": "integer"}}}}
    ask = read({**SMALL, name: {"format": wanted} if name == "output_config" else wanted}, CATALOGUE)
    assert ask.is_held
    assert "accept_length" not in ask.fields["params"]
    assert sound(ask).schema is not None


def test_params() -> None:
    """Sampling."""
    ask = read(
        {**SMALL, "temperature": 0.5, "top_p": 0.9, "top_k": 4, "stop_sequences": ["x"], "stream": None}, CATALOGUE
    )
    params = {"temperature": 0.5, "top_p": 0.9, "top_k": 4, "stop": ["x"], "max_tokens": 64}
    assert {**params, "accept_length": True} == ask.fields["params"]
    sound(ask)


WHOLE: dict[str, Any] = {
    **AGENT,
    "tool_choice": {"type": "auto"},
    "output_format": {"type": "json_schema", "schema": {}},
    "output_config": {"effort": "low", "format": None},
    "messages": [*AGENT["messages"], *SHOWN_THINGS["messages"]],
}
TABLES: list[tuple[str, Properties]] = [
    ("", request.MESSAGE),
    ("output_config", request.OUTPUT),
    ("output_format", request.FORMAT),
    ("context_management", request.EDITS),
    ("context_management.edits.0", request.EDIT),
    ("thinking", thinking.THINKING["adaptive"]),
    ("tools.0", tools.TOOL),
    ("tool_choice", tools.CHOICE),
    ("system.1", blocks.TEXT),
    ("messages.0", turns.TURN),
    ("messages.1", turns.SYSTEM_TURN),
    ("messages.2.content.3", turns.TOOL_USE),
    ("messages.3.content.0", turns.TOOL_RESULT),
    ("messages.5.content.0", blocks.TEXT),
    ("messages.5.content.1", blocks.IMAGE),
    ("messages.5.content.1.source", blocks.SOURCE),
    ("messages.5.content.2", blocks.DOCUMENT),
    ("messages.5.content.4.source", blocks.CONTENT),
    ("messages.5.content.5", blocks.SEARCH_RESULT),
]


def at(where: str, name: str) -> str:
    """A path."""
    return f"{where}.{name}" if where else name


@pytest.mark.parametrize(("where", "table"), TABLES)
def test_every_property_is_heeded_idle_or_refused_by_name(where: str, table: Properties) -> None:
    """Whatever an idle one holds changes nothing; a refused one is named, unless it is null or changes nothing."""
    plain = read(WHOLE, CATALOGUE)
    for name in table.idle:
        for value in ANY_VALUES:
            assert read(put(WHOLE, at(where, name), value), CATALOGUE).fields == plain.fields, name
    for name, harmless in table.refused.items():
        for value in (None, *harmless):
            assert read(put(WHOLE, at(where, name), value), CATALOGUE).fields == plain.fields, name
        fault = refusal(read, put(WHOLE, at(where, name), {"a": "x"}))
        assert (fault.status, fault.code, fault.param) == (400, "unsupported", at(where, name))
    fault = refusal(read, put(WHOLE, at(where, "no_such_thing"), 0))
    assert (fault.status, fault.code, fault.param) == (400, "invalid_request", at(where, "no_such_thing"))


@pytest.mark.parametrize(
    ("way", "value", "param"),
    [
        ("model", "nope", "model"),
        ("model", None, "model"),
        ("messages", "x", "messages"),
        ("messages", [], "messages"),
        ("messages.0.role", "tool", "messages.0.role"),
        ("messages.0.content", None, "messages.0.content"),
        ("messages.0.content.0.type", "video", "messages.0.content.0.type"),
        ("messages.0.content.0.type", "container_upload", "messages.0.content.0.type"),
        ("messages.2.content.0.type", "server_tool_use", "messages.2.content.0.type"),
        ("messages.2.content.3.input", "x", "messages.2.content.3.input"),
        ("messages.3.content.0.is_error", "yes", "messages.3.content.0.is_error"),
        ("messages.1.content", [{"type": "tool_addition"}], "messages.1.content.0.type"),
        ("messages.1.clear_at", "noon", "messages.1.clear_at"),
        ("messages.5.content.1.source", {"type": "url", "url": "http://x"}, "messages.5.content.1.source.type"),
        ("messages.5.content.1.source", {"type": "file", "file_id": "f"}, "messages.5.content.1.source.type"),
        ("messages.5.content.2.source", {"type": "url", "url": "http://x"}, "messages.5.content.2.source.type"),
        ("messages.5", {"role": "assistant", "content": "Once upon"}, "messages.5"),
        ("context_management.edits.0.type", "clear_tool_uses_20250919", "context_management.edits.0.type"),
        ("thinking.type", "between_tools", "thinking.type"),
        ("thinking.type", "often", "thinking.type"),
        ("thinking.display", [], "thinking.display"),
        ("output_config.effort", "some", "output_config.effort"),
        ("output_format.type", "grammar", "output_format.type"),
        ("output_format.schema", [], "output_format.schema"),
        ("stop_sequences", "x", "stop_sequences"),
        ("stream", "yes", "stream"),
        ("tools.0.input_schema", None, "tools.0.input_schema"),
        ("tools.0.type", "web_search_20250305", "tools.0.type"),
        ("tools.0.type", ["custom"], "tools.0.type"),
        ("tools.0.defer_loading", "yes", "tools.0.defer_loading"),
        ("tool_choice.type", "some", "tool_choice.type"),
        ("tool_choice.type", "tool", "tool_choice.name"),
    ],
)
def test_what_is_refused(way: str, value: Any, param: str) -> None:
    """By the path of what is meant."""
    assert refusal(read, put(WHOLE, way, value)).param == param


def test_a_budget_has_to_be_a_number() -> None:
    """Where no effort is named beside it."""
    body = {**SMALL, "thinking": {"type": "enabled", "budget_tokens": True}}
    assert refusal(read, body).param == "thinking.budget_tokens"


def test_the_nearest_name_is_told() -> None:
    """Of a property that nobody knows; a hostile name is told on one line, and short."""
    assert refusal(read, {**SMALL, "max_token": 1}).message.endswith("did you mean 'max_tokens'?")
    assert refusal(read, {**SMALL, "a\n\x1b[31m" + "b" * 1000: 1}).message == (
        "a??[31m" + "b" * 33 + ": there is no such property"
    )


def test_a_server_tool_is_named() -> None:
    """So that whoever reads it knows which."""
    assert "web_search_20250305" in refusal(read, put(WHOLE, "tools.0.type", "web_search_20250305")).message


def test_count_tokens_says_that_it_estimates() -> None:
    """By the rule of thumb: four characters a token; no limit of tokens is needed."""
    body = {"model": "default", "system": "x" * 40, "messages": [{"role": "user", "content": "y" * 40}]}
    found = count(body, CATALOGUE)
    assert json.loads(found.body) == {"input_tokens": 20}
    assert found.headers == {"X-LLM-Routerd-Estimate": "true"}
    assert refusal(count, {**body, "model": "nope"}).status == 404
    deep: Any = {}
    for _ in range(300):
        deep = {"a": deep}
    assert refusal(count, {**body, "tools": [{"name": "t", "input_schema": deep}]}).param == "tools"


def test_arguments_keep_their_numbers() -> None:
    """However long they are."""
    call = {"type": "tool_use", "id": "t", "name": "weather", "input": {"n": 123456789012345678901234567890}}
    told = messages(
        {"role": "user", "content": "?"}, {"role": "assistant", "content": [call]}, user({"type": "text", "text": "a"})
    )
    assert told[1]["tool_calls"][0]["function"]["arguments"] == '{"n":123456789012345678901234567890}'


@given(way=st.sampled_from(places(WHOLE)), value=JSON_VALUES)
def test_whatever_comes_is_read_or_refused(way: str, value: Any) -> None:
    """Nothing else is raised, and a refusal is one line."""
    for endpoint in (read, count):
        assert answer(endpoint, put(WHOLE, way, value)).isprintable()


@given(body=st.dictionaries(st.sampled_from(sorted(request.MESSAGE.heeded)), JSON_VALUES))
def test_whatever_is_no_body_is_refused(body: dict[str, Any]) -> None:
    """As above."""
    with pytest.raises(RefusedError):
        read({"messages": [], **body}, CATALOGUE)


def test_the_endpoints() -> None:
    """Where they are, and where clients look for an id."""
    assert [(each.path, each.id_header) for each in ENDPOINTS] == [
        ("/v1/messages", "request-id"),
        ("/v1/messages/count_tokens", "request-id"),
    ]
