"""What stands around the servers of a queue, for whoever looks after them: Sentinels, and the nodes of a Cluster."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

from redis.crc import key_slot
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from llm_routerd.queue.connection.asking import fields_of, text_of
from llm_routerd.queue.connection.cluster import slot_ranges
from llm_routerd.queue.connection.describing import describe
from llm_routerd.queue.connection.locating import neighbours_of
from llm_routerd.queue.connection.whereabouts import Place

if TYPE_CHECKING:
    from llm_routerd.queue.connection.asking import Asker

SLOTS = 16_384


class SentinelView(NamedTuple):
    """What one Sentinel says of a service.

    Attributes:
        place: its own.
        trouble: why it says nothing of it; "": it does.
        primary: the one that it names.
        others: how many Sentinels beside it it knows.
        quorum: how many must agree that the primary is gone.
        has_quorum: there are enough for that, and for a failover; None: it may not be asked.
    """

    place: Place
    trouble: str = ""
    primary: Place | None = None
    others: int = 0
    quorum: int = 0
    has_quorum: bool | None = None


class ClusterView(NamedTuple):
    """What one node says of its Cluster.

    Attributes:
        ranges: first and last slot, and who has them, the primary first.
        failing: nodes that are held to be gone.
    """

    ranges: tuple[tuple[int, int, tuple[Place, ...]], ...]
    failing: tuple[Place, ...]

    @property
    def covered(self) -> int:
        """How many slots somebody has."""
        return sum(last - first + 1 for first, last, _ in self.ranges)

    @property
    def primaries(self) -> frozenset[Place]:
        """Those that have slots."""
        return frozenset(places[0] for _, _, places in self.ranges)

    @property
    def nodes(self) -> frozenset[Place]:
        """All that have slots, or copies of them."""
        return frozenset(place for _, _, places in self.ranges for place in places)

    def nodes_of(self, key: str) -> tuple[Place, ...]:
        """Who has a key, the primary first; empty: nobody."""
        slot = key_slot(key.encode())
        return next((places for first, last, places in self.ranges if first <= slot <= last), ())


async def sentinels_of(url: str) -> tuple[SentinelView, ...]:
    """What each Sentinel of a URL says, in the order of the URL; raises nothing for such a URL."""
    near = neighbours_of(url)
    return tuple(await asyncio.gather(*(_view(near.asker, place, near.service) for place in near.places)))


async def services_at(url: str) -> tuple[Place, tuple[str, ...]] | None:
    """Where the Sentinel at this URL is, and what the services are called that it watches; None: it is none."""
    near = neighbours_of(url)
    for place in near.places:
        try:
            found = await near.asker.ask(place, "SENTINEL", "MASTERS")
        except (RedisError, OSError, TimeoutError):
            continue
        return place, tuple(fields_of(each).get("name", "") for each in found)
    return None


async def cluster_of(url: str) -> ClusterView | None:
    """What the first node says that may be asked; None: none, or there is no Cluster."""
    near = neighbours_of(url)
    for place in near.places:
        try:
            ranges = list(slot_ranges(await near.asker.ask(place, "CLUSTER", "SLOTS"), place))
        except (RedisError, OSError, TimeoutError):
            continue
        failing = await _failing(near.asker, place)
        return ClusterView(tuple((first, last, tuple(places)) for first, last, places in ranges), failing)
    return None


async def _view(asker: Asker, place: Place, service: str) -> SentinelView:
    try:
        said = fields_of(await asker.ask(place, "SENTINEL", "MASTER", service))
    except (OSError, TimeoutError):
        return SentinelView(place, trouble="it does not answer")
    except RedisError as error:
        if type(error) in {RedisConnectionError, RedisTimeoutError}:  # of its subclasses each says what is wrong
            return SentinelView(place, trouble="it does not answer")
        trouble = f"it watches no service {service}" if "No such master" in str(error) else describe(error)
        return SentinelView(place, trouble=trouble)
    try:
        await asker.ask(place, "SENTINEL", "CKQUORUM", service)
        has_quorum: bool | None = True
    except ResponseError as error:
        has_quorum = False if "NOQUORUM" in str(error) else None
    except (RedisError, OSError, TimeoutError):
        has_quorum = None
    return SentinelView(
        place,
        primary=Place(said.get("ip", ""), _number(said.get("port"))),
        others=_number(said.get("num-other-sentinels")),
        quorum=_number(said.get("quorum")),
        has_quorum=has_quorum,
    )


async def _failing(asker: Asker, place: Place) -> tuple[Place, ...]:
    """Nodes with the flag `fail` or `fail?`; none where that may not be asked."""
    try:
        lines = text_of(await asker.ask(place, "CLUSTER", "NODES")).splitlines()
    except (RedisError, OSError, TimeoutError):
        return ()
    found = []
    for line in lines:
        _, where, flags, *_ = [*line.split(), "", "", ""]
        host, _, port = where.partition("@")[0].rpartition(":")
        if {"fail", "fail?"} & set(flags.split(",")):
            found.append(Place(host or place.host, _number(port)))
    return tuple(found)


def _number(text: str | None) -> int:
    return int(text) if text and text.isdecimal() else 0
