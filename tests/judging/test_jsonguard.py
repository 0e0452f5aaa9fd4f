from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from llm_routerd.jsonschema.shape import shape_of
from llm_routerd.judging.json_text import MAX_DEPTH, json_body
from llm_routerd.judging.jsonguard import JsonGuard
from llm_routerd.protocol.codes import AttemptCode

if TYPE_CHECKING:
    from llm_routerd.protocol.outcome import Rejection

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "mood": {"enum": ["glad", "grim", "bored"]},
        "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 2, "minItems": 1},
        "parent": {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
        "no": False,
    },
    "required": ["name"],
    "additionalProperties": False,
}


def judge(text: str, schema: dict[str, Any] | bool = True, size: int = 1) -> tuple[Rejection | None, str]:
    """Feed a text in pieces; return the verdict and what had been fed by then."""
    guard = JsonGuard(shape_of(schema))
    for position in range(0, len(text), size):
        rejection = guard.feed(text[position : position + size])
        if rejection is not None:
            return rejection, text[: position + size]
    return guard.finish(), text


@pytest.mark.parametrize(
    ("fed", "rest"),
    [
        ("S", "ure! {}"),
        ("{'", "a': 1}"),
        ('{"a": 1,}', ""),
        ("[1, 2 3", "]"),
        ("N", "aN"),
        ("[-I", "nfinity]"),
        ("[01", "]"),
        ("[1.,", "2]"),
        ('["\n', '"]'),
        (r'["\x', '"]'),
        (r'["\ud83dx', '"]'),
        (r'["\ude00', '"]'),
        (r'["\ud800\u0041', '"]'),
        ("{} H", "ope it helps"),
        ("{}{", "}"),
        ("```json\n{}\n``` D", "one"),
        ("[}", ""),
        ("{]", ""),
        ('{"a"}', ""),
        ('{"a":}', ""),
        ("{1", ":2}"),
        ("tru}", ""),
        ("// ", "{}"[:0]),
        ("[" * (MAX_DEPTH + 1), "]" * (MAX_DEPTH + 1)),
    ],
)
def test_syntax_error_ends_the_answer_where_it_is_made(fed: str, rest: str) -> None:
    """No character after the offending one is waited for."""
    rejection, seen = judge(fed + rest)
    assert rejection is not None
    assert rejection.code is AttemptCode.INVALID_JSON
    assert rejection.early
    assert len(seen) <= len(fed)


@pytest.mark.parametrize("text", ["", "  ", "{", '{"a": "', "tru", "-", "1e", "```json\n", '["\\ud83d', "{}\n`"])
def test_incomplete_json_is_rejected_at_the_end(text: str) -> None:
    """A beginning is no error while it may go on, and one when it does not."""
    guard = JsonGuard(shape_of(True))
    assert guard.feed(text) is None
    rejection = guard.finish()
    assert rejection is not None
    assert rejection.code is AttemptCode.INVALID_JSON


@pytest.mark.parametrize(
    ("schema", "fed", "rest", "reason"),
    [
        (PERSON, "[", "]", "$: an array is not allowed here"),
        (PERSON, '"', 'x"', "$: a string is not allowed here"),
        (PERSON, '{"x"', ": 1}", "$: a property that the schema forbids"),
        (PERSON, '{"no"', ": 1}", "$: a property that the schema forbids"),
        (PERSON, '{"name": 1', "}", "$.name: a number is not allowed here"),
        (PERSON, '{"name": "abcdef', '"}', "$.name: a longer string than the schema allows"),
        (PERSON, '{"age": 1.5,', '"name": "x"}', "$.age: the schema forbids this number"),
        (PERSON, '{"age": 151 ', "}", "$.age: the schema forbids this number"),
        (PERSON, '{"mood": "gla', 'ss"}', ""),
        (PERSON, '{"mood": "glas', 's"}', "$.mood: a string that is not one of the allowed values"),
        (PERSON, '{"mood": "gl"', "}", "$.mood: a string that is not one of the allowed values"),
        (PERSON, '{"tags": ["a", 2', "]}", "$.tags[1]: a number is not allowed here"),
        (PERSON, '{"tags": ["a", "b", "', 'c"]}', "$.tags[2]: a string is not allowed here"),
        (PERSON, '{"tags": []', "}", "$.tags: fewer items than the schema asks for"),
        (PERSON, '{"parent": f', "alse}", "$.parent: false is not allowed here"),
        (PERSON, '{"parent": {"parent": {"age": "', '1"}}}', "$.parent.parent.age: a string is not allowed here"),
        (PERSON, '{"age": 1}', " ", "$: a required property is missing"),
        ({"const": 7}, "8 ", "", "$: the schema forbids this number"),
        ({"enum": [True, None]}, "f", "alse", "$: false is not allowed here"),
        ({"allOf": [{"type": ["string", "null"]}, {"type": ["null", "number"]}]}, '"', '"', "$: a string is not"),
        ({"oneOf": [{"type": "object"}, {"type": "array"}]}, "1", "", "$: a number is not allowed here"),
        ({"anyOf": [{"properties": {"a": False}}, {"properties": {"a": False}}]}, '{"a"', ": 1}", "$: a property"),
        ({"properties": {"a": {}}, "unevaluatedProperties": False}, '{"b"', ": 1}", "$: a property that"),
        ({"prefixItems": [{"type": "null"}], "items": False}, "[null, 1", "]", "$[1]: a number is not allowed"),
        ({"propertyNames": {"enum": ["a"]}}, '{"b"', ": 1}", "$: a property that the schema forbids"),
        ({"maxProperties": 1}, '{"a": 1, "b"', ": 1}", "$: more properties than the schema allows"),
        (False, "1", "", "$: a number is not allowed here"),
    ],
)
def test_violation_ends_the_answer_where_it_is_certain(
    schema: dict[str, Any] | bool, fed: str, rest: str, reason: str
) -> None:
    """The first token that no valid answer could have there is the last one."""
    rejection, seen = judge(fed + rest, schema)
    assert rejection is not None
    assert rejection.code is AttemptCode.SCHEMA_VIOLATION
    assert rejection.reason.startswith(reason)
    assert len(seen) <= len(fed) + (1 if not reason else 0)


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        (PERSON, '{"name": "Ann", "age": 4.0e1, "mood": "grim"}'),
        (PERSON, '{"name": "\\u00e9\\ud83d\\ude00abc", "parent": {"name": "x", "parent": null}}'),
        (PERSON, '\ufeff \n{"name": "x"}\n'),
        (PERSON, '```json\n{"name": "x"}\n```\n'),
        (PERSON, '```\n{"name": "x"}'),
        (PERSON, '```json {"name": "```"} ```'),
        (PERSON, '```{"name": "x"}```'),
        (PERSON, '{"name": "x", "na\\u006de": "y"}'),
        ({"const": 1}, "1.0"),
        ({"type": "integer"}, "1e2"),
        ({"enum": ['a"b', "a"]}, '"a\\"b"'),
        ({"anyOf": [{"properties": {"a": False}}, {"type": "object"}]}, '{"a": 1}'),
        ({"not": {"type": "string"}}, "1"),
        ({"if": {"type": "string"}, "then": False}, "1"),
        ({"$ref": "#/$defs/loop", "$defs": {"loop": {"$ref": "#/$defs/loop"}}}, "1"),
        ({"anyOf": [{"$ref": "#"}, {"type": "null"}]}, "null"),
        ({"$ref": "https://example.org/elsewhere"}, '{"anything": 1}'),
        ({"properties": {"a": {"$id": "https://example.org/b", "$ref": "#/x"}}, "x": False}, '{"a": 1}'),
        (
            {
                "$schema": "http://json-schema.org/draft-07/schema#",
                "$ref": "#/definitions/n",
                "type": "string",
                "definitions": {"n": {"type": "number"}},
            },
            "1",
        ),
        ({"patternProperties": {"^x": {}}, "additionalProperties": False}, '{"xy": 1}'),
        ({"additionalProperties": False, "properties": {"$ref": {}}}, '{"$ref": 1}'),
    ],
)
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_valid_answer_passes(schema: dict[str, Any] | bool, text: str, size: int) -> None:
    """What could be valid is never rejected, in pieces of any size."""
    assert judge(text, schema, size)[0] is None
    orjson.loads(json_body(text))


def test_names_of_the_answer_stay_out_of_the_reason() -> None:
    """A path names properties that the schema lists; others are the answer's text."""
    rejection, _ = judge('{"secret": {"a": 1}}', {"additionalProperties": {"additionalProperties": {"type": "null"}}})
    assert rejection is not None
    assert rejection.reason == "$.*.*: a number is not allowed here"


def test_digits_without_end_are_no_answer() -> None:
    """A number is bounded, so that a model which writes digits for ever costs nothing."""
    rejection, seen = judge("[" + "7" * 5000, True, 10)
    assert rejection is not None
    assert len(seen) < 1100


def test_hostile_schemas_are_met_with_patience() -> None:
    """Neither nested unions that share their branches nor deep ones take long or fail."""
    fan: dict[str, Any] = {f"d{n}": {"anyOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 20} for n in range(60)}
    fan["d60"] = {"type": "null"}
    deep: dict[str, Any] = {"type": "null"}
    for _ in range(500):
        deep = {"allOf": [deep, {"properties": {"a": deep}}]}
    for schema in ({"$ref": "#/$defs/d0", "$defs": fan}, deep):
        rejection, _ = judge("null", json.loads(json.dumps(schema)) if schema is not deep else schema)
        assert rejection is None
