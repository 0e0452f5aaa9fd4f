"""What is registered of a server's tools: names, promises, schemas.  Pure; what it is given is data of a stranger."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import orjson

from llm_routerd.jsonschema.compiled import SchemaProblem, compile_schema
from llm_routerd.jsonschema.path import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from mcp_types import Tool

    from llm_routerd.config.mcp import McpServer
    from llm_routerd.protocol.tool import ToolFields

MOST_TOOLS = 256  # of one server
_MOST_SCHEMA_BYTES = 65_536
_LONGEST_DESCRIPTION = 4096
_LONGEST_NAME = 64
_LONGEST_SHOWN = 80
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.-]")
_NOT_AT_FIRST = re.compile(r"^[.-]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Offered:
    """A tool that can be served.

    Attributes:
        tool: its name as the server has it.
        registration: what is registered.
    """

    tool: str
    registration: ToolFields


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What there is to be served of a server.

    Attributes:
        tools: by their registered names.
        left_out: which of its tools cannot be, and why: lines to be logged.
    """

    tools: dict[str, Offered]
    left_out: tuple[str, ...]


def offer_of(tools: Sequence[Tool], server: McpServer) -> Offer:
    """What is registered of the tools that a server has listed."""
    left_out: list[str] = []
    allowed: dict[str, Tool] = {}
    for tool in tools:
        if not matches(tool.name, server.allow):
            continue
        if tool.name in allowed:
            left_out.append(f"{_shown(tool.name)}: listed twice; the first holds")
        elif len(allowed) == MOST_TOOLS:
            left_out.append(f"{_shown(tool.name)} and what follows: more than {MOST_TOOLS} tools; choose by `allow`")
            break
        else:
            allowed[tool.name] = tool
    names = registered_names(allowed, server.name_prefix)
    offered: dict[str, Offered] = {}
    for name, tool in allowed.items():
        registration = _registration(tool, server)
        if isinstance(registration, str):
            left_out.append(f"{_shown(name)}: {registration}")
        elif names[name] in offered:
            left_out.append(f"{_shown(name)}: another tool has the name {names[name]}")
        else:
            offered[names[name]] = Offered(tool=name, registration=registration)
    return Offer(tools=offered, left_out=tuple(left_out))


def registered_names(tools: Iterable[str], prefix: str) -> dict[str, str]:
    """Under which name each is registered: its own behind the prefix, where that can be a name.

    Letters that have no place in one become `_`.  What is too long, or has so become the same as another, ends in
    eight digits of its own; they follow from the name alone, so that a restart changes none.
    """
    plain = {name: _NOT_AT_FIRST.sub("_", _NOT_IN_NAMES.sub("_", prefix + name)) or "_" for name in tools}
    often = Counter(plain.values())
    return {
        name: sound
        if len(sound) <= _LONGEST_NAME and (sound == prefix + name or often[sound] == 1)
        else f"{sound[: _LONGEST_NAME - 9]}_{hashlib.sha256(name.encode(errors='replace')).hexdigest()[:8]}"
        for name, sound in plain.items()
    }


def matches(name: str, globs: Iterable[str]) -> bool:
    """Whether one of the globs stands for a name."""
    return any(fnmatchcase(name, each) for each in globs)


def _registration(tool: Tool, server: McpServer) -> ToolFields | str:
    """What is registered, or why nothing is.

    A server's hints are its word and no more: who does not trust it says in `confirm` whose calls wait.
    """
    if problem := _problem_of(tool.input_schema):
        return f"its inputSchema cannot be used: {problem}"
    hints = tool.annotations
    reads_only = hints is not None and hints.read_only_hint is True
    repeatable = reads_only or (hints is not None and hints.idempotent_hint is True)
    asks = not reads_only if server.confirm is None else matches(tool.name, server.confirm)
    registration: ToolFields = {
        "description": _described(tool),
        "parameters": tool.input_schema,
        "confirm": asks,
        "idempotent": repeatable,
        "timeout_ms": max(1, int(server.timeout_seconds * 1000)),
    }
    if tool.output_schema is not None and _problem_of(tool.output_schema) is None:
        registration["result_schema"] = tool.output_schema
    return registration


def _described(tool: Tool) -> str:
    text = (tool.description or tool.title or "").strip() or tool.name or "A tool without a description."
    return text if len(text) <= _LONGEST_DESCRIPTION else text[: _LONGEST_DESCRIPTION - 1] + "…"


def _problem_of(schema: dict[str, Any]) -> str | None:
    try:
        size = len(orjson.dumps(schema))
    except TypeError:
        return "it cannot be written as JSON"
    if size > _MOST_SCHEMA_BYTES:
        return f"it has {size} bytes, of {_MOST_SCHEMA_BYTES}"
    compiled = compile_schema(schema)
    return compiled.message if isinstance(compiled, SchemaProblem) else None


def _shown(name: str) -> str:
    """A tool's name, for a log."""
    return printable(name[:_LONGEST_SHOWN])
