"""A tool as it stands in the hash of tools: whoever serves one writes there, so it may be anything."""

from __future__ import annotations

import re
from typing import Any

import jsonschema_rs
import orjson
from msgspec import Struct

from llm_routerd.jsonschema.compiled import AnswerSchema, SchemaCache, SchemaProblem
from llm_routerd.jsonschema.path import json_path, printable
from llm_routerd.jsonschema.values import depth_of
from llm_routerd.protocol.schema_files import load_schema
from llm_routerd.protocol.tool import MOST_REGISTRATION_BYTES, TIMEOUT_MS, TOOL_NAME_PATTERN

_MAX_DEPTH = 64
_NO_PARAMETERS: dict[str, Any] = {"type": "object"}
# Made when the module is imported: a worker has no time to read files on its event loop.
_VALIDATOR = jsonschema_rs.Draft202012Validator(load_schema("tool"), offline=True, mask="…")


class Tool(Struct, frozen=True, kw_only=True):
    """A registered tool; its fields are those of its registration, with the schemas compiled.

    `confirm`: it demands a person's word for each call by itself.
    """

    name: str
    description: str
    parameters: AnswerSchema
    confirm: bool = False
    idempotent: bool = False
    timeout_ms: int = TIMEOUT_MS
    result_schema: AnswerSchema | None = None


class Unsound(Struct, frozen=True):
    """Why a registration is none: one line for its author."""

    why: str


def is_tool_name(name: str) -> bool:
    """Whether a tool can be registered under this name."""
    return re.fullmatch(TOOL_NAME_PATTERN, name) is not None


def read_tool(name: str, registration: bytes, schemas: SchemaCache) -> Tool | Unsound:
    """A registration as it stands in the hash."""
    if not is_tool_name(name):
        return Unsound(f"the name does not match {TOOL_NAME_PATTERN}")
    if len(registration) > MOST_REGISTRATION_BYTES:
        return too_long(len(registration))
    try:
        given = orjson.loads(registration)
    except orjson.JSONDecodeError as error:
        return Unsound(f"it is no JSON: {error}")
    if not isinstance(given, dict) or depth_of(given) > _MAX_DEPTH:
        return Unsound("it is no JSON object" if not isinstance(given, dict) else "it is nested too deep")
    if (problem := _problem_of(given)) is not None:
        return Unsound(problem)
    return _compiled(name, given, schemas)


def too_long(size: int) -> Unsound:
    """Of a registration of so many bytes, which nobody need have read."""
    return Unsound(f"it has {size} bytes, more than the {MOST_REGISTRATION_BYTES} that are accepted")


def _problem_of(given: dict[str, Any]) -> str | None:
    try:
        _VALIDATOR.validate(given)
    except jsonschema_rs.ValidationError as error:
        return f"{json_path(error.instance_path)}: {printable(error.message)[:200]}"
    return None


def _compiled(name: str, given: dict[str, Any], schemas: SchemaCache) -> Tool | Unsound:
    parameters = schemas.get(given.get("parameters", _NO_PARAMETERS))
    if isinstance(parameters, SchemaProblem):
        return Unsound(f"$.parameters{parameters.message.removeprefix('$')}")
    result_schema = schemas.get(given["result_schema"]) if "result_schema" in given else None
    if isinstance(result_schema, SchemaProblem):
        return Unsound(f"$.result_schema{result_schema.message.removeprefix('$')}")
    return Tool(
        name=name,
        description=given["description"],
        parameters=parameters,
        confirm=given.get("confirm", False),
        idempotent=given.get("idempotent", False),
        timeout_ms=int(given.get("timeout_ms", TIMEOUT_MS)),
        result_schema=result_schema,
    )
