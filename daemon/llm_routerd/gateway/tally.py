"""What the metrics events come to: how the deployments do, and what the day has cost."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, Literal

import msgspec
from msgspec import Struct, field

from llm_routerd.protocol.codes import AttemptCode, Fault

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from llm_routerd.gateway.admission import Caller

State = Literal["none", "answering", "rejected", "failing", "cooling", "disabled"]

RECENT: Final = 50
_HEALTHY: Final = {Fault.ANSWER, Fault.CALL, Fault.OURS, Fault.NOBODY}


class Attempt(Struct, frozen=True):
    """Of a metrics event, one attempt."""

    deployment: str = ""
    outcome: str = ""
    code: str | None = None
    latency_ms: int = 0

    @property
    def state(self) -> State | None:
        """What it shows of its deployment; None: it was not asked, for want of a place."""
        if self.outcome == "success":
            return "answering"
        if self.code == AttemptCode.COOLDOWN:
            return "cooling"
        traits = AttemptCode(self.code).traits if self.code in set(AttemptCode) else None
        if traits is None:
            return "failing"
        if not traits.is_asked:
            return None
        return "rejected" if traits.fault in _HEALTHY else "failing"


class _Used(Struct, frozen=True):
    """Of a metrics event, what one deployment's attempts took."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0
    unpriced_calls: int = 0


class Finished(Struct, frozen=True):
    """What is read of a metrics event."""

    timestamp: float
    type: str = ""
    tenant_id: str | None = None
    saved_usd: float = 0.0
    attempts: tuple[Attempt, ...] = ()
    usage_by_deployment: dict[str, _Used] = field(default_factory=dict)


_FINISHED: Final = msgspec.json.Decoder(Finished)


class Sums(Struct, kw_only=True):
    """What requests came to.

    Attributes:
        requests, answered, failed, cancelled: how many ended at all, and how.
        cost_usd: of all attempts whose price is known.
        unpriced_calls: attempts whose price is not.
        saved_usd: what the answers of local deployments would have cost elsewhere.
    """

    requests: int = 0
    answered: int = 0
    failed: int = 0
    cancelled: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0
    unpriced_calls: int = 0
    saved_usd: float = 0.0

    def __add__(self, other: Sums) -> Sums:
        return Sums(**{name: getattr(self, name) + getattr(other, name) for name in self.__struct_fields__})

    def add(self, event: Finished) -> None:
        """Count one more."""
        self.requests += 1
        self.answered += event.type == "result"
        self.failed += event.type == "error"
        self.cancelled += event.type == "cancelled"
        self.saved_usd += event.saved_usd
        for used in event.usage_by_deployment.values():
            self.prompt_tokens += used.prompt_tokens
            self.completion_tokens += used.completion_tokens
            self.cost_usd += used.cost_usd
            self.unpriced_calls += used.unpriced_calls


class Course:
    """How one deployment has done: its last calls, and since when it is as it is."""

    def __init__(self) -> None:
        self.calls: deque[Attempt] = deque(maxlen=RECENT)
        self.state: State = "none"
        self.since: float | None = None
        self.code: str | None = None

    def add(self, attempt: Attempt, at: float) -> None:
        """Another turn of it."""
        if (state := attempt.state) is None:
            return
        if state != self.state:
            self.state, self.since = state, at
        if state != "cooling":  # what it is left alone for stays told
            self.code = attempt.code
            self.calls.append(attempt)


_MOST_TENANTS: Final = 1_000
_OTHERS: Final = ""  # no tenant's name


class Tally:
    """What the metrics events come to.

    Args:
        deployments: whose course is kept; attempts of others are passed over.
        midnight: see below.
        tenants: who can ask for their own sums.  Any name may be given as a tenant's: of others than these no more
            than a bound is kept apart.

    Attributes:
        midnight: Unix time at which the day began that is summed up.
        known_since: Unix time of the first event that is known, where there may have been others before; None: there
            were none today.
    """

    def __init__(self, deployments: Sequence[str], midnight: float, tenants: Iterable[str] = ()) -> None:
        self.midnight = midnight
        self._tenants = frozenset(tenants)
        self.known_since: float | None = None
        self.courses = {name: Course() for name in deployments}
        self._by_tenant: dict[str | None, Sums] = {}

    def begin_day(self, midnight: float) -> None:
        """What is fed from here on belongs to this day; the same one as before: nothing changes."""
        if midnight != self.midnight:
            self.midnight, self.known_since = midnight, None
            self._by_tenant = {}

    def feed(self, text: bytes) -> None:
        """The next event; what is none is passed over."""
        try:
            event = _FINISHED.decode(text)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return
        for attempt in event.attempts:
            if course := self.courses.get(attempt.deployment):
                course.add(attempt, event.timestamp)
        if event.timestamp >= self.midnight:
            self._by_tenant.setdefault(self._row(event.tenant_id), Sums()).add(event)

    def _row(self, tenant: str | None) -> str | None:
        """Under which name a tenant's requests are summed up."""
        is_kept = tenant in self._by_tenant or tenant in self._tenants or len(self._by_tenant) < _MOST_TENANTS
        return tenant if is_kept else _OTHERS

    def sums(self, caller: Caller) -> Sums:
        """Of those requests today that a caller may know of."""
        if caller.tenant is not None:
            return self._by_tenant.get(caller.tenant, Sums())
        return sum((sums for tenant, sums in self._by_tenant.items() if tenant not in caller.others), Sums())
