"""The shards of a queue: those of the layout in force, and those of earlier ones that are not drained yet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from redis.asyncio import Redis

from llm_routerd.client.events import is_stream_id
from llm_routerd.client.shard import Shard
from llm_routerd.protocol.keys import Layout
from llm_routerd.queue.connection import Needs, pooled

if TYPE_CHECKING:
    from collections.abc import Sequence


class Shards:
    """All shards in force, and which of them a request may stand in.

    One server has them all, and one pool of connections leads there; in a Cluster each shard has its own.

    Args:
        redis: URL, or a client of one server, which remains the caller's.
        layout: the one in force.
        draining: how many shards there were in earlier ones.
        patience_seconds: how long a call goes on trying while Redis is away.

    Attributes:
        all: the shards of the layout in force, by their number, and after them what else there is in earlier ones.

    Raises:
        BrokerError: the URL is unsound.
        TypeError: `redis` is neither.
    """

    def __init__(self, redis: str | Redis, layout: Layout, draining: Sequence[int], *, patience_seconds: float) -> None:
        self.layout = layout
        self._layouts = (layout, *(Layout(layout.prefix, shards) for shards in draining))
        if not isinstance(redis, (str, Redis)):
            raise TypeError("neither a Redis URL nor a redis.asyncio.Redis; of a Cluster give redis+cluster://…")
        self._shared: pooled.Server | None = None
        made: dict[str, Shard] = {}
        for keys in (keys for each in self._layouts for keys in each.keys):
            if keys.prefix not in made:
                where = redis if isinstance(redis, Redis) else self._server(redis, Needs(prefix=keys.prefix))
                made[keys.prefix] = Shard(keys, where, patience_seconds=patience_seconds)
        self.all = tuple(made.values())
        self._named = made

    def _server(self, url: str, needs: Needs) -> pooled.Server:
        if self._shared is not None:
            return self._shared
        server = pooled.Server.at(url, needs)
        if server.has_all:
            self._shared = server
        return server

    @property
    def is_only(self) -> bool:
        """There is one, and nobody has to be told which it is."""
        return len(self.all) == 1

    def named(self, prefix: str) -> Shard | None:
        """The one whose keys begin with this."""
        return self._named.get(prefix)

    def home(self, request_id: str) -> Shard:
        """Where a request with this id belongs."""
        return self._named[self.layout.keys_of(request_id).prefix]

    def homes(self, request_id: str) -> tuple[Shard, ...]:
        """Where it may stand, the likeliest first: it may have been added before a change, or have no id of its own."""
        if self.is_only:
            return self.all
        belongs = [self._named[layout.keys_of(request_id).prefix] for layout in self._layouts]
        return tuple(dict.fromkeys([*belongs, *(self.all if is_stream_id(request_id) else ())]))

    async def aclose(self) -> None:
        """Close the connections, unless they were given to us."""
        servers = {shard.server for shard in self.all} | {self._shared}
        for server in servers - {None}:
            if server is not None:
                await server.aclose()
