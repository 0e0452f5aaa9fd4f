"""How long requests wait when workers serve all shards or some: events in order of time, no clock, no Redis.  Pure.

A worker has places; one that becomes free takes the oldest request of a shard that the worker serves, its shards by
turns, as `worker/places.py` does.  A request that finds a free place at some worker of its shard has it at once.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

MEAN_SECONDS = 2.0
SIGMA = 1.0  # of the lognormal time that an answer takes
_LOGNORMAL_MEAN = math.exp(SIGMA**2 / 2)
_WARM_UP = 0.1  # of all requests, which are not counted


@dataclass(frozen=True, slots=True, kw_only=True)
class Team:
    """Workers alike, but for the shards that each serves.

    Attributes:
        served: for each worker the numbers of its shards.
        places: of each worker.
    """

    served: Sequence[Sequence[int]]
    places: int

    @property
    def all_places(self) -> int:
        """Of all of them."""
        return len(self.served) * self.places


@dataclass(frozen=True, slots=True, kw_only=True)
class Waited:
    """What came of it.

    Attributes:
        by_shard: for each shard the seconds that its requests waited for a place.
        used: for each worker the share of its places that was taken, over all time.
    """

    by_shard: list[list[float]]
    used: list[float]

    def quantile(self, share: float, shards: Sequence[int] | None = None) -> float:
        """Of these shards together, or of all."""
        chosen = self.by_shard if shards is None else [self.by_shard[shard] for shard in shards]
        waits = sorted(wait for each in chosen for wait in each)
        return waits[min(len(waits) - 1, int(share * len(waits)))]


@dataclass(slots=True)
class _Worker:
    shards: Sequence[int]
    free: int
    turn: int = 0
    busy_seconds: float = 0.0


@dataclass(slots=True)
class _World:
    team: Team
    rng: random.Random
    workers: list[_Worker]
    of_shard: list[list[int]]
    queues: list[deque[tuple[float, int]]]
    waits: list[list[float]]
    first_counted: int
    ends: list[tuple[float, int]] = field(default_factory=list)

    def came(self, now: float, number: int, shard: int) -> None:
        candidates = [worker for worker in self.of_shard[shard] if self.workers[worker].free]
        if candidates:
            self._take(now, self.rng.choice(candidates), now, number, shard)
        else:
            self.queues[shard].append((now, number))

    def ended(self, now: float, index: int) -> None:
        worker = self.workers[index]
        worker.free += 1
        for step in range(len(worker.shards)):
            shard = worker.shards[(worker.turn + step) % len(worker.shards)]
            if self.queues[shard]:
                worker.turn = (worker.turn + step + 1) % len(worker.shards)
                self._take(now, index, *self.queues[shard].popleft(), shard)
                return

    def _take(self, now: float, index: int, since: float, number: int, shard: int) -> None:
        worker = self.workers[index]
        worker.free -= 1
        seconds = self.rng.lognormvariate(0.0, SIGMA) * MEAN_SECONDS / _LOGNORMAL_MEAN
        worker.busy_seconds += seconds
        heapq.heappush(self.ends, (now + seconds, index))
        if number >= self.first_counted:
            self.waits[shard].append(now - since)


def simulate(team: Team, shares: Sequence[float], *, load: float, requests: int, rng: random.Random) -> Waited:
    """Let so many requests come at random, `load` of what all places together can do.

    Args:
        team: who answers.
        shares: of each shard in the requests.
        load: 0 to 1.
        requests: how many come.
        rng: of everything.
    """
    of_shard = [[i for i, each in enumerate(team.served) if shard in each] for shard in range(len(shares))]
    world = _World(
        team=team,
        rng=rng,
        workers=[_Worker(shards, team.places) for shards in team.served],
        of_shard=of_shard,
        queues=[deque() for _ in shares],
        waits=[[] for _ in shares],
        first_counted=round(_WARM_UP * requests),
    )
    per_second = load * team.all_places / MEAN_SECONDS
    now = 0.0
    for number, shard in enumerate(rng.choices(range(len(shares)), shares, k=requests)):
        now += rng.expovariate(per_second)
        while world.ends and world.ends[0][0] <= now:
            world.ended(*heapq.heappop(world.ends))
        world.came(now, number, shard)
    last = now
    while world.ends:
        last, index = heapq.heappop(world.ends)
        world.ended(last, index)
    return Waited(by_shard=world.waits, used=[worker.busy_seconds / (last * team.places) for worker in world.workers])


def everybody(workers: int, shards: int, places: int) -> Team:
    """Each worker serves all shards."""
    return Team(served=[range(shards)] * workers, places=places)


def parted(workers: int, shards: int, places: int, *, groups: int) -> Team:
    """The workers in so many groups, each of which serves its part of the shards."""
    return Team(served=[range(worker % groups, shards, groups) for worker in range(workers)], places=places)
