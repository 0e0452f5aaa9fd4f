"""HTTP to the models: one pool of connections, and a POST that has come as far as the answer's status."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from functools import lru_cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import aiohttp
import orjson

from llm_routerd.backends import faults
from llm_routerd.backends.wire.connector import Connecting, Connector, connecting
from llm_routerd.protocol.call import Sending
from llm_routerd.protocol.codes import Lack

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping

    from yarl import URL

    from llm_routerd.protocol.call import BackendError

_MAX_ERROR_BYTES = 65_536
_ERROR_BODY_SECONDS = 5.0
_QUESTION_SECONDS = 5.0  # for the answer to a question about a server
# How long a finished stream waits for the end of its body, so that its connection can serve the next call.
_SETTLE_SECONDS = 0.05
# Below the keep-alive of most servers, so that a pooled connection is seldom one that is just being closed.
_KEEP_ALIVE_SECONDS = 15.0
_MEGABYTE = 1_048_576
_CLOSE_SECONDS = 2.0
_SHORTEST_SECONDS = 0.001  # to aiohttp, a timeout of 0 is none


def _new_socket(address: aiohttp.AddrInfoType) -> socket.socket:
    """A socket as aiohttp would make it; notes for the POST under way that it is new."""
    if (connection := connecting.get()) is not None:
        connection.is_new = True
    family, kind, protocol, _, _ = address
    return socket.socket(family, kind, protocol)


@lru_cache(maxsize=64)
def _timeout(connect_seconds: float) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=None, connect=max(connect_seconds, _SHORTEST_SECONDS))


class Transport:
    """The connections of one set of deployments.

    The environment's proxies and `~/.netrc` are not looked at (`trust_env` is off): a prompt goes where the
    configuration says, and nowhere else.  What must go through a proxy takes `backend = "litellm"`.
    Redirects are not followed for the same reason.  Cookies are not kept.
    """

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None
        self._connector: Connector | None = None

    def session(self) -> aiohttp.ClientSession:
        """The session, made on first use and for that event loop only."""
        session = self._session
        if session is None:
            # No limit in here: each deployment has its own `concurrency`, and waits only for that.
            self._connector = Connector(
                limit=0,
                keepalive_timeout=_KEEP_ALIVE_SECONDS,
                ttl_dns_cache=30,
                socket_factory=_new_socket,
            )
            session = self._session = aiohttp.ClientSession(
                connector=self._connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None),
                headers={"User-Agent": "llm-routerd"},
                auto_decompress=True,
                trust_env=False,
            )
        return session

    async def aclose(self) -> None:
        """Close all connections; calls under way break off."""
        session, self._session = self._session, None
        if session is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await session.close()

    async def post(
        self,
        url: URL,
        body: Mapping[str, Any],
        *,
        headers: Mapping[str, str],
        connect_seconds: float,
        sending: Sending | None = None,
    ) -> aiohttp.ClientResponse:
        """Send `body` as JSON; the response has status 200 and an unread body, and is the caller's to close.

        How far it comes is told in `sending`.

        Raises:
            BackendError: no connection within `connect_seconds`, no HTTP answer, or one that is not 200.
        """
        try:
            data = orjson.dumps(body)
        except TypeError:  # a lone surrogate, or an integer beyond 64 bits; the exception would quote it
            raise faults.unsupported("the request cannot be written as JSON") from None
        response = await self._send(url, data, headers, connect_seconds, sending or Sending())
        if response.status == HTTPStatus.OK and response.content_type != "text/html":
            return response
        try:
            if response.status == HTTPStatus.OK:
                raise faults.malformed("HTML where a stream belongs")
            raise faults.fault_of_status(response.status, response.headers, await _error_body(response))
        finally:
            response.close()

    async def _send(
        self, url: URL, data: bytes, headers: Mapping[str, str], connect_seconds: float, sending: Sending
    ) -> aiohttp.ClientResponse:
        connection = Connecting(sending=sending)
        token = connecting.set(connection)
        try:
            try:
                return await self._post_once(url, data, headers, connect_seconds)
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
                if connection.is_new or isinstance(error, aiohttp.ClientConnectorError):
                    raise
            # The server closed an idle connection just as we took it from the pool, and saw nothing of the call.
            return await self._post_once(url, data, headers, connect_seconds)
        except aiohttp.ConnectionTimeoutError as error:
            if sending.is_looking_up:
                raise faults.no_look_up(connect_seconds) from None
            raise self._fault(error, connect_seconds) from None
        except faults.CALL_ERRORS as error:
            raise self._fault(error, connect_seconds) from None
        finally:
            connecting.reset(token)

    def _fault(self, error: Exception, connect_seconds: float) -> BackendError:
        """The fault behind an error; where it is we that lack something, what lies idle gives its descriptors back."""
        fault = faults.fault_before_answer(error, connect_seconds)
        if fault.lack is Lack.RESOURCES and self._connector is not None:
            self._connector.close_idle()
        return fault

    def _post_once(
        self, url: URL, data: bytes, headers: Mapping[str, str], connect_seconds: float
    ) -> Awaitable[aiohttp.ClientResponse]:
        """One POST.  Catch with `from None`: aiohttp's errors carry the headers, and with them the key."""
        return self.session().post(
            url,
            data=data,
            headers=headers,
            allow_redirects=False,
            timeout=_timeout(connect_seconds),
        )

    async def get_json(self, url: URL, *, headers: Mapping[str, str], connect_seconds: float) -> Any:
        """The JSON that a GET answers with, at most a megabyte; for questions about a server.

        Args:
            url: whom.
            body: what.
            headers: of the request.
            connect_seconds: longest time until the connection stands.
            answer_seconds: until the answer is there; None: as a question about a server takes.

        Raises:
            BackendError: as `post`; and where the answer is no JSON.
        """
        try:
            async with self.session().get(
                url,
                headers=headers,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=connect_seconds + _QUESTION_SECONDS, connect=connect_seconds),
            ) as response:
                body = await read_bounded(response, limit=_MEGABYTE)
        except faults.CALL_ERRORS as error:
            raise self._fault(error, connect_seconds) from None
        if response.status != HTTPStatus.OK:
            raise faults.fault_of_status(response.status, response.headers, body[:_MAX_ERROR_BYTES])
        return _parsed(body)

    async def post_json(
        self,
        url: URL,
        body: Mapping[str, Any],
        *,
        headers: Mapping[str, str],
        connect_seconds: float,
        answer_seconds: float | None = None,
    ) -> Any:
        """The JSON that a POST answers with, at most a megabyte; for questions about a server.

        Raises:
            BackendError: as `post`; and where the answer is no JSON, or does not come.
        """
        try:
            async with asyncio.timeout(connect_seconds + (answer_seconds or _QUESTION_SECONDS)):
                response = await self.post(url, body, headers=headers, connect_seconds=connect_seconds)
                try:
                    return _parsed(await read_bounded(response, limit=_MEGABYTE))
                finally:
                    response.close()
        except faults.CALL_ERRORS as error:  # TimeoutError is an OSError
            raise faults.fault_before_answer(error, connect_seconds) from None


def _parsed(answer: bytes) -> Any:
    try:
        return orjson.loads(answer)
    except orjson.JSONDecodeError:
        raise faults.malformed("no JSON where JSON belongs") from None


async def next_chunk(response: aiohttp.ClientResponse) -> bytes:
    """What has come of the body since the last call, b"" at its end.

    Raises:
        BackendError: the connection broke, or the body's framing or compression did.
    """
    try:
        return await response.content.readany()
    except (*faults.CALL_ERRORS, RuntimeError):  # RuntimeError: the session has been closed meanwhile
        raise faults.truncated() from None


async def settle(response: aiohttp.ClientResponse) -> None:
    """After the terminal event: keep the connection for the next call if the body ends now, else close it."""
    content = response.content
    if not content.at_eof():
        try:
            async with asyncio.timeout(_SETTLE_SECONDS):
                await content.readany()
        except faults.CALL_ERRORS:
            pass  # the answer is whole already
    if content.at_eof():
        response.release()
    else:
        response.close()


async def read_bounded(response: aiohttp.ClientResponse, *, limit: int) -> bytes:
    """The whole body.

    Raises:
        BackendError: it is longer than `limit` bytes, or the connection broke.
    """
    body = bytearray()
    while chunk := await next_chunk(response):
        body += chunk
        if len(body) > limit:
            raise faults.malformed("the answer is too long")
    return bytes(body)


async def _error_body(response: aiohttp.ClientResponse) -> bytes:
    """What comes of an error's body in a few seconds, cut to a bounded length; it may be nothing."""
    body = bytearray()
    try:
        async with asyncio.timeout(_ERROR_BODY_SECONDS):
            while len(body) < _MAX_ERROR_BYTES and (chunk := await response.content.readany()):
                body += chunk
    except faults.CALL_ERRORS:
        pass
    return bytes(body[:_MAX_ERROR_BYTES])
