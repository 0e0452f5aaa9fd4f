"""Where the server is that serves us now: where the URL says, where Sentinels say, or where a Cluster has our slot.

It is asked whenever a connection is made, and told when what it said does not hold any more: a connection was lost, or
the server has said that it is not the one.  What it has found holds for all connections that ask the same object.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from llm_routerd.queue.connection.fitness import Greeting


_HOST = re.compile(r"[\w.:%-]{1,253}", re.ASCII)
_PORTS = range(1, 65_536)


class Place(NamedTuple):
    """Host and port of a server."""

    host: str
    port: int


def sound_place(host: str, port: int) -> Place | None:
    """The place that a server names; None: it is none, and to connect there would raise what is no lost connection."""
    try:
        host.encode("idna")
    except UnicodeError:  # an empty label, or one that is too long
        return None
    return Place(host, port) if _HOST.fullmatch(host) and port in _PORTS else None


class Whereabouts(Protocol):
    """Where one server is.

    Attributes:
        may_move: it may be elsewhere, though nobody has said so: whom it does not answer may ask `moved`.
        is_fixed: it is nowhere else, whatever it says.
        has_all: it has every key, and not only those of one slot.
    """

    may_move: bool
    is_fixed: bool
    has_all: bool

    async def find(self) -> Place | None:
        """Where it is; None: where the URL says.

        Raises:
            RedisError: nobody tells (`NobodyTells`), or does not let us ask.
        """
        ...

    def lost(self, error: BaseException, /) -> None:
        """What was found does not hold any more, for this reason."""
        ...

    async def accept(self, greeting: Greeting | None, /) -> None:
        """Look at what the server that was found says of itself.

        Raises:
            RedisError: it is not the one.
        """
        ...

    async def moved(self) -> bool:
        """Ask, for it does not answer; true: it is elsewhere by now, and the next connection is made there."""
        ...

    async def glance(self) -> bool:
        """The same, asked once in a while though it answers: a server may not know that another has taken its place."""
        ...


class Fixed:
    """A server whose place is known: a Unix socket."""

    may_move = False
    is_fixed = True
    has_all = True

    async def find(self) -> Place | None:
        """Where the URL says."""
        return None

    def lost(self, _error: BaseException, /) -> None:
        """It is nowhere else."""

    async def accept(self, _greeting: Greeting | None, /) -> None:
        """Whatever it is."""

    async def moved(self) -> bool:
        """Never."""
        return False

    async def glance(self) -> bool:
        """Never."""
        return False
