"""From a Redis URL to where its server is found."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from redis.asyncio.connection import Connection, parse_url
from redis.crc import key_slot

from llm_routerd.config.addresses import read_redis_url
from llm_routerd.queue.connection.asking import Asker
from llm_routerd.queue.connection.cluster import ClusterNodes
from llm_routerd.queue.connection.sentinels import Sentinels
from llm_routerd.queue.connection.whereabouts import Fixed, Place

if TYPE_CHECKING:
    from collections.abc import Callable

    from llm_routerd.queue.connection.whereabouts import Whereabouts

_NOT_TO_OTHERS = ("host", "port", "db", "connection_class", "path")


class Neighbours(NamedTuple):
    """Whom a URL names that may be asked where a server is.

    Attributes:
        kind: "": one server; `sentinel`; `cluster`.
        places: of them; none: a Unix socket.
        service: what Sentinels call it.
        asker: asks them.
    """

    kind: str
    places: tuple[Place, ...]
    service: str
    asker: Asker


def neighbours_of(url: str) -> Neighbours:
    """Read whom a URL names.

    Raises:
        ConfigError: the URL is unsound.
    """
    address = read_redis_url(url)
    options: dict[str, Any] = dict(parse_url(address.url))
    shared = {name: value for name, value in options.items() if name not in _NOT_TO_OTHERS}
    places = tuple(Place(*node) for node in address.nodes)
    if not places and "path" not in options:
        places = (Place(options.get("host", "localhost"), int(options.get("port", 6379))),)
    if address.kind == "sentinel":
        shared |= {"username": address.username, "password": address.password}
    asker = Asker(options.get("connection_class", Connection), shared)
    return Neighbours(address.kind, places, address.service, asker)


def whereabouts_of(url: str, key: str, *, tell: Callable[[str], object] = lambda _what: None) -> Whereabouts:
    """Where the server of this URL is that has this key; `tell` is told where several say different things.

    Raises:
        ConfigError: the URL is unsound.
    """
    near = neighbours_of(url)
    if not near.places:
        return Fixed()
    if near.kind == "sentinel":
        return Sentinels(near.places, near.service, near.asker, tell=tell)
    return ClusterNodes(near.places, key_slot(key.encode()), near.asker, is_cluster=near.kind == "cluster")
