"""The picture that all workers have of the local boxes: who holds a slot, who waits, what was seen of each box.

`Boxes` is what is done with it: `boxes.SharedBoxes` keeps it in Redis for all workers of a queue,
`local_boxes.LocalBoxes` in this process, for who has no Redis.  Both keep these rules:

- A call that holds a slot, or waits, has a token, which nobody else has.  It counts for a lease, which its worker
  renews: what a worker that died held is free when the lease is over.
- A slot is given if fewer calls are on the box than there are slots, as whoever asks says, and, to a call of another
  lane than `high`, if fewer such calls are there than slots beyond the reserve.  So, where workers say different
  numbers, each one's holds for its own calls.  A reserve as large as the slots shuts the other lanes out.
- Times are those of who keeps the picture (Unix time in ms of the Redis server; in one process, of any beginning), and
  comparable with `Picture.now_ms` only; a worker's own clock is nowhere in it.
- All is bounded: names are cut at 256 characters, and of what is beyond the bounds below nothing is told.

It imports no Redis.
"""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003 - msgspec reads the annotations
from typing import TYPE_CHECKING, Literal, Protocol

from msgspec import Struct, field

from llm_routerd.protocol.keys import LANES, Lane
from llm_routerd.queue.power import Power

if TYPE_CHECKING:
    from collections.abc import Sequence

LEASE_SECONDS = 30.0  # renewed every ten
MOST_LEASE_SECONDS = 300.0  # MOST_LEASED_MS in boxes.lua
REPORT_SECONDS = 60.0  # how long is true what was seen to be resident
SEEN_SECONDS = 86_400.0  # how long load times and tokens/s are remembered
MOST_KEPT_SECONDS = 172_800.0  # MOST_KEPT_MS
MOST_DOWN_SECONDS = 3_600.0
MOST_SECONDS = 86_400.0  # of an estimate, or of having waited
MOST_NAME = 256
MOST_CANDIDATES = 16
MOST_MODELS = 64  # of a box
MOST_BOXES = 256
MOST_WAITING = 5_000  # of all workers
MOST_TOLD = 1_000  # of those that wait, in one picture, and of those that hold a slot
MOST_NUMBER = 10**14 - 1  # what a server's cjson writes without losing digits

Quiet = Literal["", "any", "resident"]
Verdict = Literal["granted", "full", "contended", "asleep", "elsewhere", "unkept"]


class CallDetails(Struct, frozen=True, kw_only=True):
    """What is told of a call that asks for a slot.

    Attributes:
        expected_seconds: how long it is estimated to take, loading included.
        is_firm: it is not cut for others, whatever its lane.
    """

    lane: Lane
    box: str
    model: str = ""
    deployment: str = ""
    tenant: str | None = None
    expected_seconds: float = 0.0
    is_firm: bool = False


class BoxCall(CallDetails, frozen=True, kw_only=True):
    """A call that holds a slot, since `began_ms`, and for as long as its lease is renewed."""

    token: str = ""
    worker: str = ""
    began_ms: int
    until_ms: int


class Candidate(Struct, frozen=True, array_like=True):
    """A box that may serve a call, and as which model."""

    box: str
    model: str


class WaitingDetails(Struct, frozen=True, kw_only=True):
    """What is told of a call that waits.

    Attributes:
        candidates: in the order of its chain; of more than `MOST_CANDIDATES` the first.
        expected_seconds: how long it is estimated to take, where nothing is known of the box's speed.
        tokens: of its answer, as estimated; 0: nobody knows.
        prompt_tokens: likewise.
        affinity: what calls with the same beginning have in common, whose caches one box may have; None: nothing.
        begin_within: seconds from `since_ms` on within which it has to have a slot; 0: it has all the time.
        end_within: likewise, an answer.
    """

    lane: Lane
    candidates: tuple[Candidate, ...] = ()
    tenant: str | None = None
    expected_seconds: float = 0.0
    tokens: int = 0
    prompt_tokens: int = 0
    affinity: str | None = None
    begin_within: float = 0.0
    end_within: float = 0.0


class WaitingCall(WaitingDetails, frozen=True, kw_only=True):
    """A call that waits, since `since_ms`; others have gone before it since `turn_ms`, None: they have not."""

    token: str = ""
    worker: str = ""
    since_ms: int
    until_ms: int
    turn_ms: int | None = None


class Waits(Struct, frozen=True, kw_only=True):
    """A call that is to be told of as waiting, and for how long it has done so."""

    token: str
    details: WaitingDetails
    waited_seconds: float = 0.0


class BoxReport(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a worker has seen of a box; what it does not say stays as it is known.

    Attributes:
        resident: bytes by model (0: unknown); None: it says nothing of that, nor of `loading`.
        loading: models that are being loaded.
        load_seconds, tokens_per_second: by model, of those that it has seen; smoothed, if at all, by who reports.
        down_seconds: for how long nobody shall ask it; 0: it has answered, and is not down; None: as before.
        age_seconds: how long ago it was asked: if it has answered somebody since, it is not down.
    """

    resident: Mapping[str, int] | None = None
    loading: tuple[str, ...] = ()
    load_seconds: Mapping[str, float] = field(default_factory=dict)
    tokens_per_second: Mapping[str, float] = field(default_factory=dict)
    down_seconds: float | None = None
    age_seconds: float = 0.0


class Resident(Struct, frozen=True, kw_only=True):
    """A model in a box's memory; `bytes` is 0 where that is unknown."""

    bytes: int = 0
    since_ms: int


class BoxSeen(Struct, frozen=True, kw_only=True):
    """What is known of a box.

    Attributes:
        resident: by model; None: nobody has looked lately.
        loading: since when (ms), by model.
        load_seconds, tokens_per_second: by model, as they were last seen.
        down_until_ms: not to be asked before; None: it is not down.
        power: whether it is awake, of one that sleeps at times.
    """

    resident: Mapping[str, Resident] | None = None
    loading: Mapping[str, int] = field(default_factory=dict)
    load_seconds: Mapping[str, float] = field(default_factory=dict)
    tokens_per_second: Mapping[str, float] = field(default_factory=dict)
    down_until_ms: int | None = None
    power: Power = Power()


class Picture(Struct, frozen=True, kw_only=True):
    """All that is known at one moment.

    Attributes:
        calls: that hold a slot, the oldest first.
        waiting: the high lane first, then the oldest; of more than `MOST_TOLD` the first of these.
        waiting_count: of all that wait.
        boxes: of which something is known, by name.
    """

    now_ms: int
    calls: tuple[BoxCall, ...] = ()
    waiting: tuple[WaitingCall, ...] = ()
    waiting_count: int = 0
    boxes: Mapping[str, BoxSeen] = field(default_factory=dict)


class Occupied(Struct, frozen=True, kw_only=True):
    """What came of asking for a slot.

    Attributes:
        verdict: "granted"; "full": none is free for this lane; "contended": whoever has not looked has to;
            "asleep": the box has been put to sleep; "elsewhere": the token holds one of another box; "unkept": the
            server refuses to keep any picture, so that each worker has to count for itself.
        running: the calls that hold a slot of the box, this one included.
    """

    verdict: Verdict
    running: int = 0


class Boxes(Protocol):
    """The verbs, for one worker.  Each may be repeated: what has been done is not done twice.

    Attributes:
        refusal: why nobody has kept, or shown, what was asked last; None: it was.
    """

    refusal: str | None

    async def wait(self, calls: Sequence[Waits]) -> None:
        """Tell of calls that wait, or refresh them; what holds a slot does not wait."""
        ...

    async def look(self) -> Picture:
        """The whole."""
        ...

    async def occupy(
        self,
        token: str,
        details: CallDetails,
        *,
        slots: int,
        reserve: int = 0,
        quiet: Quiet = "",
        sleeps: bool = False,
    ) -> Occupied:
        """Take a slot of a box, if one is free; the call then waits no more.

        Args:
            token: of the call, used for no other one.
            details: of the call.
            slots: that the box has, as this worker's configuration says.
            reserve: how many of them are for the lane `high` alone.
            quiet: for whoever has not looked whose turn it is: only where no call waits for any box, none of another
                model is on this one, and it is up ("any"); and, of one that tells, where its model is there
                ("resident").
            sleeps: the box sleeps at times: then none is given while it does, nor, without a look, unless it has just
                answered.
        """
        ...

    async def release(self, *tokens: str) -> None:
        """Calls are over, or given up: their slots are free, and they wait no more."""
        ...

    def drop(self, *tokens: str) -> None:
        """The same, for whoever need not know when: it is heard in the order of all else that is asked."""
        ...

    async def renew(self, tokens: Sequence[str]) -> list[str]:
        """Renew leases; returns the tokens that neither hold a slot nor wait any more."""
        ...

    async def pass_over(self, tokens: Sequence[str]) -> None:
        """Note that others have gone before these calls, which wait; the first time counts, whoever notes it."""
        ...

    async def report(self, box: str, report: BoxReport) -> None:
        """Tell what was seen of a box."""
        ...

    async def wake(self, box: str, token: str, *, boot_seconds: float) -> bool:
        """Whether this worker is to wake the box: see `Power.woken`.

        Args:
            box: its name.
            token: of the asking, used for no other one.
            boot_seconds: that a boot takes, as expected.
        """
        ...

    async def rest(
        self, box: str, token: str, *, idle_seconds: float, after_seconds: float, claim_seconds: float
    ) -> bool:
        """Whether this worker is to put the box to sleep, on which then no call begins: see `Power.rested`.

        Args:
            box: its name.
            token: of the asking, used for no other one.
            idle_seconds: for which this worker has not used it.
            after_seconds: for which no worker may have, and no call run there or wait for it.
            claim_seconds: within which it will be done.
        """
        ...

    async def slept(self, box: str, token: str, *, is_asleep: bool, pause_seconds: float) -> None:
        """Whoever was to put the box to sleep has done so, and it is off in so long; or not: no sooner again."""
        ...

    async def leave(self) -> None:
        """Give back all that this worker holds and waits for: at its end; at its start, of its last life."""
        ...


def in_order(waiting: Sequence[WaitingCall]) -> tuple[WaitingCall, ...]:
    """The high lane first, then the oldest."""
    return tuple(sorted(waiting, key=lambda each: (LANES.index(each.lane), each.since_ms, each.token)))


def oldest_first(calls: Sequence[BoxCall]) -> tuple[BoxCall, ...]:
    """Those that hold a slot."""
    return tuple(sorted(calls, key=lambda each: (each.began_ms, each.token)))


def bounded_call(details: CallDetails) -> CallDetails:
    """What is kept of it."""
    return CallDetails(
        lane=details.lane,
        box=details.box[:MOST_NAME],
        model=details.model[:MOST_NAME],
        deployment=details.deployment[:MOST_NAME],
        tenant=_cut(details.tenant),
        expected_seconds=seconds_within(details.expected_seconds, MOST_SECONDS),
        is_firm=details.is_firm,
    )


def bounded_waiting(details: WaitingDetails) -> WaitingDetails:
    """What is kept of it."""
    first = details.candidates[:MOST_CANDIDATES]
    return WaitingDetails(
        lane=details.lane,
        candidates=tuple(Candidate(each.box[:MOST_NAME], each.model[:MOST_NAME]) for each in first),
        tenant=_cut(details.tenant),
        expected_seconds=seconds_within(details.expected_seconds, MOST_SECONDS),
        tokens=min(max(0, details.tokens), MOST_NUMBER),
        prompt_tokens=min(max(0, details.prompt_tokens), MOST_NUMBER),
        affinity=_cut(details.affinity),
        begin_within=seconds_within(details.begin_within, MOST_SECONDS),
        end_within=seconds_within(details.end_within, MOST_SECONDS),
    )


def bounded_report(report: BoxReport) -> BoxReport:
    """What is kept of it: the first models, and numbers that can be."""
    resident = report.resident
    down = report.down_seconds
    return BoxReport(
        resident=None
        if resident is None
        else {
            model[:MOST_NAME]: min(max(0, size), MOST_NUMBER) for model, size in list(resident.items())[:MOST_MODELS]
        },
        loading=tuple(model[:MOST_NAME] for model in report.loading[:MOST_MODELS]),
        load_seconds=_numbers(report.load_seconds),
        tokens_per_second=_numbers(report.tokens_per_second),
        down_seconds=None if down is None else seconds_within(down, MOST_DOWN_SECONDS),
        age_seconds=seconds_within(report.age_seconds, MOST_DOWN_SECONDS),
    )


def seconds_within(seconds: float, most: float) -> float:
    """From 0 to `most`; what is no number is 0."""
    return min(seconds, most) if seconds > 0 else 0.0  # NaN is not


def as_ms(seconds: float) -> int:
    """Of a time that somebody gives, bounded as such."""
    return round(seconds_within(seconds, MOST_KEPT_SECONDS) * 1000)


def _numbers(by_model: Mapping[str, float]) -> dict[str, float]:
    sound = {model[:MOST_NAME]: number for model, number in by_model.items() if 0 < number < MOST_NUMBER}
    return dict(list(sound.items())[:MOST_MODELS])


def _cut(text: str | None) -> str | None:
    return None if text is None else text[:MOST_NAME]
