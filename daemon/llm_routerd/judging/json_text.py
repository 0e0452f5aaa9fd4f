"""JSON as models write it: with a fence and blanks around it; and where a plain parse says all that there is to say."""

from __future__ import annotations

import re
from typing import Any

import orjson

from llm_routerd.protocol.numbers import carries_numbers

MAX_DEPTH = 200
"""Most containers within one another."""
MAX_NUMBER_CHARS = 1000
"""Longest number: a model that writes digits without end gives no answer."""
UNCERTAIN = object()

SPACE = " \t\r\n\v\f\u00a0\u200b\ufeff"
OPENING = re.compile(rf"[{SPACE}]*(?:`{{3,}}(?:[A-Za-z][\w+.#-]{{0,31}}(?=[{SPACE}{{\[]))?[{SPACE}]*)?")
# An opening that is not complete: the next characters may still belong to it.
BEGUN_OPENING = re.compile(rf"[{SPACE}]*(?:`{{1,2}}|`{{3,}}(?:[A-Za-z][\w+.#-]{{0,31}})?[{SPACE}]*)?")


def json_body(text: str) -> str:
    """Return the JSON value within a text that the guard has accepted."""
    return without_opening(text).rstrip(SPACE + "`")


def certain_json(text: str) -> Any:
    """Parse a complete text on which the guard could only agree with full validation; else `UNCERTAIN`.

    They differ where a name is given twice, and about deep containers and long numbers.  Every name has a colon after
    it, so no name is given twice if there are as many colons as names; colons in strings merely make it uncertain.
    """
    if len(text) > MAX_NUMBER_CHARS or not carries_numbers(text) or text.count("{") + text.count("[") > MAX_DEPTH:
        return UNCERTAIN
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return UNCERTAIN
    return value if text.count(":") == _count_names(value) else UNCERTAIN


def _count_names(value: Any) -> int:
    if isinstance(value, dict):
        return len(value) + sum(map(_count_names, value.values()))
    return sum(map(_count_names, value)) if isinstance(value, list) else 0


def without_opening(text: str) -> str:
    """A text without the blanks and the fence before its value."""
    return text[OPENING.match(text).end() :]  # type: ignore[union-attr] # it always matches
