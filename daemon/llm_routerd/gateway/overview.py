"""What the page shows, made of what Redis tells; no prompt, and no answer.

`overview` puts together what one caller may see: who has a tenant sees his own requests and sums, beside lanes and
deployments.  How these do, and what the day has cost, is in `tally`.
"""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Raw, Struct, field

from llm_routerd.client import Survey
from llm_routerd.gateway.tally import Course, State, Sums
from llm_routerd.routing.chains import names

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from llm_routerd.client import LaneState, Running
    from llm_routerd.config.tree import Config
    from llm_routerd.gateway.admission import Caller
    from llm_routerd.gateway.tally import Tally
    from llm_routerd.protocol.events import Queued
    from llm_routerd.protocol.keys import Lane


class LaneView(Struct, frozen=True, kw_only=True):
    """A lane; `oldest_ms`: how long the one has waited that has waited longest; `is_served`: a worker has been here."""

    lane: Lane
    waiting: int
    running: int
    oldest_ms: int | None
    is_served: bool


class RunningView(Struct, frozen=True, kw_only=True):
    """A request that is worked at.

    Attributes:
        age_ms: since it was added.
        last: type of its last event.
        calls_waiting: how many of its tool calls wait for a person.
        queued: what it waits for, as told last; null: it does not, or nothing is told of that.
    """

    id: str
    lane: Lane
    age_ms: int
    worker: str
    deliveries: int
    deployment: str
    model: str
    last: str
    calls_waiting: int = 0
    queued: Queued | None = None


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
        calls_waiting=sum(1 for _ in _confirmations(each)),
        queued=each.queued,
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
