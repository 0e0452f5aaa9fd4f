"""A caller's schema is compiled once, and one engine judges by it."""

from __future__ import annotations

import threading
from typing import Any

import jsonschema
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_routerd.jsonschema import compiled as schema_module
from llm_routerd.jsonschema.compiled import AnswerSchema, SchemaCache, SchemaProblem, compile_schema
from tests.support.schemas import compiled

# ---------------------------------------------------------------------- verdicts


@given(
    names=st.lists(st.from_regex(r"[+-]?[0-9]{1,25}", fullmatch=True) | st.text(max_size=5), min_size=1, max_size=4),
    beside=st.lists(st.sampled_from(["1", "01", "+1", "0", "-0"]), max_size=3),
)
def test_every_name_can_be_told(names: list[str], beside: list[str]) -> None:
    """A property may have any name: a fault under it is one line that begins with a path, and no exception."""
    instance: object = "wrong"
    schema: dict[str, Any] = {"type": "integer"}
    for name in reversed(names):
        instance = {**dict.fromkeys(beside, 1), name: instance}
        schema = {"properties": {name: schema}}
    told = compiled(schema).validate(instance)
    assert told is not None
    assert told.startswith("$")
    broken = compile_schema({"properties": {names[0]: {"type": 3}}})
    assert isinstance(broken, SchemaProblem)
    assert broken.message.startswith("$.properties")


@pytest.mark.parametrize("draft", ["draft-04", "draft-06", "draft-07", "2019-09", "2020-12"])
@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ({"type": "strin"}, ".type: expected a type of JSON Schema"),
        ({"type": 3}, ".type: expected a type of JSON Schema"),
        ({"type": ["string", "nope"]}, ".type"),
        ({"minLength": -1}, ".minLength: -1 is less than"),
        ({"required": "a"}, '.required: "a" is not of type "array"'),
        ({"enum": 3}, '.enum: 3 is not of type "array"'),
        ({"pattern": 3}, '.pattern: 3 is not of type "string"'),
        ({"properties": {"type": 3}}, ".properties.type: 3 is not"),
    ],
)
def test_fault_deep_in_a_schema_is_told_where_it_lies(draft: str, fault: dict[str, Any], told: str) -> None:
    """Whatever the draft: its meta-schema may be made of unions, and nobody looks for a fault at their top."""
    named = (
        f"http://json-schema.org/{draft}/schema#"
        if "draft" in draft
        else f"https://json-schema.org/draft/{draft}/schema"
    )
    problem = compile_schema({"$schema": named, "properties": {"a": {"type": "array", "items": fault}}})
    assert isinstance(problem, SchemaProblem)
    assert problem.message.startswith(f"$.properties.a.items{told}")
    assert not told.startswith(".type") or "expected a type" in problem.message


def test_fault_in_a_schema_under_a_name_of_digits_has_its_path() -> None:
    """`invalid_schema` with the path, and not an `internal` of ours."""
    problem = compile_schema({"properties": {"1": {"type": 3}}})
    assert isinstance(problem, SchemaProblem)
    assert problem.message.startswith("$.properties.1.type: ")


@pytest.mark.parametrize(
    ("raw", "good", "bad", "told"),
    [
        (True, 1, None, ""),
        ({"type": "integer"}, 1.0, "x" * 100, '$: this string is not of type "integer"'),
        ({"type": "integer"}, 5, [1], '$: this array is not of type "integer"'),
        ({"properties": {"n": {"type": "integer"}}}, {"n": 1}, {"n": "x"}, '$.n: "x" is not of type "integer"'),
        ({"items": {"properties": {"n": {"enum": ["a"]}}}}, [{"n": "a"}], [{}, {"n": "b"}], '$[1].n: "b" is not one of'),
        ({"required": ["a"]}, {"a": 1}, {}, '$: "a" is a required property'),
        ({"additionalProperties": False}, {}, {"x": 1}, "$: additional properties are not allowed"),
        ({"properties": {"a": True}, "additionalProperties": False}, {}, {"x": 1}, "$: Additional properties are not"),
        ({"properties": {"a b": False}}, {}, {"a b": 1}, '$["a b"]: '),
        ({"additionalProperties": {"type": "string"}}, {"1": "x"}, {"1": 3}, '$.1: 3 is not of type "string"'),
        ({"additionalProperties": {"type": "null"}}, {}, {"01": 3}, "$.01: 3 is not of type"),
        ({"additionalProperties": {"type": "null"}}, {}, {"+1": 3}, '$["+1"]: 3 is not of type'),
        ({"additionalProperties": {"items": {"type": "null"}}}, {}, {"7": [None, 3]}, "$.7[1]: 3 is not of type"),
        ({"multipleOf": 0.01}, 19.99, 0.001, "$: 0.001 is not a multiple of 0.01"),
        ({"maxLength": 2}, "żó", "abc", '$: "abc" is longer than 2 characters'),
        ({"pattern": "^a"}, "ab", "ba", '$: "ba" does not match "^a"'),
        ({"const": None}, None, 0, "$: "),
        ({"uniqueItems": True}, [1, 2], [1, 1], "$: this array has non-unique elements"),
        (
            {"anyOf": [{"type": "null"}, {"properties": {"a": {"type": "string"}}, "type": "object"}]},
            {"a": "x"},
            {"a": 1},
            '$.a: 1 is not of type "string"',
        ),
        ({"oneOf": [{"type": "string"}, {"minLength": 1}]}, "", "x", '$: "x" is valid under more than one'),
        (
            {"$schema": "http://json-schema.org/draft-07/schema#", "definitions": {"x": {"type": "string"}},
             "items": [{"$ref": "#/definitions/x"}]},
            ["a"], [1], "$[0]: 1 is not",
        ),
        ({"$anchor": "r", "$defs": {"a": {"$anchor": "b", "type": "null"}}, "$ref": "#b"}, None, 1, "$: 1 is not"),
        (
            {"$id": "http://h/a", "$ref": "b", "$defs": {"b": {"$id": "http://h/b", "type": "null"}}},
            None, 1, "$: 1 is not",
        ),
        ({"$id": "urn:a:b", "$ref": "#/$defs/c", "$defs": {"c": {"type": "null"}}}, None, 1, "$: 1 is not"),
        ({"$ref": "#/$defs/a~1b%25", "$defs": {"a/b%": {"type": "null"}}}, None, 1, "$: 1 is not"),
        ({"$ref": "#/components/0", "components": [{"type": "null"}]}, None, 1, "$: 1 is not"),
        ({"properties": {"$ref": {"type": "string"}}}, {"$ref": "x"}, None, ""),
        ({"enum": [{"$ref": "http://h/x"}]}, {"$ref": "http://h/x"}, 1, "$: 1 is not one of"),
    ],
)  # fmt: skip
def test_verdict_and_its_reason(raw: Any, good: Any, bad: Any, told: str) -> None:
    """A valid instance is None; an invalid one is one line that begins with its path."""
    schema = compiled(raw)
    assert schema.validate(good) is None
    if told:
        reason = schema.validate(bad)
        assert reason is not None
        assert reason.startswith(told)


def test_false_schema_allows_nothing() -> None:
    """`false` is a schema too."""
    assert compiled(False).validate({}) == "$: is not allowed by the schema"


@pytest.mark.parametrize("value", ["no date", "2026-99-99"])
def test_format_is_an_annotation(value: str) -> None:
    """As 2020-12 has it, in the older drafts as well."""
    for dialect in ("https://json-schema.org/draft/2020-12/schema", "http://json-schema.org/draft-07/schema#"):
        assert compiled({"$schema": dialect, "format": "date"}).validate(value) is None


def test_reason_is_one_short_line_of_printable_text() -> None:
    """However long and strange names and values are, and nothing of a long value is quoted."""
    schema = compiled({"additionalProperties": {"type": "integer"}})
    for name in ("n" * 5000, "a\nb\x1b[0m", "\U000e0001"):
        reason = schema.validate({name: "secret" * 100})
        assert reason is not None
        assert len(reason) <= 300
        assert reason.isprintable()
        assert "secret" not in reason
    names = compiled({"additionalProperties": False}).validate({f"name{index}": 1 for index in range(1000)})
    assert names is not None
    assert len(names) <= 300


def test_values_that_are_no_json_are_invalid() -> None:
    """What no JSON text can hold is told, not raised."""
    assert compiled({"type": "string"}).validate("\ud800") == "$: holds a value that is not JSON"
    assert compiled(True).validate({1, 2}) == "$: holds a value that is not JSON"


def test_threads_may_share_a_schema() -> None:
    """Large answers are judged off the event loop, by several threads at once."""
    schema = compiled({"items": {"type": "integer"}})
    wrong: list[str | None] = []

    def judge() -> None:
        wrong.extend(
            reason
            for _ in range(50)
            if (reason := schema.validate([1, "x"])) != '$[1]: "x" is not of type "integer"' or schema.validate([1])
        )

    threads = [threading.Thread(target=judge) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# ---------------------------------------------------------------------- the cache


def test_cache_returns_the_same_schema() -> None:
    """Equal schemas are one object, problems included, and `raw` is what was given."""
    cache = SchemaCache(4)
    raw = {"type": "object", "properties": {"b": True, "a": True}}
    first = cache.get(raw)
    assert isinstance(first, AnswerSchema)
    assert first.raw is raw
    assert cache.get(orjson.loads(orjson.dumps(raw))) is first
    assert cache.get({"type": "x"}) is cache.get({"type": "x"})


def test_key_order_is_part_of_a_schema() -> None:
    """Models write properties in the schema's order, so it is kept apart."""
    cache = SchemaCache(4)
    one = cache.get({"properties": {"a": True, "b": True}})
    other = cache.get({"properties": {"b": True, "a": True}})
    assert isinstance(one, AnswerSchema)
    assert isinstance(other, AnswerSchema)
    assert isinstance(other.raw, dict)
    assert list(other.raw["properties"]) == ["b", "a"]
    assert one.digest != other.digest


def test_cache_is_bounded_and_keeps_what_is_used() -> None:
    """The one not used for longest goes."""
    cache = SchemaCache(2)
    kept = cache.get({"minimum": 0})
    for number in range(1, 10):
        cache.get({"minimum": number})
        assert cache.get({"minimum": 0}) is kept
        assert len(cache) <= 2


def test_cache_is_bounded_by_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Schemas of large patterns push others out, and one that is too large alone is not kept."""
    monkeypatch.setattr(schema_module, "_CACHE_BYTES", 3_500_000)
    cache = SchemaCache(100)
    for number in range(10):
        cache.get({"pattern": f"^a{{{number + 1}}}$"})
        assert len(cache) <= 3
    assert isinstance(cache.get({"anyOf": [{"pattern": f"^b{{{n + 1}}}$"} for n in range(5)]}), AnswerSchema)
    assert len(cache) == 0


def test_cache_without_room_is_refused() -> None:
    """A size below one is a bug of the caller's."""
    with pytest.raises(ValueError, match="at least 1"):
        SchemaCache(0)


# ---------------------------------------------------------------------- properties

SCALARS = st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["", "a", "b"])
INSTANCES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)
TYPES = st.sampled_from(["null", "boolean", "integer", "number", "string", "array", "object"])
SCHEMAS: st.SearchStrategy[Any] = st.recursive(
    st.booleans() | st.fixed_dictionaries({"type": TYPES}) | st.fixed_dictionaries({"enum": st.lists(INSTANCES)}),
    lambda inner: st.fixed_dictionaries(
        {},
        optional={
            "properties": st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
            "additionalProperties": inner,
            "items": inner,
            "anyOf": st.lists(inner, min_size=1, max_size=3),
            "not": inner,
            "required": st.lists(st.sampled_from("abc"), unique=True),
            "minItems": st.integers(0, 2),
            "maximum": st.integers(-2, 2),
            "const": INSTANCES,
        },
    ),
    max_leaves=8,
)


@given(SCHEMAS, INSTANCES)
@settings(max_examples=300, deadline=None)
def test_verdicts_are_those_of_another_implementation(raw: Any, instance: Any) -> None:
    """The engine agrees with the reference implementation in Python."""
    verdict = compiled(raw).validate(instance)
    assert (verdict is None) is jsonschema.Draft202012Validator(raw).is_valid(instance)


@given(
    st.recursive(
        SCALARS,
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["$ref", "$id", "$schema", "$anchor", "$defs", "type", "items", "allOf", "pattern", "#"]
                ),
                inner | st.sampled_from(["#", "#/$defs/a", "#a", "x", "http://[", "#/allOf/0", "[", "object"]),
                max_size=4,
            )
        ),
        max_leaves=12,
    )
)
@settings(max_examples=300, deadline=None)
def test_any_json_compiles_or_is_a_problem(raw: Any) -> None:
    """Whatever a caller calls a schema, nothing is raised."""
    outcome = compile_schema(raw)
    assert isinstance(outcome, (AnswerSchema, SchemaProblem))
    if isinstance(outcome, SchemaProblem):
        assert outcome.message.startswith("$")
