"""An MCP server over HTTP that does not behave: what goes wrong with one request is the end of that one."""

from __future__ import annotations

import asyncio
import gzip
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from llm_routerd.client.tool_worker import ToolError
from llm_routerd.config.mcp import McpServer
from tests.mcp_bridge.servers import connection
from tests.support.eventually import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

_TOOL = {"name": "act", "inputSchema": {"type": "object"}}
_RESULTS: dict[str, Any] = {
    "initialize": {
        "protocolVersion": "2025-11-25",
        "capabilities": {"tools": {}},
        "serverInfo": {"name": "stranger", "version": "1"},
    },
    "tools/list": {"tools": [_TOOL]},
    "tools/call": {"content": [{"type": "text", "text": "done"}]},
}


_ERRORS = {
    "error": {"code": 4711, "message": "half of it is done"},
    "no-such-tool": {"code": -32602, "message": "no such tool"},
}
_BODIES: dict[str, Callable[[], web.Response]] = {
    "no-utf-8": lambda: web.Response(body=b'{"jsonrpc": "\xff"}', content_type="application/json"),
    "no-json": lambda: web.Response(text="<html>", content_type="text/html"),
    "status": lambda: web.Response(status=500, text="a-secret-of-the-server"),
    "elsewhere": lambda: web.Response(status=307, headers={"location": "http://127.0.0.2:1/mcp"}),
    "compressed": lambda: web.Response(
        body=gzip.compress(b"[" + b"[]," * 1_000_000 + b"[]]"),
        headers={"content-encoding": "gzip", "content-type": "application/json"},
    ),
}


class Stranger:
    """The server; `how` says what becomes of the next call.

    Attributes:
        calls: how often the tool was called.
        began: how many sessions there have been.
        headers: those of the last request.
    """

    def __init__(self) -> None:
        self.how = ""
        self.calls = 0
        self.began = 0
        self.headers: dict[str, str] = {}
        self.url = ""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Answer one request."""
        self.headers = dict(request.headers)
        if request.method == "DELETE":
            await asyncio.sleep(600)
        if request.method != "POST":
            return web.Response(status=405)
        message = await request.json()
        method = message.get("method")
        if method == "server/discover":
            return web.Response(status=400)
        if "id" not in message:
            return web.Response(status=202)
        if method == "initialize":
            self.began += 1
            self.how = ""
        elif self.how == "forgotten":
            return web.Response(status=404)
        reply = {"jsonrpc": "2.0", "id": message["id"], "result": _RESULTS[method]}
        if method == "tools/call":
            self.calls += 1
            return await self._act(request, reply)
        return web.json_response(reply, headers={"mcp-session-id": f"s{self.began}"})

    async def _act(self, request: web.Request, reply: dict[str, Any]) -> web.StreamResponse:
        if self.how in _BODIES:
            return _BODIES[self.how]()
        if self.how in _ERRORS:
            del reply["result"]
            reply["error"] = _ERRORS[self.how]
        elif self.how == "huge":
            reply["result"] = {"content": [{"type": "text", "text": "x" * 10_000_000}]}
        elif self.how == "slow":
            await asyncio.sleep(2)
        elif self.how.endswith("breaks"):
            return await self._break_off(request)
        return web.json_response(reply)

    async def _break_off(self, request: web.Request) -> web.StreamResponse:
        kind = "text/event-stream" if self.how.startswith("stream") else "application/json"
        response = web.StreamResponse(headers={"content-type": kind, "content-length": "1000"})
        await response.prepare(request)
        await response.write(b"event: message\nda" if self.how.startswith("stream") else b'{"jsonrpc"')
        assert request.transport is not None
        request.transport.close()
        return response


@asynccontextmanager
async def stranger() -> AsyncIterator[Stranger]:
    """One that listens."""
    server = Stranger()
    app = web.Application()
    app.router.add_route("*", "/mcp", server.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    assert site._server is not None
    server.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}/mcp"  # type: ignore[attr-defined]
    try:
        yield server
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("huge", "unknown outcome: the server gave no valid answer"),
        ("no-utf-8", "unknown outcome"),
        ("no-json", "unknown outcome: the server gave no valid answer"),
        ("status", "unknown outcome"),
        ("compressed", "unknown outcome"),
        ("breaks", "unknown outcome"),
        ("stream-breaks", "unknown outcome"),
        ("elsewhere", "unknown outcome: the server gave no valid answer"),
        ("error", "unknown outcome: the server failed: half of it is done; it may have acted"),
        ("no-such-tool", "not carried out: the server refused the call: no such tool"),
    ],
)
async def test_a_failure_ends_its_call_and_no_other(how: str, told: str) -> None:
    """The call is not made again, and one that is under way meanwhile is answered."""
    async with stranger() as server, connection(McpServer(name="t", url=server.url)) as connected:
        server.how = "slow"
        other = asyncio.create_task(connected.call("act"))
        await eventually(lambda: server.calls == 1)
        server.how = how
        with pytest.raises(ToolError, match=told) as caught:
            await connected.call("act")
        assert "secret" not in str(caught.value)
        assert await other == "done"
        server.how = ""
        assert await connected.call("act") == "done"
        assert (server.calls, server.began) == (3, 1)


async def test_a_session_that_was_forgotten_is_begun_anew() -> None:
    """The call was not carried out, and is not made again by itself; the end of the session is not waited for."""
    async with stranger() as server, connection(McpServer(name="t", url=server.url)) as connected:
        server.how = "forgotten"
        with pytest.raises(
            ToolError, match="not carried out: the server refused the call: it does not know this session"
        ):
            await connected.call("act")
        await eventually(lambda: server.began == 2)
        await connected.until_connected()
        assert await connected.call("act") == "done"
        assert server.calls == 1


async def test_headers_are_sent_and_told_to_nobody() -> None:
    """Nor is the address, which may hold a secret too."""
    with capture_logs() as logs:
        async with stranger() as server:
            table = McpServer(name="t", url=f"{server.url}?key=a-secret", headers={"Authorization": "Bearer a-secret"})
            async with connection(table) as connected:
                assert await connected.call("act") == "done"
                assert server.headers["Authorization"] == "Bearer a-secret"
                server.how = "forgotten"
                with pytest.raises(ToolError):
                    await connected.call("act")
                await eventually(lambda: server.began == 2)
    assert logs
    assert "a-secret" not in str(logs)
