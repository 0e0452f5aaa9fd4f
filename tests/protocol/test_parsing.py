"""Stream entries become requests, or errors that say what was expected and where."""

from __future__ import annotations

import json
import random
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_routerd.jsonschema.compiled import AnswerSchema, SchemaCache
from llm_routerd.protocol.codes import ErrorCode
from llm_routerd.protocol.cut import MOST_FIELDS, CutBytes, CutList
from llm_routerd.protocol.events import Failed
from llm_routerd.protocol.parsing import RequestParser
from llm_routerd.protocol.request import Request, RequestError, StreamMode
from llm_routerd.protocol.wire import encode

ENTRY = "1700000000000-0"
LIMIT = 50_000
SECRET = "xyzzyplugh"
PARSER = RequestParser(max_request_bytes=LIMIT, schemas=SchemaCache(16))


def parse(*fields: str | bytes) -> Request | RequestError:
    """Parse flat fields."""
    return PARSER.parse(ENTRY, [part.encode() if isinstance(part, str) else part for part in fields])


def parse_data(document: Any) -> Request | RequestError:
    """Parse the form with one field `data`."""
    return parse("data", orjson.dumps(document))


def accepted(outcome: Request | RequestError) -> Request:
    """See that it is a request."""
    assert isinstance(outcome, Request), outcome
    return outcome


def refused(outcome: Request | RequestError, code: ErrorCode = ErrorCode.INVALID_REQUEST) -> RequestError:
    """See that it is an error of this code."""
    assert isinstance(outcome, RequestError), outcome
    assert outcome.code is code
    return outcome


def nested(depth: int) -> Any:
    """Objects within objects."""
    value: Any = 1
    for _ in range(depth):
        value = {"a": value}
    return value


INVALID = [
    ({}, "$: expected exactly one of `prompt` and `messages`, got neither"),
    (
        {"prompt": SECRET, "messages": [{"role": "user", "content": SECRET}]},
        "$: expected exactly one of `prompt` and `messages`, got both",
    ),
    ({"promt": SECRET}, "$: unknown property `promt`; did you mean `prompt`?"),
    ({"prompt": SECRET, "temperature": 1}, "$: unknown property `temperature`; did you mean `temperature` within"),
    ({"prompt": SECRET, "zzzzzzz": 1}, "$: unknown property `zzzzzzz`"),
    ({"prompt": 5}, "$.prompt: expected string, got a number"),
    ({"prompt": ""}, "$.prompt: this string is shorter than 1 character"),
    ({"prompt": None}, "$.prompt: expected string, got null"),
    ({"messages": []}, "$.messages: this array has less than 1 item"),
    ({"messages": SECRET}, "$.messages: expected array, got a string"),
    ({"messages": [SECRET]}, "$.messages[0]: expected object, got a string"),
    ({"messages": [{"content": SECRET}]}, "$.messages[0]: expected a property `role`"),
    ({"messages": [{"role": SECRET, "content": ""}]}, '$.messages[0].role: expected one of "system", "developer"'),
    ({"messages": [{"role": "user"}]}, "$.messages[0]: expected a property `content`"),
    ({"messages": [{"role": "user", "content": None}]}, "$.messages[0].content: expected"),
    ({"messages": [{"role": "tool", "content": SECRET}]}, "$.messages[0]: expected a property `tool_call_id`"),
    ({"messages": [{"role": "user", "content": [SECRET]}]}, "$.messages[0].content[0]: expected object"),
    (
        {"messages": [{"role": "user", "content": [{"type": "text", "txt": SECRET}]}]},
        "$.messages[0].content[0]: expected a property `text`",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": f"http://{SECRET}"}}]}]},
        "$.messages[0].content[0].image_url.url: expected a data URL",
    ),
    *(
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "Look"}, part]}]},
            f"$.messages[0].content[1]{path}: ",
        )
        for part, path in (
            ({"type": "image_url", "image_url": f"http://{SECRET}"}, ".image_url"),
            ({"type": "image_url", "image_url": {"url": "data:image/svg+xml;base64,AA=="}}, ".image_url.url"),
            ({"type": "image_url", "image_url": {"url": f"data:text/html,{SECRET}"}}, ".image_url.url"),
            (
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,", "file_id": SECRET}},
                ".image_url.file_id",
            ),
            ({"type": "image", "image": f"http://{SECRET}"}, ".type"),
            ({"type": "image", "source": {"type": "url", "url": f"http://{SECRET}"}}, ".type"),
            ({"type": "video_url", "video_url": {"url": f"http://{SECRET}"}}, ".type"),
            ({"type": "audio_url", "audio_url": {"url": "data:audio/wav;base64,AA=="}}, ".type"),
            ({"type": "input_audio", "input_audio": {"data": SECRET, "format": "wav"}}, ".type"),
            ({"type": "file", "file": {"file_id": SECRET}}, ".file.file_id"),
            ({"type": "file", "file": {"file_id": SECRET, "file_data": "data:text/plain;base64,"}}, ".file.file_id"),
            ({"type": "file", "file": {"file_data": f"http://{SECRET}"}}, ".file.file_data"),
            ({"type": "file", "file": {"file_data": SECRET}}, ".file.file_data"),
            ({"type": "text", "text": SECRET, "image_url": {"url": "data:image/png;base64,"}}, ".image_url"),
            ({"type": "text", "text": SECRET, "source": SECRET}, ".source"),
        )
    ),
    (
        {"messages": [{"role": "user", "content": "x", "images": [f"http://{SECRET}"]}]},
        "$.messages[0].images: expected",
    ),
    (
        {"messages": [{"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": {}}}]}]},
        "$.messages[0].tool_calls[0].function.arguments: expected string, got an object",
    ),
    ({"prompt": SECRET, "id": "a b"}, "$.id: expected a string that matches"),
    ({"prompt": SECRET, "id": "a\n"}, "$.id: expected a string that matches"),
    ({"prompt": SECRET, "id": ""}, "$.id: expected a string that matches"),
    ({"prompt": SECRET, "id": "x" * 129}, "$.id: expected a string that matches"),
    ({"prompt": SECRET, "id": "zażółć"}, "$.id: expected a string that matches"),
    ({"prompt": SECRET, "id": 7}, "$.id: expected string, got a number"),
    ({"prompt": SECRET, "model": "a\0b"}, "$.model: expected a string that matches"),
    ({"prompt": SECRET, "schema": SECRET}, "$.schema: expected boolean or object, got a string"),
    ({"prompt": SECRET, "stream": "yes"}, '$.stream: expected one of false, true, "probe", "live"'),
    ({"prompt": SECRET, "stream": 1}, "$.stream: expected one of"),
    ({"prompt": SECRET, "tools": [{"type": "function", "function": {"name": "a b"}}]}, "$.tools[0].function.name:"),
    ({"prompt": SECRET, "tools": [{"type": "web"}]}, "$.tools[0]"),
    ({"prompt": SECRET, "tool_choice": "must"}, '$.tool_choice: expected one of "none", "auto", "required"'),
    ({"prompt": SECRET, "tool_choice": {"type": "function"}}, "$.tool_choice: expected a property `function`"),
    ({"prompt": SECRET, "tool_choice": "required"}, "$.tool_choice: a call is demanded, and `tools` offers none"),
    (
        {
            "prompt": SECRET,
            "tool_choice": {"type": "function", "function": {"name": "g"}},
            "tools": [{"type": "function", "function": {"name": "f"}}],
        },
        "$.tool_choice.function.name: expected the name of one of `tools`",
    ),
    ({"prompt": SECRET, "agent": {"tol": ["a"]}}, "$.agent: unknown property `tol`; did you mean `tools`?"),
    ({"prompt": SECRET, "agent": {"x": 1}}, "$.agent: unknown property `x`; there are: tools, max_turns, confirm"),
    ({"prompt": SECRET, "params": {"temprature": 1}}, "$.params: unknown property `temprature`; did you mean `temper"),
    ({"prompt": SECRET, "params": {"temperature": 3}}, "$.params.temperature: 3 is greater than the maximum of 2"),
    ({"prompt": SECRET, "params": {"temperature": "1"}}, "$.params.temperature: expected number, got a string"),
    ({"prompt": SECRET, "params": {"max_tokens": True}}, "$.params.max_tokens: expected integer, got a boolean"),
    ({"prompt": SECRET, "params": {"max_tokens": 2.5}}, "$.params.max_tokens: expected integer, got a number"),
    ({"prompt": SECRET, "params": {"stop": [""]}}, "$.params.stop[0]:"),
    ({"prompt": SECRET, "params": {"reasoning_effort": "max"}}, '$.params.reasoning_effort: expected one of "none"'),
    ({"prompt": SECRET, "metadata": "s"}, "$.metadata: expected object, got a string"),
    ({"prompt": SECRET, "timeout_ms": 0}, "$.timeout_ms: 0 is less than the minimum of 1"),
    ({"prompt": SECRET, "deadline_ms": -1}, "$.deadline_ms: -1 is less than the minimum of 0"),
    ({"prompt": SECRET, "local_only": "true"}, "$.local_only: expected boolean, got a string"),
    ({"prompt": SECRET, "publish": 1}, "$.publish: expected boolean, got a number"),
    ({"prompt": SECRET, "tenant_id": "a\nb"}, "$.tenant_id: expected a string that matches"),
    ({"prompt": SECRET, "traceparent": "00-x"}, "$.traceparent: expected a string that matches"),
    ({"prompt": SECRET, "metadata": nested(150)}, "$: nested deeper than 100 levels"),
]


@pytest.mark.parametrize(("document", "message"), INVALID)
def test_fault_is_told_by_path_and_expectation(document: dict[str, Any], message: str) -> None:
    """Every kind of fault names its JSON path and what was expected, on one line without the prompt."""
    error = refused(parse_data(document))
    assert error.message.startswith(message)
    assert SECRET not in error.message
    assert error.message.isprintable()


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"\xff\xfe", b'{"prompt": "x"} y', b'{"prompt": "\\ud800"}', b"[" * 5000, b'{"prompt": NaN}', b"{'a'}"],
)
def test_what_is_no_json_is_refused(data: bytes) -> None:
    """Broken JSON, other bytes than UTF-8, lone surrogates and bottomless nesting are told as such."""
    assert refused(parse("data", data)).message.startswith("$: expected JSON in UTF-8: ")


@pytest.mark.parametrize("data", ["[]", "1", '"x"', "null"])
def test_json_that_is_no_object_is_refused(data: str) -> None:
    """The document is an object."""
    assert refused(parse("data", data)).message.startswith("$: expected a JSON object in `data`, got ")


def test_entry_without_any_field_value_is_refused() -> None:
    """An entry that gives neither prompt nor messages is told so, whatever else it lacks."""
    assert "got neither" in refused(PARSER.parse(ENTRY, [])).message


def test_data_beside_other_fields_is_refused() -> None:
    """The two forms of an entry do not mix, in either order."""
    for fields in (("data", "{}", "prompt", "x"), ("prompt", "x", "data", "{}")):
        assert "not both" in refused(parse(*fields)).message


def test_field_given_twice_is_refused() -> None:
    """Redis keeps both of two fields of one name; nobody could say which was meant."""
    assert refused(parse("prompt", "a", "prompt", "b")).message == "$.prompt: this field is given twice"
    assert "not both" in refused(parse("data", "{}", "data", "{}")).message


def test_unknown_field_names_the_nearest() -> None:
    """A mistyped field is not silently ignored, also where its name is not text."""
    assert refused(parse("promt", "x")).message == "$: unknown property `promt`; did you mean `prompt`?"
    assert refused(parse(b"\xff\x00", "x")).message.isprintable()


def test_field_that_is_no_utf8_is_refused() -> None:
    """A prompt of other bytes is told by its position."""
    assert refused(parse("prompt", b"ab\xff")).message == "$.prompt: expected UTF-8, got other bytes at position 2"


@pytest.mark.parametrize(("name", "value"), [("schema", ""), ("stream", "maybe"), ("metadata", "foo"), ("params", "{")])
def test_field_that_is_no_json_is_refused(name: str, value: str) -> None:
    """Every field but the strings is JSON."""
    assert refused(parse("prompt", "x", name, value)).message.startswith(f"$.{name}: expected JSON in UTF-8")


def test_string_field_is_never_decoded() -> None:
    """At a shell a prompt of digits, of JSON or of quotes is that text."""
    for text in ("123", "true", '"quoted"', '{"a": 1}', "\\u0041", " x "):
        assert accepted(parse("prompt", text)).messages == ({"role": "user", "content": text},)
    assert accepted(parse("prompt", "x", "tenant_id", "007")).tenant_id == "007"


def test_fields_hold_json_beside_strings() -> None:
    """One field per property gives the same request as the document."""
    request = accepted(
        parse(
            "prompt", "x", "params", '{"top_k": 3}', "timeout_ms", "500", "local_only", "true",
            "metadata", '{"a": [1]}', "schema", "true", "id", "q-1",
        )
    )  # fmt: skip
    assert (request.params, request.timeout_ms, request.local_only) == ({"top_k": 3}, 500, True)
    assert (request.metadata, request.id) == ({"a": [1]}, "q-1")
    assert request.schema is not None
    assert request.schema.raw is True


@pytest.mark.parametrize(
    ("value", "mode"),
    [
        ("true", StreamMode.PROBE),
        ("false", StreamMode.OFF),
        ("probe", StreamMode.PROBE),
        ("live", StreamMode.LIVE),
        ('"live"', StreamMode.LIVE),
    ],
)
def test_stream_mode_needs_no_quotes_at_a_shell(value: str, mode: StreamMode) -> None:
    """`stream live` is what a person types."""
    assert accepted(parse("prompt", "x", "stream", value)).stream is mode


def test_tool_choice_needs_no_quotes_at_a_shell() -> None:
    """`tool_choice auto` is what a person types; other words are refused."""
    assert accepted(parse("prompt", "x", "tool_choice", "auto")).tool_choice == "auto"
    refused(parse("prompt", "x", "tool_choice", "must"))


def test_mapping_of_fields_is_taken_too() -> None:
    """A reader may hand over fields as a mapping."""
    assert accepted(PARSER.parse(ENTRY, {b"prompt": b"x"})).id == ENTRY


def test_defaults_hold_where_nothing_is_said() -> None:
    """A bare prompt is a complete request; its id is its entry's."""
    assert accepted(parse_data({"prompt": "x"})) == Request(id=ENTRY, messages=({"role": "user", "content": "x"},))


def test_everything_arrives() -> None:
    """Every property of the schema has its place in the request."""
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    choice = {"type": "function", "function": {"name": "f"}}
    messages: list[dict[str, Any]] = [
        {"role": "developer", "content": "a"},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]},
        {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "1", "content": "b", "anything": "else"},
    ]
    request = accepted(
        parse_data(
            {
                "id": "A.b_c:d-9",
                "messages": messages,
                "model": "quality",
                "schema": {"type": "object"},
                "stream": "live",
                "tools": [tool],
                "tool_choice": choice,
                "params": {"temperature": 0, "stop": "x", "seed": -1, "detect_refusal": False},
                "tenant_id": "t",
                "context": "c",
                "metadata": {"k": None},
                "timeout_ms": 1,
                "deadline_ms": 1700000000000,
                "local_only": True,
                "publish": True,
                "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            }
        )
    )
    assert isinstance(request.schema, AnswerSchema)
    assert request == Request(
        id="A.b_c:d-9",
        messages=tuple(messages),
        model="quality",
        schema=request.schema,
        stream=StreamMode.LIVE,
        tools=(tool,),
        tool_choice=choice,
        params={"temperature": 0, "stop": "x", "seed": -1},
        tenant_id="t",
        context="c",
        metadata={"k": None},
        timeout_ms=1,
        deadline_ms=1700000000000,
        local_only=True,
        publish=True,
        detect_refusal=False,
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    )


def test_whole_numbers_become_integers() -> None:
    """JSON Schema takes 5.0 for an integer, models do not."""
    request = accepted(parse_data({"prompt": "x", "timeout_ms": 5.0, "params": {"max_tokens": 7.0}}))
    assert (repr(request.timeout_ms), repr(request.params["max_tokens"])) == ("5", "7")


def test_nul_in_a_prompt_is_text() -> None:
    """A NUL is a character like others, in both forms."""
    for outcome in (parse("prompt", b"a\0b"), parse_data({"prompt": "a\0b"})):
        assert accepted(outcome).messages[0]["content"] == "a\0b"


def test_oversized_entry_is_refused_with_its_id() -> None:
    """The limit counts names and values; the id of what is too large is still read."""
    error = refused(parse_data({"id": "big", "prompt": "x" * LIMIT}), ErrorCode.REQUEST_TOO_LARGE)
    assert (error.id, str(LIMIT) in error.message) == ("big", True)
    assert refused(parse("prompt", "x" * LIMIT, "id", "b"), ErrorCode.REQUEST_TOO_LARGE).id == "b"
    assert refused(parse("x" * LIMIT, "1"), ErrorCode.REQUEST_TOO_LARGE).id is None
    accepted(parse("prompt", "x" * (LIMIT - len("prompt"))))


def test_huge_entry_is_answered_under_its_id() -> None:
    """As a field, or where it stands in the first kilobytes: to parse hundreds of megabytes would hold up all others."""
    text = "x" * 5 * LIMIT
    huge = orjson.dumps({"metadata": {"id": "inner"}, "id": "big", "prompt": text})
    error = refused(parse("data", huge), ErrorCode.REQUEST_TOO_LARGE)
    assert (error.id, error.metadata) == ("big", None)
    late = orjson.dumps({"prompt": text, "id": "big"})
    assert refused(parse("data", late), ErrorCode.REQUEST_TOO_LARGE).id is None
    for fields in (("id", "big", "prompt", text), ("prompt", text, "id", "big"), ("id", "big", "data", text)):
        assert refused(parse(*fields), ErrorCode.REQUEST_TOO_LARGE).id == "big"


@pytest.mark.parametrize(
    ("data", "request_id"),
    [
        ('{"id":"r1","prompt":', "r1"),
        ('{"prompt":"say \\"id\\": \\"no\\"","id" : "r1",', "r1"),
        ('{"metadata":{"id":"no"},"tools":[{"id":"no"}],"id":"r1" x', "r1"),
        ('{"metadata":{"id":"no"}', None),
        ('{"id":7,"prompt":', None),
        ('{"id":"not an id","prompt":', None),
        ('["id","r1"', None),
        ('{"x":"id","r1":', None),
        ('"id":"r1"', None),
        ("", None),
    ],
)
def test_broken_json_is_answered_under_its_id(data: str, request_id: str | None) -> None:
    """That of the outermost object, if it stands there."""
    assert refused(parse("data", data.encode()), ErrorCode.INVALID_REQUEST).id == request_id


@pytest.mark.parametrize(
    "fields",
    [
        ("data", '{"id": "q-1", "promt": "x"}'),
        ("data", '{"id": "q-1", "prompt": 5}'),
        ("data", '{"id": "q-1"}', "prompt", "x"),
        ("id", "q-1", "promt", "x"),
        ("id", "q-1", "prompt", b"\xff"),
        ("id", "q-1", "data", "no json"),
        ("id", "q-1", "prompt", "x", "metadata", "no json"),
    ],
)
def test_id_of_an_invalid_request_is_read(fields: tuple[str | bytes, ...]) -> None:
    """Whoever asked finds the error under the id that was given, wherever it can be read."""
    assert refused(parse(*fields)).id == "q-1"


def test_invalid_id_is_not_read() -> None:
    """An id with other characters is no reply address."""
    assert refused(parse_data({"id": "a b", "prompt": "x"})).id is None
    assert refused(parse("id", b"\xff", "prompt", "x")).id is None


def test_metadata_of_an_invalid_request_is_read() -> None:
    """The error returns the metadata, unless it could not be written again."""
    assert refused(parse_data({"metadata": {"a": 1}})).metadata == {"a": 1}
    assert refused(parse("metadata", '{"a": 1}', "promt", "x")).metadata == {"a": 1}
    assert refused(parse_data({"metadata": nested(150)})).metadata is None
    assert refused(parse_data({"metadata": [1]})).metadata is None


def test_deep_but_bounded_nesting_is_accepted() -> None:
    """Many brackets are no depth."""
    accepted(parse_data({"prompt": "x", "metadata": {"a": [[] for _ in range(500)]}}))
    accepted(parse_data({"prompt": "x", "metadata": nested(90)}))


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "strin"}, "$.schema.type: expected a type of JSON Schema"),
        ({"properties": {"a": {"$ref": "http://h/x"}}}, "$.schema.properties.a.$ref: leads outside this schema"),
        ({"$schema": "http://h/x"}, "$.schema.$schema: unsupported dialect"),
        ({"properties": {"a": {"pattern": "(?=x)"}}}, "$.schema.properties.a.pattern: unsupported pattern"),
    ],
)
def test_schema_problem_has_its_own_code(schema: Any, message: str) -> None:
    """What is wrong with the caller's schema is `invalid_schema`, with the path from the request's root."""
    error = refused(parse_data({"id": "s", "prompt": "x", "schema": schema}), ErrorCode.INVALID_SCHEMA)
    assert error.message.startswith(message)
    assert error.id == "s"


def test_same_schema_is_compiled_once() -> None:
    """Two requests with one schema share its compiled form."""
    first, second = (accepted(parse_data({"prompt": "x", "schema": {"minimum": 3}})) for _ in range(2))
    assert first.schema is second.schema


@given(st.lists(st.tuples(st.binary(max_size=20), st.binary(max_size=60)), max_size=4))
@settings(max_examples=200, deadline=None)
def test_any_bytes_get_an_outcome(pairs: list[tuple[bytes, bytes]]) -> None:
    """No entry, whatever it holds, raises."""
    outcome = PARSER.parse(ENTRY, [part for pair in pairs for part in pair])
    assert isinstance(outcome, (Request, RequestError))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**63) | st.floats(allow_nan=False) | st.just(SECRET),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=6,
)
NAMES = ["id", "messages", "prompt", "model", "schema", "stream", "tools", "tool_choice", "params", "metadata"]


@given(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=5))
@settings(max_examples=300, deadline=None)
def test_no_value_is_ever_quoted(document: dict[str, Any]) -> None:
    """Whatever is wrong with it, nothing of a request's text is in the message."""
    document.pop("stream", None)
    outcome = parse_data(document)
    if isinstance(outcome, RequestError) and outcome.code is not ErrorCode.INVALID_SCHEMA:
        assert SECRET not in outcome.message


def test_mutated_requests_get_an_outcome() -> None:
    """Bytes flipped anywhere in a valid document never raise."""
    rng = random.Random(7)
    whole = orjson.dumps({"messages": [{"role": "user", "content": "x"}], "schema": {"type": "object"}, "id": "q"})
    for _ in range(500):
        data = bytearray(whole)
        data[rng.randrange(len(data))] = rng.randrange(256)
        assert isinstance(parse("data", bytes(data)), (Request, RequestError))


LARGE = {"big": 2**64, "more": [-(2**63) - 1, {"most": 10**300}], "usual": [1, 2**53 + 1, 0.5, "1", None, "ż"]}


@pytest.mark.parametrize("fields", ["data", "fields", "data and fields"])
@pytest.mark.parametrize("is_sound", [True, False])
def test_metadata_comes_back_with_its_integers_as_they_were(fields: str, is_sound: bool) -> None:
    """Untouched means untouched, of a request that is refused too; orjson makes floats of integers beyond 64 bits."""
    prompt: Any = "x" if is_sound else 7
    document = json.dumps({"prompt": prompt, "metadata": LARGE})
    entry = {
        "data": ["data", document],
        "fields": ["prompt" if is_sound else "promt", "x", "metadata", json.dumps(LARGE)],
        "data and fields": ["data", '{"prompt":"x"}' if not is_sound else document, "metadata", json.dumps(LARGE)],
    }[fields]
    parsed = parse(*entry)
    assert parsed.metadata == LARGE
    event = Failed(request_id="x", code=ErrorCode.INTERNAL, message="", metadata=parsed.metadata)
    assert json.loads(encode(event))["metadata"] == LARGE


@pytest.mark.parametrize("data", ["{", "7", '"\xff"', "[" * 5000])
def test_metadata_beside_data_that_is_no_request_comes_back(data: str) -> None:
    """Both forms at once are refused, whatever the one holds; what the other says goes back."""
    error = refused(parse("data", data.encode("latin-1"), "metadata", json.dumps(LARGE)))
    assert error.metadata == LARGE


@given(
    st.dictionaries(
        st.text(max_size=3),
        st.recursive(
            st.integers(-(10**30), 10**30) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=3),
            lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
            max_leaves=6,
        ),
        max_size=3,
    )
)
def test_any_metadata_comes_back_untouched(metadata: dict[str, Any]) -> None:
    """Whatever JSON it is."""
    parsed = accepted(parse("data", json.dumps({"prompt": "x", "metadata": metadata})))
    event = Failed(request_id="x", code=ErrorCode.INTERNAL, message="", metadata=parsed.metadata)
    assert json.loads(encode(event))["metadata"] == metadata


def test_entry_that_is_cut_is_refused_under_what_is_left_of_its_address() -> None:
    """Its size is the true one; what is cut is no request, however short the rest looks."""
    long = CutBytes(head=b'{"id":"r1","prompt":"', size=10_000_000, sha256="0" * 64)
    for kept, request_id in (
        ([b"prompt", long, b"id", b"r2"], "r2"),
        ([b"data", long], "r1"),
        ([b"id", long], None),
        ([long, b"id", b"id", b"r3"], "r3"),
    ):
        fields = CutList(kept=kept, count=len(kept), size=10_000_010)
        error = refused(PARSER.parse("1-0", fields), ErrorCode.REQUEST_TOO_LARGE)
        assert (error.id, error.metadata) == (request_id, None)
        assert "10000010 bytes" in error.message
    short = CutList(kept=[b"prompt", b"x"], count=2, size=7)
    refused(PARSER.parse("1-0", short), ErrorCode.REQUEST_TOO_LARGE)


def test_entry_of_too_many_fields_is_refused() -> None:
    """By their number, where they are short; at the bound it is told what is wrong with them."""
    most = [part for number in range(MOST_FIELDS) for part in (b"%d" % number, b"")]
    refused(PARSER.parse("1-0", most), ErrorCode.INVALID_REQUEST)
    error = refused(PARSER.parse("1-0", [*most, b"id", b"r1"]), ErrorCode.REQUEST_TOO_LARGE)
    assert (error.id, f"{MOST_FIELDS + 1} fields" in error.message) == ("r1", True)
