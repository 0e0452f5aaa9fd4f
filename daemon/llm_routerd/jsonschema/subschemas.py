"""Which parts of a JSON Schema document certainly apply where: dialects, local references, applicators.

In doubt a part does not apply, so that whoever builds on this constrains too little and never too much.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from llm_routerd.jsonschema.dialects import LATEST, dialect_named
from llm_routerd.jsonschema.keywords import Applies, subschemas_of
from llm_routerd.jsonschema.values import follow

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_MAX_NESTING = 32
_MAX_LOOKED_AT = 128
_EVALUATE_ANY = (
    "patternProperties",
    "additionalProperties",
    "unevaluatedProperties",
    "$dynamicRef",
    "$recursiveRef",
)
_MAX_DOUBLE = sys.float_info.max
_MISSING: Any = object()


class Subschemas:
    """Finds its way in one schema document.

    Attributes:
        dialect: the document's; an unknown one constrains nothing.
        longest_prefix: length of the longest list of schemas for single items that was met so far.
    """

    def __init__(self, root: dict[str, Any] | bool) -> None:
        named = root.get("$schema", "") if isinstance(root, dict) else ""
        dialect = dialect_named(named) if named else LATEST
        self._root: dict[str, Any] | bool = True if dialect is None else root
        self._given = root
        self.dialect = dialect or LATEST
        self.longest_prefix = 0

    def conjunction(self, schemas: Sequence[Any]) -> list[dict[str, Any]] | None:
        """Return the schema objects that all must hold, included ones too; None: one of them is `false`."""
        found: dict[int, dict[str, Any]] = {}
        for schema in schemas:
            if not self._include(self._root if schema is self._given else schema, found, 0):
                return None
        return list(found.values())

    def of_property(self, schema: dict[str, Any], name: str) -> Iterator[Any]:
        """Yield the subschemas of one schema object that apply to a property's value."""
        properties = schema.get("properties", {})
        if name in properties:
            yield properties[name]
        elif schema.get("patternProperties"):
            return
        elif "additionalProperties" in schema:
            yield schema["additionalProperties"]
        elif "unevaluatedProperties" in schema and self.dialect.has_unevaluated:
            seen = {id(schema)}
            if not any(self._may_evaluate(part, name, seen) for part in self._in_place(schema)):
                yield schema["unevaluatedProperties"]

    def of_item(self, schema: dict[str, Any], index: int) -> Iterator[Any]:
        """Yield the subschemas of one schema object that apply to an array's item."""
        rest = schema.get("items")
        prefix = schema.get("prefixItems", []) if self.dialect.has_prefix_items else []
        if isinstance(rest, list):
            prefix, rest = rest, schema.get("additionalItems")
        if index < len(prefix):
            yield prefix[index]
        elif rest is not None:
            yield rest

    def _include(self, schema: Any, found: dict[int, dict[str, Any]], nesting: int) -> bool:
        """Add a schema and what it includes to `found`; return False where nothing can satisfy it."""
        if not isinstance(schema, dict):
            return schema is not False
        if id(schema) in found or nesting > _MAX_NESTING or self._is_other_resource(schema):
            return True
        reference = schema.get("$ref")
        if reference is not None:
            target = self._resolve(reference)
            if self.dialect.ref_stands_alone:
                return target is _MISSING or self._include(target, found, nesting + 1)
        found[id(schema)] = schema
        self._note_prefix(schema)
        if reference is not None and target is not _MISSING and not self._include(target, found, nesting + 1):
            return False
        return all(self._include(part, found, nesting + 1) for part in schema.get("allOf", ()))

    def _note_prefix(self, schema: dict[str, Any]) -> None:
        for key in ("prefixItems", "items"):
            prefix = schema.get(key)
            if isinstance(prefix, list):
                self.longest_prefix = max(self.longest_prefix, len(prefix))

    def _is_other_resource(self, schema: dict[str, Any]) -> bool:
        """Tell whether references inside mean another document, or its keywords another dialect."""
        return schema is not self._root and any(isinstance(schema.get(key), str) for key in ("$id", "id", "$schema"))

    def _resolve(self, reference: str) -> Any:
        """Return what a reference within this document means, `_MISSING` for all else."""
        steps = follow(self._root, reference)
        if steps is None or any(isinstance(place, dict) and self._is_other_resource(place) for _, place in steps[:-1]):
            return _MISSING
        return steps[-1][1] if steps else self._root

    def _in_place(self, schema: dict[str, Any]) -> Iterator[Any]:
        """Yield all subschemas that are applied to the same instance as this one, surely or perhaps."""
        for applies, _, part in subschemas_of(schema):
            if applies is Applies.HERE:
                yield part
        if "$ref" in schema:
            yield self._resolve(schema["$ref"])
        if "$dynamicRef" in schema or "$recursiveRef" in schema:
            yield _MISSING

    def _may_evaluate(self, schema: Any, name: str, seen: set[int]) -> bool:
        """Tell whether a property might count as evaluated by this subschema, one not yet in `seen`."""
        if schema is _MISSING or len(seen) > _MAX_LOOKED_AT:
            return True
        if not isinstance(schema, dict) or id(schema) in seen:
            return False
        seen.add(id(schema))
        if self._is_other_resource(schema) or any(key in schema for key in _EVALUATE_ANY):
            return True
        if name in schema.get("properties", ()):
            return True
        return any(self._may_evaluate(part, name, seen) for part in self._in_place(schema))


def count_in(schema: dict[str, Any], key: str) -> float | None:
    """Return a keyword's non-negative count, None where it has none."""
    value = number_in(schema, key)
    return None if value is None or value < 0 else value


def number_in(schema: dict[str, Any], key: str) -> float | None:
    """Return a keyword's number, None where it has none (draft 4 has booleans in places)."""
    value = schema.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > _MAX_DOUBLE:
        return None
    return value
