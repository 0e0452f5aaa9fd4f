"""Parsed JSON values, whatever they hold: the walk through all of one, and where a JSON Pointer leads in it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

if TYPE_CHECKING:
    from collections.abc import Iterator

_INDEX = re.compile(r"0|[1-9][0-9]{0,8}")


def levels(value: Any) -> Iterator[list[Any]]:
    """The value alone, then what it holds, then what that holds, down to the deepest; no recursion, however deep."""
    level = [value]
    while level:
        yield level
        held: list[Any] = []
        for each in level:
            if isinstance(each, dict):
                held.extend(each.values())
            elif isinstance(each, list):
                held.extend(each)
        level = held


def depth_of(value: Any) -> int:
    """How many containers the deepest value stands in; an empty container is no deeper than a number."""
    return sum(1 for _ in levels(value)) - 1


def follow(root: Any, reference: str) -> list[tuple[str | int, Any]] | None:
    """The steps on which a `$ref` leads down from the document that it stands in: each key, and what lies there.

    That is `#` and a JSON Pointer, percent-encoded; empty, or `#` alone, is the document.  None for any other
    reference, and where it leads to nothing.
    """
    anchor, *tokens = unquote(reference[1:]).split("/")
    if anchor or not (reference == "" or reference.startswith("#")):
        return None
    steps: list[tuple[str | int, Any]] = []
    for token in tokens:
        key: str | int = token.replace("~1", "/").replace("~0", "~")
        if isinstance(root, list) and _INDEX.fullmatch(token):
            key = int(token)
        is_there = key in root if isinstance(root, dict) else isinstance(key, int) and key < len(root)
        if not is_there:
            return None
        root = root[key]
        steps.append((key, root))
    return steps
