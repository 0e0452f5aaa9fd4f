"""JSON paths as people read them: `$.messages[0].role`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_PLAIN_NAME = re.compile(r"[A-Za-z_$][A-Za-z0-9_$-]*")
_LONGEST_NAME = 40
_LONGEST_PATH = 160


def json_path(keys: Iterable[str | int]) -> str:
    """Write the way from the root to a value, on one line of at most about 160 characters.

    A name with other characters than letters, digits, `_`, `$` and `-` is written `["…"]`; long names and
    long paths are cut.
    """
    path = "$" + "".join(_step(key) for key in keys)
    if len(path) > _LONGEST_PATH:
        half = _LONGEST_PATH // 2
        path = f"{path[:half]}…{path[-half:]}"
    return path


def _step(key: str | int) -> str:
    if isinstance(key, int):
        return f"[{key}]"
    if len(key) > _LONGEST_NAME:
        key = key[:_LONGEST_NAME] + "…"
    if _PLAIN_NAME.fullmatch(key):
        return f".{key}"
    return f'["{printable(key)}"]'


def printable(text: str) -> str:
    """The text on one line that any terminal and any encoding can take; other characters become `?`."""
    return "".join(char if char.isprintable() else "?" for char in text)
