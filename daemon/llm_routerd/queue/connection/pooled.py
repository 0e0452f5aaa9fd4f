"""The client's connections: a pool of them, to wherever the server is now, and one try within bounds."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, NoScriptError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from llm_routerd.config.addresses import read_redis_url
from llm_routerd.errors import BrokerError, ConfigError
from llm_routerd.protocol.keys import Keys
from llm_routerd.queue.connection.bounded_parser import BoundedParser
from llm_routerd.queue.connection.factory import CONNECT_SECONDS
from llm_routerd.queue.connection.handshake import connection_of
from llm_routerd.queue.connection.locating import whereabouts_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from llm_routerd.queue.connection.fitness import Needs
    from llm_routerd.queue.connection.skimmer import Bounds
    from llm_routerd.queue.connection.whereabouts import Place, Whereabouts
    from llm_routerd.queue.scripts.binding import Call

T = TypeVar("T")

_reply_limit: ContextVar[asyncio.Timeout] = ContextVar("reply_limit")

REPLY_SECONDS = 10.0  # above the longest BLOCK, or a quiet stream would look like a dead server
WATCH_SECONDS = 2.0  # so often it is asked whether the server has moved
LINGER_SECONDS = 10.0  # and so long after it was last used
_CONNECTIONS = 10_000  # every follower holds one while it waits; the default of 100 would refuse the next


class Server:
    """One server, wherever it is now, and a client of it.

    Attributes:
        redis: what to ask; nothing is connected before.
        has_all: it is asked for keys of any slot; else for those of one.
    """

    def __init__(self, url: str, redis: Redis, whereabouts: Whereabouts, *, has_all: bool) -> None:
        self.redis = redis
        self.has_all = has_all
        self._url = url
        self._whereabouts = whereabouts
        self._bounds: dict[asyncio.Timeout, float] = {}  # of what is under way, and since when in loop time
        self._watching: asyncio.Task[None] | None = None
        self._used = 0.0  # when it last was, in loop time

    @classmethod
    def at(cls, url: str, needs: Needs) -> Self:
        """The one at this URL that has the keys of `needs`.

        Raises:
            BrokerError: the URL is unsound; the message says how, and quotes nothing of it but an option's name.
        """
        try:
            has_all = read_redis_url(url).kind != "cluster"
            whereabouts = whereabouts_of(url, Keys(needs.prefix).dead)
        except ConfigError as error:
            raise BrokerError(f"the Redis URL: {error}") from None
        connection_class, options = connection_of(url)
        settings: dict[str, Any] = {
            "connection_class": connection_class,
            "socket_timeout": None,  # `once` bounds every reply
            "socket_connect_timeout": CONNECT_SECONDS,
            "retry": Retry(NoBackoff(), 0),
            "max_connections": _CONNECTIONS,
            "protocol": 2,
            "driver_info": None,  # redis-py would read its version from disk for each connection
            "needs": needs,
            "whereabouts": whereabouts,
        }
        return cls(url, Redis.from_pool(ConnectionPool(**settings | options)), whereabouts, has_all=has_all)

    @property
    def may_move(self) -> bool:
        """It may be elsewhere, though nobody has said so."""
        return self._whereabouts.may_move

    @property
    def is_fixed(self) -> bool:
        """It is nowhere else, whatever it says."""
        return self._whereabouts.is_fixed

    async def place(self) -> Place | None:
        """Where it is; None: at a Unix socket.

        Raises:
            RedisError: nobody tells.
        """
        return await self._whereabouts.find()

    def apart(self, needs: Needs) -> Server:
        """The one that has the keys of `needs`, for MOVED says that they are elsewhere than others; the caller's."""
        if not self.has_all:
            return self
        server = Server.at(self._url, needs)
        server.has_all = False
        return server

    def lost(self, error: RedisError) -> None:
        """It is not where it was, or does not serve us there: the next try finds out."""
        self._whereabouts.lost(error)

    async def once(self, operation: Callable[[], Awaitable[T]]) -> T:
        """One try within bounds, which is over when the server turns out to be elsewhere by now."""
        if not self.may_move:
            return await once(operation)
        self._used = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(None) as bound:
                self._bounds[bound] = self._used
                if self._watching is None:
                    self._watching = asyncio.create_task(self._watch(), name="watch-server")
                try:
                    return await once(operation)
                finally:
                    del self._bounds[bound]
        except TimeoutError:
            raise RedisTimeoutError("no reply") from None

    async def _watch(self) -> None:
        """As long as it is used, find out now and then whether answers will come from here."""
        loop, whereabouts = asyncio.get_running_loop(), self._whereabouts
        try:
            while self._bounds or loop.time() < self._used + LINGER_SECONDS:
                await asyncio.sleep(WATCH_SECONDS)
                waits = any(since <= loop.time() - WATCH_SECONDS for since in self._bounds.values())
                if await (whereabouts.moved() if waits else whereabouts.glance()):
                    for bound in self._bounds:
                        if not bound.expired():
                            bound.reschedule(loop.time())
        finally:
            self._watching = None

    async def aclose(self) -> None:
        """Close the connections."""
        if self._watching is not None:
            self._watching.cancel()
        with suppress(RedisError):  # redis-py bounds it, and raises where the server takes nothing any more
            await self.redis.aclose()


def bounded(redis: Redis, bounds: Bounds) -> Redis:
    """Another client of the same server, of whose replies no more is kept than `bounds` says.  It is the caller's.

    What XRANGE gives comes as it is on the wire, for it may be cut: pairs of an ID and `Fields`.
    """
    pool = redis.connection_pool
    parser = partial(BoundedParser, bounds=lambda: bounds, on_progress=_reply_goes_on)
    settings = {**pool.connection_kwargs, "protocol": 2, "decode_responses": False, "parser_class": parser}
    client = Redis.from_pool(ConnectionPool(connection_class=pool.connection_class, **settings))
    client.set_response_callback("XRANGE", cast("Any", lambda reply, **_: reply))
    return client


async def run_script(redis: Redis, call: Call) -> Any:
    """Run a script, which the server is told first where it does not know it."""
    execute: Callable[..., Awaitable[Any]] = redis.execute_command
    try:
        return await execute(*call.command)
    except NoScriptError:
        await redis.script_load(call.script.source)
        return await execute(*call.command)


def _reply_goes_on() -> None:
    """A part of a long reply has come: what follows has as long again."""
    _reply_limit.get().reschedule(asyncio.get_running_loop().time() + REPLY_SECONDS)


async def once(operation: Callable[[], Awaitable[T]]) -> T:
    """One try within bounds, after which a cancellation of ours is not forgotten.

    redis-py sends through `asyncio.wait_for` where a socket timeout is set, and that may swallow a cancellation up
    to Python 3.11 (gh-86296): a follower would then read on for ever.
    """
    task = asyncio.current_task()
    cancellations = task.cancelling() if task else 0
    try:
        async with asyncio.timeout(REPLY_SECONDS) as limit:
            _reply_limit.set(limit)
            reply = await operation()
    except TimeoutError:
        raise RedisTimeoutError("no reply") from None
    except RedisConnectionError as error:
        # redis-py's own connection by a Unix socket reports a refused password as a lost connection.
        if isinstance(error.__cause__, AuthenticationError):
            raise error.__cause__ from None
        raise
    if task and task.cancelling() > cancellations:
        raise asyncio.CancelledError
    return reply
