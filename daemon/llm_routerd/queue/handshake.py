"""How a connection to Redis begins: without insisting on a name, and telling why where the server does not want it.

redis-py gives up where an ACL refuses CLIENT SETNAME, though nothing depends on a name.  And a server that has too
many clients says so and closes at once: whoever writes first, as redis-py does, gets "connection lost" for it.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from redis.asyncio.connection import (
    AbstractConnection,
    Connection,
    SSLConnection,
    UnixDomainSocketConnection,
    parse_url,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError

LISTEN_SECONDS = 0.3  # for what a server says before anybody has asked it anything
_MAX_CLIENTS = "max number of clients"
# What such a server says, and how it is told: nothing that it says is passed on.
_GREETINGS = {
    _MAX_CLIENTS: "max number of clients reached",
    "protected mode": "the server is in protected mode, and takes no connections from elsewhere",
}


class _Polite(AbstractConnection):
    """A connection that works without a name, and asks for the reason where it is not taken."""

    async def on_connect_check_health(self, check_health: bool = True) -> None:
        """Authenticate, choose the database, take the name if there is one.

        Raises:
            RedisError: the server does not take the connection; the message says why, where the server does.
        """
        name, self.client_name = self.client_name, None
        try:
            await super().on_connect_check_health(check_health=check_health)
            if name:
                await self._take_name(name)
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

    async def _take_name(self, name: str) -> None:
        await self.send_command("CLIENT", "SETNAME", name, check_health=False)
        try:
            await self.read_response()
        except ResponseError as error:  # an ACL refuses it, or the server does not know it
            if _MAX_CLIENTS in str(error):  # in the words of a cluster, which redis-py does not know
                raise RedisConnectionError(_GREETINGS[_MAX_CLIENTS]) from error

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


class _Tls(_Polite, SSLConnection):
    """Over TLS, where a server that has too many clients says nothing."""


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
        ValueError: the URL is none; the message may quote it, and so its password.
    """
    options: dict[str, Any] = dict(parse_url(url))
    return _CLASSES[options.pop("connection_class", Connection)], options


__all__ = ["connection_of"]
