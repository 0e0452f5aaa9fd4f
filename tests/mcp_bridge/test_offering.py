"""What is registered of a server's tools."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcp_types import Tool, ToolAnnotations

from llm_routerd.config.mcp import McpServer
from llm_routerd.jsonschema.compiled import AnswerSchema, compile_schema
from llm_routerd.mcp_bridge.offering import MOST_TOOLS, offer_of, registered_names
from llm_routerd.protocol.schema_files import load_schema
from llm_routerd.protocol.tool import TOOL_NAME_PATTERN

READS_ONLY = ToolAnnotations(read_only_hint=True)
OBJECT = {"type": "object"}


def server(**keys: Any) -> McpServer:
    """A table of the configuration."""
    return McpServer(name="files", command=("x",), **keys)


def tool(name: str = "read", schema: dict[str, Any] = OBJECT, **rest: Any) -> Tool:
    """A tool as a server lists it."""
    return Tool(name=name, input_schema=schema, **rest)


def registrations(*tools: Tool, **keys: Any) -> dict[str, Any]:
    """What is registered, by name."""
    return {name: each.registration for name, each in offer_of(tools, server(**keys)).tools.items()}


def test_description_and_schemas_are_carried_over() -> None:
    """And what is registered is what the schema of registrations wants."""
    schema = {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]}
    found = registrations(tool(schema=schema, description=" Read a file. ", output_schema=OBJECT), timeout_seconds=1.5)
    assert found == {
        "files.read": {
            "description": "Read a file.",
            "parameters": schema,
            "confirm": True,
            "idempotent": False,
            "timeout_ms": 1500,
            "result_schema": OBJECT,
        }
    }
    judge = compile_schema(load_schema("tool"))
    assert isinstance(judge, AnswerSchema)
    assert judge.validate(found["files.read"]) is None


@pytest.mark.parametrize(
    ("hints", "confirm", "promises"),
    [
        (None, None, (True, False)),
        (READS_ONLY, None, (False, True)),
        (ToolAnnotations(idempotent_hint=True), None, (True, True)),
        (ToolAnnotations(read_only_hint=False, destructive_hint=False), None, (True, False)),
        (None, (), (False, False)),
        (None, ("write*",), (False, False)),
        (READS_ONLY, ("*",), (True, True)),
        (READS_ONLY, ("r?ad",), (True, True)),
    ],
)
def test_what_is_not_marked_asks_and_is_never_repeated(
    hints: ToolAnnotations | None, confirm: tuple[str, ...] | None, promises: tuple[bool, bool]
) -> None:
    """Unless the operator has said whose calls wait; that says nothing of what may be repeated."""
    (found,) = registrations(tool(annotations=hints), confirm=confirm).values()
    assert (found["confirm"], found["idempotent"]) == promises


def test_only_what_is_allowed_is_served() -> None:
    """By the names that the server has for them, and letter by letter."""
    names = ("read_file", "write_file", "Read_file", "read")
    found = registrations(*map(tool, names), allow=("read_*", "writ?_file"), prefix="")
    assert set(found) == {"read_file", "write_file"}


@pytest.mark.parametrize(
    ("described", "text"),
    [
        ({}, "read"),
        ({"description": "  "}, "read"),
        ({"title": "Read a file"}, "Read a file"),
        ({"description": "x" * 5000}, "x" * 4095 + "…"),
    ],
)
def test_there_is_a_description_and_it_is_bounded(described: dict[str, Any], text: str) -> None:
    """Models get one in any case."""
    assert registrations(tool(**described))["files.read"]["description"] == text


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"type": "object", "$ref": "http://h/x"}, "nothing is fetched"),
        ({"type": "nonsense"}, "expected a type of JSON Schema"),
        ({"type": "object", "properties": {"a": {"pattern": "(a+)\\1"}}}, "unsupported pattern"),
        ({"type": "object", "description": "x" * 70_000}, "bytes, of 65536"),
        ({"type": "object", "maximum": 2**70}, "cannot be written as JSON"),
        (
            {"$defs": {f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 9} for n in range(30)} | {"d30": True}}
            | {"$ref": "#/$defs/d0"},
            "$",
        ),
    ],
)
def test_a_hostile_schema_keeps_its_tool_out(schema: dict[str, Any], why: str) -> None:
    """And only that one; as a schema of results it is left out alone."""
    offer = offer_of([tool("bad", schema), tool("good", output_schema=schema)], server())
    assert list(offer.tools) == ["files.good"]
    assert "result_schema" not in offer.tools["files.good"].registration
    (line,) = offer.left_out
    assert line.startswith("bad: its inputSchema cannot be used: ")
    assert why in line
    assert line.isprintable()


def test_ten_thousand_tools_are_bounded() -> None:
    """The first ones are served, and the rest is one line."""
    offer = offer_of([tool(f"t{number}") for number in range(10_000)], server())
    assert list(offer.tools) == [f"files.t{number}" for number in range(MOST_TOOLS)]
    assert offer.left_out == (f"t{MOST_TOOLS} and what follows: more than {MOST_TOOLS} tools; choose by `allow`",)


def test_a_name_that_is_listed_twice_is_the_first() -> None:
    """What follows of that name cannot replace it."""
    offer = offer_of([tool(description="one"), tool(description="two")], server())
    assert offer.tools["files.read"].registration["description"] == "one"
    assert offer.left_out == ("read: listed twice; the first holds",)


def test_names_become_names() -> None:
    """What has no place in one becomes `_`; what then is the same, or too long, gets digits of its own."""
    long = "x" * 128
    names = registered_names(["read", "a/b", "c:d", "c d", "c_d", "ü", long, long + "y"], "p.")
    assert (names["read"], names["a/b"], names["ü"], names["c_d"]) == ("p.read", "p.a_b", "p._", "p.c_d")
    assert re.fullmatch("p[.]c_d_[0-9a-f]{8}", names["c:d"])
    assert len(set(names.values())) == len(names)
    assert registered_names([".hidden"], "") == {".hidden": "_hidden"}
    assert registered_names([long], "p.")[long] == names[long]


@given(
    st.sets(st.text(max_size=200), max_size=20), st.from_regex(r"([A-Za-z0-9_][A-Za-z0-9_.-]{0,31})?", fullmatch=True)
)
def test_every_name_is_one_that_can_be_registered(names: set[str], prefix: str) -> None:
    """Whatever a server calls its tools: one name each, which begins with the prefix."""
    found = registered_names(names, prefix)
    assert found.keys() == names
    assert len(set(found.values())) == len(names)
    for name in found.values():
        assert re.fullmatch(TOOL_NAME_PATTERN, name)
        assert name.startswith(prefix)


def test_names_from_a_server_cannot_write_into_a_log() -> None:
    """They are its data."""
    (line,) = offer_of([tool("a\nb\x1b[31m" + "c" * 500, {"type": "nonsense"})], server()).left_out
    assert line.isprintable()
    assert len(line) < 300
