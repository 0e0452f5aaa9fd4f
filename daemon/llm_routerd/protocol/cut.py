"""What was too long to be kept: its beginning, and what the whole was.

Others decide how long an entry is.  Of one that is longer than a request may be no more is kept than its end needs:
an answer under its id, and a dead letter with sizes, hashes and beginnings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

HEAD_BYTES = 8192  # of a value that is cut
KEPT_FIELDS = 64  # of an entry that is cut
MOST_FIELDS = 4096  # of an entry that is not


@dataclass(frozen=True, slots=True, kw_only=True)
class CutBytes:
    """A string of which the beginning was kept.

    Attributes:
        head: the first `HEAD_BYTES`.
        size: bytes of the whole.
        sha256: of the whole, in hexadecimal.
    """

    head: bytes
    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CutList:
    """A list of strings of which some were kept; those of them that are long are cut.

    Attributes:
        kept: the first ones, and behind them names that were to be found wherever they stand, with their values.
        count: elements of the whole.
        size: bytes of all its strings.
    """

    kept: Sequence[Any]
    count: int
    size: int


Part = bytes | CutBytes
# The fields of an entry, flat: names and values in turn.  Only what is cut as a whole holds strings that are cut.
Fields = Sequence[bytes] | CutList


def parts_of(fields: Fields) -> Sequence[Part]:
    """What there is of the fields, flat."""
    return fields.kept if isinstance(fields, CutList) else fields


def head_of(part: Part) -> bytes:
    """A string, or what there is of it."""
    return part.head if isinstance(part, CutBytes) else part


def size_of(part: Part) -> int:
    """Bytes of the whole string."""
    return part.size if isinstance(part, CutBytes) else len(part)


def extent_of(fields: Fields) -> tuple[int, int]:
    """Bytes of all names and values together, and how many fields there are."""
    if isinstance(fields, CutList):
        return fields.size, fields.count // 2
    return sum(map(len, fields)), len(fields) // 2
