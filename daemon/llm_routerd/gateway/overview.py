"""What the page shows, made of what Redis tells; no prompt, and no answer.

`Tally` is fed the metrics events in order, and knows how the deployments do and what the day has cost.  `overview` puts
together what one caller may see: who has a tenant sees his own requests and sums, beside lanes and deployments.
"""

from __future__ import annotations

from collections import deque
from statistics import median
from typing import TYPE_CHECKING, Final, Literal

import msgspec
from msgspec import Raw, Struct, field

from llm_routerd.client import Survey
from llm_routerd.protocol.codes import AttemptCode, Fault
from llm_routerd.routing.chains import names

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from llm_routerd.client import LaneState, Running
    from llm_routerd.config.tree import Config
    from llm_routerd.gateway.admission import Caller
    from llm_routerd.protocol.keys import Lane

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


class LaneView(Struct, frozen=True, kw_only=True):
    """A lane; `oldest_ms`: how long the one has waited that has waited longest; `is_served`: a worker has been here."""

    lane: Lane
    waiting: int
    running: int
    oldest_ms: int | None
    is_served: bool


class RunningView(Struct, frozen=True, kw_only=True):
    """A request that is worked at; `age_ms`: since it was added; `last`: type of its last event."""

    id: str
    lane: Lane
    age_ms: int
    worker: str
    deliveries: int
    deployment: str
    model: str
    last: str


class Confirmation(Struct, frozen=True, kw_only=True):
    """A tool call that waits for a person's word.

    Attributes:
        arguments: what the person has to see, as JSON text, as it stands; null: it is too long for here.
    """

    id: str
    call_id: str
    name: str = ""
    turn: int | None = None
    arguments: str | None = None
    args_sha256: str | None = None
    expires_at_ms: int | None = None


class _Call(Struct, frozen=True):
    """Of a `tool_call` event."""

    call_id: str
    name: str = ""
    turn: int | None = None
    arguments: Raw = field(default_factory=Raw)
    args_sha256: str | None = None
    expires_at_ms: int | None = None


_CALL: Final = msgspec.json.Decoder(_Call)


class WorkerView(Struct, frozen=True, kw_only=True):
    """A worker; `models`: the names that a request may give there; `running`: how many of those listed are its own."""

    name: str
    models: tuple[str, ...]
    running: int


class _Registered(Struct, frozen=True):
    """What a worker tells the others."""

    until_ms: int
    models: tuple[str, ...] = ()


_REGISTERED: Final = msgspec.json.Decoder(_Registered)


class DeploymentView(Struct, frozen=True, kw_only=True):
    """A deployment of the configuration.

    Attributes:
        state: `none`: no calls are known; `rejected`: it works, and its last answer was not acceptable; `cooling`: it
            is left alone for a while after failures; `disabled`: its key is missing.
        code: why its last call came to nothing; null: it answered.
        since: Unix time since which it is in this state.
        recent: of its last calls, oldest first: the code; "" for an answer.
        answers: how many of them are answers.
        median_ms: how long these took.
    """

    name: str
    model: str
    is_local: bool
    state: State
    code: str | None
    since: float | None
    recent: tuple[str, ...]
    answers: int
    median_ms: int | None


class Today(Struct, frozen=True, kw_only=True):
    """Sums since midnight; `known_since`: what was before this is no longer known; null: all of it is."""

    midnight: float
    known_since: float | None
    sums: Sums


class Overview(Struct, frozen=True, kw_only=True):
    """All that the page shows but tokens.  Of a caller with a tenant nobody else's requests, workers or letters.

    Attributes:
        at_ms: Unix time by the server's clock.
        more_running: how many run that are not listed.
        models: what a request may give as its model.
    """

    at_ms: int
    tenant: str | None
    lanes: tuple[LaneView, ...]
    running: tuple[RunningView, ...]
    more_running: int
    confirmations: tuple[Confirmation, ...]
    workers: tuple[WorkerView, ...] | None
    deployments: tuple[DeploymentView, ...]
    today: Today
    dead_letters: int | None
    models: tuple[str, ...]


def overview(
    surveys: Sequence[Survey], lanes: Sequence[LaneState], tally: Tally, config: Config, caller: Caller
) -> Overview:
    """What a caller sees.  `surveys`: of each shard, one at the least."""
    tenant = caller.tenant
    seen = [(survey, each) for survey in surveys for each in survey.running if caller.may_see(each.request_id)]
    return Overview(
        at_ms=max(survey.server_ms for survey in surveys),
        tenant=tenant,
        lanes=tuple(_lane(state, surveys) for state in lanes),
        running=tuple(_running(each, survey.server_ms) for survey, each in seen),
        more_running=0 if tenant is not None else _unlisted(surveys, lanes),
        confirmations=tuple(call for _, each in seen for call in _confirmations(each)),
        workers=tuple(_workers(surveys)) if tenant is None else None,
        deployments=tuple(_deployments(config, tally.courses)),
        today=Today(midnight=tally.midnight, known_since=tally.known_since, sums=tally.sums(caller)),
        dead_letters=sum(survey.letters for survey in surveys) if tenant is None else None,
        models=names(config),
    )


def _age_ms(entry: str, now_ms: int) -> int:
    return max(0, now_ms - int(entry.partition("-")[0]))


def _lane(state: LaneState, surveys: Sequence[Survey]) -> LaneView:
    ages = [_age_ms(each.oldest[state.lane], each.server_ms) for each in surveys if state.lane in each.oldest]
    return LaneView(
        lane=state.lane,
        waiting=state.waiting,
        running=state.running,
        oldest_ms=max(ages, default=None),
        is_served=state.has_group,
    )


def _running(each: Running, now_ms: int) -> RunningView:
    return RunningView(
        id=each.request_id,
        lane=each.lane,
        age_ms=_age_ms(each.entry, now_ms),
        worker=each.worker,
        deliveries=each.deliveries,
        deployment=each.deployment,
        model=each.model,
        last=each.last,
    )


def _unlisted(surveys: Sequence[Survey], lanes: Sequence[LaneState]) -> int:
    """Of lanes alone that have more than is listed: what was handed back counts as running there, and is not."""
    listed = {state.lane: sum(each.lane == state.lane for s in surveys for each in s.running) for state in lanes}
    return sum(state.running - listed[state.lane] for state in lanes if listed[state.lane] >= Survey.most_running)


def _confirmations(each: Running) -> Iterator[Confirmation]:
    for text in each.calls:
        try:
            call = _CALL.decode(text)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            continue  # written by others
        yield Confirmation(
            id=each.request_id,
            call_id=call.call_id,
            name=call.name,
            turn=call.turn,
            arguments=bytes(call.arguments).decode() or None,
            args_sha256=call.args_sha256,
            expires_at_ms=call.expires_at_ms,
        )


def _workers(surveys: Sequence[Survey]) -> Iterator[WorkerView]:
    """Those that live, by name; one works at all shards."""
    models: dict[str, set[str]] = {}
    for survey in surveys:
        for name, text in survey.workers.items():
            try:
                registered = _REGISTERED.decode(text)
            except (msgspec.MsgspecError, ValueError, RecursionError):
                continue
            if registered.until_ms >= survey.server_ms:
                models.setdefault(name, set()).update(registered.models)
    for name, known in sorted(models.items()):
        running = sum(each.worker == name for survey in surveys for each in survey.running)
        yield WorkerView(name=name, models=tuple(sorted(known)), running=running)


def _deployments(config: Config, courses: Mapping[str, Course]) -> Iterator[DeploymentView]:
    for name, deployment in config.deployments.items():
        course = courses.get(name) or Course()
        answered = [call.latency_ms for call in course.calls if call.outcome == "success"]
        yield DeploymentView(
            name=name,
            model=deployment.model,
            is_local=deployment.local,
            state="disabled" if deployment.key_missing else course.state,
            code=course.code,
            since=course.since,
            recent=tuple(call.code or "" for call in course.calls),
            answers=len(answered),
            median_ms=int(median(answered)) if answered else None,
        )
