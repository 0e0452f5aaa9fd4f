"""Values between Redis and a worker: what was delivered, claimed, renewed and committed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from llm_routerd.protocol.audit import AuditEntry
    from llm_routerd.protocol.cut import Fields
    from llm_routerd.protocol.events import FinalEvent
    from llm_routerd.protocol.keys import Lane
    from llm_routerd.queue.outbox import Transcript


class Delivery(Struct, frozen=True, kw_only=True):
    """An entry of a lane that Redis has handed to this worker.

    `fields` is flat, `[name, value, name, value, ...]`, or cut where that is too long.  `deliveries` counts from 1;
    `claimed` tells that another worker had it before.
    """

    lane: Lane
    entry: str
    fields: Fields
    deliveries: int = 1
    claimed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Renewal:
    """What a renewal found: positions of lost and of sealed entries, and the server's Unix time in ms.

    `longest_lease_ms` is that of all living workers.
    """

    lost: Sequence[int]
    sealed: Sequence[int]
    server_ms: int
    longest_lease_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """Entries that were taken over, and those of dead workers that no longer exist (trimmed by somebody).

    `gone`: they have no fields, and stay pending until their requests have been ended.
    `late`: nothing was, because the server answered so late that leases may have run out in the meantime.
    `more`: there is more to be taken.
    """

    deliveries: Sequence[Delivery]
    gone: Sequence[Delivery]
    late: bool = False
    more: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The times and names that go into every script call."""

    lease_ms: int
    result_ttl_ms: int
    metrics_channel: str
    metrics_maxlen: int
    dead_max_bytes: int = 33_554_432
    dead_max_entries: int = 10_000
    audit_maxlen: int = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """What waits in a lane: entries that no worker has read yet, and those that one has handed back for others."""

    unread: int
    handed_back: int


BeginVerdict = Literal["begun", "sealed", "duplicate", "collision", "lost", "returned", "unwritable"]
CommitVerdict = Literal["committed", "sealed", "duplicate", "unwritable"]


class Commitment(Struct, frozen=True, kw_only=True):
    """An end that is to be written.

    Attributes:
        delivery: the entry.
        event: the final event.
        request_ids: whose streams get it: usually one; of what could not be read its entry ID too; empty: no event.
        transcript: of a request that was begun here; what it still holds is written before.
        publish: PUBLISH the event as well.
        metrics: the metrics event, as JSON; empty: none.
        dead_letter: flat fields; empty: none.
        audit: entries of the audit.
    """

    delivery: Delivery
    event: FinalEvent
    request_ids: tuple[str, ...]
    transcript: Transcript | None = None
    publish: bool = False
    metrics: bytes = b""
    dead_letter: Sequence[bytes | str] = ()
    audit: Sequence[AuditEntry] = ()


class Committed(Struct, frozen=True, kw_only=True):
    """What came of a commit.

    `sealed_by` is the type of the final event that stood there already.  `letter_lost` says why the dead letter was
    refused, where an event stands in its stead; `letters_dropped` how many older ones had to go for it; `unaudited` why
    its entries of the audit were.
    """

    verdict: CommitVerdict
    sealed_by: str | None = None
    letter_lost: str | None = None
    letters_dropped: int = 0
    unaudited: str | None = None


def parse_entries(lane: Lane, entries: Sequence[Any]) -> list[Delivery]:
    """Entries as XREADGROUP gives them; those without fields were deleted."""
    return [Delivery(lane=lane, entry=entry.decode(), fields=fields) for entry, fields in entries if fields is not None]


def parse_claimed(lane: Lane, claimed: Sequence[Any], *, own: bool = False) -> list[Delivery]:
    """Entries as `claim.lua` gives them.

    One's own that was delivered only once is as good as new, its reply was lost: should the group have been made
    again, `begin` then finds the worker that is busy with it.
    """
    return [
        Delivery(lane=lane, entry=entry.decode(), fields=fields, deliveries=count, claimed=not own or count > 1)
        for entry, fields, count in claimed
    ]


def parse_gone(lane: Lane, missing: Sequence[Any]) -> list[Delivery]:
    """Entries that no longer exist, as `claim.lua` gives them."""
    return [
        Delivery(lane=lane, entry=entry.decode(), fields=(), deliveries=count, claimed=True) for entry, count in missing
    ]


def parse_committed(reply: Sequence[Any]) -> Committed:
    """What came of a commit, as `commit.lua` gives it."""
    sealed_by, letter_lost, letters_dropped, unaudited = (*reply[1:], None, None, None, None)[:4]
    return Committed(
        verdict=reply[0].decode(),
        sealed_by=text_of(sealed_by),
        letter_lost=text_of(letter_lost),
        letters_dropped=letters_dropped or 0,
        unaudited=text_of(unaudited),
    )


def places_of(deliveries: Iterable[Delivery]) -> list[str]:
    """Where entries stand, as scripts take it: lane, entry, lane, entry, ..."""
    return [part for delivery in deliveries for part in (delivery.lane, delivery.entry)]


def text_of(reply: bytes | None) -> str | None:
    """What a script says of something, if it does."""
    return reply.decode("utf-8", "replace") if reply else None


def next_cursor(reply: bytes) -> bytes | None:
    """Where a script says that one goes on; None: all has been seen."""
    return None if reply == b"-" else reply
