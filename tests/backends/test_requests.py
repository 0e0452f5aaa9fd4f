"""From a call to the body in each protocol's own form."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
import pytest

from llm_routerd.backends.answer_format import instruction
from llm_routerd.backends.anthropic import request as anthropic_request
from llm_routerd.backends.ollama import request as ollama_request
from llm_routerd.backends.openai import request as openai_request
from llm_routerd.backends.wire.transport import Transport
from llm_routerd.errors import ConfigError
from llm_routerd.protocol.call import BackendError, Call
from llm_routerd.protocol.codes import AttemptCode
from tests.standin.server import StandIn
from tests.support.calling import PROTOCOLS, ask, backend_for, call_to, deployment_of, tell

if TYPE_CHECKING:
    from yarl import URL

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
TOOL = {"type": "function", "function": {"name": "w", "description": "d", "parameters": SCHEMA}}
PNG = "data:image/png;base64,aGk="
PDF = "data:application/pdf;base64,aGk="
CONVERSATION: tuple[dict[str, Any], ...] = (
    {"role": "developer", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "Look"}, {"type": "image_url", "image_url": {"url": PNG}}]},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "w", "arguments": '{"a": 1}'}}],
    },
    {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
    {"role": "user", "content": "And?"},
)


def _ollama(call: Call, **more: Any) -> dict[str, Any]:
    deployment = deployment_of("ollama", "http://x", **more)
    return ollama_request.chat_body(deployment, call_to(deployment, call))


def _openai(call: Call, *, genuine: bool = False, **more: Any) -> dict[str, Any]:
    deployment = deployment_of("openai", "http://x", **more)
    return openai_request.chat_body(deployment, call_to(deployment, call), genuine=genuine)


def _anthropic(
    call: Call, model: str = "claude-haiku-4-5-20251001", *, genuine: bool = True, **more: Any
) -> dict[str, Any]:
    deployment = deployment_of("anthropic", "http://x", model=f"anthropic/{model}", **more)
    return anthropic_request.messages_request(deployment, call_to(deployment, call), genuine=genuine).body


@pytest.mark.parametrize(
    "content", [[{"type": "input_audio"}], [{"type": "image_url", "image_url": {"url": "http://x/y"}}]]
)
def test_content_that_ollama_does_not_take_fails_the_attempt(content: Any) -> None:
    """Nothing is fetched for a request, and nothing is silently left out."""
    with pytest.raises(BackendError) as raised:
        _ollama(Call(messages=({"role": "user", "content": content},)))
    assert (raised.value.code, raised.value.retryable) == (AttemptCode.UPSTREAM, False)


OTHER_PARTS: list[Any] = [
    {"type": "image_url", "image_url": {"url": "http://10.0.0.1/"}},
    {"type": "image_url", "image_url": "http://10.0.0.1/"},
    {"type": "image_url", "image_url": {"url": PNG}, "source": {"url": "http://10.0.0.1/"}},
    {"type": "image", "image": "http://10.0.0.1/"},
    {"type": "image", "source": {"type": "url", "url": "http://10.0.0.1/"}},
    {"type": "video_url", "video_url": "file:///etc/passwd"},
    {"type": "audio_url", "audio_url": {"url": "data:audio/wav;base64,aGk="}},
    {"type": "input_audio", "input_audio": {"data": "http://10.0.0.1/", "format": "wav"}},
    {"type": "file", "file": {"file_id": "http://10.0.0.1/"}},
    {"type": "file", "file": {"file_id": "file-1", "file_data": PDF}},
    {"type": "file", "file": {"file_data": "http://10.0.0.1/"}},
    {"type": "text", "text": "Look", "image_url": {"url": "http://10.0.0.1/"}},
    "http://10.0.0.1/",
]


@pytest.mark.parametrize("local", [True, False], ids=["local", "cloud"])
@pytest.mark.parametrize("protocol", [*PROTOCOLS, "litellm"])
@pytest.mark.parametrize("part", OTHER_PARTS)
async def test_no_model_is_given_an_address_to_fetch_from(protocol: str, part: Any, local: bool) -> None:
    """A request makes nobody call whom it likes: no server in the operator's network, and not the daemon itself."""
    call = Call(messages=({"role": "user", "content": [{"type": "text", "text": "Look"}, part]},))
    name, more = ("openai", {"backend": "litellm"}) if protocol == "litellm" else (protocol, {})
    async with StandIn() as server, backend_for(name, server.url, local=local, **more) as backend:
        with pytest.raises(BackendError) as raised:
            await tell(backend, call)
        assert not server.calls
    assert not raised.value.retryable


def test_file_goes_in_each_protocols_own_form() -> None:
    """As it is, as a document, and not at all to a server that takes none."""
    part = {"type": "file", "file": {"file_data": PDF, "filename": "a.pdf"}}
    call = Call(messages=({"role": "user", "content": [part]},))
    assert _openai(call)["messages"][0]["content"] == [part]
    assert _anthropic(call)["messages"][0]["content"] == [
        {
            "type": "document",
            "source": {"type": "base64", "media_type": "application/pdf", "data": "aGk="},
            "title": "a.pdf",
        }
    ]
    with pytest.raises(BackendError, match="text and images"):
        _ollama(call)


def test_file_of_text_goes_to_anthropic_as_text() -> None:
    """Its API takes no other encoding of it."""

    def source_of(payload: str) -> Any:
        part = {"type": "file", "file": {"file_data": f"data:text/plain;base64,{payload}"}}
        return _anthropic(Call(messages=({"role": "user", "content": [part]},)))["messages"][0]["content"][0]["source"]

    assert source_of("aGk=") == {"type": "text", "media_type": "text/plain", "data": "hi"}
    for broken in ("gA==", "a"):
        with pytest.raises(BackendError, match="UTF-8"):
            source_of(broken)


@pytest.mark.parametrize(
    "call", [ask("\ud800"), ask(params={"seed": 2**70}), Call(messages=({"role": "user", "content": 7},))]
)
async def test_request_that_is_no_json_fails_the_attempt(call: Call) -> None:
    """What cannot be encoded, or has no known form, reaches no server and raises nothing but a `BackendError`."""
    async with StandIn() as server, backend_for("ollama", server.url) as backend:
        with pytest.raises(BackendError) as raised:
            await tell(backend, call)
        assert not raised.value.retryable
        assert not server.calls


@pytest.mark.parametrize("base", ["", "localhost:11434", "ftp://x", "http://", "unix:///x"])
async def test_api_base_that_is_no_address_is_a_configuration_error(base: str) -> None:
    """It names the key."""
    with pytest.raises(ConfigError, match=r"deployments\.ollama\.api_base"):
        async with backend_for("ollama", base or "nonsense"):
            pass


def test_ollama_has_its_own_form_of_a_conversation() -> None:
    """Roles, images, arguments as objects, and tools answered by name."""
    assert _ollama(Call(messages=CONVERSATION))["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Look", "images": ["aGk="]},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "c1", "function": {"name": "w", "arguments": {"a": 1}}}],
        },
        {"role": "tool", "content": "sunny", "tool_name": "w", "tool_call_id": "c1"},
        {"role": "user", "content": "And?"},
    ]


def test_ollama_has_its_own_names_of_parameters() -> None:
    """A request's parameters win over the deployment's; others go to Ollama by their own name."""
    params = {"max_tokens": 5, "stop": "x", "seed": 1, "temperature": 0, "reasoning_effort": "none"}
    body = _ollama(ask(params=params), params={"num_ctx": 8192, "temperature": 1}, max_tokens=99, keep_alive="30m")
    assert body["options"] == {"num_predict": 5, "stop": ["x"], "seed": 1, "temperature": 0, "num_ctx": 8192}
    assert (body["think"], body["keep_alive"], body["stream"]) == (False, "30m", True)
    assert _ollama(ask(), max_tokens=99)["options"] == {"num_predict": 99}


def test_ollama_takes_schema_and_tools_as_they_are() -> None:
    """`true` asks for JSON of any kind; `tool_choice` "none" is told by leaving the tools out."""
    assert _ollama(ask(schema=SCHEMA))["format"] == SCHEMA
    assert _ollama(ask(schema=True))["format"] == "json"
    for schema in (SCHEMA, True):
        body = _ollama(ask("Hi", schema=schema))
        words = {"role": "system", "content": instruction(schema)}
        assert body["messages"] == [words, {"role": "user", "content": "Hi"}]
    assert _ollama(ask(tools=(TOOL,)))["tools"] == (TOOL,)
    assert "tools" not in _ollama(ask(tools=(TOOL,), tool_choice="none"))


def test_openai_is_strict_where_the_schema_allows_it() -> None:
    """Every schema reaches the server; `strict` is claimed only by OpenAI's own rules for it."""
    assert _openai(ask(schema=SCHEMA))["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True},
    }
    for loose in ({**SCHEMA, "additionalProperties": True}, {**SCHEMA, "required": []}, {"type": "array"}):
        assert _openai(ask(schema=loose))["response_format"]["json_schema"] == {
            "name": "answer",
            "schema": loose,
            "strict": False,
        }
    assert _openai(ask(schema=True))["response_format"] == {"type": "json_object"}


def test_openai_itself_gets_what_it_takes() -> None:
    """It has renamed `max_tokens`, knows no `top_k`, takes objects only, and samples by itself where it thinks."""
    params = {"max_tokens": 5, "top_k": 3, "temperature": 0.5}
    body = _openai(ask(params=params), genuine=True)
    assert body["max_completion_tokens"] == 5
    assert {"max_tokens", "top_k"}.isdisjoint(body)
    assert "temperature" not in _openai(ask(params=params), genuine=True, model="openai/gpt-5-mini")
    body = _openai(ask(schema={"type": "array"}), genuine=True)
    assert "response_format" not in body
    assert "JSON Schema" in body["messages"][0]["content"]
    assert _openai(ask(params=params))["top_k"] == 3


def test_only_openai_itself_knows_developers() -> None:
    """The templates of other models have no such role."""
    assert _openai(Call(messages=CONVERSATION))["messages"][0] == {"role": "system", "content": "Be brief."}
    assert _openai(Call(messages=CONVERSATION), genuine=True)["messages"][0]["role"] == "developer"


def test_openai_gets_tools_and_asks_for_usage() -> None:
    """Also `parallel_tool_calls`, which is an error without tools."""
    params = {"parallel_tool_calls": False}
    body = _openai(ask(tools=(TOOL,), tool_choice="required", params=params))
    assert (body["tools"], body["tool_choice"], body["parallel_tool_calls"]) == ((TOOL,), "required", False)
    assert body["stream_options"] == {"include_usage": True}
    assert "parallel_tool_calls" not in _openai(ask(params=params))


def test_anthropic_has_its_own_form_of_a_conversation() -> None:
    """System apart, blocks, tool results as a turn of the user, and neighbours joined."""
    body = _anthropic(Call(messages=CONVERSATION))
    image = {"type": "base64", "media_type": "image/png", "data": "aGk="}
    assert body["system"] == "Be brief."
    assert body["messages"] == [
        {"role": "user", "content": [{"type": "text", "text": "Look"}, {"type": "image", "source": image}]},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "c1", "name": "w", "input": {"a": 1}}]},
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "sunny"}]},
                {"type": "text", "text": "And?"},
            ],
        },
    ]


def test_anthropic_gets_only_parameters_that_it_knows() -> None:
    """It answers 400 to others, wants `max_tokens`, and has half of OpenAI's scale of temperatures."""
    params = {"seed": 1, "presence_penalty": 1, "stop": "x", "temperature": 1.5, "top_p": 0.5, "top_k": 3}
    body = _anthropic(ask(params=params))
    assert {"seed", "presence_penalty", "stop", "top_p"}.isdisjoint(body)
    assert (body["stop_sequences"], body["temperature"], body["top_k"]) == (["x"], 1, 3)
    assert body["max_tokens"] == 4096
    assert _anthropic(ask(), max_tokens=7)["max_tokens"] == 7


def test_anthropic_has_its_own_form_of_tools() -> None:
    """Names of the choices, and parallel calls as part of the choice."""
    body = _anthropic(ask(tools=(TOOL,), params={"parallel_tool_calls": False}))
    assert body["tools"] == [{"name": "w", "description": "d", "input_schema": SCHEMA}]
    assert body["tool_choice"] == {"type": "auto", "disable_parallel_tool_use": True}
    named = {"type": "function", "function": {"name": "w"}}
    for choice, own in (
        ("required", {"type": "any"}),
        ("none", {"type": "none"}),
        (named, {"type": "tool", "name": "w"}),
    ):
        assert _anthropic(ask(tools=(TOOL,), tool_choice=choice))["tool_choice"] == own


def test_anthropic_thinks_as_the_model_can() -> None:
    """Up to a budget, adaptively or not at all; sampling goes with thinking."""
    call = ask(params={"reasoning_effort": "high", "temperature": 0.2})
    budgeted = _anthropic(call, max_tokens=8000)
    assert budgeted["thinking"] == {"type": "enabled", "budget_tokens": 4096}
    assert "temperature" not in budgeted
    adaptive = _anthropic(call, "claude-opus-4-8")
    assert (adaptive["thinking"], adaptive["output_config"]) == ({"type": "adaptive"}, {"effort": "high"})
    for body in (_anthropic(call, "claude-3-5-haiku-latest"), _anthropic(ask(params={"reasoning_effort": "none"}))):
        assert "thinking" not in body


def test_anthropic_gets_a_schema_in_the_best_form_that_model_and_schema_allow() -> None:
    """Natively; for older models or open schemas as a forced tool; else in words."""
    native = _anthropic(ask(schema=SCHEMA))
    assert native["output_config"] == {"format": {"type": "json_schema", "schema": SCHEMA}}
    assert "system" not in native
    older = _anthropic(ask(schema=SCHEMA), "claude-sonnet-4-20250514")
    assert older["tools"][0]["input_schema"] == SCHEMA
    assert older["tool_choice"]["name"] == older["tools"][0]["name"]
    a_map = {"type": "object", "additionalProperties": {"type": "integer"}}
    assert _anthropic(ask(schema=a_map))["tools"][0]["input_schema"] == a_map
    for call in (ask(schema=a_map, tools=(TOOL,)), ask(schema=True), ask(schema={"type": "array"})):
        body = _anthropic(call)
        assert "JSON" in body["system"]
        assert "output_config" not in body


async def test_schema_as_a_forced_tool_is_answered_as_text() -> None:
    """The tool's input is the answer, and its call is none of the caller's."""
    async with StandIn({"claude-3-5-haiku-latest": ""}) as server:
        model = "anthropic/claude-3-5-haiku-latest"
        async with backend_for("anthropic", server.url, model=model) as backend:
            told = await tell(backend, ask(schema=SCHEMA))
    assert told.text == '{"a":1}'
    assert (told.finish.finish_reason, told.finish.tool_calls) == ("stop", ())


WORDS = instruction(SCHEMA)


@pytest.mark.parametrize("schema", [SCHEMA, {"type": "array"}, {"type": "object", "additionalProperties": {}}, True])
def test_schema_goes_in_the_same_words_to_every_server_that_is_not_the_providers_own(schema: Any) -> None:
    """Such a server may pass over the field that holds the schema, and the model would never see it."""
    words = instruction(schema)
    call = Call(messages=({"role": "system", "content": "Be brief."}, *ask().messages), schema=schema)
    assert _anthropic(call, genuine=False)["system"] == f"Be brief.\n\n{words}"
    assert _openai(call)["messages"][0] == {"role": "system", "content": f"Be brief.\n\n{words}"}
    assert [message["role"] for message in _openai(call)["messages"]] == ["system", "user"]
    bare = ask(schema=schema)
    assert _anthropic(bare, genuine=False)["system"] == words
    assert _openai(bare)["messages"] == [{"role": "system", "content": words}, *ask().messages]
    assert bare.messages == ask().messages


def test_providers_own_server_gets_no_words_beside_the_whole_schema() -> None:
    """They would be paid for."""
    assert "system" not in _anthropic(ask(schema=SCHEMA))
    assert _openai(ask(schema=SCHEMA), genuine=True)["messages"] == list(ask().messages)


def test_words_join_a_system_prompt_of_parts() -> None:
    """As one more part."""
    part = {"type": "text", "text": "Be brief."}
    call = Call(messages=({"role": "developer", "content": [part]}, *ask().messages), schema=SCHEMA)
    assert _openai(call)["messages"][0] == {"role": "system", "content": [part, {"type": "text", "text": WORDS}]}
    assert call.messages[0]["content"] == [part]


@pytest.mark.parametrize("protocol", ["anthropic", "openai"])
@pytest.mark.parametrize("schema", [SCHEMA, {"type": "object", "required": ["a"], "additionalProperties": {}}])
async def test_server_that_passes_over_schemas_answers_to_them(protocol: str, schema: Any) -> None:
    """Of a server that answers 200 and has not looked, no request with a schema needs to end `invalid_json`."""
    async with StandIn({"stand-in": "schemaless"}) as server, backend_for(protocol, server.url + "/v1") as backend:
        told = await tell(backend, ask(schema=schema))
        assert "a schema goes in words as well" in (await backend.probe()).detail
    assert "a" in orjson.loads(told.text)


@pytest.mark.parametrize(("protocol", "host"), [("anthropic", "api.anthropic.com"), ("openai", "api.openai.com")])
async def test_providers_own_server_is_known_by_its_host(
    protocol: str, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it is written in `api_base` or not."""
    bodies: list[Any] = []

    async def post(_transport: Transport, url: URL, body: Any, **_named: Any) -> Any:
        assert url.host == host
        bodies.append(body)
        raise BackendError(AttemptCode.CONNECT, "no network in a test")

    monkeypatch.setattr(Transport, "post", post)
    for base in (None, f"https://{host}", f"https://{host}/v1/"):
        async with backend_for(protocol, base or "", api_base=base) as backend:
            with pytest.raises(BackendError, match="no network"):
                await tell(backend, ask(schema=SCHEMA))
    assert len(bodies) == 3
    assert WORDS not in str(bodies)
