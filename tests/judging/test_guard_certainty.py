from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_routerd.jsonschema.compiled import AnswerSchema, compile_schema
from llm_routerd.jsonschema.shape import shape_of
from llm_routerd.judging.json_text import UNCERTAIN, certain_json
from llm_routerd.judging.jsonguard import JsonGuard

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text("ab:{", max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "c"]), inner, max_size=3),
    max_leaves=8,
)
SCHEMAS: list[dict[str, Any]] = [
    {"type": "object", "properties": {"a": {"type": "integer", "minimum": 0}}, "additionalProperties": False},
    {"type": "array", "items": {"enum": ["a", 1, None]}, "maxItems": 2},
    {"type": ["object", "string"], "required": ["a"], "maxLength": 2},
]


@pytest.mark.parametrize("schema", SCHEMAS)
@given(value=VALUES)
def test_guard_agrees_where_it_is_not_asked(schema: dict[str, Any], value: Any) -> None:
    """A complete text that need not be looked at is never one that the guard alone would have refused."""
    text = json.dumps(value)
    compiled = compile_schema(schema)
    assert isinstance(compiled, AnswerSchema)
    if certain_json(text) is not UNCERTAIN and compiled.validate(value) is None:
        guard = JsonGuard(shape_of(schema))
        assert (guard.feed(text) or guard.finish()) is None


@pytest.mark.parametrize(
    "text",
    [
        '{"a": "x", "a": 1}',
        '{"a": {"b": 1, "b": 2}}',
        '{"a": 1, "\\u0061": 2}',
        '{"a": 12345678901234567890123}',
        "[" * 201 + "]" * 201,
        "1" * 1001,
        '{"a": 1',
        '```json\n{"a": 1}\n```',
        "",
    ],
)
def test_doubtful_text_is_looked_at(text: str) -> None:
    """Names given twice, depth, long numbers, and whatever is no bare JSON."""
    assert certain_json(text) is UNCERTAIN


@pytest.mark.parametrize("text", ["1", "[]", ' {"a": {"b": [1, {"c": null}]}} ', '"text"', '{"a": "b: c"}'])
def test_plain_text_is_certain(text: str) -> None:
    """The common answer, colons in its strings included."""
    assert certain_json(text) is not UNCERTAIN
