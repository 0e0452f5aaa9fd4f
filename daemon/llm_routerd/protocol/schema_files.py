"""The JSON Schemas that ship with the package: the machine-readable form of the wire protocol."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any, cast

import orjson


@cache
def load_schema(name: str) -> dict[str, Any]:
    """Read one of them.

    Args:
        name: the file's without `.schema.json`: `request`, `event.token`, `config`.

    Raises:
        FileNotFoundError: there is none of this name.
    """
    text = files("llm_routerd").joinpath("schemas", f"{name}.schema.json").read_bytes()
    return cast("dict[str, Any]", orjson.loads(text))
