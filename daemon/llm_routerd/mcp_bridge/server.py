"""The connection to one MCP server: made, kept, made again; its tools listed, and called.

A call is issued once.  What comes back in its place (nothing, an end of the connection, no valid answer) says nothing
of what the server has done, and is told so, unless the tool may be called again.
"""

from __future__ import annotations

import asyncio
import math
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

import anyio
import mcp_types
from mcp.client import Client
from mcp.client.subscriptions import SubscriptionLost
from mcp.shared.exceptions import MCPError
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import TypeAdapter, ValidationError

from llm_routerd.client.tool_worker import ToolError
from llm_routerd.jsonschema.path import printable
from llm_routerd.logs import get_logger
from llm_routerd.mcp_bridge.answering import error_of, question_in, result_of
from llm_routerd.mcp_bridge.child import ChildTransport
from llm_routerd.mcp_bridge.offering import MOST_TOOLS
from llm_routerd.mcp_bridge.over_http import NOT_TAKEN, HttpTransport
from llm_routerd.queue.connection import Backoff

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from mcp.client import IncomingMessage

    from llm_routerd.config.mcp import McpServer
    from llm_routerd.protocol.tool import ToolRequest

log = get_logger()

_CONNECT_SECONDS = 60.0  # a program that is fetched first takes its time
_LIST_SECONDS = 30.0
_LOOK_SECONDS = 60.0  # how long a change that was not told, or a server that hangs, is not noticed
_LEAST_GAP_SECONDS = 1.0  # between two listings, however often a server says that there is a new one
_FIRST_WAIT_SECONDS = 0.5
_LONGEST_WAIT_SECONDS = 60.0
_AWAY_SECONDS = 60.0  # so long its tools stay registered, and calls are answered with an error
_WAIT_SECONDS = 5.0  # so long a call waits for it, before it has been issued
_MOST_PAGES = 100
_MOST_NEW_NAMES = 10_000  # of one connection, which the SDK keeps
_LONGEST_REASON = 200
_US = mcp_types.Implementation(name="llm-routerd", version=version("llm-routerd"))
_ANSWER: Final[TypeAdapter[mcp_types.CallToolResult | mcp_types.InputRequiredResult]] = TypeAdapter(
    mcp_types.CallToolResult | mcp_types.InputRequiredResult
)
# Errors that are told before anything is done; after any other the tool may have acted.
_NOT_CARRIED_OUT = (
    NOT_TAKEN,
    mcp_types.HEADER_MISMATCH,
    mcp_types.INVALID_PARAMS,
    mcp_types.METHOD_NOT_FOUND,
    mcp_types.MISSING_REQUIRED_CLIENT_CAPABILITY,
)
# What the SDK says where no answer has come, or none that is one; its texts may quote.
_NO_ANSWER = (
    mcp_types.CONNECTION_CLOSED,
    mcp_types.INTERNAL_ERROR,
    mcp_types.INVALID_REQUEST,
    mcp_types.PARSE_ERROR,
    mcp_types.REQUEST_TIMEOUT,
)


class ServerLostError(Exception):
    """The connection is of no use any more; the message says why."""


class Server:
    """One server of the configuration.

    Args:
        config: its table.
        offer: told what it lists, when it is there and whenever that changes; nothing, when it has been away for long.
        most_bytes: of a result, how much the daemon keeps.
        stderr: let a child's stderr through to ours.

    Attributes:
        config: its table.
        is_connected: its tools can be called.
    """

    def __init__(
        self,
        config: McpServer,
        offer: Callable[[Sequence[mcp_types.Tool]], Awaitable[None]],
        *,
        most_bytes: int,
        stderr: bool = False,
    ) -> None:
        self.config = config
        self._offer = offer
        self._most_bytes = most_bytes
        self._stderr = stderr
        self._client: Client | None = None
        self._connected = asyncio.Event()
        self._look = asyncio.Event()
        self._scope = anyio.CancelScope()

    @property
    def is_connected(self) -> bool:
        """Whether its tools can be called."""
        return self._connected.is_set()

    async def run(self) -> None:
        """Keep the connection, until `stop`."""
        with self._scope:
            backoff = Backoff(first_seconds=_FIRST_WAIT_SECONDS, cap_seconds=_LONGEST_WAIT_SECONDS)
            away_since = math.inf
            while True:
                why, lasted_seconds = await self._connect_once()
                if lasted_seconds > _LONGEST_WAIT_SECONDS:  # one that ends again and again is not started at once
                    backoff.reset()
                away_since = anyio.current_time() if lasted_seconds else min(away_since, anyio.current_time())
                if anyio.current_time() - away_since >= _AWAY_SECONDS:
                    await self._offer(())
                seconds = backoff.next_seconds()
                log.warning("mcp_server_lost", server=self.config.name, why=why, again_in_seconds=round(seconds, 1))
                await anyio.sleep(seconds)

    def stop(self) -> None:
        """End it, and the connection."""
        self._scope.cancel()

    async def call(
        self, tool: str, arguments: dict[str, Any], request: ToolRequest, *, may_repeat: bool
    ) -> bytes | str:
        """Issue a call, once; cancelled, it is cancelled at the server too.

        Args:
            tool: its name as the server has it.
            arguments: as the model wrote them, judged by the tool's schema.
            request: whose call it is.
            may_repeat: a second call does no harm, so that an answer that has not come needs no word on what was done.

        Raises:
            ToolError: there is no result; its text is for the model.
        """
        client = await self._client_for_call()
        try:
            answer = await client.session.send_request(_call_of(tool, arguments, request), _ANSWER)
        except (MCPError, ValidationError) as error:
            raise self._no_result(error, may_repeat=may_repeat) from None
        if isinstance(answer, mcp_types.InputRequiredResult):
            raise ToolError(question_in(answer))
        if answer.is_error:
            raise ToolError(error_of(answer, self._most_bytes))
        return result_of(answer, self._most_bytes)

    async def _client_for_call(self) -> Client:
        with anyio.move_on_after(_WAIT_SECONDS):
            await self._connected.wait()
        if self._client is None or not self._connected.is_set():
            raise ToolError("not carried out: the server of this tool is away; it is being reached for again")
        return self._client

    def _no_result(self, error: MCPError | ValidationError, *, may_repeat: bool) -> ToolError:
        code = error.code if isinstance(error, MCPError) else mcp_types.PARSE_ERROR
        if code != mcp_types.INVALID_PARAMS:
            self._look.set()  # it may have gone, or have other tools by now
        if code == mcp_types.CONNECTION_CLOSED:
            self._connected.clear()  # until it has been looked at
        if code in _NOT_CARRIED_OUT:
            return ToolError(f"not carried out: the server refused the call: {_reason(error)}")
        what = "the server gave no valid answer" if code in _NO_ANSWER else f"the server failed: {_reason(error)}"
        return ToolError(what if may_repeat else f"unknown outcome: {what}; it may have acted")

    async def _connect_once(self) -> tuple[str, float]:
        """Be connected for as long as it lasts; why it ended, and how many seconds its tools could be called."""
        transport = (
            ChildTransport(self.config, stderr=self._stderr) if self.config.command else HttpTransport(self.config)
        )
        since = math.inf
        try:
            with anyio.fail_after(_CONNECT_SECONDS) as connecting:
                async with Client(transport, cache=None, client_info=_US, message_handler=self._heed) as client:
                    tools = await self._list(client)
                    connecting.deadline = math.inf
                    since = anyio.current_time()
                    await self._serve(client, transport, tools)
        except Exception as error:  # noqa: BLE001 - whatever a stranger, or the SDK, makes of the connection
            return transport.why or _reason(error), max(0.0, anyio.current_time() - since)
        finally:
            self._client = None
            self._connected.clear()
        raise AssertionError  # pragma: no cover - `_serve` ends by an exception

    async def _serve(
        self, client: Client, transport: ChildTransport | HttpTransport, tools: list[mcp_types.Tool]
    ) -> None:
        """Offer what it lists, and look again whenever there is reason to.

        Raises:
            ServerLostError, MCPError, TimeoutError, ValidationError: it can be asked no longer.
        """
        await self._offer(tools)
        self._client = client
        self._connected.set()
        protocol = client.protocol_version
        log.info("mcp_server_connected", server=self.config.name, protocol=protocol, tools=len(tools))
        listed, new_names = {tool.name for tool in tools}, 0
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_until_ended, transport)
            if protocol in MODERN_PROTOCOL_VERSIONS:
                tasks.start_soon(self._listen, client)
            while True:
                await self._until_reason_to_look()
                found = await self._list(client)
                self._connected.set()
                if found == tools:
                    continue
                tools = found
                new_names += len({tool.name for tool in tools} - listed)
                if new_names > _MOST_NEW_NAMES:
                    raise ServerLostError("its tools have ever new names")
                await self._offer(tools)

    async def _until_reason_to_look(self) -> None:
        await anyio.sleep(_LEAST_GAP_SECONDS)
        with anyio.move_on_after(_LOOK_SECONDS):
            await self._look.wait()
        self._look.clear()

    async def _list(self, client: Client) -> list[mcp_types.Tool]:
        """Its tools, page by page, not many more than are served.

        Raises:
            MCPError, TimeoutError, ValidationError: it does not tell.
        """
        found: list[mcp_types.Tool] = []
        cursor: str | None = None
        with anyio.fail_after(_LIST_SECONDS):
            for _ in range(_MOST_PAGES):
                try:
                    page = await client.session.list_tools(params=mcp_types.PaginatedRequestParams(cursor=cursor))
                except MCPError as error:
                    if error.code == mcp_types.METHOD_NOT_FOUND:  # it has prompts or resources alone
                        return []
                    raise
                found += page.tools
                cursor = page.next_cursor
                if cursor is None or len(found) > MOST_TOOLS:
                    break
        return found

    async def _listen(self, client: Client) -> None:
        """Hear of changed tools, as servers of 2026-07-28 tell of them; who does not is looked at now and then."""
        while True:
            try:
                async with client.listen(tools_list_changed=True) as subscription:
                    async for _ in subscription:
                        self._look.set()
            except (MCPError, SubscriptionLost, TimeoutError):
                pass
            await anyio.sleep(_LOOK_SECONDS)

    async def _heed(self, message: IncomingMessage) -> None:
        """Hear of changed tools, as earlier servers tell of them."""
        if isinstance(message, mcp_types.ToolListChangedNotification):
            self._look.set()


async def _until_ended(transport: ChildTransport | HttpTransport) -> None:
    await transport.ended.wait()
    raise ServerLostError(transport.why)


def _call_of(tool: str, arguments: dict[str, Any], request: ToolRequest) -> mcp_types.CallToolRequest:
    meta: Any = {"traceparent": request.traceparent} if request.traceparent else None
    return mcp_types.CallToolRequest(params=mcp_types.CallToolRequestParams(name=tool, arguments=arguments, _meta=meta))


def _reason(error: BaseException) -> str:
    """What an operator is told of it, and a model of a refusal: what the protocol has for that, else only its kind."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    match error:
        case MCPError() | ServerLostError():
            return printable(str(error)[:_LONGEST_REASON])
        case TimeoutError():
            return "it does not answer in time"
        case OSError():
            return f"it cannot be started: {error.strerror}"
        case _:
            return f"it does not keep to the protocol ({type(error).__name__})"
