"""The files in schemas/ are the wire protocol: sound in themselves, and what the code writes and reads."""

from __future__ import annotations

import typing
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema_rs
import orjson
import pytest

from llm_routerd.accounting.metrics import Finished, Metrics
from llm_routerd.cli import schemas
from llm_routerd.jsonschema.compiled import SchemaCache
from llm_routerd.protocol.codes import AttemptCode, ErrorCode
from llm_routerd.protocol.events import (
    AttemptRejected,
    AttemptStarted,
    Cancelled,
    Failed,
    Reasoning,
    Result,
    StandingEvent,
    Token,
)
from llm_routerd.protocol.outcome import AttemptRecord, Outcome, ToolCall, Usage, told
from llm_routerd.protocol.parsing import RequestParser
from llm_routerd.protocol.request import Request
from llm_routerd.protocol.schema_files import load_schema
from llm_routerd.protocol.wire import encode
from tests.support.accounts import counted
from tests.support.schemas import closed

NAMES = sorted({"config", *schemas.documents()})
WRITTEN_TO_US = frozenset({"config", "consent", "request", "tool"})
PROTOCOL = {
    "audit": {
        "kind", "at_ms", "id", "tenant_id", "context", "attempt", "turn", "deployment", "tool", "call_id", "outcome",
        "code", "prompt_tokens", "completion_tokens", "cost_usd", "latency_ms", "prompt_sha256", "by", "consumer",
    },
    "consent": {"confirm", "deny", "args_sha256", "by", "args", "always", "reason"},
    "event.attempt": {"deployment", "model", "delivery", "consumer", "entry"},
    "event.token": {"text"},
    "event.reasoning": {"text"},
    "event.rejected": {"outcome", "code", "reason", "latency_ms"},
    "event.result": {
        "id", "content", "raw_text", "model_used", "deployment", "finish_reason", "tool_calls", "usage", "cost_usd",
        "latency_ms", "ttft_ms", "queue_ms", "attempts", "attempt", "tenant_id", "context", "metadata",
    },
    "event.tool_call": {"call_id", "name", "arguments", "turn", "args_sha256", "confirm", "expires_at_ms"},
    "event.confirmed": {"call_id", "by", "reason"},
    "event.denied": {"call_id", "by", "reason"},
    "event.tool_result": {"call_id", "name", "result", "error", "latency_ms"},
    "event.turn": {"turn", "message"},
    "tool": {"description", "parameters", "confirm", "timeout_ms", "result_schema"},
    "tool-call": {
        "id", "call_id", "name", "arguments", "turn", "tenant_id", "deadline_ms", "traceparent",
    },
    "event.error": {"id", "code", "message", "attempts", "metadata"},
    "event.cancelled": {"id", "reason"},
    "metrics": {
        "model_used", "latency_ms", "attempts", "metrics_snapshot", "timestamp", "id", "tenant_id", "context", "chain",
        "type", "code", "queue_ms", "ttft_ms", "usage", "cost_usd", "consumer",
    },
    "request": {
        "id", "messages", "prompt", "model", "schema", "stream", "tools", "tool_choice", "agent", "params", "tenant_id",
        "context", "metadata", "timeout_ms", "deadline_ms", "local_only", "publish", "traceparent",
    },
}  # fmt: skip


def validator(name: str) -> jsonschema_rs.Draft202012Validator:
    """Compile one of the schemas; what is wrong with it is raised."""
    return jsonschema_rs.Draft202012Validator(load_schema(name), offline=True)


def closed_validator(name: str) -> jsonschema_rs.Draft202012Validator:
    """The same, of nothing but what the schema names: what we write ourselves holds no property more."""
    return jsonschema_rs.Draft202012Validator(closed(load_schema(name)), offline=True)


def walk(schema: Any, path: str = "$") -> typing.Iterator[tuple[str, dict[str, Any]]]:
    """Every property of a schema, and every definition, at any depth."""
    if not isinstance(schema, dict):
        return
    for word in ("properties", "$defs"):
        for name, inner in schema.get(word, {}).items():
            yield f"{path}.{name}", inner
            yield from walk(inner, f"{path}.{name}")
    for word in ("items", "additionalProperties"):
        yield from walk(schema.get(word), f"{path}.{word}")


def test_the_package_ships_every_schema_and_no_other() -> None:
    """One of each type and the description of the HTTP that speaks them, and the package and the top folder have the same files."""
    shipped = {each.name for each in files("llm_routerd").joinpath("schemas").iterdir()}
    assert shipped == {f"{name}.schema.json" for name in NAMES} | {"openapi.json"}
    assert shipped == {each.name for each in Path(__file__).parents[2].joinpath("schemas").iterdir()}


def test_files_are_those_that_the_types_give() -> None:
    """Who changes a type runs `make schemas`, and commits what changes there."""
    folder = Path(__file__).parents[2] / "schemas"
    made = dict(schemas.files())
    assert {name: (folder / name).read_text() for name in made} == made
    assert made.keys() >= {f"{name}.schema.json" for name in PROTOCOL}


@pytest.mark.parametrize("name", NAMES)
def test_schema_is_sound_and_says_what_it_is(name: str) -> None:
    """2020-12, with title and description, and a description of every property; closed is what others write to us."""
    schema = load_schema(name)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    jsonschema_rs.meta.validate(schema)
    assert schema["title"]
    assert schema["description"]
    assert schema.get("additionalProperties", True) is (name not in WRITTEN_TO_US)
    assert [path for path, each in walk(schema) if not str(each.get("description", "")).endswith(".")] == []


@pytest.mark.parametrize("name", NAMES)
def test_examples_are_valid(name: str) -> None:
    """Every schema has examples, and they satisfy it; a property more does in what we write, and in nothing else."""
    judge = validator(name)
    examples = load_schema(name)["examples"]
    assert examples
    for example in examples:
        judge.validate(example)
        assert judge.is_valid({**example, "nobody_knows_this": 1}) == (name not in WRITTEN_TO_US)


@pytest.mark.parametrize("name", PROTOCOL)
def test_every_row_of_the_protocol_is_there(name: str) -> None:
    """What the tables of the protocol name is described, and in events required."""
    schema = load_schema(name)
    assert PROTOCOL[name] <= schema["properties"].keys()
    if name not in {"audit", "consent", "request", "tool", "event.attempt", "event.tool_call", "event.tool_result"}:
        assert PROTOCOL[name] <= set(schema["required"])


def test_codes_are_those_of_the_code() -> None:
    """Enumerations in the schemas and in `outcome` are the same."""
    attempt_codes, error_codes = {code.value for code in AttemptCode}, {code.value for code in ErrorCode}
    assert set(load_schema("event.rejected")["properties"]["code"]["enum"]) == attempt_codes
    assert set(load_schema("event.error")["properties"]["code"]["enum"]) == error_codes
    assert set(load_schema("dead-letter")["properties"]["reason"]["enum"]) == error_codes
    assert set(load_schema("metrics")["properties"]["code"]["enum"]) == error_codes | {None}
    for name in ("event.result", "event.error", "metrics"):
        attempt = load_schema(name)["$defs"]["attempt"]["properties"]
        assert set(attempt["code"]["enum"]) == attempt_codes | {None}
        assert set(attempt["outcome"]["enum"]) == {outcome.value for outcome in Outcome}


def test_definitions_of_one_name_are_the_same_everywhere() -> None:
    """Every file stands alone, so what they share is written in each."""
    for name in ("attempt", "usage"):
        found = [each for file in NAMES if (each := load_schema(file).get("$defs", {}).get(name)) is not None]
        assert len(found) > 1
        assert all(each == found[0] for each in found)


# ---------------------------------------------------------------------- what the code writes

RECORDS = (
    AttemptRecord(
        deployment="local",
        model="ollama/m",
        outcome=Outcome.INVALID,
        code=AttemptCode.SCHEMA_VIOLATION,
        reason="$.n: …",
        latency_ms=12,
        usage=Usage(prompt_tokens=3, completion_tokens=4),
        early=True,
    ),
    AttemptRecord(deployment="b", model="x/y", outcome=Outcome.REJECTED, code=AttemptCode.COOLDOWN, reason="cools"),
    AttemptRecord(deployment="c", model="x/z", outcome=Outcome.SUCCESS, cost_usd=0.1),
)
EVENTS: list[StandingEvent] = [
    AttemptStarted(deployment="local", model="ollama/m", delivery=1, consumer="w"),
    AttemptStarted(deployment="local", model="ollama/m", delivery=2, consumer="w"),
    Token("x"),
    Reasoning("x"),
    AttemptRejected(
        deployment="local",
        model="ollama/m",
        outcome=Outcome.REJECTED,
        code=AttemptCode.LENGTH,
        reason="r",
        latency_ms=1,
    ),
    Result(
        request_id="q",
        content={"n": 1},
        raw_text='{"n": 1}',
        finish_reason="stop",
        tool_calls=(ToolCall.of(id="1", name="f", arguments="{}"),),
        model_used="x/z",
        deployment="c",
        attempts=told(RECORDS),
        attempt=3,
        usage=Usage(prompt_tokens=1, completion_tokens=2, cached_tokens=0, reasoning_tokens=1),
        cost_usd=0.25,
        latency_ms=3,
        ttft_ms=None,
        queue_ms=2,
        tenant_id=None,
        context="c",
        metadata={"k": 1},
    ),
    Failed(request_id="q", code=ErrorCode.CHAIN_EXHAUSTED, message="m", attempts=told(RECORDS)),
    Cancelled(request_id="q", reason="r"),
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.type)
def test_events_satisfy_their_schemas(event: StandingEvent) -> None:
    """What is written under a type is what the schema of that type describes."""
    closed_validator(f"event.{event.type}").validate(orjson.loads(encode(event)))


def test_metrics_events_satisfy_their_schema() -> None:
    """For an answer and for a failure."""
    metrics = Metrics()
    judge = closed_validator("metrics")
    for finished in (
        Finished(
            id="q",
            chain="default",
            type="result",
            timestamp=1.5,
            latency_ms=5,
            consumer="w",
            tenant_id="t",
            model_used="x/z",
            deployment="c",
            usage=Usage(prompt_tokens=1, completion_tokens=2),
            cost_usd=0.1,
            attempts=RECORDS,
        ),
        Finished(id="q", chain="default", type="error", timestamp=2, latency_ms=0, code=ErrorCode.INVALID_REQUEST),
        Finished(id="q", chain="local", type="cancelled", timestamp=2, latency_ms=0),
    ):
        judge.validate(orjson.loads(orjson.dumps(counted(metrics, finished))))


@pytest.mark.parametrize("example", load_schema("request")["examples"])
def test_the_daemon_takes_the_examples_of_a_request(example: dict[str, Any]) -> None:
    """What producers copy from the schema works."""
    parser = RequestParser(max_request_bytes=10_000, schemas=SchemaCache(4))
    assert isinstance(parser.parse("1-0", [b"data", orjson.dumps(example)]), Request)


def test_what_must_be_there_is_required() -> None:
    """Also of what may have more: a type's annotations are text, in which `Required` is not seen."""
    assert load_schema("request")["properties"]["agent"]["required"] == ["tools"]
    assert load_schema("tool")["required"] == ["description"]
