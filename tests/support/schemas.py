"""Schemas and instances for tests: compiled, refused, nested, and laddered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llm_routerd.jsonschema.compiled import AnswerSchema, SchemaProblem, compile_schema

if TYPE_CHECKING:
    from collections.abc import Callable


def compiled(raw: Any) -> AnswerSchema:
    """See that it compiles."""
    outcome = compile_schema(raw)
    assert isinstance(outcome, AnswerSchema), outcome
    return outcome


def problem(raw: Any) -> str:
    """See that it does not compile."""
    outcome = compile_schema(raw)
    assert isinstance(outcome, SchemaProblem), outcome
    assert "\n" not in outcome.message
    assert len(outcome.message) <= 300
    return outcome.message


def nested(depth: int, leaf: Any) -> Any:
    """Objects within objects, under `a`."""
    for _ in range(depth):
        leaf = {"a": leaf}
    return leaf


def ladder(length: int, rung: Callable[[dict[str, str]], Any]) -> dict[str, Any]:
    """Definitions of which each one refers to the next."""
    steps = {f"s{index}": rung({"$ref": f"#/$defs/s{index + 1}"}) for index in range(length)}
    return {"$ref": "#/$defs/s0", "$defs": {**steps, f"s{length}": {"type": "integer"}}}


def closed(schema: Any) -> Any:
    """The same schema, of objects that hold nothing but what it names: for what we write, which is open to others."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {word: inner if word == "examples" else closed(inner) for word, inner in schema.items()}
    is_object = isinstance(found.get("properties"), dict) and "required" in found and found.get("type") == "object"
    # An item of a dead letter's history is told by its id alone.
    return {"additionalProperties": False, **found} if is_object and found["required"] != ["event"] else found
