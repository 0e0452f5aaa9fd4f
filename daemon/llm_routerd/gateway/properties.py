"""What a door says of the properties of its protocol: heeded, of no consequence, refused; and how one is looked at.

A property that nobody has said anything of is refused too, by name: a typing mistake is never silently ignored.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct, field

from llm_routerd.gateway.fault import refused, unsupported
from llm_routerd.jsonschema.path import printable

if TYPE_CHECKING:
    from collections.abc import Mapping

_LONGEST_NAME = 40


class Properties(Struct, frozen=True, kw_only=True):
    """Those of one kind of object.

    Attributes:
        heeded: what the door makes something of.
        idle: what cannot change an answer, whatever its value.
        refused: what would change it and cannot be honoured, with the values that change nothing.
    """

    heeded: frozenset[str]
    idle: frozenset[str] = frozenset()
    refused: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def of(self, given: Any, where: str = "") -> dict[str, Any]:
        """The heeded ones that an object has; null counts as absent.

        Raises:
            RefusedError: it is no object, or has a property that is refused.
        """
        found: dict[str, Any] = {}
        for name, value in an_object(given, where).items():
            if value is None or name in self.idle:
                continue
            if name in self.heeded:
                found[name] = value
            elif name not in self.refused:
                raise self._unknown(name, where)
            elif not any(_is_same(value, harmless) for harmless in self.refused[name]):
                raise unsupported(path(where, name))
        return found

    def _unknown(self, name: str, where: str) -> Exception:
        near = get_close_matches(name[:_LONGEST_NAME], sorted({*self.heeded, *self.idle, *self.refused}), 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return refused(path(where, printable(name[:_LONGEST_NAME])), f"there is no such property{hint}")


def path(where: str, step: str | int) -> str:
    """`messages.0.content`."""
    return f"{where}.{step}" if where else str(step)


def an_object(value: Any, where: str) -> dict[str, Any]:
    """The value, which has to be one.  Raises `RefusedError`; so do the others here."""
    if not isinstance(value, dict):
        raise refused(where or "body", "expected an object")
    return value


def an_object_text(value: Any, where: str) -> str:
    """The value, which has to be an object, as JSON."""
    try:
        return msgspec.json.encode(an_object(value, where)).decode()
    except (RecursionError, ValueError, OverflowError):
        raise refused(where, "this JSON cannot be written again") from None


def a_list(value: Any, where: str) -> list[Any]:
    """The value, which has to be one."""
    if not isinstance(value, list):
        raise refused(where, "expected an array")
    return value


def a_text(value: Any, where: str) -> str:
    """The value, which has to be one."""
    if not isinstance(value, str):
        raise refused(where, "expected a string")
    return value


def a_flag(value: Any, where: str) -> bool:
    """The value, which has to be one."""
    if not isinstance(value, bool):
        raise refused(where, "expected true or false")
    return value


def a_count(value: Any, where: str) -> int:
    """The value, which has to be an integer; 5.0 is one in JSON."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise refused(where, "expected an integer")
    return value


def _is_same(value: Any, harmless: Any) -> bool:
    return isinstance(value, bool) is isinstance(harmless, bool) and bool(value == harmless)
