"""What an Ollama said, byte for byte, and what it was asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_RECORDED = Path(__file__).parent / "recorded"


def asked(name: str) -> Any:
    """The body of a request."""
    return json.loads((_RECORDED / f"{name}.request.json").read_text())["body"]


def answered(name: str) -> list[dict[str, Any]]:
    """The JSON objects of an answer."""
    _, _, body = (_RECORDED / f"{name}.http").read_bytes().partition(b"\r\n\r\n")
    lines = body.replace(b"\r", b"").split(b"\n")
    return [json.loads(line) for line in lines if line.startswith(b"{")]
