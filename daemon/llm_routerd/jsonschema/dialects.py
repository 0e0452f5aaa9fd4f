"""The dialects of JSON Schema that are known, and where they differ: a row each, in the one place where they stand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class Dialect:
    """One dialect; the defaults are those of the latest.

    Attributes:
        name: what people call it.
        uri: what `$schema` says, perhaps with a `#` after it.
        has_prefix_items: it has `prefixItems`; before, `items` may be a list.
        has_unevaluated: it has `unevaluatedProperties`.
        ref_stands_alone: whatever stands beside `$ref` is ignored.
        has_const: it has `const` and `propertyNames`.
        id_keyword: what names a resource.
    """

    name: str
    uri: str
    has_prefix_items: bool = True
    has_unevaluated: bool = True
    ref_stands_alone: bool = False
    has_const: bool = True
    id_keyword: str = "$id"


LATEST: Final = Dialect("2020-12", "https://json-schema.org/draft/2020-12/schema")
_2019: Final = Dialect("2019-09", "https://json-schema.org/draft/2019-09/schema", has_prefix_items=False)
_OLD: Final[dict[str, Any]] = {"has_prefix_items": False, "has_unevaluated": False, "ref_stands_alone": True}
_DIALECTS: Final = (
    LATEST,
    _2019,
    Dialect("draft-07", "http://json-schema.org/draft-07/schema", **_OLD),
    Dialect("draft-06", "http://json-schema.org/draft-06/schema", **_OLD),
    Dialect("draft-04", "http://json-schema.org/draft-04/schema", **_OLD, has_const=False, id_keyword="id"),
)
_BY_URI: Final = {dialect.uri: dialect for dialect in _DIALECTS}
NAMES: Final = ", ".join(dialect.name for dialect in _DIALECTS)


def dialect_named(uri: str) -> Dialect | None:
    """The dialect that a `$schema` names; None: it is not known."""
    return _BY_URI.get(uri.removesuffix("#"))
