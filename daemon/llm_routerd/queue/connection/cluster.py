"""The node of a Cluster that has our slot: `CLUSTER SLOTS`, asked of whichever node answers.

All nodes that were ever named in the last answer are remembered, so that those of the URL may go.  A plain URL is read
here as well: its server is asked for nothing until it says MOVED, which tells that it is one of a Cluster.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from redis.exceptions import AuthenticationError, MovedError, RedisError, ResponseError

from llm_routerd.queue.connection.asking import text_of
from llm_routerd.queue.connection.describing import NobodyTells, SetupError, describe
from llm_routerd.queue.connection.whereabouts import Place, sound_place

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from llm_routerd.queue.connection.asking import Asker
    from llm_routerd.queue.connection.fitness import Greeting


class ClusterNodes:
    """Where one slot is.

    Args:
        seeds: nodes of the URL.
        slot: ours.
        asker: asks them.
        is_cluster: the URL says so; else the first of them may be a single server.
    """

    is_fixed = False
    has_all = False

    def __init__(self, seeds: Sequence[Place], slot: int, asker: Asker, *, is_cluster: bool) -> None:
        self._seeds = tuple(seeds)
        self._slot = slot
        self._asker = asker
        self._is_cluster = is_cluster
        self.may_move = is_cluster
        self._place: Place | None = None if is_cluster else self._seeds[0]
        self._nodes: tuple[Place, ...] = ()  # that the last answer named
        self._told: Place | None = None  # by MOVED, since then
        self._asking = asyncio.Lock()

    async def find(self) -> Place:
        """The node that has our slot.

        Raises:
            NobodyTells: no node answers, or none has the slot.
        """
        if self._place is not None:
            return self._place
        async with self._asking:
            if self._place is None:
                self._place = await self._look()
            return self._place

    def lost(self, error: BaseException, /) -> None:
        """The nodes are asked again; where MOVED names another, that one first."""
        if isinstance(error, MovedError):
            asked = self._place or self._seeds[0]
            self._told = sound_place(error.host or asked.host, int(error.port))
            self.may_move = True
        if self.may_move:
            self._place = None

    async def accept(self, greeting: Greeting | None, /) -> None:
        """A server that is one of a Cluster is treated so from now on; a replica is not the node that has our slot.

        Raises:
            NobodyTells: it is a replica.
        """
        if greeting is None or greeting.mode != "cluster":
            return
        self.may_move = True
        if not self._nodes:  # now, for this one may be gone when it is needed
            with suppress(RedisError):
                await self._look()
        elif greeting.role not in {"", "master"}:
            told = "the node that the Cluster names for our keys is a replica"
            raise NobodyTells(told, "wait until the failover is over")

    async def moved(self) -> bool:
        """Whether another node has the slot."""
        before = self._place
        try:
            place = await self._look()
        except RedisError:
            return False
        self._place = place
        return place != before

    async def glance(self) -> bool:
        """No: a node that has lost the slot says so itself, or takes no writes when it is cut off from the others."""
        return False

    async def _look(self) -> Place:
        """Ask one node after the other; where none may be asked, MOVED has to do."""
        told, self._told = self._told, None
        refusal: RedisError | None = None
        for node in dict.fromkeys((*([told] if told else []), *self._nodes, *self._seeds)):
            try:
                ranges = list(slot_ranges(await self._asker.ask(node, "CLUSTER", "SLOTS"), node))
            except (ResponseError, AuthenticationError) as error:
                refusal = error
                continue
            except (RedisError, OSError, TimeoutError):
                continue
            if ranges:
                # The next answer is another's: one that is cut off goes on telling how it was.
                named = dict.fromkeys(place for _, _, places in ranges for place in places)
                self._nodes = (*(each for each in named if each != node), node)
                return self._of_slot(ranges)
        if told is not None:
            return told
        if refusal is not None and "cluster support disabled" in str(refusal) and self._is_cluster:
            raise SetupError("the server is no node of a Cluster", "write redis:// in the Redis URL")
        if refusal is not None and not self._nodes:
            return self._seeds[0]  # it may not be asked, and says MOVED
        why = f" ({describe(refusal)})" if refusal is not None else ""
        detail = f"no node of the Cluster tells where our keys are{why}"
        raise NobodyTells(detail, "look whether the nodes run, and at the hosts of the Redis URL")

    def _of_slot(self, ranges: Sequence[tuple[int, int, list[Place]]]) -> Place:
        for first, last, places in ranges:
            if first <= self._slot <= last:
                return places[0]
        told = f"no node of the Cluster serves slot {self._slot}, where our keys are"
        raise NobodyTells(told, "give it one again; CLUSTER SHARDS tells what is left")


def slot_ranges(answer: Any, asked: Place) -> Iterator[tuple[int, int, list[Place]]]:
    """First and last slot, and the nodes that have them, the primary first; what is not as it should be is left out."""
    for each in answer if isinstance(answer, list) else ():
        match each:
            case [int() as first, int() as last, *nodes]:
                if places := [place for node in nodes if (place := _place_of(node, asked)) is not None]:
                    yield first, last, places


def _place_of(node: Any, asked: Place) -> Place | None:
    """A node; one without a host is at that of the node that was asked."""
    match node:
        case [host, int() as port, *_]:
            name = text_of(host)
            return sound_place(asked.host if name in {"", "?"} else name, port)
    return None
