"""Whether the numbers of a JSON text survive being parsed and written again.

Integers beyond 64 bits become floats in orjson, as in JavaScript, and come out as other numbers; so do integers
that are written with a fraction or an exponent and have more digits than a float keeps.  An answer that holds one
is not passed on: a wrong number that is told as valid is worse than none.  (msgspec keeps integers of any size, and so
metadata is read and written with it.)
"""

from __future__ import annotations

import json
import re
from decimal import Decimal
from typing import Any

_SMALLEST, _LARGEST = -(2**63), 2**64 - 1
_LONGEST_INTEGER = 20  # characters of the smallest and of the largest
_LARGEST_EXACT = 2**53
_MAY_BE_LARGE = re.compile(r"\d{16}|\d[eE]\+?\d")


class _InexactError(Exception):
    pass


def carries_numbers(text: str) -> bool:
    """Whether every number of a valid JSON text is the same after `orjson.loads` and `orjson.dumps`.

    Digits beyond a float's precision after the point of a number that is no integer are not looked at, unless the
    float comes out as one: no reader of JSON keeps them.
    """
    if _MAY_BE_LARGE.search(text) is None:
        return True
    try:
        json.loads(text, parse_int=_check_integer, parse_float=_check_float)
    except (_InexactError, RecursionError, ValueError):
        return False
    return True


def holds_inexact(value: Any) -> bool:
    """Whether a value that orjson has parsed holds a float that may have been an integer too large for it."""
    values = [value]
    while values:
        match values.pop():
            case float() as number if abs(number) >= _LARGEST_EXACT:
                return True
            case int() as number if not _SMALLEST <= number <= _LARGEST:
                return True
            case dict() as parts:
                values.extend(parts.values())
            case list() as parts:
                values.extend(parts)
            case _:
                pass
    return False


def _check_integer(literal: str) -> int:
    if len(literal) > _LONGEST_INTEGER or not _SMALLEST <= int(literal) <= _LARGEST:
        raise _InexactError
    return 0


def _check_float(literal: str) -> float:
    value = float(literal)
    # Infinity, which orjson does not take, is no integer.
    if abs(value) >= _LARGEST_EXACT and value.is_integer() and Decimal(literal) != Decimal(repr(value)):
        raise _InexactError
    return value
