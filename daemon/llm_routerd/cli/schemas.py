"""Writing `schemas/`: `python -m llm_routerd.cli.schemas [DIRECTORY]`, by default where the package has them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_routerd.config.schema import config_schema
from llm_routerd.gateway import openapi
from llm_routerd.protocol import published

if TYPE_CHECKING:
    from collections.abc import Iterator

_DIRECTORY = Path(__file__).parents[1] / "schemas"


def documents() -> dict[str, dict[str, Any]]:
    """Every schema that is made of types, by name."""
    return {
        **published.documents(),
        "config": config_schema(),
    }


def files() -> Iterator[tuple[str, str]]:
    """Name and text of every file."""
    for name, document in documents().items():
        yield f"{name}.schema.json", _text(document)
    yield "openapi.json", _text(openapi.document(documents()))


def _text(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else _DIRECTORY
    for name, text in files():
        (directory / name).write_text(text, encoding="utf-8")
