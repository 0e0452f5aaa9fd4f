"""A gateway for the page alone: it tells what a test has it tell, and keeps what it is asked."""

from __future__ import annotations

import asyncio
import json
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Self

import msgspec
from aiohttp import web

from llm_routerd.errors import BrokerError
from llm_routerd.gateway.fault import RefusedError
from llm_routerd.gateway.http.page import add_page
from llm_routerd.gateway.overview import (
    Confirmation,
    DeploymentView,
    LaneView,
    Overview,
    RunningView,
    Today,
    WorkerView,
)
from llm_routerd.gateway.tally import Sums
from llm_routerd.protocol.events import FINAL_ID

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from llm_routerd.gateway.tally import State
    from llm_routerd.protocol.keys import Lane


def deployment(name: str = "local", state: State = "none", recent: tuple[str, ...] = (), **told: Any) -> DeploymentView:
    """A deployment as the page is told of it."""
    answers = recent.count("")
    usual = {
        "model": f"ollama/{name}",
        "is_local": True,
        "code": None,
        "since": None,
        "median_ms": 840 if answers else None,
    }
    return DeploymentView(**{**usual, **told}, name=name, state=state, recent=recent, answers=answers)


def running(request_id: str, **told: Any) -> RunningView:
    """A request that runs."""
    usual = {"lane": "normal", "age_ms": 1200, "worker": "attic-1", "deliveries": 1, "deployment": "local"}
    return RunningView(**{**usual, "model": "ollama/tiny", "last": "token", **told}, id=request_id)


def lane(name: Lane, waiting: int = 0, running: int = 0, oldest_ms: int | None = None) -> LaneView:
    """A lane."""
    return LaneView(lane=name, waiting=waiting, running=running, oldest_ms=oldest_ms, is_served=True)


def overview(**told: Any) -> Overview:
    """What the page is told; of a quiet house unless a test says more."""
    now = time.time()
    usual = {
        "at_ms": int(now * 1000),
        "tenant": None,
        "lanes": (lane("high"), lane("normal"), lane("low")),
        "running": (),
        "more_running": 0,
        "confirmations": (),
        "workers": (WorkerView(name="attic-1", models=("default", "local"), running=0),),
        "deployments": (deployment(), deployment("cloud", model="anthropic/big", is_local=False)),
        "today": Today(midnight=now - 40_000, known_since=None, sums=Sums()),
        "dead_letters": 0,
        "models": ("fast", "default", "local", "cloud"),
    }
    return Overview(**{**usual, **told})


def confirmation(request_id: str, call_id: str = "call_1", **told: Any) -> Confirmation:
    """A tool call that waits for a person."""
    usual = {"name": "lights.off", "turn": 2, "arguments": '{"room":"hall"}', "args_sha256": "ab12"}
    return Confirmation(**{**usual, **told}, id=request_id, call_id=call_id)


class FakeGateway:
    """The server.

    Attributes:
        seen: what it tells at a look; None: Redis is away.
        key: what it wants; "": none.
        asked: what was asked of it: method, path, body; a DELETE's is None.
        followers: how many connections follow a request.
        refusal: status and message for whoever submits or confirms.
        barred: the same for whatever is asked but the page itself.
        url: of the page.
    """

    def __init__(self) -> None:
        self.seen: Overview | None = overview()
        self.key = ""
        self.asked: list[tuple[str, str, Any]] = []
        self.url = ""
        self.followers = 0
        self.refusal: tuple[int, str] | None = None
        self.barred: tuple[int, str] | None = None
        self._events: dict[str, list[tuple[str, str, Any]]] = defaultdict(list)
        self._more = asyncio.Condition()
        self._dropped: set[asyncio.Task[Any]] = set()
        app = web.Application(middlewares=[self._border])
        add_page(app.router, self._see)
        app.router.add_post("/v1/requests", self._submit)
        app.router.add_delete("/v1/requests/{id}", self._cancel)
        app.router.add_get("/v1/requests/{id}/events", self._follow)
        app.router.add_post("/v1/requests/{id}/confirmations/{call}", self._confirm)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def tell(self, request_id: str, *events: tuple[str, str, Any]) -> None:
        """Write events of a request: ID, type, data."""
        async with self._more:
            self._events[request_id] += events
            self._more.notify_all()

    async def end(self, request_id: str, kind: str, **data: Any) -> None:
        """Write its last."""
        await self.tell(request_id, (FINAL_ID, kind, {"id": request_id, **data}))

    async def drop(self) -> None:
        """Cut the connections of all who follow."""
        for task in list(self._dropped):
            task.cancel()

    @web.middleware
    async def _border(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        is_open = request.path == "/" or request.path.startswith("/assets/")
        if self.key and not is_open and request.headers.get("Authorization") != f"Bearer {self.key}":
            return _told(401, "no such key")
        if self.barred is not None and not is_open:
            return _told(*self.barred)
        try:
            return await handler(request)
        except RefusedError as error:
            return _told(error.fault.status, error.fault.message)

    async def _see(self, _request: web.Request) -> Overview:
        if self.seen is None:
            raise BrokerError("away")
        return msgspec.structs.replace(self.seen, at_ms=int(time.time() * 1000))

    def _refused(self) -> web.Response | None:
        return None if self.refusal is None else _told(*self.refusal)

    async def _submit(self, request: web.Request) -> web.Response:
        self.asked.append(("POST", request.path, await request.json()))
        return self._refused() or web.json_response({"id": "tried"}, status=202)

    async def _cancel(self, request: web.Request) -> web.Response:
        self.asked.append(("DELETE", request.path, None))
        await self.end(request.match_info["id"], "cancelled", reason="cancelled over HTTP")
        return web.json_response({"type": "cancelled"})

    async def _confirm(self, request: web.Request) -> web.Response:
        self.asked.append(("POST", request.path, await request.json()))
        return self._refused() or web.json_response({}, status=202)

    async def _follow(self, request: web.Request) -> web.StreamResponse:
        request_id, after = request.match_info["id"], request.headers.get("Last-Event-ID", "")
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"retry: 1000\n\n:\n\n")
        events = self._events[request_id]
        at = next((at for at, (event_id, _, _) in enumerate(events, 1) if event_id == after), 0)
        task = asyncio.current_task()
        assert task is not None
        self._dropped.add(task)
        self.followers += 1
        try:
            while not events[:at] or events[at - 1][0] != FINAL_ID:
                async with self._more:
                    while len(events) == at:
                        await self._more.wait()
                for event_id, kind, data in events[at:]:
                    await response.write(f"id: {event_id}\nevent: {kind}\ndata: {json.dumps(data)}\n\n".encode())
                at = len(events)
            return response
        finally:
            self.followers -= 1
            self._dropped.discard(task)


def _told(status: int, message: str) -> web.Response:
    """A failure as the native door tells it."""
    return web.json_response({"error": {"code": "refused", "message": message}}, status=status)
