"""What there is to be seen of a shard at one look, in one round trip; no prompt, and no answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from msgspec import Struct

from llm_routerd.client.events import as_bytes, as_text
from llm_routerd.protocol.events import Queued
from llm_routerd.protocol.keys import LANES, Lane
from llm_routerd.protocol.reading import read_event
from llm_routerd.queue import scripts
from llm_routerd.queue.connection.pooled import run_script

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from redis.asyncio import Redis

    from llm_routerd.protocol.keys import Keys

scripts.survey.put_together()

_MOST_BYTES = 2**22  # that the server reads to tell their ids: what is beyond is not listed


class Running(Struct, frozen=True, kw_only=True):
    """A request that a worker has.

    Attributes:
        request_id: its own, or that of its entry where it has none, or is too long to be searched for it.
        entry: its ID in the lane, and so when it was added.
        worker: whose it is.
        idle_ms: since the worker last gave a sign of it.
        deliveries: how often it was handed to a worker.
        deployment, model: which is asked now; "": none yet.
        last: type of its last event; "": there is none yet.
        calls: tool calls that wait for a person's word: the JSON of their events, as it stands.
        queued: what it waits for, if that is its last event; None: it does not, or nothing is told of that.
    """

    request_id: str
    entry: str
    lane: Lane
    worker: str
    idle_ms: int
    deliveries: int
    deployment: str
    model: str
    last: str
    calls: tuple[bytes, ...]
    queued: Queued | None = None


class Survey(Struct, frozen=True, kw_only=True):
    """One look.

    Attributes:
        server_ms: Unix time in ms, by the server's clock.
        letters: how many dead letters there are.
        workers: what each has registered (`workers.lua`): `lease_ms`, `until_ms`, `models`.
        oldest: by lane: the ID of the entry that has waited longest.
        running: those that have run longest of each lane, at most `most_running`.
    """

    most_running: ClassVar[int] = 50  # of a lane

    server_ms: int
    letters: int
    workers: Mapping[str, bytes]
    oldest: Mapping[Lane, str]
    running: tuple[Running, ...]


async def look_around(redis: Redis, keys: Keys) -> Survey:
    """Look at a shard.

    Raises:
        RedisError: the server is away, or refuses the look.
    """
    call = scripts.survey(
        lanes=keys.lanes,
        letters=keys.dead,
        registry=keys.workers,
        events_prefix=keys.events(""),
        most=Survey.most_running,
        most_bytes=_MOST_BYTES,
    )
    server_ms, letters, workers, lanes = await run_script(redis, call)
    told = dict(zip(LANES, lanes, strict=True))
    return Survey(
        server_ms=int(server_ms),
        letters=int(letters),
        workers={as_text(name): as_bytes(text) for name, text in zip(workers[::2], workers[1::2], strict=True)},
        oldest={lane: as_text(oldest) for lane, (oldest, _) in told.items() if oldest},
        running=tuple(_running(lane, each) for lane, (_, running) in told.items() for each in running),
    )


def _running(lane: Lane, told: Sequence[Any]) -> Running:
    request_id, entry, worker, idle_ms, deliveries, deployment, model, last, calls, waits = told
    queued = read_event("0-1", Queued.type, as_bytes(waits)) if waits else None
    return Running(
        request_id=as_text(request_id),
        entry=as_text(entry),
        lane=lane,
        worker=as_text(worker),
        idle_ms=int(idle_ms),
        deliveries=int(deliveries),
        deployment=as_text(deployment),
        model=as_text(model),
        last=as_text(last),
        calls=tuple(as_bytes(call) for call in calls),
        queued=queued if isinstance(queued, Queued) else None,
    )
