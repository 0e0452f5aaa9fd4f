"""An MCP server over streamable HTTP: the SDK's transport, and under it bounds for what comes.

What goes wrong with one request is an answer to that one: to the SDK it would be the end of all that are under way.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import httpx2
from mcp.client.streamable_http import streamable_http_client

from llm_routerd.mcp_bridge.child import MOST_MESSAGE_BYTES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from types import TracebackType

    from mcp.client._transport import TransportStreams

    from llm_routerd.config.mcp import McpServer

_CONNECT_SECONDS = 10.0
_GOODBYE_SECONDS = 2.0
_NOT_FOUND = 404
_BAD_GATEWAY = 502
NOT_TAKEN = -32097  # of no other meaning in the protocol; an error that stands for a request that did not arrive


class HttpTransport:
    """A transport of the SDK's kind.

    Args:
        server: where it is, and what it is sent.

    Attributes:
        ended: never set, for each request has a way of its own.
    """

    def __init__(self, server: McpServer) -> None:
        self._server = server
        self.ended = asyncio.Event()
        self._bounded = _Bounded()
        self._stack = AsyncExitStack()

    @property
    def why(self) -> str:
        """What was wrong with the last request; "" where nothing was."""
        return self._bounded.trouble

    async def __aenter__(self) -> TransportStreams:
        """Get ready to ask it; nothing is sent."""
        async with AsyncExitStack() as stack:
            client = httpx2.AsyncClient(
                headers={**self._server.headers, "accept-encoding": "identity"},
                # How long an answer may take is the business of who waits for it.
                timeout=httpx2.Timeout(None, connect=_CONNECT_SECONDS),
                transport=self._bounded,
                trust_env=False,
            )
            await stack.enter_async_context(client)
            streams = await stack.enter_async_context(
                streamable_http_client(str(self._server.url), http_client=client, max_sse_event_size=MOST_MESSAGE_BYTES)
            )
            self._stack = stack.pop_all()
        return streams

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End what is under way."""
        await self._stack.__aexit__(kind, error, traceback)


class _Bounded(httpx2.AsyncHTTPTransport):
    """Lets no answer be longer than a message may be, and no failure be more than the answer to its request."""

    trouble = ""

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if request.method == "DELETE":  # the end of a session, which nothing else bounds
            request.extensions["timeout"] = httpx2.Timeout(_GOODBYE_SECONDS).as_dict()
        response, trouble = await self._ask(request)
        if request.method == "POST":  # the others may be refused
            self.trouble = trouble
        return response

    async def _ask(self, request: httpx2.Request) -> tuple[httpx2.Response, str]:
        """The answer, or one of ours in its place, and what is wrong with it."""
        try:
            response = await super().handle_async_request(request)
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            return _not_taken(request, "it cannot be reached"), f"it cannot be reached ({type(error).__name__})"
        except httpx2.TransportError as error:
            return httpx2.Response(_BAD_GATEWAY, request=request), f"it does not answer ({type(error).__name__})"
        kind = response.headers.get("content-type", "").lower()
        if response.status_code == _NOT_FOUND and not kind.startswith("application/json"):
            await response.aclose()
            why = "it does not know this session, or this address"
            return _not_taken(request, why), why
        if "content-encoding" in response.headers:  # which was not asked for, and may grow
            await response.aclose()
            return httpx2.Response(_BAD_GATEWAY, request=request), "it compresses its answers, unasked"
        assert isinstance(response.stream, httpx2.AsyncByteStream)  # noqa: S101 - of an asynchronous transport
        is_stream = kind.startswith("text/event-stream")
        response.stream = _Body(response.stream, most_bytes=None if is_stream else MOST_MESSAGE_BYTES)
        return response, f"it answers with status {response.status_code}" if response.is_error else ""


def _not_taken(request: httpx2.Request, why: str) -> httpx2.Response:
    """An answer of ours, in the protocol's form, to a request that the server has not taken."""
    error = {"code": NOT_TAKEN, "message": why}
    return httpx2.Response(_NOT_FOUND, request=request, json={"jsonrpc": "2.0", "id": None, "error": error})


class _Body(httpx2.AsyncByteStream):
    """What comes, up to a bound; what the SDK takes for the end of one request is raised beyond, or where it breaks."""

    def __init__(self, stream: httpx2.AsyncByteStream, *, most_bytes: int | None) -> None:
        self._stream = stream
        self._most_bytes = most_bytes

    async def __aiter__(self) -> AsyncIterator[bytes]:
        length = 0
        try:
            async for chunk in self._stream:
                length += len(chunk)
                if self._most_bytes is not None and length > self._most_bytes:
                    raise httpx2.StreamError(f"an answer of more than {self._most_bytes} bytes")
                yield chunk
        except httpx2.TransportError:
            raise httpx2.StreamError("the answer broke off") from None

    async def aclose(self) -> None:
        await self._stream.aclose()
