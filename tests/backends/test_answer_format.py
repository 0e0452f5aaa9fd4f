from __future__ import annotations

from typing import Any

import pytest

from llm_routerd.backends.answer_format import for_anthropic, meets_openai_strict

CLOSED = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"], "additionalProperties": False}


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "array", "items": {"type": "integer"}},
        {**CLOSED, "additionalProperties": True},
        {**CLOSED, "required": []},
        {**CLOSED, "properties": {"a": {"type": "string", "minLength": 1}}},
        {**CLOSED, "properties": {"a": {"type": "string", "format": "color"}}},
        {**CLOSED, "properties": {"a": {"type": "object", "properties": {"b": {}}}}},
        {**CLOSED, "properties": {"a": True}},
        {**CLOSED, "allOf": [{"required": ["a"]}]},
        {**CLOSED, "properties": {"a": {"type": "array", "items": {"type": "object"}}}},
        {**CLOSED, "$defs": {"x": {"type": "object"}}},
    ],
)
def test_strict_is_not_claimed_where_openai_would_reject_it(schema: dict[str, Any]) -> None:
    """A schema that breaks its rules goes without `strict`, and is not answered with 400."""
    assert not meets_openai_strict(schema)


def test_strict_is_claimed_where_openai_allows_it() -> None:
    """Nested, with references and choices."""
    choice = {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "null"}]}
    nested = {"type": "array", "items": {"$ref": "#/$defs/item"}}
    properties = {"choice": choice, "list": nested}
    assert meets_openai_strict(CLOSED)
    assert meets_openai_strict(
        {**CLOSED, "properties": properties, "required": ["list", "choice"], "$defs": {"item": CLOSED}}
    )


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "object"},
        {"type": "object", "additionalProperties": {"type": "integer"}},
        {**CLOSED, "additionalProperties": {"type": "string"}},
        {**CLOSED, "patternProperties": {"^x": {}}},
        {**CLOSED, "required": ["a", "b"]},
        {"type": "array"},
        {"enum": [{"a": 1}]},
        {"type": "nonsense"},
        {"$ref": "#"},
        {"$ref": "#/$defs/missing"},
        {"$ref": "https://example.org/schema"},
        {"$ref": "#/$defs/x", "$defs": {"x": {"type": "array", "items": {"$ref": "#/$defs/x"}}}},
        {"allOf": [CLOSED]},
        {**CLOSED, "properties": {"a": True}},
    ],
)
def test_what_anthropic_cannot_be_told_is_said_to_be_so(schema: dict[str, Any]) -> None:
    """Maps, values of any type, recursion: the constraint would forbid answers that the schema allows."""
    assert for_anthropic(schema) is None


def test_references_that_multiply_are_given_up() -> None:
    """A small schema that unfolds into a huge one does not."""
    levels: dict[str, Any] = {"x0": {"type": "string"}}
    for n in range(1, 30):
        ref = {"$ref": f"#/$defs/x{n - 1}"}
        levels[f"x{n}"] = {**CLOSED, "properties": {"a": ref, "b": ref}}
    assert for_anthropic({"$ref": "#/$defs/x29", "$defs": levels}) is None


def test_anthropic_gets_the_schema_without_what_it_rejects() -> None:
    """Bounds go, objects are closed, `oneOf` and lists of types become `anyOf`, references their targets."""
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {
            "n": {"type": "integer", "minimum": 0, "description": "how many"},
            "when": {"type": "string", "format": "date"},
            "colour": {"type": "string", "format": "color"},
            "either": {"oneOf": [{"const": 1}, {"type": ["string", "null"]}]},
            "list": {"type": "array", "items": {"$ref": "#/$defs/item"}, "minItems": 1},
        },
        "required": ["n"],
        "$defs": {"item": {"enum": ["a", "b"]}},
    }
    assert for_anthropic(schema) == (
        {
            "type": "object",
            "properties": {
                "n": {"type": "integer", "description": "how many"},
                "when": {"type": "string", "format": "date"},
                "colour": {"type": "string"},
                "either": {"anyOf": [{"enum": [1]}, {"anyOf": [{"type": "string"}, {"type": "null"}]}]},
                "list": {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 1},
            },
            "required": ["n"],
            "additionalProperties": False,
        },
        False,
    )


def test_schema_that_anthropic_takes_whole_needs_no_words() -> None:
    """Nothing was left out of it."""
    assert for_anthropic(CLOSED) == (CLOSED, True)
