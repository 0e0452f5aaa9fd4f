"""Who decides: the rule of `llm_routerd.fleet`, what others do, and one who knows the future."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING

from msgspec.structs import replace as replaced

from llm_routerd.fleet.estimates import Estimates, observe
from llm_routerd.fleet.picture import BoxView, Loading, Picture, Place, Resident, Rules, Running, Waiting, Waking
from llm_routerd.fleet.plan import make_plan
from tests.simulation.fleet_world import World

if TYPE_CHECKING:
    from llm_routerd.fleet.plan import Plan
    from tests.simulation.fleet_world import Job, Result, Site, Trace

WORKERS = 3
EXPECTED_BOOT_SECONDS = 90.0


class _Deaf:
    """Learns nothing from what it sees."""

    def loaded(self, world: World, site: Site, model: str, seconds: float) -> None:
        """Nothing."""

    def answered(self, world: World, site: Site, job: Job, seconds: float) -> None:
        """Nothing."""


def _try(world: World, site: Site, job: Job) -> bool:
    """Begin it there, if one can without waiting."""
    if not site.has_slot or job.model in site.loading:
        return False
    victims = None if job.model in site.loaded else world.room(site, job.model)
    if victims is None and job.model not in site.loaded:
        return False
    if victims is not None and site.loading:
        return False
    world.begin(site, job, victims)
    return True


class FirstCome(_Deaf):
    """One queue; its first call begins on the first box that takes it, and no other before."""

    def __init__(self) -> None:
        self._queue: deque[Job] = deque()

    def arrived(self, world: World, job: Job) -> None:
        """Behind all others, or in its old place."""
        self._queue.append(job)
        self._queue = deque(sorted(self._queue, key=lambda each: each.at))

    def step(self, world: World) -> None:
        """From the front."""
        while self._queue and any(_try(world, site, self._queue[0]) for site in world.sites.values()):
            self._queue.popleft()


class Assigned(_Deaf):
    """A box is chosen when a call arrives, and there they wait in the order in which they came.

    `how`: round robin, least busy, or warm first: the least busy of those that have the model, else of all.
    """

    def __init__(self, how: str) -> None:
        self._how = how
        self._next = 0
        self._queues: dict[str, deque[Job]] = {}

    def arrived(self, world: World, job: Job) -> None:
        """It is given a box that is up, as long as there is one."""
        up = [name for name, site in world.sites.items() if not site.is_down] or list(world.sites)
        self._next += 1
        if self._how == "round robin":
            name = up[self._next % len(up)]
        else:
            warm = [name for name in up if self._how == "warm first" and job.model in world.sites[name].loaded]
            name = min(warm or up, key=lambda each: self._load(world, each))
        self._queues.setdefault(name, deque()).append(job)

    def _load(self, world: World, name: str) -> int:
        return len(world.sites[name].running) + len(self._queues.get(name, ()))

    def step(self, world: World) -> None:
        """Each box from the front of its queue; what waits for one that is down is given to others."""
        for name, queue in self._queues.items():
            site = world.sites[name]
            if site.is_down and not all(each.is_down for each in world.sites.values()):
                moving, self._queues[name] = queue, deque()
                for job in moving:
                    self.arrived(world, job)
                continue
            while queue and _try(world, site, queue[0]):
                queue.popleft()


class Ours:
    """The rule, by a picture with what the workers would know: learnt speeds, expected lengths.

    Args:
        rules: that the workers keep.
        workers: each has every so manyth of the calls.
        look_seconds: each worker plans when something happens to a call of its own, and so often beside; 0: all plan
            whenever anything happens.
        estimates: of loading and answering, that they begin with.
        wakes: boxes that sleep may be woken.
    """

    def __init__(
        self,
        rules: Rules,
        *,
        workers: int = WORKERS,
        look_seconds: float = 0.0,
        estimates: Estimates | None = None,
        wakes: bool = True,
    ) -> None:
        self._rules = rules
        self._wakes = wakes
        self._workers = workers
        self._look_seconds = look_seconds
        self._looks: dict[str, float] = {}  # by worker: when it plans next, whatever happens
        self._worker_of: dict[str, str] = {}
        self._estimates = estimates or Estimates()
        self._waiting: dict[str, Waiting] = {}
        self._jobs: dict[str, Job] = {}
        self._served: dict[str, str] = {}
        self._turns: dict[str, float] = {}

    def arrived(self, world: World, job: Job) -> None:
        """Every box may serve every model."""
        self._jobs[job.token] = job
        worker = self._worker_of.setdefault(job.token, f"worker-{len(self._jobs) % self._workers}")
        self._wake(job)
        self._waiting[job.token] = Waiting(
            token=job.token,
            worker=worker,
            lane=job.lane,
            candidates=tuple(Place(name, job.model) for name in world.sites),
            since=job.at,
            tenant=job.tenant,
            tokens=job.expected_tokens,
            prompt_tokens=job.prompt_tokens,
            key=job.key,
            turn=self._turns.get(job.token),
        )

    def picture(self, world: World) -> Picture:
        """What all workers see."""
        return Picture(
            boxes=tuple(self._view(world, site) for site in world.sites.values()),
            waiting=tuple(self._waiting.values()),
            estimates=self._estimates,
            sizes=world.trace.sizes,
            served=self._served,
        )

    def _view(self, world: World, site: Site) -> BoxView:
        sizes, pins = world.trace.sizes, world.trace.pins
        return BoxView(
            box=site.machine.box,
            residents=tuple(
                Resident(model=name, bytes=sizes[name], since=each.since, used=each.used, pinned=name in pins)
                for name, each in site.loaded.items()
            ),
            loading=tuple(Loading(model=name, began=at, bytes=sizes[name]) for name, at in site.loading.items()),
            running=tuple(
                Running(
                    token=token,
                    worker="worker",
                    model=call.job.model,
                    lane=call.job.lane,
                    began=call.began,
                    seconds=call.expected_seconds,
                    tenant=call.job.tenant,
                    is_cut=call.is_cut,
                )
                for token, call in site.running.items()
            ),
            down_until=world.now + 5.0 if site.is_down else 0.0,
            waking=Waking(boot_seconds=EXPECTED_BOOT_SECONDS, woken=site.woken)
            if site.is_down and site.machine.boot_seconds and self._wakes
            else None,
        )

    def step(self, world: World) -> None:
        """Plan, begin, and plan again, until nothing is left to begin."""
        planning = {f"worker-{number}" for number in range(self._workers)}
        if self._look_seconds:
            planning = {worker for worker in planning if self._looks.get(worker, 0.0) <= world.now}
        while self._waiting and planning:
            plan = make_plan(self.picture(world), self._rules, world.now)
            plan = replaced(plan, begin=tuple(each for each in plan.begin if each.worker in planning))
            self._follow(world, plan)
            if not plan.begin:
                break
        self._looks |= dict.fromkeys(planning, world.now + self._look_seconds)

    def _wake(self, job: Job) -> None:
        """Something has happened to this call, which its worker knows at once."""
        self._looks[self._worker_of[job.token]] = 0.0

    def _follow(self, world: World, plan: Plan) -> None:
        for token in plan.turns:
            self._turns[token] = world.now
            self._waiting[token] = replaced(self._waiting[token], turn=world.now)
        for each in plan.begin:
            del self._waiting[each.token]
            if each.token in self._turns:
                world.result.late[each.token] = world.now - self._turns.pop(each.token)
            job = self._jobs[each.token]
            if job.key:
                self._served[job.key] = each.box
            world.begin(world.sites[each.box], job, each.push_out if each.loads else None, each.seconds)
        for box in plan.wakes:
            world.wake(world.sites[box])
        for cut in plan.cuts:
            world.cut(world.sites[cut.box], cut.token)

    def loaded(self, world: World, site: Site, model: str, seconds: float) -> None:
        """Load seconds of this box."""
        for call in site.running.values():
            self._wake(call.job)
        table, key = self._estimates.load_seconds, (site.machine.box.name, model)
        table[key] = observe(table.get(key), seconds, world.now)

    def answered(self, world: World, site: Site, job: Job, seconds: float) -> None:
        """Tokens/s of this box."""
        self._wake(job)
        table, key = self._estimates.tokens_per_second, (site.machine.box.name, job.model)
        table[key] = observe(table.get(key), job.tokens / seconds, world.now)


def oracle(trace: Trace) -> Result:
    """The best in hindsight: with the true lengths, and whichever patience has the least total time.

    A strong heuristic, and no bound: `least_seconds` is one.
    """
    told = replace(trace, jobs=tuple(replace(job, expected_tokens=job.tokens) for job in trace.jobs))
    tried = (World(told).run(Ours(Rules(max_wait=wait))) for wait in (0.0, 10.0, 30.0, 60.0, 120.0, 1e9))
    return min(tried, key=lambda result: result.total_seconds)


def least_seconds(trace: Trace) -> float:
    """A total time that no policy can beat.

    From each arrival on, all that is still to come divides into all slots at their full speed; before the first one
    something is loaded; and on a single box that holds one model, each model is loaded once while nothing runs.
    """
    site_speeds = [machine.box.slots * machine.tokens_per_second for machine in trace.machines]
    world = World(trace)
    loads = [world.load_seconds(site, model) for site in world.sites.values() for model in trace.sizes]
    lost = min(loads)
    (first, *others) = trace.machines
    if not others and sum(sorted(trace.sizes.values())[:2]) > first.box.memory_bytes:
        lost = sum(loads)
    jobs = sorted(trace.jobs, key=lambda job: job.at)
    start, tokens, latest = jobs[0].at, 0.0, 0.0
    for job in reversed(jobs):
        tokens += job.tokens
        fastest = max(machine.tokens_per_second for machine in trace.machines)
        latest = max(latest, job.at + tokens / sum(site_speeds), job.at + job.tokens / fastest)
    return max(latest, start + lost + tokens / sum(site_speeds)) - start
