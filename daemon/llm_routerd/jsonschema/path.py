"""JSON paths as people read them: `$.messages[0].role`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_$][A-Za-z0-9_$-]*")
_NUMBER = re.compile(r"\+?[0-9]{1,64}")
_LONGEST_NAME = 40
_LONGEST_PATH = 160


def way_to(root: Any, keys: Iterable[str | int]) -> tuple[list[str | int], Any]:
    """The way on which the validator's path leads into a value, and what lies at its end.

    The validator gives the name `"1"`, and `"01"` too, as the number 1: what is meant depends on what it leads into.
    Where a step leads nowhere the way ends before it, so that whatever is wrong can be told.
    """
    way: list[str | int] = []
    for key in keys:
        step: str | int | None = None
        if isinstance(root, dict):
            step = key if isinstance(key, str) else _name_of(root, key)
            found = step in root
        else:
            step = key
            found = isinstance(root, list) and isinstance(step, int) and step < len(root)
        if step is None or not found:
            break
        way.append(step)
        root = root[step]
    return way, root


def _name_of(root: dict[str, Any], number: int) -> str | None:
    """The property of an object that the validator calls by a number."""
    name = str(number)
    return (
        name if name in root else next((each for each in root if _NUMBER.fullmatch(each) and int(each) == number), None)
    )


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
