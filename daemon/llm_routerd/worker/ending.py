"""How a delivery ends on this worker, as values: what asking the chain comes to, and what only a queue knows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec import Struct

from llm_routerd.running.ending import NOTHING, Answered, Spent, Unanswered, Withdrawn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_routerd.protocol.events import Failed


class Buried(Struct, frozen=True, kw_only=True):
    """An entry that nobody will try again: a dead letter keeps what it was.

    Attributes:
        event: the final event.
        streams: the ids under which it is told; empty: the dead letter alone tells.
        publish: PUBLISH the event as well, though nothing is known of the request; else as that asks for.
        history: what its events stream tells of attempts.
        spent: on it, here.
    """

    event: Failed
    streams: tuple[str, ...]
    publish: bool = False
    history: Sequence[Any] = ()
    spent: Spent = NOTHING


class Cancelled(Struct, frozen=True, kw_only=True):
    """Its producer has ended it; of all workers one accounts for that."""

    spent: Spent = NOTHING


Ending = Answered | Unanswered | Buried | Cancelled | Withdrawn
