"""From a Redis URL to where its server is found."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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


def whereabouts_of(url: str, key: str, *, tell: Callable[[str], object] = lambda _what: None) -> Whereabouts:
    """Where the server of this URL is that has this key; `tell` is told where several say different things.

    Raises:
        ConfigError: the URL is unsound.
    """
    address = read_redis_url(url)
    options: dict[str, Any] = dict(parse_url(address.url))
    if "path" in options:
        return Fixed()
    kind = options.get("connection_class", Connection)
    shared = {name: value for name, value in options.items() if name not in _NOT_TO_OTHERS}
    nodes = tuple(Place(*node) for node in address.nodes)
    if address.kind == "sentinel":
        own = shared | {"username": address.username, "password": address.password}
        return Sentinels(nodes, address.service, Asker(kind, own), tell=tell)
    seeds = nodes or (Place(options.get("host", "localhost"), int(options.get("port", 6379))),)
    return ClusterNodes(seeds, key_slot(key.encode()), Asker(kind, shared), is_cluster=address.kind == "cluster")
