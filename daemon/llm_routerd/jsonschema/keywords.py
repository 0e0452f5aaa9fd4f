"""Where a JSON Schema keeps its subschemas, all dialects together: a row per keyword."""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator


class Applies(Enum):
    """To what a subschema applies."""

    HERE = auto()  # the same value as its parent, surely or perhaps
    BELOW = auto()  # parts of it, together with others of these
    APART = auto()  # parts of it, each a part of its own
    ASIDE = auto()  # nothing, unless it is referred to


# `items` stands twice: until 2019-09 it may be a list.
_SINGLE: Final = {
    **dict.fromkeys(("not", "if", "then", "else"), Applies.HERE),
    **dict.fromkeys(("items", "additionalItems", "unevaluatedItems", "contains"), Applies.BELOW),
    **dict.fromkeys(("additionalProperties", "unevaluatedProperties", "propertyNames"), Applies.BELOW),
}
_LISTS: Final = {
    **dict.fromkeys(("allOf", "anyOf", "oneOf"), Applies.HERE),
    **dict.fromkeys(("prefixItems", "items"), Applies.APART),
}
_MAPS: Final = {
    **dict.fromkeys(("dependentSchemas", "dependencies"), Applies.HERE),
    "patternProperties": Applies.BELOW,
    "properties": Applies.APART,
    **dict.fromkeys(("$defs", "definitions"), Applies.ASIDE),
}


def subschemas_of(schema: dict[str, Any]) -> Iterator[tuple[Applies, tuple[str | int, ...], Any]]:
    """Each subschema of one schema object: to what it applies, the keys that lead to it, and itself.

    Keywords whose value has another form than theirs hold none; what is yielded need be no schema either.
    """
    for keyword, value in schema.items():
        if isinstance(value, dict) and keyword in _MAPS:
            for name, each in value.items():
                yield _MAPS[keyword], (keyword, name), each
        elif isinstance(value, list) and keyword in _LISTS:
            for index, each in enumerate(value):
                yield _LISTS[keyword], (keyword, index), each
        elif isinstance(value, (dict, bool)) and keyword in _SINGLE:
            yield _SINGLE[keyword], (keyword,), value
