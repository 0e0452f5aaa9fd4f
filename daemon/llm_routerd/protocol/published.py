"""The JSON Schemas of the protocol, made of its types: what producers and subscribers in other languages go by.

What callers send is closed, so that a typing mistake is an error; what is written to them is open, so that a property
more breaks nobody who validates.  Nothing at run time comes here: the documents are files of the package.
"""

from __future__ import annotations

import re
import types
from enum import Enum
from inspect import getdoc
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    Required,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from msgspec import NODEFAULT, Struct
from msgspec.structs import fields

from llm_routerd.protocol import chat_forms, examples
from llm_routerd.protocol.audit import AuditEntry
from llm_routerd.protocol.consent import ConsentFields
from llm_routerd.protocol.dead_letter import DeadLetter
from llm_routerd.protocol.metrics_event import MetricsEvent
from llm_routerd.protocol.reading import KINDS
from llm_routerd.protocol.request import RequestFields
from llm_routerd.protocol.tool import ToolFields, ToolRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

Schema = dict[str, Any]
Arguments = tuple[Any, ...]

_PRIMITIVES: dict[Any, Schema] = {
    Any: {},
    bool: {"type": "boolean"},
    dict: {"type": "object"},
    float: {"type": "number"},
    int: {"type": "integer"},
    str: {"type": "string"},
    types.NoneType: {"type": "null"},
}


def documents() -> dict[str, Schema]:
    """Every schema of the protocol, by the name of its file without `.schema.json`."""
    request = document(
        RequestFields, "A request to llm-routerd", examples.REQUESTS, definitions=chat_forms.DEFINITIONS,
        oneOf=[{"required": ["prompt"]}, {"required": ["messages"]}],
    )  # fmt: skip
    more: dict[str, Schema] = {"attempt": {"dependentRequired": {"entry": ["lane"], "lane": ["entry"]}}}
    events = {
        f"event.{name}": document(kind, f"Event `{name}`", examples.EVENTS[name], **more.get(name, {}))
        for name, kind in KINDS.items()
    }
    return events | {
        "audit": document(AuditEntry, "An entry of the audit", examples.AUDIT_ENTRIES),
        "consent": document(
            ConsentFields,
            "A person's word to a tool call",
            examples.CONSENTS,
            oneOf=[{"required": ["confirm", "args_sha256"]}, {"required": ["deny"]}],
        ),
        "dead-letter": document(DeadLetter, "A dead letter", examples.DEAD_LETTERS),
        "metrics": document(MetricsEvent, "The metrics event", examples.METRICS_EVENTS),
        "request": request,
        "tool": document(ToolFields, "A tool, as it is registered", examples.TOOLS),
        "tool-call": document(ToolRequest, "A call of a tool", examples.TOOL_REQUESTS),
    }


def document(
    kind: type, title: str, shown: Sequence[Any], *, definitions: dict[str, Schema] | None = None, **more: Any
) -> Schema:
    """The schema of one type: of a Struct as it is written, of a TypedDict as it is to be given."""
    named = dict(definitions or {})
    described = _object(kind, named)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": title,
        **described,
        **more,
        **({"$defs": named} if named else {}),
        "examples": list(shown),
    }


def _object(kind: type, named: dict[str, Schema]) -> Schema:
    hints = get_type_hints(kind, include_extras=True)
    found: Schema = {"description": _description(kind), "type": "object"}
    if issubclass(kind, Struct):
        found["properties"], found["required"] = {}, []
        for each in fields(kind):
            told = _schema(hints[each.name], named)
            if each.default is NODEFAULT or not kind.__struct_config__.omit_defaults:
                found["required"].append(each.encode_name)
            elif each.default is None:
                told = _without_null(told)
            found["properties"][each.encode_name] = told
        return found
    found["properties"] = {name: _schema(hint, named) for name, hint in hints.items()}
    # `__required_keys__` alone passes over `Required` where annotations are text.
    always: frozenset[str] = kind.__required_keys__  # type: ignore[attr-defined]  # a TypedDict
    if required := [name for name, hint in hints.items() if name in always or get_origin(hint) is Required]:
        found["required"] = required
    return found if kind.__total__ else found | {"additionalProperties": False}  # type: ignore[attr-defined]


def _schema(hint: Any, named: dict[str, Schema]) -> Schema:
    origin, arguments = get_origin(hint) or hint, get_args(hint)
    if arguments and origin in _GENERIC:
        return _GENERIC[origin](arguments, named)
    if origin in _PRIMITIVES:
        return dict(_PRIMITIVES[origin])
    if issubclass(origin, Enum):
        return {"enum": [each.value for each in origin]}
    if is_typeddict(origin) and not origin.__total__:
        return _object(origin, named)
    name = getattr(origin, "definition", _snake(origin.__name__))
    if name not in named:
        named[name] = _object(origin, named)
    return {"$ref": f"#/$defs/{name}"}


def _annotated(arguments: Arguments, named: dict[str, Schema]) -> Schema:
    found = _schema(arguments[0], named)
    for meta in arguments[1:]:
        described = {"description": meta.description} if meta.description else {}
        found = described | _without_description(found) | (meta.extra_json_schema or {})
    return found


def _literal(arguments: Arguments, _named: dict[str, Schema]) -> Schema:
    return {"enum": list(arguments)} if len(arguments) > 1 else {"const": arguments[0]}


def _array(arguments: Arguments, named: dict[str, Schema]) -> Schema:
    return {"type": "array", "items": _schema(arguments[0], named)}


def _mapping(arguments: Arguments, named: dict[str, Schema]) -> Schema:
    values = {} if arguments[1] is Any else {"additionalProperties": _schema(arguments[1], named)}
    return {"type": "object", **values}


def _union(arguments: Arguments, named: dict[str, Schema]) -> Schema:
    """One of several, as short as it can be told: by one `enum`, or by one list of types."""
    schemas = [_schema(each, named) for each in arguments]
    if any("enum" in each for each in schemas) and all("enum" in each or each in _FEW for each in schemas):
        return {"enum": [value for each in schemas for value in _values(each)]}
    if any("$ref" in each or "enum" in each for each in schemas):
        return {"anyOf": schemas}
    merged: Schema = {"type": [each["type"] for each in schemas]}
    for each in schemas:
        merged |= {word: value for word, value in each.items() if word != "type"}
    return merged


_FEW: tuple[Schema, ...] = ({"type": "null"}, {"type": "boolean"})


def _values(schema: Schema) -> Iterator[Any]:
    if "enum" in schema:
        yield from schema["enum"]
    else:
        yield from (None,) if schema["type"] == "null" else (False, True)


_GENERIC: dict[Any, Callable[[Arguments, dict[str, Schema]], Schema]] = {
    Annotated: _annotated,
    Literal: _literal,
    Required: lambda arguments, named: _schema(arguments[0], named),
    Union: _union,
    dict: _mapping,
    list: _array,
    tuple: _array,
    types.UnionType: _union,
}


def _without_description(schema: Schema) -> Schema:
    return {word: value for word, value in schema.items() if word != "description"}


def _without_null(schema: Schema) -> Schema:
    """Of a property that is left out where it would be null."""
    found = dict(schema)
    if "type" not in found and "anyOf" not in found and "enum" not in found:  # anything
        return found
    if "anyOf" in found:
        (only,) = [each for each in found.pop("anyOf") if each != {"type": "null"}]
        return {**found, **only}
    if "enum" in found:
        return found | {"enum": [value for value in found["enum"] if value is not None]}
    kinds = [kind for kind in found["type"] if kind != "null"]
    return found | {"type": kinds[0] if len(kinds) == 1 else kinds}


def _description(kind: type) -> str:
    """Its docstring, as one line."""
    return re.sub(r"\s+", " ", getdoc(kind) or "")


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
