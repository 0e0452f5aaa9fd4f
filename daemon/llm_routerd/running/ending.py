"""How asking a chain for a request ends, as values."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from llm_routerd.protocol.outcome import AttemptRecord, total_cost

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llm_routerd.protocol.events import Failed, Result


class Earlier(Struct, frozen=True, kw_only=True):
    """What the turns of a run took that stand, whoever asked for them; it has been counted.

    Attributes:
        turns: of the run so far, that which ends it included.
        tool_calls: of all turns.
        attempts: as far as they are known.
        cost_usd: None: not known.
        is_estimated: a part of that is an estimate.
    """

    turns: int
    tool_calls: int
    attempts: tuple[AttemptRecord, ...] = ()
    cost_usd: float | None = 0.0
    is_estimated: bool = False


class Spent(Struct, frozen=True, kw_only=True):
    """What a request has taken here, whoever ends it.

    Attributes:
        attempts: what became of each turn.
        latency_ms: from pick-up to the end.
        ttft_ms: from pick-up to the answer's first token; None: there is none.
        cost_usd: of all attempts; None: not known.
        saved_usd: see `Pricing.saved_usd`.
        earlier: of a run with tools: what its turns before took; None: it is none.
    """

    attempts: tuple[AttemptRecord, ...] = ()
    latency_ms: int = 0
    ttft_ms: int | None = None
    cost_usd: float | None = 0.0
    saved_usd: float = 0.0
    earlier: Earlier | None = None

    @classmethod
    def on(cls, attempts: Iterable[AttemptRecord]) -> Spent:
        """What these attempts alone have taken."""
        made = tuple(attempts)
        return cls(attempts=made, latency_ms=sum(attempt.latency_ms for attempt in made), cost_usd=total_cost(made))


NOTHING = Spent()


class Answered(Struct, frozen=True, kw_only=True):
    """A deployment has answered."""

    event: Result
    spent: Spent


class Unanswered(Struct, frozen=True, kw_only=True):
    """Nothing in the chain is left to ask."""

    event: Failed
    spent: Spent


class Withdrawn(Struct, frozen=True, kw_only=True):
    """The request is not ours to end; `spent` was spent on it all the same."""

    spent: Spent = NOTHING
