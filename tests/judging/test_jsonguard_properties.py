"""The promise of the guard: it rejects nothing that full validation would accept."""

from __future__ import annotations

import json
from random import Random
from typing import TYPE_CHECKING, Any

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_routerd.jsonschema.compiled import AnswerSchema, compile_schema
from llm_routerd.jsonschema.shape import shape_of
from llm_routerd.judging.json_text import json_body
from llm_routerd.judging.jsonguard import JsonGuard
from llm_routerd.protocol.codes import AttemptCode

if TYPE_CHECKING:
    from llm_routerd.protocol.outcome import Rejection

SETTINGS = settings(max_examples=200, deadline=None)

NAMES = ("a", "b", "ab", "é", 'q"', "$ref")
SCALARS = (
    None,
    True,
    False,
    0,
    1,
    -2,
    3,
    0.5,
    1.0,
    1e20,
    2**53 + 1,
    "",
    "a",
    "ab",
    "abc",
    "é",
    "\U0001f600",
    'x"y\\',
    "\n",
)
TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
REFERENCES = ("#", "#/$defs/x", "#/$defs/y", "#/properties/a", "#y")
DIALECTS = (None, None, None, "https://json-schema.org/draft/2019-09/schema", "http://json-schema.org/draft-07/schema#")
SINGLE = (
    *("additionalProperties", "unevaluatedProperties", "propertyNames", "items", "unevaluatedItems", "contains"),
    *("not", "if", "then", "else"),
)
MAPS = ("properties", "properties", "dependentSchemas")
LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
COUNTS = ("maxProperties", "maxItems", "minItems", "maxLength", "minLength")
BOUNDS = ("minimum", "maximum", "exclusiveMaximum", "exclusiveMinimum")

randoms = st.integers(0, 2**64).map(Random)


def make_instance(rng: Random, depth: int = 3) -> Any:
    """Make a JSON value."""
    kind = rng.random() if depth else 1.0
    if kind < 0.2:
        return [make_instance(rng, depth - 1) for _ in range(rng.randrange(4))]
    if kind < 0.55:
        return {rng.choice(NAMES): make_instance(rng, depth - 1) for _ in range(rng.randrange(4))}
    return rng.choice(SCALARS)


def make_schema(rng: Random, depth: int = 3) -> dict[str, Any] | bool:
    """Schemas of every keyword that the guard looks at, and of some that it must leave alone."""
    if not depth or rng.random() < 0.15:
        plain: list[dict[str, Any] | bool] = [True, False, {"type": rng.choice(TYPES)}, {"type": rng.sample(TYPES, 3)}]
        return rng.choice(plain)
    schema: dict[str, Any] = {}
    for _ in range(rng.randint(1, 3)):
        key = rng.choice(
            ["type", "enum", "const", "required", "patternProperties", "$ref", *SINGLE, *MAPS, *LISTS, *COUNTS, *BOUNDS]
        )
        schema[key] = make_keyword(rng, key, depth - 1)
    return schema


def make_keyword(rng: Random, key: str, depth: int) -> Any:  # noqa: PLR0911 - one line for each kind of keyword
    """Make the value of one keyword."""
    if key in SINGLE:
        return make_schema(rng, depth)
    if key in MAPS:
        return {rng.choice(NAMES): make_schema(rng, depth) for _ in range(3)}
    if key in LISTS:
        return [make_schema(rng, depth) for _ in range(rng.randint(1, 3))]
    if key in COUNTS:
        return rng.randrange(4)
    if key in BOUNDS:
        return rng.choice([-2, 0, 0.5, 1, 2])
    if key == "type":
        return rng.choice(TYPES)
    if key == "enum":
        return [make_instance(rng, 1) for _ in range(4)]
    if key == "const":
        return make_instance(rng, 2)
    if key == "required":
        return rng.sample(NAMES, 1)
    return {"^a": make_schema(rng, depth)} if key == "patternProperties" else rng.choice(REFERENCES)


def make_document(rng: Random) -> AnswerSchema:
    """A whole schema that compiles."""
    while True:
        raw = make_schema(rng)
        if isinstance(raw, dict):
            raw["$defs"] = {"x": make_schema(rng, 2), "y": {"$anchor": "y", "items": make_schema(rng, 1)}}
            raw.setdefault("properties", {}).setdefault("a", make_schema(rng, 1))
            dialect = rng.choice(DIALECTS)
            if dialect is not None:
                raw["$schema"] = dialect
        compiled = compile_schema(raw)
        if isinstance(compiled, AnswerSchema):
            return compiled


def spell(rng: Random, value: Any) -> str:
    """One of the many texts of a JSON value."""
    separators = rng.choice([(",", ":"), (" , ", " : ")])
    text = json.dumps(value, ensure_ascii=rng.random() < 0.5, indent=rng.choice([None, 0, 2]), separators=separators)
    opening, closing = rng.choice([("", ""), (" \n", " "), ("\ufeff", ""), ("```json\n", "\n```\n"), ("```\n", "```")])
    return opening + text + closing


def cut(rng: Random, text: str) -> set[int]:
    """Choose where a text is cut."""
    return {rng.randrange(len(text) + 1) for _ in range(rng.randrange(20))}


def guard_of(schema: AnswerSchema, text: str, cuts: set[int]) -> Rejection | None:
    """Return the guard's verdict on a text cut like that."""
    guard = JsonGuard(shape_of(schema.raw))
    ends = [*sorted(cut for cut in cuts if cut < len(text)), len(text)]
    start = 0
    for end in ends:
        rejection = guard.feed(text[start:end])
        if rejection is not None:
            return rejection
        start = end
    return guard.finish()


def is_valid(schema: AnswerSchema, text: str) -> bool:
    """Tell what parser and validator say."""
    try:
        return schema.validate(orjson.loads(json_body(text))) is None
    except orjson.JSONDecodeError:
        return False


def has_duplicates(text: str) -> bool:
    """A value that a duplicate of its key replaces is judged by the guard and not by the validator."""
    found = False

    def note(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal found
        found = found or len(dict(pairs)) < len(pairs)
        return dict(pairs)

    json.loads(json_body(text), object_pairs_hook=note)
    return found


@SETTINGS
@given(randoms)
def test_guard_rejects_no_valid_answer(rng: Random) -> None:
    """Whatever the schema, the value, its spelling and the pieces: a rejection is confirmed by the validator."""
    schema = make_document(rng)
    for _ in range(10):
        text = spell(rng, make_instance(rng))
        rejection = guard_of(schema, text, cut(rng, text))
        if rejection is not None:
            assert not is_valid(schema, text), (schema.raw, text, rejection.reason)


@SETTINGS
@given(randoms, st.text('{}[]:,"\\tn01-.eu`x \n', max_size=3))
def test_guard_rejects_no_valid_answer_after_mutation(rng: Random, inserted: str) -> None:
    """The same of texts that somebody has tampered with."""
    schema = make_document(rng)
    text = spell(rng, make_instance(rng))
    place = rng.randrange(len(text) + 1)
    text = text[:place] + inserted + text[place + rng.randrange(4) :]
    rejection = guard_of(schema, text, cut(rng, text))
    if rejection is not None and rejection.code is AttemptCode.SCHEMA_VIOLATION and is_valid(schema, text):
        assert has_duplicates(text), (schema.raw, text, rejection.reason)


def spell_bare(value: Any) -> str:
    """Spell a value as it comes."""
    return json.dumps(value)


def mutate(rng: Random, text: str, inserted: str) -> str:
    """Change a text in one place."""
    place = rng.randrange(len(text) + 1)
    return text[:place] + inserted + text[place + rng.randrange(2) :]


@SETTINGS
@given(randoms, st.text('{}[]:,"\\tnrufalse01-.eEd8cC \n', max_size=14))
def test_guard_and_parser_agree_on_syntax(rng: Random, text: str) -> None:
    """Where the schema asks for nothing, the guard accepts exactly what orjson parses."""
    for tried in (text, mutate(rng, spell_bare(make_instance(rng)), text[:2])):
        guard = JsonGuard(shape_of(True))
        accepted = all(guard.feed(character) is None for character in tried) and guard.finish() is None
        try:
            orjson.loads(tried)
        except orjson.JSONDecodeError:
            assert not accepted, tried
        else:
            assert accepted, tried


@SETTINGS
@given(randoms)
def test_pieces_make_no_difference(rng: Random) -> None:
    """A text gets the same verdict whole, in pieces and character by character."""
    schema = make_document(rng)
    for _ in range(5):
        text = spell(rng, make_instance(rng))
        verdicts = {guard_of(schema, text, cuts) is None for cuts in (set(), cut(rng, text), set(range(len(text))))}
        assert len(verdicts) == 1, (schema.raw, text)
