"""The JSON Schema of the configuration file, made of the types in `tree`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

from msgspec import NODEFAULT
from msgspec.structs import fields

from llm_routerd.config.table import Table, taken_apart, traits_of
from llm_routerd.config.tree import Config

_ABOUT = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "The configuration file of llm-routerd",
    "description": (
        "The TOML document as JSON, after ${env:…}, ${file:…} and ${credential:…} have been replaced. "
        "Times are in seconds."
    ),
}
_EXAMPLES: tuple[dict[str, Any], ...] = (
    {},
    {
        "redis": {"url": "redis://cupboard.lan:6379/0"},
        "deployments": {
            "big": {
                "model": "ollama/qwen2.5:32b",
                "api_base": "http://workshop.lan:11434",
                "local": True,
                "timeout": 60,
            }
        },
        "chains": {"default": {"deployments": ["local", "big", "haiku"]}},
    },
)
_TYPES = {str: "string", bool: "boolean", int: "integer", float: "number", tuple: "array", Mapping: "object"}
_NUMBERS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
_BOUNDS = {
    "integer": _NUMBERS,
    "number": _NUMBERS,
    "string": {"min_length": "minLength", "max_length": "maxLength", "pattern": "pattern"},
    "array": {"min_length": "minItems", "max_length": "maxItems"},
}


def config_schema() -> dict[str, Any]:
    """The content of `schemas/config.schema.json`.

    Nothing is required in it, for a file need not give what it does not change.
    """
    named: dict[str, Any] = {}
    return {**_ABOUT, **_of_table(Config, named), "$defs": named, "examples": list(_EXAMPLES)}


def _of_table(table: type[Table], named: dict[str, Any]) -> dict[str, Any]:
    """A table's keys; `named` gets the kinds of tables in it that have names of their own."""
    properties = {}
    for each in fields(table):
        if traits_of(table)[each.name].is_ours:
            continue
        properties[each.name] = found = _of_type(each.type, named)
        default = each.default if each.default_factory is NODEFAULT else each.default_factory()
        holds_tables = "properties" in found or "additionalProperties" in found
        if default is not NODEFAULT and default is not None and not holds_tables:
            found["default"] = _as_json(default)
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _of_type(hint: Any, named: dict[str, Any]) -> dict[str, Any]:
    kind, said = taken_apart(hint)
    origin, arguments = get_origin(kind) or kind, get_args(kind)
    found: dict[str, Any] = {}
    for each in said:
        if each.description is not None:
            found["description"] = each.description
    if isinstance(origin, type) and issubclass(origin, Table):
        return {"description": _first_line(origin), **_of_table(origin, named)}
    if origin is Literal:
        return {**found, "enum": list(arguments)}
    json_type = _TYPES[origin]
    found["type"] = json_type
    for each in said:
        bounds = {word: getattr(each, bound) for bound, word in _BOUNDS.get(json_type, {}).items()}
        found |= {word: bound for word, bound in bounds.items() if bound is not None}
        found |= each.extra_json_schema or {}
    if "enum" in found:  # says more, to who reads an error too
        del found["type"]
    if origin is tuple:
        found["items"] = _of_type(arguments[0], named)
    elif origin is Mapping and arguments[1] is not Any:
        found |= {
            "propertyNames": _of_type(arguments[0], named),
            "additionalProperties": _of_values(arguments[1], named),
        }
    return found


def _of_values(hint: Any, named: dict[str, Any]) -> dict[str, Any]:
    """What stands under names: tables, which get a definition of their own, or plain values."""
    if not (isinstance(hint, type) and issubclass(hint, Table)):
        return _of_type(hint, named)
    name = hint.__name__.lower()
    named[name] = {"description": _first_line(hint), **_of_table(hint, named)}
    return {"$ref": f"#/$defs/{name}"}


def _as_json(default: Any) -> Any:
    if isinstance(default, float) and default.is_integer():
        return int(default)
    return list(default) if isinstance(default, tuple) else default


def _first_line(table: type[Table]) -> str:
    return (table.__doc__ or "").partition("\n")[0]
