"""JSON as models write it: with a fence and blanks around it; and where a plain parse says all that there is to say."""

from __future__ import annotations

import re
from typing import Any

import orjson

from llm_routerd.protocol.numbers import exact_decoder

MAX_DEPTH = 200
"""Most containers within one another."""
MAX_NUMBER_CHARS = 1000
"""Longest number: a model that writes digits without end gives no answer."""
UNCERTAIN = object()
_TWINS = "a name is given twice"

SPACE = " \t\r\n\v\f\u00a0\u200b\ufeff"
OPENING = re.compile(rf"[{SPACE}]*(?:`{{3,}}(?:[A-Za-z][\w+.#-]{{0,31}}(?=[{SPACE}{{\[]))?[{SPACE}]*)?")
# An opening that is not complete: the next characters may still belong to it.
BEGUN_OPENING = re.compile(rf"[{SPACE}]*(?:`{{1,2}}|`{{3,}}(?:[A-Za-z][\w+.#-]{{0,31}})?[{SPACE}]*)?")


def json_body(text: str) -> str:
    """Return the JSON value within a text that the guard has accepted."""
    return without_opening(text).rstrip(SPACE + "`")


def certain_json(text: str) -> Any:
    """Parse a complete text on which the guard could only agree with full validation; else `UNCERTAIN`.

    They differ where a name is given twice, and about deep containers and long numbers.  Beyond the parse this takes
    two microseconds, and the guard twenty.
    """
    if len(text) > MAX_NUMBER_CHARS or text.count("{") + text.count("[") > MAX_DEPTH:
        return UNCERTAIN
    try:
        _CERTAIN.decode(text)
        return orjson.loads(text)
    except (RecursionError, ValueError):
        return UNCERTAIN


def _refuse_twins(members: list[tuple[str, Any]]) -> None:
    if len(dict(members)) < len(members):
        raise ValueError(_TWINS)


_CERTAIN = exact_decoder(_refuse_twins)


def without_opening(text: str) -> str:
    """A text without the blanks and the fence before its value."""
    return text[OPENING.match(text).end() :]  # type: ignore[union-attr] # it always matches
