"""What the schemas of the protocol show as examples, made of the types where they are ours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec import Struct, to_builtins
from msgspec.structs import asdict

from llm_routerd.protocol.audit import AuditEntry
from llm_routerd.protocol.codes import AttemptCode, ErrorCode
from llm_routerd.protocol.dead_letter import Base64, DeadLetter, Submitted
from llm_routerd.protocol.events import (
    AttemptRejected,
    AttemptStarted,
    CallConfirmed,
    CallDenied,
    Cancelled,
    Failed,
    Queued,
    Reasoning,
    Result,
    StreamEvent,
    Token,
    ToolCalled,
    ToolReturned,
    TurnEnded,
)
from llm_routerd.protocol.metrics_event import DeploymentUsage, EarlyStop, MetricsEvent, TenantTotals
from llm_routerd.protocol.outcome import AttemptSummary, Outcome, Usage
from llm_routerd.protocol.tool import ToolRequest

if TYPE_CHECKING:
    from llm_routerd.protocol.consent import ConsentFields
    from llm_routerd.protocol.request import RequestFields
    from llm_routerd.protocol.tool import ToolFields

_LOCAL, _HAIKU = "ollama/qwen2.5:7b", "anthropic/claude-haiku-4-5-20251001"
_REASON = '$.amount: "12.50" is not of type "number"'

_INVALID = AttemptSummary(
    model=_LOCAL,
    deployment="local",
    outcome=Outcome.INVALID,
    code=AttemptCode.SCHEMA_VIOLATION,
    reason=_REASON,
    latency_ms=431,
)
_SUCCESS = AttemptSummary(
    model=_HAIKU, deployment="haiku", outcome=Outcome.SUCCESS, code=None, reason=None, latency_ms=812
)
_USAGE = Usage(prompt_tokens=31, completion_tokens=9)
_UNKNOWN = "$: unknown property `promt`; did you mean `prompt`?"

_CALL_ID, _SWITCH_ID = "call_3f0a9c51d2b84e6677a0c1d4", "call_9d1e4b7700c24f3a8b65e012"
_OSLO, _LAMP = {"city": "Oslo"}, {"lamp": "hall", "on": True}
_OSLO_SHA256 = "99a8fa9e4312f0bfd68a60a3ca5a7fd7fad321910c43c41afc6702c0697920a4"
_SWITCH_SHA256 = "f539b5c9af78767aba9b11ff9f48be0d8e888b2d498b40ab60ae7b6fb1db90cd"

SHOWN: tuple[StreamEvent, ...] = (
    AttemptStarted(
        deployment="local", model=_LOCAL, delivery=1, consumer="cupboard-1", entry="1700000000000-0", lane="normal"
    ),
    AttemptStarted(deployment="haiku", model=_HAIKU, delivery=1, consumer="cupboard-1"),
    Queued(
        position=2,
        reason="2 before you on attic",
        estimated_wait_ms=20000,
        box="attic",
        deployment="qwen@attic",
        model="ollama/qwen3:32b",
        at_ms=1700000000123,
    ),
    Queued(position=0, reason="attic is down", box="attic", deployment="qwen@attic", model="ollama/qwen3:32b"),
    Token("The sky"),
    Token(" is blue"),
    Reasoning("The user asks about Rayleigh scattering."),
    AttemptRejected(
        deployment="local",
        model=_LOCAL,
        outcome=Outcome.INVALID,
        code=AttemptCode.SCHEMA_VIOLATION,
        reason=_REASON,
        latency_ms=431,
    ),
    ToolCalled(
        call_id=_CALL_ID,
        name="weather",
        arguments=_OSLO,
        turn=1,
        args_sha256=_OSLO_SHA256,
        deadline_ms=1700000030000,
        entry="1700000000123-0",
    ),
    ToolCalled(
        call_id=_SWITCH_ID,
        name="lights.switch",
        arguments=_LAMP,
        turn=1,
        args_sha256=_SWITCH_SHA256,
        confirm=True,
        expires_at_ms=1700000600000,
    ),
    TurnEnded(
        turn=1,
        message={
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": _CALL_ID,
                    "type": "function",
                    "function": {"name": "weather", "arguments": '{"city":"Oslo"}'},
                }
            ],
        },
        deployment="local",
        model=_LOCAL,
        latency_ms=640,
        usage=_USAGE,
        cost_usd=0.0,
    ),
    ToolReturned(call_id=_CALL_ID, name="weather", result={"celsius": -3}, latency_ms=48),
    ToolReturned(call_id=_CALL_ID, name="weather", error="no such city", latency_ms=31),
    CallConfirmed(call_id=_SWITCH_ID, by="ada", deadline_ms=1700000090000, entry="1700000060000-0"),
    CallDenied(call_id=_SWITCH_ID, by="ada", reason="the hall is asleep"),
    Result(
        request_id="invoice-4711",
        content={"amount": 12.5},
        raw_text='{"amount": 12.5}',
        model_used=_HAIKU,
        deployment="haiku",
        finish_reason="stop",
        tool_calls=(),
        usage=_USAGE,
        cost_usd=7.6e-05,
        latency_ms=1251,
        ttft_ms=902,
        queue_ms=4,
        attempts=(_INVALID, _SUCCESS),
        attempt=2,
        tenant_id="accounts",
        context="invoices",
        metadata={"row": 12},
    ),
    Failed(request_id="1700000000000-0", code=ErrorCode.INVALID_REQUEST, message=_UNKNOWN),
    Failed(
        request_id="invoice-4711",
        code=ErrorCode.LOCAL_EXHAUSTED,
        message="no local deployment gave an acceptable answer",
        attempts=(_INVALID,),
        metadata={"row": 12},
    ),
    Cancelled(request_id="invoice-4711", reason="the user closed the page"),
)
EVENTS = {each.type: [to_builtins(other) for other in SHOWN if other.type == each.type] for each in SHOWN}

METRICS_EVENTS = [
    to_builtins(
        MetricsEvent(
            id="invoice-4711",
            tenant_id="accounts",
            context="invoices",
            chain="default",
            type="result",
            code=None,
            model_used=_HAIKU,
            deployment="haiku",
            latency_ms=1251,
            queue_ms=4,
            ttft_ms=902,
            attempts=(_INVALID, _SUCCESS),
            usage=_USAGE,
            cost_usd=7.6e-05,
            cost_estimated=False,
            saved_usd=0,
            usage_by_deployment={
                "local": DeploymentUsage(
                    calls=1,
                    total_tokens=38,
                    prompt_tokens=30,
                    completion_tokens=8,
                    cost_usd=0,
                    estimated_calls=1,
                    unpriced_calls=0,
                ),
                "haiku": DeploymentUsage(
                    calls=1,
                    total_tokens=40,
                    prompt_tokens=31,
                    completion_tokens=9,
                    cost_usd=7.6e-05,
                    estimated_calls=0,
                    unpriced_calls=0,
                ),
            },
            tenant_totals=TenantTotals(
                requests=17,
                prompt_tokens=910,
                completion_tokens=204,
                cost_usd=0.0011,
                estimated_calls=3,
                unpriced_calls=0,
            ),
            early_stops=(
                EarlyStop(deployment="local", code=AttemptCode.SCHEMA_VIOLATION, after_ms=310, saved_ms=2140),
            ),
            local_only=False,
            stream=True,
            consumer="cupboard-1",
            metrics_snapshot={
                _LOCAL: {"success": 14, "fallback": 3, "error": 0},
                _HAIKU: {"success": 3, "fallback": 0, "error": 0},
            },
            timestamp=1700000001.25,
        )
    )
]


def _shown(letter: DeadLetter) -> dict[str, Any]:
    return {
        name: to_builtins(value) if isinstance(value, Struct) else str(value) for name, value in asdict(letter).items()
    }


DEAD_LETTERS = [
    _shown(
        DeadLetter(
            entry="1700000000000-0",
            lane="normal",
            id="1700000000000-0",
            reason=ErrorCode.INVALID_REQUEST,
            message=_UNKNOWN,
            deliveries="1",
            consumer="cupboard-1",
            at_ms="1700000000123",
            data=Submitted(fields={"promt": "Why is the sky blue?", "context": Base64("/w==")}, history=[]),
        )
    ),
    _shown(
        DeadLetter(
            entry="1700000000000-1",
            lane="low",
            id="invoice-4711",
            reason=ErrorCode.POISONED,
            message="delivered 4 times",
            deliveries="4",
            consumer="cupboard-2",
            at_ms="1700000200123",
            data=Submitted(fields={"data": '{"prompt": "…"}'}, history=[{"event": "1-0", **to_builtins(SHOWN[0])}]),
        )
    ),
]

AUDIT_ENTRIES = [
    to_builtins(entry)
    for entry in (
        AuditEntry(
            kind="model",
            at_ms=1700000000123,
            id="invoice-4711",
            outcome=Outcome.INVALID,
            tenant_id="accounts",
            context="invoices",
            attempt=1,
            deployment="local",
            code=AttemptCode.SCHEMA_VIOLATION,
            prompt_tokens=30,
            completion_tokens=8,
            cost_usd=0.0,
            latency_ms=431,
            prompt_sha256="5d1b8f4a0c9e7723d6a1f0be4c885219a3e76d90cc14b2f85e07a6d1934bfe20",
            consumer="cupboard-1",
        ),
        AuditEntry(
            kind="tool",
            at_ms=1700000001456,
            id="evening-17",
            outcome="result",
            tenant_id="ada",
            turn=1,
            tool="weather",
            call_id=_CALL_ID,
            latency_ms=87,
            consumer="cupboard-1",
        ),
        AuditEntry(
            kind="confirmation",
            at_ms=1700000044000,
            id="evening-17",
            outcome="confirmed",
            tenant_id="ada",
            turn=2,
            tool="lights.switch",
            call_id=_SWITCH_ID,
            by="ada",
            consumer="cupboard-1",
        ),
    )
]

TOOLS: list[ToolFields] = [
    {
        "description": "The temperature in a city, in degrees Celsius.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        "idempotent": True,
    },
    {
        "description": "Switches a lamp on or off.",
        "parameters": {
            "type": "object",
            "properties": {"lamp": {"type": "string"}, "on": {"type": "boolean"}},
            "required": ["lamp", "on"],
        },
        "confirm": True,
        "timeout_ms": 5000,
    },
]
TOOL_REQUESTS = [
    to_builtins(
        ToolRequest(
            request_id="evening-17",
            call_id=_CALL_ID,
            name="weather",
            arguments=_OSLO,
            turn=1,
            tenant_id="ada",
            deadline_ms=1700000030000,
            traceparent=None,
        )
    )
]

CONSENTS: list[ConsentFields] = [
    {
        "confirm": _SWITCH_ID,
        "args_sha256": _SWITCH_SHA256,
        "by": "ada",
        "args": {"lamp": "porch", "on": True},
        "always": "1",
    },
    {"deny": _SWITCH_ID, "by": "ada", "reason": "the hall is asleep"},
]

_WEATHER = {"type": "function", "function": {"name": "weather", "arguments": '{"city":"Oslo"}'}}
REQUESTS: list[RequestFields] = [
    {"prompt": "Why is the sky blue?"},
    {
        "prompt": "Why is the sky blue?",
        "stream": True,
        "model": "local",
        "params": {"temperature": 0.2, "stop": ["\n\n"]},
    },
    {
        "id": "invoice-4711",
        "messages": [
            {"role": "system", "content": "Extract the amount."},
            {"role": "user", "content": [{"type": "text", "text": "Total due: 12.50 EUR"}]},
        ],
        "schema": {
            "type": "object",
            "properties": {"amount": {"type": "number"}},
            "required": ["amount"],
            "additionalProperties": False,
        },
        "tenant_id": "accounts",
        "context": "invoices",
        "metadata": {"row": 12},
        "timeout_ms": 60000,
        "local_only": True,
    },
    {
        "messages": [
            {"role": "user", "content": "How warm is it in Oslo?"},
            {"role": "assistant", "content": None, "tool_calls": [{"id": "call_0", **_WEATHER}]},
            {"role": "tool", "tool_call_id": "call_0", "content": "-3 C"},
        ],
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": "weather",
                    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
                },
            }
        ],
        "tool_choice": "auto",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    },
    {
        "id": "evening-17",
        "prompt": "If it freezes in Oslo, switch the light in the hall on.",
        "agent": {"tools": ["weather", "lights.*"], "max_turns": 4, "confirm": ["lights.*"]},
    },
]
