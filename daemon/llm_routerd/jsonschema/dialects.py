"""The dialects of JSON Schema that are known, in the one place where they stand."""

from __future__ import annotations

from typing import Final

# What `$schema` may say: the draft, as a number for order, and its name for people.
_DIALECTS: Final = {
    "https://json-schema.org/draft/2020-12/schema": (2020, "2020-12"),
    "https://json-schema.org/draft/2019-09/schema": (2019, "2019-09"),
    "http://json-schema.org/draft-07/schema": (7, "draft-07"),
    "http://json-schema.org/draft-06/schema": (6, "draft-06"),
    "http://json-schema.org/draft-04/schema": (4, "draft-04"),
}
NAMES: Final = ", ".join(name for _, name in _DIALECTS.values())


def draft_of(dialect: str) -> int | None:
    """The draft that a `$schema` names, as a number, later ones greater; None: it is not known."""
    known = _DIALECTS.get(dialect.removesuffix("#"))
    return None if known is None else known[0]
