"""What all tables of the configuration file have in common: a key's type, and beside it all else that is said of it."""

from __future__ import annotations

from functools import cache
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin

from msgspec import Meta, Struct
from msgspec.structs import fields

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Traits(Struct, frozen=True, kw_only=True):
    """What the code has to know of a key; see `key`."""

    expected: str = ""
    is_secret: bool = False
    is_told: bool = False
    needs_restart: bool = False
    is_ours: bool = False


def key(
    description: str,
    *,
    expected: str = "",
    is_secret: bool = False,
    is_told: bool = False,
    needs_restart: bool = False,
    is_ours: bool = False,
    more: dict[str, Any] | None = None,
    **bounds: Any,
) -> Meta:
    """What is said of a key: to people, to the code, and by bounds to both.

    Args:
        description: for the schema of the file.
        expected: its form, for whoever wrote another; "": its bounds say enough.
        is_secret: may hold a secret, and is left out of every `repr`.
        is_told: events, metrics, logs and names of keys show it, so that no secret may be put into it.
        needs_restart: a running worker cannot change it.
        is_ours: no key of the file, but worked out from it.
        more: of the schema, what neither its type nor bounds say.
        bounds: `ge`, `max_length`, … of `msgspec.Meta`.
    """
    traits = Traits(
        expected=expected, is_secret=is_secret, is_told=is_told, needs_restart=needs_restart, is_ours=is_ours
    )
    return Meta(description=description, extra={"traits": traits}, extra_json_schema=more, **bounds)


Name = Annotated[str, key("A name of a deployment or a chain.", pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}$")]


class Table(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the file."""

    def __repr__(self) -> str:
        """All of it but what may hold a secret."""
        shown = (name for name, traits in traits_of(type(self)).items() if not traits.is_secret)
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in shown)})"


@cache
def traits_of(table: type[Table]) -> Mapping[str, Traits]:
    """The traits of each of its keys, in their order."""
    return {each.name: _traits_in(each.type) for each in fields(table)}


def traits_at(table: type[Table], path: Sequence[str]) -> Traits:
    """The traits of the key that a path leads to, or into: `("deployments", "x", "model")`; none of an unknown one."""
    found, here = Traits(), table
    for step in path:
        if get_origin(here) is not None and len(get_args(here)) == 2:  # noqa: PLR2004 - tables by name
            here = get_args(here)[1]
        elif isinstance(here, type) and issubclass(here, Table):
            hint = {each.name: each.type for each in fields(here)}.get(step)
            found, here = _traits_in(hint), taken_apart(hint)[0]
        else:
            break
    return found


def taken_apart(hint: Any) -> tuple[Any, tuple[Meta, ...]]:
    """The type without what is said beside it, and without None, which is a key that is not there; and what is said."""
    said: tuple[Meta, ...] = ()
    while True:
        if get_origin(hint) is Annotated:
            said += tuple(each for each in hint.__metadata__ if isinstance(each, Meta))
            hint = get_args(hint)[0]
        elif get_origin(hint) in {Union, UnionType}:
            (hint,) = (each for each in get_args(hint) if each is not NoneType)
        else:
            return hint, said


def _traits_in(hint: Any) -> Traits:
    extras = [each.extra for each in taken_apart(hint)[1] if each.extra]
    return extras[-1]["traits"] if extras else Traits()
