"""A body of Ollama's becomes a request, or is refused by name."""

from __future__ import annotations

import json
import time
from base64 import b64encode
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_routerd.gateway.door import NDJSON, Ask, Looked
from llm_routerd.gateway.doors.ollama import listing, messages, options, request
from llm_routerd.gateway.doors.ollama.request import read_chat, read_generate
from tests.gateway.asking import ANY_VALUES, CATALOGUE, JSON_VALUES, answer, places, put, refusal, sound
from tests.gateway.ollama.recordings import answered, asked

if TYPE_CHECKING:
    from collections.abc import Callable

    from llm_routerd.gateway.properties import Properties

PNG = b64encode(b"\x89PNG\r\n\x1a\n" + bytes(40)).decode()
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
CHAT: dict[str, Any] = {
    "model": "default:latest",
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is the weather here?", "images": [PNG]},
        {
            "role": "assistant",
            "content": "",
            "thinking": "Hm.",
            "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Köln"}}}],
        },
        {"role": "tool", "content": "12 °C", "tool_name": "weather"},
    ],
    "tools": [TOOL],
    "tool_choice": "auto",
    "format": "json",
    "think": "low",
    "keep_alive": "5m",
    "options": {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "seed": 7,
        "stop": ["\n\n"],
        "num_predict": 100,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.25,
        "num_ctx": 8192,
    },
}
GENERATE: dict[str, Any] = {
    "model": "gemma",
    "prompt": "What is this?",
    "system": "Be brief.",
    "images": [PNG],
    "options": {},
}
IMAGE = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}


def ask(read: Callable[..., Ask | Looked], body: dict[str, Any]) -> Ask:
    """What a body asks of a model."""
    found = read(body, CATALOGUE)
    assert isinstance(found, Ask)
    sound(found)
    return found


def said(*turns: dict[str, Any]) -> list[dict[str, Any]]:
    """What a conversation becomes."""
    return list(ask(read_chat, {"model": "gemma", "messages": list(turns)}).fields["messages"])


def test_a_chat() -> None:
    """All that it says, in OpenAI's form; it is streamed unless it says not."""
    found = ask(read_chat, CHAT)
    assert (found.streams, found.media_type, found.shows_reasoning) == (True, NDJSON, True)
    assert found.fields == {
        "model": "default",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "What is the weather here?"}, IMAGE]},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [
                    {
                        "id": "call_1",
                        "type": "function",
                        "function": {"name": "weather", "arguments": '{"city":"Köln"}'},
                    }
                ],
            },
            {"role": "tool", "content": "12 °C", "tool_call_id": "call_1"},
        ],
        "tools": [TOOL],
        "tool_choice": "auto",
        "schema": {"type": "object"},
        "params": {
            "temperature": 0.5,
            "top_p": 0.9,
            "top_k": 40,
            "seed": 7,
            "stop": ["\n\n"],
            "max_tokens": 100,
            "presence_penalty": 0.5,
            "frequency_penalty": 0.25,
            "reasoning_effort": "low",
        },
    }


def test_a_generation() -> None:
    """A prompt is a message of a user."""
    assert ask(read_generate, {**GENERATE, "stream": False}).fields == {
        "model": "gemma",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "What is this?"}, IMAGE]},
        ],
    }


@pytest.mark.parametrize(
    ("name", "read"), [("api-chat", read_chat), ("api-chat-stream", read_chat), ("api-generate", read_generate)]
)
def test_what_a_real_one_was_asked_is_taken(name: str, read: Callable[..., Ask | Looked]) -> None:
    """An answer may end at its limit."""
    body = {**asked(name), "model": "gemma"}
    found = ask(read, body)
    assert found.fields["params"] == {"max_tokens": body["options"]["num_predict"], "accept_length": True}
    assert found.streams is (name == "api-chat-stream")


def test_results_find_their_calls() -> None:
    """By id, by name, or by their order."""
    calls = [{"id": "x", "function": {"name": "a"}}, *({"function": {"name": name}} for name in ("b", "c", "b"))]
    results: list[dict[str, Any]] = [
        *({"tool_name": "b"}, {"tool_call_id": "x"}, {}, {"tool_name": "b"}, {}, {"tool_call_id": "y"})
    ]
    told = said(
        {"role": "user", "content": "?"},
        {"role": "assistant", "tool_calls": calls},
        *({"role": "tool", "content": "r", **each} for each in results),
    )
    assert [call["id"] for call in told[1]["tool_calls"]] == ["x", "call_1", "call_2", "call_3"]
    assert [each["tool_call_id"] for each in told[2:]] == ["call_1", "x", "call_2", "call_3", "call_4", "y"]


@pytest.mark.parametrize("named", [{}, {"tool_name": "b"}, {"tool_call_id": "y"}, {"tool_name": "a"}])
def test_many_results_take_no_longer(named: dict[str, Any]) -> None:
    """Whatever they name: each looks at no call twice, or it would take minutes."""
    calls = [{"function": {"name": "ab"[number % 2]}} for number in range(10_000)]
    began = time.process_time()
    result = {"role": "tool", "content": "r", **named}
    messages.messages_of([{"role": "assistant", "tool_calls": calls}, *[result] * 10_000])
    assert time.process_time() - began < 2


@pytest.mark.parametrize(
    ("beginning", "kind"),
    [
        (b"\x89PNG\r\n\x1a\n", "png"),
        (b"\xff\xd8\xff\xe0", "jpeg"),
        (b"GIF87a", "gif"),
        (b"GIF89a", "gif"),
        (b"RIFF\x00\x00\x00\x00WEBP", "webp"),
        (b"BM", "bmp"),
        (b"II*\x00", "tiff"),
        (b"MM\x00*", "tiff"),
        (b"\x00\x00\x00\x18ftypheic", "heic"),
        (b"\x00\x00\x00\x18ftypmif1", "heif"),
        (b"\x00\x00\x00\x18ftypavif", "avif"),
    ],
)
@pytest.mark.parametrize("more", [0, 1, 2, 1000])
def test_images_are_known_by_their_beginning(beginning: bytes, kind: str, more: int) -> None:
    """Whatever their length."""
    image = b64encode(beginning + bytes(more)).decode()
    (message,) = said({"role": "user", "content": "", "images": [image]})
    assert message["content"] == [{"type": "image_url", "image_url": {"url": f"data:image/{kind};base64,{image}"}}]


@pytest.mark.parametrize(
    ("think", "effort", "is_shown"),
    [
        (None, None, True),
        (True, "medium", True),
        (False, "none", False),
        ("low", "low", True),
        ("max", "high", True),
    ],
)
def test_thinking(think: Any, effort: str | None, is_shown: bool) -> None:
    """A model that can, thinks unless it is told not to, and it is shown."""
    found = ask(read_generate, {**GENERATE, "think": think})
    assert found.fields.get("params", {}).get("reasoning_effort") == effort
    assert found.shows_reasoning is is_shown


def test_formats() -> None:
    """A schema, or any JSON object; with one, an answer that is cut is none."""
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}}
    found = ask(read_chat, {**CHAT, "format": schema})
    assert found.fields["schema"] == schema
    assert found.is_held
    assert "schema" not in ask(read_chat, {**CHAT, "format": ""}).fields


def test_an_integer_may_have_a_fraction_of_nothing() -> None:
    """In JSON it is the same number."""
    found = ask(read_generate, {**GENERATE, "options": {"num_predict": 5.0, "top_k": 4.0, "seed": 7.0}})
    assert found.fields["params"] == {"max_tokens": 5, "top_k": 4, "seed": 7, "accept_length": True}
    assert refusal(read_generate, {**GENERATE, "options": {"num_predict": 5.5}}).param == "options.num_predict"


def test_what_says_nothing_is_left_out() -> None:
    """Ollama's words for no limit, no seed, no end."""
    neutral = {"num_predict": -1, "seed": -1, "stop": [], "temperature": None}
    assert "params" not in ask(read_generate, {**GENERATE, "options": neutral}).fields


@pytest.mark.parametrize(
    ("read", "body", "told"),
    [
        (read_chat, {"messages": []}, {"message": {"role": "assistant", "content": ""}, "done_reason": "load"}),
        (read_chat, {"keep_alive": 0}, {"message": {"role": "assistant", "content": ""}, "done_reason": "unload"}),
        (read_generate, {"keep_alive": "5m"}, {"response": "", "done_reason": "load"}),
        (read_generate, {"prompt": "", "system": "x"}, {"response": "", "done_reason": "load"}),
    ],
)
def test_loading_asks_no_model(read: Callable[..., Ask | Looked], body: dict[str, Any], told: dict[str, Any]) -> None:
    """It is answered at once."""
    found = read({"model": "gemma", **body}, CATALOGUE)
    assert isinstance(found, Looked)
    assert json.loads(found.body) == {"model": "gemma", **told, "done": True}
    assert refusal(read, {"model": "nope", **body}).status == 404


def test_unloading_is_answered_as_by_a_real_one() -> None:
    """Only the time is not told."""
    found = read_generate({**asked("api-unload"), "model": "gemma"}, CATALOGUE)
    assert isinstance(found, Looked)
    assert {**answered("api-unload")[0], "model": "gemma"}.items() >= json.loads(found.body).items()


TABLES: list[tuple[Callable[..., Any], dict[str, Any], str, Properties]] = [
    (read_chat, CHAT, "", request.CHAT_BODY),
    (read_chat, CHAT, "options", options.OPTIONS),
    (read_chat, CHAT, "messages.2", messages.MESSAGE),
    (read_chat, CHAT, "messages.2.tool_calls.0", messages.TOOL_CALL),
    (read_chat, CHAT, "messages.2.tool_calls.0.function", messages.FUNCTION),
    (read_generate, GENERATE, "", request.GENERATE_BODY),
    (read_generate, GENERATE, "options", options.OPTIONS),
]


@pytest.mark.parametrize(("read", "body", "where", "table"), TABLES)
def test_every_property_is_heeded_idle_or_refused_by_name(
    read: Callable[..., Any], body: dict[str, Any], where: str, table: Properties
) -> None:
    """Whatever an idle one holds changes nothing; a refused one is named, unless it is null or changes nothing."""
    plain = ask(read, body).fields
    beside = f"{where}." if where else ""
    for name in table.idle:
        for value in ANY_VALUES:
            assert ask(read, put(body, beside + name, value)).fields == plain, name
    for name, harmless in table.refused.items():
        for value in (None, *harmless):
            assert ask(read, put(body, beside + name, value)).fields == plain, name
        fault = refusal(read, put(body, beside + name, {"a": "x"}))
        assert (fault.status, fault.code, fault.param) == (400, "unsupported", beside + name)
    fault = refusal(read, put(body, beside + "no_such_thing", 0))
    assert (fault.status, fault.code, fault.param) == (400, "invalid_request", beside + "no_such_thing")


def test_every_option_of_the_real_client_is_known() -> None:
    """None of them is refused as a mistype."""
    known = options.OPTIONS.heeded | options.OPTIONS.idle | options.OPTIONS.refused.keys()
    ollama = pytest.importorskip("ollama")
    assert ollama.Options.model_fields.keys() <= known
    bodies = request.CHAT_BODY.heeded | request.CHAT_BODY.idle | request.CHAT_BODY.refused.keys()
    types = pytest.importorskip("ollama._types")
    assert types.ChatRequest.model_fields.keys() <= bodies
    bodies = request.GENERATE_BODY.heeded | request.GENERATE_BODY.idle | request.GENERATE_BODY.refused.keys()
    assert types.GenerateRequest.model_fields.keys() <= bodies


@pytest.mark.parametrize(
    ("way", "value", "param"),
    [
        ("model", "nope", "model"),
        ("model", None, "model"),
        ("messages", "x", "messages"),
        ("messages.1", "x", "messages.1"),
        ("messages.1.role", None, "messages.1.role"),
        ("messages.1.content", ["x"], "messages.1.content"),
        ("messages.1.images", PNG, "messages.1.images"),
        ("messages.1.images.0", "aGVsbG8=", "messages.1.images.0"),
        ("messages.1.images.0", f"data:image/png;base64,{PNG}", "messages.1.images.0"),
        ("messages.1.images.0", "ä", "messages.1.images.0"),
        ("messages.2.tool_calls.0.function.arguments", "{}", "messages.2.tool_calls.0.function.arguments"),
        ("messages.2.tool_calls.0.function.name", None, "messages.2.tool_calls.0.function.name"),
        ("tools", {}, "tools"),
        ("think", "deeply", "think"),
        ("think", 1, "think"),
        ("format", "xml", "format"),
        ("format", [], "format"),
        ("options", [], "options"),
        ("options.num_predict", "many", "options.num_predict"),
        ("options.repeat_penalty", 1.3, "options.repeat_penalty"),
        ("options.min_p", 0.05, "options.min_p"),
        ("options.mirostat", 2, "options.mirostat"),
        ("options.typical_p", True, "options.typical_p"),
        ("stream", "yes", "stream"),
        ("logprobs", True, "logprobs"),
    ],
)
def test_what_is_refused(way: str, value: Any, param: str) -> None:
    """By the path of what is meant."""
    assert refusal(read_chat, put(CHAT, way, value)).param == param


@pytest.mark.parametrize("name", ["raw", "template", "context", "suffix", "top_logprobs", "steps"])
def test_what_a_generation_cannot_have(name: str) -> None:
    """By name."""
    fault = refusal(read_generate, {**GENERATE, name: {"raw": True}.get(name, "x")})
    assert (fault.code, fault.param) == ("unsupported", name)


@given(way=st.sampled_from([*places(CHAT), *places(GENERATE)]), value=JSON_VALUES)
def test_whatever_comes_is_read_or_refused(way: str, value: Any) -> None:
    """Nothing else is raised, and a refusal is one line."""
    for read, body in ((read_chat, CHAT), (read_generate, GENERATE), (listing.show, {"model": "gemma"})):
        if way in places(body):
            assert answer(read, put(body, way, value)).isprintable()
