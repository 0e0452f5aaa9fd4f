"""How a connection to Redis begins: without insisting on a name, and telling why where nothing can come of it.

redis-py gives up where an ACL refuses CLIENT SETNAME, though nothing depends on a name.  A server that has too many
clients says so and closes at once: whoever writes first, as redis-py does, gets "connection lost" for it.  And one that
is too old, or keeps our keys in several places, would be found out by what fails later.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from redis.asyncio.connection import (
    AbstractConnection,
    Connection,
    SSLConnection,
    UnixDomainSocketConnection,
    parse_url,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from llm_routerd.config.addresses import read_redis_url
from llm_routerd.queue.connection import fitness
from llm_routerd.queue.connection.describing import NobodyTells, SetupError
from llm_routerd.queue.connection.diagnosis import TlsFiles, certificate_trouble, tls_trouble, wants_tls

if TYPE_CHECKING:
    from llm_routerd.queue.connection.whereabouts import Whereabouts

LISTEN_SECONDS = 0.3  # for what a server says before anybody has asked it anything
_MAX_CLIENTS = "max number of clients"
# What such a server says, and how it is told: nothing that it says is passed on.
_GREETINGS = {
    _MAX_CLIENTS: "max number of clients reached",
    "protected mode": "the server is in protected mode, and takes no connections from elsewhere",
}

# What it says of the database that was asked for, and the remedy.
_DATABASES = {
    "DB index is out of range": "correct it there",
    "invalid DB index": "correct it there",
    "SELECT is not allowed in cluster mode": "in cluster mode there is only 0: correct it there",
}


class _Polite(AbstractConnection):
    """A connection that works without a name, to a server that can serve us, and tells the reason where it fails.

    Args:
        needs: what the server has to keep in one place.
        whereabouts: of the server; None: where the URL says.
        options: of redis-py.

    Attributes:
        greeting: what the server said of itself; None: nothing.
    """

    host: str
    port: int

    def __init__(
        self, *, needs: fitness.Needs | None = None, whereabouts: Whereabouts | None = None, **options: Any
    ) -> None:
        super().__init__(**options)
        self._needs = needs
        self._whereabouts = whereabouts
        self.greeting: fitness.Greeting | None = None

    async def connect_check_health(self, check_health: bool = True, retry_socket_connect: bool = True) -> None:
        """As ever, to wherever the server is now; one that stands, and leads elsewhere, is given up."""
        if self._whereabouts is not None:
            await self._go(self._whereabouts)
        await super().connect_check_health(check_health=check_health, retry_socket_connect=retry_socket_connect)

    async def _go(self, whereabouts: Whereabouts) -> None:
        try:
            place = await whereabouts.find()
        except NobodyTells:
            if self.is_connected:  # which may be as good as ever
                return
            raise
        if place is not None and (self.host, self.port) != place:
            if self.is_connected:
                await self.disconnect(nowait=True)
            self.host, self.port = place

    async def on_connect_check_health(self, check_health: bool = True) -> None:
        """Authenticate, choose the database, take the name if there is one, look at the server.

        Raises:
            WrongServerError: it cannot serve us.
            RedisError: the server does not take the connection; the message says why, where the server does.
        """
        name, self.client_name = self.client_name, None
        try:
            await super().on_connect_check_health(check_health=check_health)
            if name:
                with suppress(ResponseError):  # an ACL refuses it, or the server does not know it
                    await self._say("CLIENT", "SETNAME", name)
            self.greeting = await fitness.ask(self._say)
        except ResponseError as error:
            if (remedy := next((told for words, told in _DATABASES.items() if words in str(error)), None)) is None:
                raise
            raise SetupError("the server has no database with the number in the Redis URL", remedy) from error
        except RedisConnectionError as error:
            # Of its subclasses each says what is wrong: a password, for one.
            if type(error) is not RedisConnectionError or _MAX_CLIENTS in str(error):
                raise
            why = await self._ask_why()
            if why is None:
                raise
            raise RedisConnectionError(why) from error
        finally:
            self.client_name = name
        fitness.check(self.greeting, self._needs)
        if self._whereabouts is not None:
            await self._whereabouts.accept(self.greeting)

    async def _say(self, *words: str) -> Any:
        await self.send_command(*words, check_health=False)
        try:
            return await self.read_response()
        except ResponseError as error:
            if _MAX_CLIENTS in str(error):  # in the words of a cluster, which redis-py does not know
                raise RedisConnectionError(_GREETINGS[_MAX_CLIENTS]) from error
            raise

    async def _ask_why(self) -> str | None:
        """Connect once more and listen; None: the server says nothing."""
        line = b""
        await self.disconnect(nowait=True)
        try:
            with suppress(RedisError, OSError, TimeoutError, ValueError):  # ValueError: a line without end
                async with asyncio.timeout(LISTEN_SECONDS):
                    await self._connect()  # type: ignore[no-untyped-call]  # redis-py
                    if self._reader is not None:
                        line = await self._reader.readline()
        finally:
            await self.disconnect(nowait=True)
        said = line.decode("ascii", "replace")
        return next((told for words, told in _GREETINGS.items() if said.startswith("-") and words in said), None)


class _Tcp(_Polite, Connection):
    """Over TCP."""

    async def on_connect_check_health(self, check_health: bool = True) -> None:
        """As ever; of a server that hangs up without a word it is asked whether it wants TLS."""
        try:
            await super().on_connect_check_health(check_health=check_health)
        except RedisConnectionError as error:
            if type(error) is RedisConnectionError and (why := await wants_tls(self.host, self.port)) is not None:
                raise why from error
            raise


class _Tls(_Polite, SSLConnection):
    """Over TLS, where a server that has too many clients says nothing."""

    async def connect_check_health(self, check_health: bool = True, retry_socket_connect: bool = True) -> None:
        """As ever, but that it is told why TLS did not come about."""
        try:
            await super().connect_check_health(check_health=check_health, retry_socket_connect=retry_socket_connect)
        except (RedisConnectionError, RedisTimeoutError) as error:
            if type(error) not in {RedisConnectionError, RedisTimeoutError}:
                raise
            tls = self.ssl_context
            files = TlsFiles(
                ssl_ca_certs=tls.ca_certs,
                ssl_ca_path=tls.ca_path,
                ssl_certfile=tls.certfile,
                ssl_keyfile=tls.keyfile,
                ssl_password=tls.password,
            )
            why = await tls_trouble(error.__context__, files, self.host, self.port)
            if why is None and tls.context is not None:
                why = await certificate_trouble(tls.context, files, self.host, self.port)
            if why is None:
                raise
            raise why from error


class _Unix(_Polite, UnixDomainSocketConnection):
    """Over a Unix socket."""

    async def on_connect(self) -> None:
        """Nothing: redis-py would authenticate here and then once more, and report a refusal as a lost connection."""


_CLASSES: dict[type[AbstractConnection], type[AbstractConnection]] = {
    Connection: _Tcp,
    SSLConnection: _Tls,
    UnixDomainSocketConnection: _Unix,
}


def connection_of(url: str) -> tuple[type[AbstractConnection], dict[str, Any]]:
    """The class of connection that a URL asks for, and what it says to it.

    Raises:
        ConfigError: the URL is unsound.
    """
    options: dict[str, Any] = dict(parse_url(read_redis_url(url).url))
    return _CLASSES[options.pop("connection_class", Connection)], options


__all__ = ["connection_of"]
