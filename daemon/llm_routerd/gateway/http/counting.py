"""What the gateway has done since it started: counters, and a line of log for each request.

What a client chooses freely is no label: the door and the path are those of the table of paths.  The log has the path
as that table has it, and so no id but the request's own; never a query, a key, a prompt or an answer.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Final

from aiohttp import web

from llm_routerd.accounting.exposition import Family, Histogram, render
from llm_routerd.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiohttp.typedefs import Handler, Middleware

    from llm_routerd.gateway.admission import Caller

_log = get_logger()

PATH: Final = "/metrics"
_MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_HUNG_UP = 499  # as proxies count it; no status that is ever sent
_LOOKS = frozenset({"GET", "HEAD", "OPTIONS"})
_FIRST_ERROR = 400
REQUEST_ID: web.RequestKey[str] = web.RequestKey("request_id", str)  # of what is answered, from when it has one
_METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
_BEGAN: web.RequestKey[float] = web.RequestKey("began", float)


class Counting:
    """Counts one gateway's requests.

    Args:
        door_of: whose a path of the table is.
        caller: under which a request has who sent it.
        connections: how many there are.
    """

    def __init__(
        self, *, door_of: Callable[[str], str], caller: web.RequestKey[Caller], connections: Callable[[], int]
    ) -> None:
        self._door_of = door_of
        self._caller = caller
        self._connections = connections
        self._requests: Counter[tuple[str, int]] = Counter()
        self._sent: Counter[str] = Counter()
        self._first_byte = Histogram(_BOUNDS)
        self._open = 0

    def watch(self, app: web.Application) -> None:
        """Count what an application answers, and show it at `PATH`; its other middlewares come after this."""
        app.middlewares.insert(0, self._middleware())
        app.on_response_prepare.append(self._prepared)
        app.router.add_get(PATH, self._show)

    def _middleware(self) -> Middleware:
        @web.middleware
        async def counted(request: web.Request, handler: Handler) -> web.StreamResponse:
            request[_BEGAN] = asyncio.get_running_loop().time()
            self._open += 1
            response: web.StreamResponse | None = None
            try:
                response = await handler(request)
                return response
            finally:
                self._open -= 1
                self._answered(request, response)

        return counted

    async def _prepared(self, request: web.Request, response: web.StreamResponse) -> None:
        """A head goes out, and with it the first byte of an answer."""
        began = request.get(_BEGAN)
        if began is not None and request.method == "POST" and response.status < _FIRST_ERROR:
            self._first_byte.observe(asyncio.get_running_loop().time() - began)

    def _answered(self, request: web.Request, response: web.StreamResponse | None) -> None:
        resource = request.match_info.route.resource
        path = "" if resource is None else resource.canonical
        door = self._door_of(path) if path else ""
        status = _HUNG_UP if response is None else response.status
        sent = request.writer.output_size
        if isinstance(response, web.Response) and isinstance(response.body, bytes):
            sent = len(response.body)  # which goes out after this
        self._requests[door, status] += 1
        self._sent[door] += sent
        caller = request.get(self._caller)
        log = _log.debug if request.method in _LOOKS and status < _FIRST_ERROR else _log.info
        log(
            "http_request",
            method=request.method if request.method in _METHODS else "",
            path=path,
            door=door,
            status=status,
            request=request.get(REQUEST_ID, "") if response is None else response.headers.get("X-Request-ID", ""),
            caller="" if caller is None else caller.name,
            tenant=None if caller is None else caller.tenant,
            ms=round((asyncio.get_running_loop().time() - request[_BEGAN]) * 1000, 1),
            bytes=sent,
        )

    async def _show(self, _: web.Request) -> web.Response:
        return web.Response(body=self.render().encode(), headers={"Content-Type": _MEDIA_TYPE})

    def render(self) -> str:
        """The page for Prometheus."""
        requests = Family("gateway_requests_total", "counter", "HTTP requests that have been answered; 499: hung up.")
        for (door, status), number in self._requests.items():
            requests.add(number, door=door, status=str(status))
        sent = Family("gateway_sent_bytes_total", "counter", "Bytes of answers.")
        for door, number in self._sent.items():
            sent.add(number, door=door)
        first = Family("gateway_first_byte_seconds", "histogram", "From a POST's head to the first byte of its answer.")
        first.add_histogram(self._first_byte)
        under_way = Family("gateway_requests_under_way", "gauge", "HTTP requests that are being answered.")
        under_way.add(self._open)
        connections = Family("gateway_connections", "gauge", "Connections of clients, idle ones included.")
        connections.add(self._connections())
        return render((requests, sent, first, under_way, connections))
