"""One gateway: its way to the queue, its rules, its server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_routerd.client import Client, Multiplexer
from llm_routerd.gateway.admission import Admission
from llm_routerd.gateway.http.app import CALLER, door_at, make_application
from llm_routerd.gateway.http.counting import Counting
from llm_routerd.gateway.http.exchange import Exchange
from llm_routerd.gateway.http.server import HttpServer

if TYPE_CHECKING:
    from llm_routerd.config.tree import Config

_PATIENCE_SECONDS = 5.0


class Gateway:
    """Start it, have `run` running, stop it.

    Args:
        config: in force; `reload` takes another.

    Raises:
        ConfigError: it would let in whoever comes, or an address is unsound.
        BrokerError: the Redis URL is.
    """

    def __init__(self, config: Config) -> None:
        redis = config.redis
        self._admission = Admission(config.gateway)
        self._client = Client(
            redis.url,
            prefix=redis.prefix,
            shards=redis.shards,
            draining=redis.draining,
            patience_seconds=_PATIENCE_SECONDS,
        )
        self._plexer = Multiplexer(self._client, redis.url)
        self._exchange = Exchange(config, self._client, self._plexer)
        app = make_application(self._exchange, lambda: self._admission)
        Counting(door_of=door_at, caller=CALLER, connections=lambda: self._server.connections).watch(app)
        self._server = HttpServer(app, config.gateway.listen, max_connections=config.gateway.max_connections)

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._server.port

    @property
    def trouble(self) -> str:
        """Why it cannot submit anything now; "": it can."""
        return self._plexer.trouble

    @property
    def followed(self) -> int:
        """How many requests are followed."""
        return self._plexer.followed

    async def start(self) -> None:
        """Listen; whoever comes before Redis has answered is told to come again.

        Raises:
            ConfigError: it is not possible at this address.
        """
        await self._server.start()

    async def run(self) -> None:
        """Keep the connections to Redis, until cancelled.

        Raises:
            UnsuitableServerError: the server can never serve us; as an exception group.
        """
        await self._plexer.run()

    def reload(self, config: Config) -> None:
        """Take another configuration over, for requests that come from now on; not where Redis is, nor `listen`.

        Raises:
            ConfigError: it would let in whoever comes; that before stays in force.
        """
        self._admission = Admission(config.gateway)
        self._exchange.use(config)

    async def stop(self, grace_seconds: float = 5.0) -> None:
        """Listen no more, and give what is being answered so long; nothing is cancelled, for somebody may come back."""
        self._exchange.is_stopping = True
        await self._server.stop(grace_seconds)
        await self._exchange.aclose()
        await self._client.aclose()
