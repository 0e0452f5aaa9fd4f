"""Counts of tokens as servers report them: used where they are counts, passed over where they are not."""

from __future__ import annotations

from typing import Any


def count(value: Any) -> int | None:
    """A count of tokens; None for anything that is none.  A good answer is not lost for a bad count."""
    return value if isinstance(value, int) and value >= 0 and not isinstance(value, bool) else None


def mapping(value: Any) -> dict[str, Any]:
    """An object of counts; empty for anything that is none."""
    return value if isinstance(value, dict) else {}
