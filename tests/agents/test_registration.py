"""A registration may be anything: what is none says why, on one line."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llm_routerd.agents.registration import Tool, Unsound, read_tool
from llm_routerd.jsonschema.compiled import SchemaCache
from llm_routerd.protocol.tool import MOST_REGISTRATION_BYTES
from tests.agents.scene import SCHEMAS, tool

SOUND = {"description": "Does it."}


@pytest.mark.parametrize(
    ("name", "registration", "why"),
    [
        ("", SOUND, "the name"),
        (".add", SOUND, "the name"),
        ("a b", SOUND, "the name"),
        ("a\n", SOUND, "the name"),
        ("ä", SOUND, "the name"),
        ("a" * 65, SOUND, "the name"),
        ("a", b"", "no JSON"),
        ("a", b"{", "no JSON"),
        ("a", b"\xff", "no JSON"),
        ("a", b"7", "no JSON object"),
        ("a", b"[" * 200 + b"]" * 200, "no JSON object"),
        ("a", b'{"description":"x","x":' + b"[" * 70 + b"]" * 70 + b"}", "too deep"),
        ("a", {}, "description"),
        ("a", {"description": ""}, "$.description"),
        ("a", {"description": "x" * 4097}, "$.description"),
        ("a", {"description": 7}, "$.description"),
        ("a", {**SOUND, "confrim": True}, "confrim"),
        ("a", {**SOUND, "confirm": "yes"}, "$.confirm"),
        ("a", {**SOUND, "idempotent": 1}, "$.idempotent"),
        ("a", {**SOUND, "timeout_ms": 0}, "$.timeout_ms"),
        ("a", {**SOUND, "timeout_ms": 86_400_001}, "$.timeout_ms"),
        ("a", {**SOUND, "timeout_ms": 1.5}, "$.timeout_ms"),
        ("a", {**SOUND, "parameters": []}, "$.parameters"),
        ("a", {**SOUND, "parameters": {"type": "thing"}}, "$.parameters.type"),
        ("a", {**SOUND, "parameters": {"pattern": "(?=x)"}}, "$.parameters.pattern"),
        ("a", {**SOUND, "parameters": {"$ref": "http://127.0.0.1/x"}}, "$.parameters"),
        ("a", {**SOUND, "result_schema": {"minimum": "x"}}, "$.result_schema"),
        ("a", b" " * (MOST_REGISTRATION_BYTES + 1), "65537 bytes"),
    ],
)
def test_what_is_no_registration_says_why(name: str, registration: dict[str, Any] | bytes, why: str) -> None:
    """On one line, for whoever wrote it."""
    text = registration if isinstance(registration, bytes) else json.dumps(registration).encode()
    found = read_tool(name, text, SchemaCache())
    assert isinstance(found, Unsound), found
    assert why in found.why
    assert "\n" not in found.why
    assert len(found.why) < 500


def test_registration_says_no_more_than_it_must() -> None:
    """Without `parameters` it takes any object, and asks nobody."""
    found = tool("a")
    assert (found.confirm, found.idempotent, found.timeout_ms, found.result_schema) == (False, False, 30_000, None)
    assert found.parameters.validate({"x": 1}) is None
    assert found.parameters.validate([]) is not None


def test_registration_is_read_whole() -> None:
    """What it says holds; true is a schema."""
    given = {**SOUND, "confirm": True, "idempotent": True, "timeout_ms": 5.0, "result_schema": True}
    found = read_tool("a.b-C_9", json.dumps(given).encode(), SCHEMAS)
    assert isinstance(found, Tool)
    assert (found.name, found.description, found.confirm, found.idempotent) == ("a.b-C_9", "Does it.", True, True)
    assert repr(found.timeout_ms) == "5"
    assert found.result_schema is not None
    assert found.result_schema.validate([]) is None


@pytest.mark.parametrize("size", [MOST_REGISTRATION_BYTES, MOST_REGISTRATION_BYTES - 1])
def test_registration_may_be_as_long_as_that(size: int) -> None:
    """And not a byte longer, which the table above has."""
    text = json.dumps(SOUND).encode()
    assert isinstance(read_tool("a", text + b" " * (size - len(text)), SCHEMAS), Tool)
