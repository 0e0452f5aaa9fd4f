"""Bodies of Anthropic's protocol."""

from __future__ import annotations

from base64 import b64encode
from typing import Any

PNG = b64encode(b"\x89PNG\r\n\x1a\n" + bytes(40)).decode()
PDF = b64encode(b"%PDF-1.7").decode()
CACHED = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
SMALL: dict[str, Any] = {
    "model": "default",
    "max_tokens": 64,
    "messages": [{"role": "user", "content": "Hello"}],
}
WEATHER: dict[str, Any] = {
    "name": "weather",
    "description": "Of a city.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
# As Claude Code 2.1 sends it in the middle of its work; what it holds is made up.
AGENT: dict[str, Any] = {
    "model": "claude-sonnet-4-6",
    "max_tokens": 32000,
    "stream": True,
    "metadata": {"user_id": '{"device_id":"d","session_id":"s"}'},
    "thinking": {"type": "adaptive", "display": "summarized"},
    "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    "output_config": {"effort": "medium"},
    "system": [
        {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.69.0d9; cc_entrypoint=cli; cch=fa690;"},
        {"type": "text", "text": "You are an agent.", **CACHED},
    ],
    "tools": [
        {**WEATHER, "eager_input_streaming": True},
        {**WEATHER, "name": "mcp__files__read", **CACHED},
        {**WEATHER, "name": "Later", "defer_loading": True},
    ],
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "<system-reminder>\nBe brief.\n</system-reminder>"},
                {"type": "text", "text": "What is the weather?"},
            ],
        },
        {"role": "system", "content": "Agents: none.", "output_config": {"effort": "low"}},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hm.", "signature": "c2ln"},
                {"type": "redacted_thinking", "data": "ZGF0YQ=="},
                {"type": "text", "text": "I will look."},
                {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Köln"}, **CACHED},
                {"type": "tool_use", "id": "toolu_2", "name": "weather", "input": {"city": "Paris"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "toolu_1",
                    "content": [{"type": "text", "text": "12 °C"}, {"type": "text", "text": "rain"}],
                },
                {
                    "type": "tool_result",
                    "tool_use_id": "toolu_2",
                    "content": "no such city",
                    "is_error": True,
                    **CACHED,
                },
                {"type": "text", "text": "Go on."},
            ],
        },
        {"role": "system", "clear_at": "next_user_message", "content": "Say it in one sentence."},
    ],
}
SHOWN_THINGS: dict[str, Any] = {
    **SMALL,
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is this?"},
                {
                    "type": "image",
                    "source": {"type": "base64", "media_type": "image/png", "data": PNG},
                    "transformations": {},
                },
                {
                    "type": "document",
                    "source": {"type": "base64", "media_type": "application/pdf", "data": PDF},
                    "title": "a\nb.pdf",
                    "context": "A contract.",
                    "citations": {"enabled": False},
                },
                {
                    "type": "document",
                    "source": {"type": "text", "media_type": "text/plain", "data": "Plain."},
                    "title": "Notes",
                },
                {
                    "type": "document",
                    "source": {"type": "content", "content": [{"type": "text", "text": "In blocks."}]},
                },
                {
                    "type": "search_result",
                    "source": "shelf 3",
                    "title": "A book",
                    "content": [{"type": "text", "text": "Once."}],
                    "citations": {"enabled": False},
                },
            ],
        }
    ],
}
