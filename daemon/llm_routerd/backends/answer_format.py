"""How a JSON Schema is put to a provider that takes only some schemas.

Whatever a provider is told, the answer is validated against the caller's own schema: what is sent may allow
more than that schema, and must not forbid every answer to it.

Other servers than a provider's own speak his protocol as far as it goes.  Many pass over the field that holds a
schema, so that the model would never see it, and nothing tells that they did.  There the schema goes in words as
well, and always in the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from llm_routerd.jsonschema.values import follow

if TYPE_CHECKING:
    from collections.abc import Iterable

_ANNOTATIONS = frozenset({"title", "description", "$schema", "$id", "$comment", "examples", "default", "deprecated"})
_OPENAI_STRICT = _ANNOTATIONS | {
    *(
        "type",
        "properties",
        "required",
        "additionalProperties",
        "items",
        "enum",
        "const",
        "anyOf",
        "$ref",
        "$defs",
    ),
    *("pattern", "format", "multipleOf", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    *("minItems", "maxItems"),
}
_OPENAI_FORMATS = frozenset({"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"})
_ANTHROPIC_FORMATS = _OPENAI_FORMATS | {"uri"}
_MAX_STRICT_DEPTH = 5
_MAX_PARTS = 500  # references that are put in place can multiply


NOT_ITS_OWN = "; a schema goes in words as well, since this server is not {}'s own"
"""What `check` adds to what it says of a server that speaks the protocol of somebody else."""


def instruction(schema: dict[str, Any] | bool) -> str:
    """The schema in words, for a model that cannot be constrained to it."""
    opening = "Answer with JSON only: no prose, no Markdown."
    if isinstance(schema, bool):
        return opening
    return f"{opening} It must satisfy this JSON Schema:\n{orjson.dumps(schema).decode()}"


def with_instruction(messages: Iterable[dict[str, Any]], schema: dict[str, Any] | bool) -> list[dict[str, Any]]:
    """The messages with the schema in words: in the system prompt they begin with, or in one before them.

    One system prompt, at the beginning: the templates of many models take no second one and none later.
    """
    words = instruction(schema)
    result = list(messages)
    first = result[0] if result else {}
    if first.get("role") not in {"system", "developer"}:
        return [{"role": "system", "content": words}, *result]
    content = first.get("content")
    if isinstance(content, list):
        result[0] = {**first, "content": [*content, {"type": "text", "text": words}]}
    else:
        result[0] = {**first, "content": f"{content}\n\n{words}" if content else words}
    return result


def meets_openai_strict(schema: dict[str, Any]) -> bool:
    """Whether OpenAI takes it with `strict`: closed objects, all properties required, few keywords."""
    return schema.get("type") == "object" and _strict(schema, 0)


def _strict(schema: Any, depth: int) -> bool:
    if not isinstance(schema, dict) or depth > _MAX_STRICT_DEPTH or not _OPENAI_STRICT.issuperset(schema):
        return False
    properties = schema.get("properties", {})
    if schema.get("type") == "object" or "properties" in schema:
        closed = schema.get("additionalProperties") is False
        if not closed or set(schema.get("required", ())) != set(properties):
            return False
    if schema.get("format", "date") not in _OPENAI_FORMATS:
        return False
    parts = [*properties.values(), *schema.get("anyOf", ())]
    parts += [schema["items"]] if "items" in schema else []
    return all(_strict(part, depth + 1) for part in parts) and all(
        _strict(part, 1) for part in schema.get("$defs", {}).values()
    )


def for_anthropic(schema: dict[str, Any]) -> tuple[dict[str, Any], bool] | None:
    """The schema as Anthropic's constrained decoding takes it, and whether all of it is in there.

    Bounds, patterns and conditions are left out (the second value is then False); open objects are closed to
    the properties that they name.  None: it cannot be said (maps, recursion, values of any type, …).
    """
    narrowing = _Narrowing(schema)
    try:
        return narrowing.narrow(schema, ()), narrowing.complete
    except _InexpressibleError:
        return None


class _InexpressibleError(Exception):
    """A part of a schema has no counterpart."""


class _Narrowing:
    """One pass over a schema; local references are put in place of their targets."""

    def __init__(self, root: dict[str, Any]) -> None:
        self._root = root
        self._parts = 0
        self.complete = True

    def narrow(self, schema: Any, path: tuple[str, ...]) -> dict[str, Any]:
        """`schema` without what Anthropic rejects; `path` holds the references that led here."""
        self._parts += 1
        if not isinstance(schema, dict) or self._parts > _MAX_PARTS:
            raise _InexpressibleError
        if "$ref" in schema:
            ref = schema["$ref"]
            if ref in path:
                raise _InexpressibleError
            self.complete = self.complete and not (schema.keys() - _ANNOTATIONS - {"$ref", "$defs", "definitions"})
            return self.narrow(self._target(ref), (*path, ref))
        known = {key: schema[key] for key in ("title", "description") if key in schema}
        left = schema.keys() - _ANNOTATIONS - {"$defs", "definitions", "type"}
        if "const" in schema or "enum" in schema:
            values = schema["enum"] if "enum" in schema else [schema["const"]]
            if any(isinstance(value, dict | list) for value in values):
                raise _InexpressibleError
            self.complete = self.complete and not (left - {"const", "enum"})
            return {**known, "enum": values}
        for choice in ("anyOf", "oneOf"):
            if choice in schema:
                self.complete = self.complete and not (left - {choice}) and choice == "anyOf"
                return {**known, "anyOf": [self.narrow(part, path) for part in schema[choice]]}
        kind = schema.get("type")
        if isinstance(kind, list):
            return {**known, "anyOf": [self.narrow({**schema, "type": one}, path) for one in kind]}
        return {**known, "type": kind, **self._of_type(kind, schema, left, path)}

    def _of_type(self, kind: Any, schema: dict[str, Any], left: set[str], path: tuple[str, ...]) -> dict[str, Any]:
        handled: set[str] = set()
        narrowed: dict[str, Any] = {}
        if kind == "object":
            properties, required = schema.get("properties"), schema.get("required", [])
            # Closed to its properties, a map could only be empty.
            if not properties or not set(required) <= set(properties) or "patternProperties" in schema:
                raise _InexpressibleError
            if isinstance(schema.get("additionalProperties"), dict):
                raise _InexpressibleError
            narrowed["properties"] = {name: self.narrow(part, path) for name, part in properties.items()}
            narrowed["required"] = required
            narrowed["additionalProperties"] = False
            handled = {"properties", "required", "additionalProperties"}
        elif kind == "array":
            if "items" not in schema:
                raise _InexpressibleError
            narrowed["items"] = self.narrow(schema["items"], path)
            handled = {"items"}
            if schema.get("minItems") in {0, 1}:
                narrowed["minItems"] = schema["minItems"]
                handled |= {"minItems"}
        elif kind == "string":
            if schema.get("format") in _ANTHROPIC_FORMATS:
                narrowed["format"] = schema["format"]
                handled = {"format"}
        elif kind not in {"integer", "number", "boolean", "null"}:
            raise _InexpressibleError
        self.complete = self.complete and not (left - handled)
        return narrowed

    def _target(self, ref: Any) -> Any:
        steps = follow(self._root, ref) if isinstance(ref, str) else None
        if not steps:  # another document's, an anchor, nothing, or the whole, which refers to itself
            raise _InexpressibleError
        return steps[-1][1]
