"""A caller's schema is hostile until proven otherwise: it fetches nothing, and costs neither time nor memory."""

from __future__ import annotations

import socket
import time
from typing import Any

import pytest

from tests.support.schemas import compiled, ladder, nested, problem

# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("raw", [None, 1, "x", [], 1.5])
def test_other_json_is_no_schema(raw: Any) -> None:
    """A schema is an object or a boolean."""
    assert problem(raw) == "$: expected a JSON Schema, which is an object or a boolean"


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        ({"$ref": "http://h/x"}, "$.$ref"),
        ({"$ref": "https://json-schema.org/draft/2020-12/schema"}, "$.$ref"),
        ({"$ref": "file:///etc/passwd"}, "$.$ref"),
        ({"$ref": "other.json#/a"}, "$.$ref"),
        ({"$ref": "//h/x"}, "$.$ref"),
        ({"$dynamicRef": "http://h/x#a"}, "$.$dynamicRef"),
        ({"$id": "http://h/a", "$ref": "b"}, "$.$ref"),
        ({"properties": {"a": {"items": {"$ref": "urn:x:y"}}}}, "$.properties.a.items.$ref"),
        ({"$defs": {"unused": {"$ref": "http://h/x"}}}, "$.$defs.unused.$ref"),
        ({"$ref": "#/components/a", "components": {"a": {"$ref": "http://h/x"}}}, "$.components.a.$ref"),
        ({"anyOf": [True, {"not": {"$ref": "http://[/x"}}]}, "$.anyOf[1].not.$ref"),
    ],
)
def test_reference_that_leaves_the_document_is_refused(
    raw: dict[str, Any], path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is fetched, and the path of the reference is told."""
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: pytest.fail("looked up a host"))
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("connected"))
    message = problem(raw)
    assert message.startswith(f"{path}: ")
    assert "nothing is fetched" in message or "expected a URI" in message


@pytest.mark.parametrize(
    "reference",
    ["#/$defs/nope", "#nope", "#/$defs/a/type/9", "#/$defs/list/7", "#/$defs/list/00", "#/$defs/list/" + "9" * 5000],
)
def test_reference_to_nothing_is_refused(reference: str) -> None:
    """A reference within the document must lead somewhere."""
    raw = {"$ref": reference, "$defs": {"a": {"type": "object"}, "list": [{}]}}
    assert problem(raw).startswith("$.$ref: ")


@pytest.mark.parametrize(
    "dialect", ["http://h/x", "http://json-schema.org/draft-03/schema#", "https://json-schema.org/draft/next/schema"]
)
def test_unknown_dialect_is_unsupported(dialect: str) -> None:
    """`$schema` names one of the dialects that are known, also within."""
    assert problem({"$schema": dialect}).startswith("$.$schema: unsupported dialect; known are 2020-12,")
    assert problem({"properties": {"a": {"$schema": dialect}}}).startswith("$.properties.a.$schema: unsupported")


@pytest.mark.parametrize(
    "pattern", ["(?=a)b", "(?!a)b", "(?<=a)b", r"(a)\1", "[", "(a{1000}){1000}", "a{1000}{1000}", "*"]
)
def test_pattern_beyond_linear_time_is_refused(pattern: str) -> None:
    """Look-around, back-references, explosions and what is no pattern: the message names the path."""
    assert problem({"properties": {"x": {"pattern": pattern}}}).startswith("$.properties.x.pattern: unsupported")
    assert problem({"patternProperties": {pattern: {}}}).startswith("$.patternProperties: unsupported")


def test_too_long_or_too_many_patterns_are_refused() -> None:
    """What patterns take in memory is bounded."""
    assert problem({"pattern": "a" * 2000}).startswith("$.pattern: a pattern of more than")
    many = {"anyOf": [{"pattern": f"^.{{{n + 1}}}$"} for n in range(100)]}
    assert "so many large patterns" in problem(many)


@pytest.mark.parametrize(
    "raw",
    [
        {"$ref": "#"},
        {"allOf": [{"$ref": "#"}]},
        {"not": {"$ref": "#"}},
        {"if": {"$ref": "#"}},
        {"dependentSchemas": {"a": {"$ref": "#"}}},
        {"$dynamicAnchor": "x", "$dynamicRef": "#x"},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"anyOf": [True, {"$ref": "#/$defs/a"}]}}},
        # found also where a way through an instance reaches the loop first
        {
            "$ref": "#/$defs/v",
            "$defs": {
                "v": {"allOf": [{"properties": {"p": {"$ref": "#/$defs/u"}}}, {"$ref": "#/$defs/u"}]},
                "u": {"$ref": "#/$defs/v"},
            },
        },
    ],
)
def test_loop_that_consumes_nothing_is_refused(raw: dict[str, Any]) -> None:
    """A schema that refers back to itself at the same place means nothing."""
    assert problem(raw).endswith("refers back to itself without descending into the instance")


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        ({"enum": list(range(30_000))}, "more than 20000 values"),
        ({"properties": {f"p{index}": True for index in range(6_000)}}, "more than 5000 subschemas"),
        (nested(150, {}), "nested deeper than 100"),
        (nested(300, {}), "nested too deep"),
        (ladder(300, lambda ref: {"properties": {"a": ref}}), "chained deeper than 200"),
        (ladder(40, lambda ref: {"allOf": [ref, ref]}), "unfold to more than"),
        (ladder(40, lambda ref: {"properties": {"a": ref}, "patternProperties": {"^a": ref}}), "unfold to more than"),
        (ladder(30, lambda ref: {"allOf": [ref], "unevaluatedProperties": False}), "unfold to more than"),
        ({"minimum": 10**30}, "an integer beyond 64 bits"),
        ({"title": "\ud800"}, "not Unicode"),
    ],
)
def test_schema_that_is_a_bomb_is_refused_at_once(raw: dict[str, Any], told: str) -> None:
    """Sizes, depths and unfoldings are bounded before anything is compiled."""
    started = time.process_time()
    assert told in problem(raw)
    assert time.process_time() - started < 2


def test_long_chain_is_seen_behind_a_part_of_it() -> None:
    """A chain counts in whole, though its lower part has been walked by itself before."""
    chain = ladder(300, lambda ref: {"properties": {"a": ref}})
    raw = {"allOf": [{"$ref": "#/$defs/s150"}, {"$ref": "#/$defs/s0"}], "$defs": chain["$defs"]}
    assert "chained deeper than 200" in problem(raw)
    compiled(ladder(90, lambda ref: {"properties": {"a": ref}}))


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        ({"type": "strin"}, "$.type"),
        ({"properties": {"a": {"type": 5}}}, "$.properties.a.type"),
        ({"properties": []}, "$.properties"),
        ({"multipleOf": 0}, "$.multipleOf"),
        ({"minLength": -1}, "$.minLength"),
        ({"required": "a"}, "$.required"),
        ({"$schema": 1}, "$.$schema"),
        ({"$ref": 1}, "$.$ref"),
        ({"$id": "http://["}, "$"),
    ],
)
def test_invalid_schema_is_told_by_path(raw: dict[str, Any], path: str) -> None:
    """What the metaschema refuses names its place."""
    assert problem(raw).startswith(f"{path}: ")


# ---------------------------------------------------------------------- what is accepted does no harm


@pytest.mark.parametrize(
    ("raw", "instance", "valid"),
    [
        ({"multipleOf": 1e-300}, 12345678.5, True),
        ({"multipleOf": 1e-300}, 1e300, True),
        ({"uniqueItems": True}, [{"a": index} for index in range(20_000)], True),
        ({"uniqueItems": True}, [[index // 2] for index in range(20_000)], False),
        ({"enum": [f"s{index}" for index in range(15_000)]}, "s14999", True),
        ({"pattern": "(a+)+$"}, "a" * 30_000 + "b", False),
        ({"pattern": "^(a|aa)+$"}, "a" * 30_000 + "b", False),
        ({"pattern": "(x+x+)+y"}, "x" * 30_000, False),
        ({"properties": {"a": {"$ref": "#"}}}, nested(1000, {}), True),
        ({"properties": {"a": {"allOf": [{"$ref": "#"}, {"$ref": "#"}]}}}, nested(1000, {}), True),
        ({"properties": {"a": {"$ref": "#"}}, "additionalProperties": False}, nested(900, {"b": 1}), False),
        (
            {"anyOf": [{"properties": {"a": {"$ref": "#"}}, "required": [name]} for name in "abc"]},
            nested(60, {"x": 1}),
            False,
        ),
        ({"type": ["array", "null"], "items": {"anyOf": [{"$ref": "#"}, {"$ref": "#"}]}}, [[[[[[[[[5]]]]]]]]], False),
    ],
)
def test_hostile_pair_is_judged_soon(raw: dict[str, Any], instance: Any, valid: bool) -> None:
    """No schema within the bounds makes an answer expensive to judge, or to explain."""
    schema = compiled(raw)
    started = time.process_time()
    assert (schema.validate(instance) is None) is valid
    assert time.process_time() - started < 2


@pytest.mark.parametrize(
    ("raw", "instance"),
    [
        ({"items": {"allOf": [{"type": "integer"}] * 900}}, list(range(100_000))),
        (
            {"items": {"$ref": "#/$defs/s0"}, "$defs": ladder(10, lambda ref: {"allOf": [ref, ref]})["$defs"]},
            [1] * 100_000,
        ),
        ({"allOf": [{"pattern": "[ab]*a[ab]{900}x"}] * 20}, "ab" * 100_000),
        ({"patternProperties": {"[ab]*a[ab]{900}x": True}}, {"ab" * 1_000_000: 1}),
        ({"pattern": "(a{30}b){30}"}, "a" * 4_000_000),
    ],
)
def test_answer_too_large_for_its_schema_is_not_judged(raw: dict[str, Any], instance: Any) -> None:
    """The engine cannot be interrupted, so what would take it seconds is refused by its size."""
    started = time.process_time()
    assert compiled(raw).validate(instance) == "$: too large to be judged by a schema this complex"
    assert time.process_time() - started < 2


@pytest.mark.parametrize(
    ("raw", "instance"),
    [
        ({"items": {"properties": {f"p{index}": {"type": "integer"} for index in range(500)}}}, [{"p7": 1}] * 50_000),
        (
            {"items": {"anyOf": [{"properties": {"kind": {"const": index}}, "type": "object"} for index in range(40)]}},
            [{"kind": 39}] * 20_000,
        ),
        (
            {
                "items": {
                    "properties": {"day": {"pattern": r"^\d{4}-\d{2}-\d{2}$"}, "id": {"pattern": "^[0-9a-f]{32}$"}}
                }
            },
            [{"day": "2026-11-20", "id": "0" * 32, "text": "x" * 200}] * 5_000,
        ),
    ],
)
def test_large_answer_is_judged_by_a_plain_schema(raw: dict[str, Any], instance: Any) -> None:
    """Wide objects, unions and everyday patterns are no reason to refuse what is large."""
    assert compiled(raw).validate(instance) is None


def test_explanation_of_a_recursive_union_is_bounded() -> None:
    """Where telling why would take exponential time, only that is told."""
    schema = compiled({"anyOf": [{"properties": {"a": {"$ref": "#"}}, "required": ["b", str(n)]} for n in range(4)]})
    assert schema.validate({"a": {}}) != "$: does not satisfy the schema"
    assert schema.validate(nested(20, {})) == "$: does not satisfy the schema"
