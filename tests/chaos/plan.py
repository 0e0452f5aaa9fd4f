"""What goes wrong in a run, and when: all of it decided by the seed, before anything is started."""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from llm_routerd.protocol.keys import LANES, Lane

if TYPE_CHECKING:
    from collections.abc import Mapping

WORKERS = 3
LEASE_SECONDS = 3.0
MOST_DEATHS = 3  # daemon.max_deliveries
CALM_AT_START_SECONDS = 1.0
STEP_SECONDS = (0.3, 1.2)


class Kind(StrEnum):
    """One way in which a machine or an operator is unkind."""

    KILL_WORKER = "kill-worker"
    STOP_WORKER = "stop-worker"
    DRAIN_WORKER = "drain-worker"
    KILL_SERVER = "kill-server"
    RESTART_SERVER = "restart-server"
    FREEZE_SERVER = "freeze-server"
    FILL_MEMORY = "fill-memory"
    KILL_CONNECTIONS = "kill-connections"
    DROP_GROUP = "drop-group"
    GROUP_AT_END = "group-at-end"
    FORGET_CONSUMERS = "forget-consumers"
    FLUSH_SCRIPTS = "flush-scripts"
    ADD_LAST_ID = "add-last-id"


# How often each comes, and how long it lasts, in seconds.
STORM: dict[StrEnum, tuple[int, float, float]] = {
    Kind.KILL_WORKER: (5, 0.1, 1.0),
    Kind.STOP_WORKER: (4, 0.5, 2.5 * LEASE_SECONDS),
    Kind.DRAIN_WORKER: (3, 0.0, 0.5),
    Kind.KILL_SERVER: (2, 0.1, 1.5),
    Kind.RESTART_SERVER: (1, 0.1, 1.5),
    Kind.FREEZE_SERVER: (2, 0.2, 1.5 * LEASE_SECONDS),
    Kind.FILL_MEMORY: (2, 0.3, 2.0),
    Kind.KILL_CONNECTIONS: (3, 0.0, 0.0),
    Kind.DROP_GROUP: (2, 0.0, 0.0),
    Kind.GROUP_AT_END: (2, 0.0, 0.0),
    Kind.FORGET_CONSUMERS: (2, 0.0, 0.0),
    Kind.FLUSH_SCRIPTS: (1, 0.0, 0.0),
    Kind.ADD_LAST_ID: (2, 0.0, 0.0),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One of them: begins `at_seconds` into the storm, lasts `seconds`, and hits worker `slot` or `lane` if any."""

    at_seconds: float
    kind: StrEnum
    seconds: float
    slot: int
    lane: Lane


def make_plan(
    seed: int,
    storm_seconds: float,
    kinds: Mapping[StrEnum, tuple[int, float, float]] = STORM,
    pause: tuple[float, float] = STEP_SECONDS,
) -> list[Fault]:
    """The faults of a storm, in order.

    Each kind comes once before any comes again, so that a short run has them all; after that they are drawn.

    Args:
        seed: reproduces it.
        storm_seconds: how long it lasts.
        kinds: how often each comes, and how long it lasts at least and at most, in seconds.
        pause: from the beginning of one to that of the next, at least and at most, in seconds.
    """
    rng = random.Random(f"faults-{seed}")
    weights = [weight for weight, _, _ in kinds.values()]
    first = rng.sample(list(kinds), k=len(kinds))
    plan: list[Fault] = []
    at_seconds = CALM_AT_START_SECONDS
    while at_seconds < storm_seconds:
        kind = first.pop() if first else rng.choices(list(kinds), weights)[0]
        _, shortest, longest = kinds[kind]
        plan.append(
            Fault(
                at_seconds=at_seconds,
                kind=kind,
                seconds=rng.uniform(shortest, longest),
                slot=rng.randrange(WORKERS),
                lane=rng.choice(LANES),
            )
        )
        at_seconds += rng.uniform(*pause)
    return plan
