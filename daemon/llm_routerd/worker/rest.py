"""What a run waits for while it takes no place."""

from __future__ import annotations

from msgspec import Struct


class Rest(Struct, frozen=True, kw_only=True):
    """It waits for tools, for people, or for a place.

    Attributes:
        until_ms: when it is to be looked at in any case, by the server's clock.
        ears: the keys of the streams in which it is answered.
        for_people: it waits for a person.
        is_due: it waits for a place, to ask for its next turn.
    """

    until_ms: int = 0
    ears: tuple[str, ...] = ()
    for_people: bool = False
    is_due: bool = False


DUE = Rest(is_due=True)
