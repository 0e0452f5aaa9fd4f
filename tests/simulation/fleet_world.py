"""Boxes that load models and answer calls: events in order of time, no clock, no server.  Pure.

What a policy begins is checked: never more calls than slots, nothing pushed out that runs or is pinned, no more models
than memory has room for.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_routerd.fleet.picture import Box, Lane

CUT_SECONDS = 0.3  # until a call that is cut has left its slot
CACHED_KEYS = 16  # whose prompts a box has read, of each model
GIB = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A call as it comes.

    Attributes:
        tokens: that its answer has; `expected_tokens`: that one thinks it will have.
    """

    token: str
    at: float
    model: str
    tokens: int
    expected_tokens: int
    lane: Lane = "normal"
    tenant: str = ""
    prompt_tokens: int = 0
    key: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A box as it really is.

    Attributes:
        load_seconds: of a load that do not depend on the model's size.
        downs: from when to when it is down; what runs is lost, and so is what is loaded.
        boot_seconds: it is asleep at first, and up so long after it was woken; 0: it never sleeps.
    """

    box: Box
    tokens_per_second: float
    bytes_per_second: float
    prompt_tokens_per_second: float = 800.0
    load_seconds: float = 1.0
    downs: tuple[tuple[float, float], ...] = ()
    boot_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """What happens, whoever decides."""

    name: str
    machines: tuple[Machine, ...]
    sizes: dict[str, int]
    jobs: tuple[Job, ...]
    pins: frozenset[str] = frozenset()


@dataclass(slots=True)
class Call:
    """A job that runs."""

    job: Job
    began: float
    expected_seconds: float
    answers_at: float
    is_cut: bool = False


@dataclass(slots=True)
class Loaded:
    """A model in memory."""

    since: float
    used: float


@dataclass(slots=True)
class Site:
    """A machine at this moment; `read` has the keys whose prompts it has read, by model; `woken`: when it was."""

    machine: Machine
    loaded: dict[str, Loaded] = field(default_factory=dict)
    loading: dict[str, float] = field(default_factory=dict)
    running: dict[str, Call] = field(default_factory=dict)
    read: dict[str, OrderedDict[str, None]] = field(default_factory=dict)
    is_down: bool = False
    woken: float | None = None

    @property
    def has_slot(self) -> bool:
        """Whether one more call may run."""
        return not self.is_down and len(self.running) < self.machine.box.slots

    def runs(self, model: str) -> bool:
        """Whether a call of the model does."""
        return any(call.job.model == model for call in self.running.values())


@dataclass(slots=True, kw_only=True)
class Result:
    """What came of it; seconds.

    Attributes:
        waits: for each job until its answer began, loading included.
        late: how long a call waited since others had first gone before it, of those that were passed over.
        loads_on: by box.
        woken: when boxes were.
    """

    waits: dict[str, float] = field(default_factory=dict)
    loads: int = 0
    tokens_read_again: int = 0
    total_seconds: float = 0.0
    cuts: int = 0
    late: dict[str, float] = field(default_factory=dict)
    loads_on: Counter[str] = field(default_factory=Counter)
    woken: list[float] = field(default_factory=list)


class Policy(Protocol):
    """Who decides."""

    def arrived(self, world: World, job: Job) -> None:
        """A job waits, for the first time or again."""

    def step(self, world: World) -> None:
        """Begin what is to begin now."""

    def loaded(self, world: World, site: Site, model: str, seconds: float) -> None:
        """A model was loaded."""

    def answered(self, world: World, site: Site, job: Job, seconds: float) -> None:
        """An answer took so long."""


class World:
    """The machines of a trace."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.now = 0.0
        self.sites = {machine.box.name: Site(machine) for machine in trace.machines}
        self.result = Result()
        self._events: list[tuple[float, int, str, str, str]] = []
        self._numbers = itertools.count()
        self._jobs = {job.token: job for job in trace.jobs}
        self._attempts: dict[str, int] = {}
        self._seen: set[str] = set()

    def run(self, policy: Policy, *, tick_seconds: float = 1.0) -> Result:
        """Until every job has its answer; the policy is asked at each event, and once a second."""
        for job in self.trace.jobs:
            self._at(job.at, "arrives", job.token)
        for machine in self.trace.machines:
            self.sites[machine.box.name].is_down = machine.boot_seconds > 0
            for start, end in machine.downs:
                self._at(start, "falls", machine.box.name)
                self._at(end, "rises", machine.box.name)
        first = min(job.at for job in self.trace.jobs)
        while len(self.result.waits) < len(self.trace.jobs):
            at = self._events[0][0] if self._events else self.now + tick_seconds
            self.now = min(at, self.now + tick_seconds) if self._events else at
            while self._events and self._events[0][0] <= self.now:
                _, _, what, name, more = heapq.heappop(self._events)
                self._happens(policy, what, name, more)
            policy.step(self)
        self.result.total_seconds = self.now - first
        return self.result

    def _at(self, when: float, what: str, name: str, more: str = "") -> None:
        heapq.heappush(self._events, (when, next(self._numbers), what, name, more))

    def _happens(self, policy: Policy, what: str, name: str, more: str) -> None:
        match what:
            case "arrives":
                policy.arrived(self, self._jobs[name])
            case "falls":
                self._fall(policy, self.sites[name])
            case "rises":
                self.sites[name].is_down = False
            case "loaded" if more in (site := self.sites[name]).loading:
                policy.loaded(self, site, more, self.now - site.loading.pop(more))
                site.loaded[more] = Loaded(self.now, self.now)
            case "ends":
                self._end(policy, self.sites[name], *more.split())
            case _:
                pass

    def _fall(self, policy: Policy, site: Site) -> None:
        site.is_down = True
        lost = [call.job for call in site.running.values()]
        for held in (site.running, site.loaded, site.loading, site.read):
            held.clear()
        for job in lost:
            self._attempts[job.token] += 1
            policy.arrived(self, job)

    def _end(self, policy: Policy, site: Site, token: str, attempt: str) -> None:
        call = site.running.get(token)
        if call is None or int(attempt) != self._attempts[token]:
            return
        del site.running[token]
        if call.job.model in site.loaded:
            site.loaded[call.job.model].used = self.now
        if call.is_cut:
            self._attempts[token] += 1
            policy.arrived(self, call.job)
            return
        self.result.waits[token] = call.answers_at - call.job.at
        policy.answered(self, site, call.job, self.now - call.answers_at)

    # ------------------------------------------------------------------ what policies do

    def wake(self, site: Site) -> None:
        """Send a packet to a box that sleeps."""
        if not site.is_down or site.woken is not None:
            raise AssertionError(f"{site.machine.box.name} was woken already")
        site.woken = self.now
        self.result.woken.append(self.now)
        self._at(self.now + site.machine.boot_seconds, "rises", site.machine.box.name)

    def load_seconds(self, site: Site, model: str) -> float:
        """Of loading it there."""
        return site.machine.load_seconds + self.trace.sizes[model] / site.machine.bytes_per_second

    def room(self, site: Site, model: str) -> list[str] | None:
        """What to push out for the model, the longest unused first; None: there is no room for it now."""
        memory = site.machine.box.memory_bytes - sum(
            self.trace.sizes[each] for each in (*site.loaded, *site.loading, model)
        )
        victims = []
        for each in sorted(site.loaded, key=lambda name: site.loaded[name].used):
            if memory >= 0:
                break
            if each not in self.trace.pins and not site.runs(each):
                memory += self.trace.sizes[each]
                victims.append(each)
        return victims if memory >= 0 else None

    def begin(self, site: Site, job: Job, victims: Sequence[str] | None, expected_seconds: float = 0.0) -> None:
        """Run it there; `victims`: the model is loaded first, in place of these; None: it is resident."""
        if not site.has_slot or job.token in self.result.waits:
            raise AssertionError(f"{job.token} may not begin on {site.machine.box.name}")
        starts = self.now
        if victims is not None:
            starts += self._load(site, job.model, victims)
        elif job.model not in site.loaded:
            raise AssertionError(f"{job.model} is not resident on {site.machine.box.name}")
        else:
            site.loaded[job.model].used = self.now
        attempt = self._attempts.setdefault(job.token, 0)
        site.running[job.token] = Call(job, self.now, expected_seconds, starts)
        ends = starts + self._read_seconds(site, job) + job.tokens / site.machine.tokens_per_second
        self._at(ends, "ends", site.machine.box.name, f"{job.token} {attempt}")

    def cut(self, site: Site, token: str) -> None:
        """Break a call off."""
        site.running[token].is_cut = True
        self.result.cuts += 1
        self._at(self.now + CUT_SECONDS, "ends", site.machine.box.name, f"{token} {self._attempts[token]}")

    def _load(self, site: Site, model: str, victims: Sequence[str]) -> float:
        for victim in victims:
            if victim in self.trace.pins or site.runs(victim):
                raise AssertionError(f"{victim} may not be pushed out")
            del site.loaded[victim]
            site.read.pop(victim, None)
        seconds = self.load_seconds(site, model)
        site.loading[model] = self.now
        if sum(self.trace.sizes[each] for each in (*site.loaded, *site.loading)) > site.machine.box.memory_bytes:
            raise AssertionError(f"no room for {model}")
        self.result.loads += 1
        self.result.loads_on[site.machine.box.name] += 1
        self._at(self.now + seconds, "loaded", site.machine.box.name, model)
        return seconds

    def _read_seconds(self, site: Site, job: Job) -> float:
        if not job.key:
            return job.prompt_tokens / site.machine.prompt_tokens_per_second
        read = site.read.setdefault(job.model, OrderedDict())
        known = job.key in read
        read[job.key] = None
        read.move_to_end(job.key)
        if len(read) > CACHED_KEYS:
            read.popitem(last=False)
        if known:
            return 0.0
        if job.key in self._seen:
            self.result.tokens_read_again += job.prompt_tokens
        self._seen.add(job.key)
        return job.prompt_tokens / site.machine.prompt_tokens_per_second
