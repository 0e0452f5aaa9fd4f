"""The deployments and chains that are there without a file, as a file would spell them.

All other defaults are those of the types in `tree`.
"""

from __future__ import annotations

from typing import Any

DEFAULT_PATH = "/etc/llm-routerd/config.toml"


def builtin_tables() -> dict[str, Any]:
    """The tables `deployments` and `chains`; new ones each time, the caller may change them."""
    return {
        "deployments": {
            "local": {
                "model": "ollama/qwen2.5:7b",
                "local": True,
                "timeout": 8.0,
                "idle_timeout": 8.0,
                "stream_timeout": 120.0,
                "concurrency": 4,
                "queue_timeout": 2.0,
            },
            "haiku": {"model": "anthropic/claude-haiku-4-5-20251001", "timeout": 30.0, "max_tokens": 4096},
            "sonnet": {"model": "anthropic/claude-sonnet-4-6", "timeout": 30.0, "max_tokens": 4096},
            "sonnet-4": {"model": "anthropic/claude-sonnet-4-20250514", "timeout": 30.0, "max_tokens": 4096},
            "gpt-4o": {"model": "openai/gpt-4o", "timeout": 30.0, "max_tokens": 4096},
        },
        "chains": {
            "default": {"deployments": ["local", "haiku", "sonnet"]},
            "local": {"deployments": ["local"]},
            "fast": {"deployments": ["local"]},
            "economy": {"deployments": ["local"]},
            "balanced": {
                "deployments": ["local", "sonnet-4"],
                "strategy": "latency",
                "retries": 2,
                "fallback": ["fast"],
            },
            "quality": {
                "deployments": ["sonnet-4", "gpt-4o"],
                "strategy": "latency",
                "retries": 2,
                "fallback": ["fast"],
            },
        },
    }
