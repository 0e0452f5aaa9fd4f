"""The daemon's side of tools: puts calls on their streams, and reads what is answered."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

from llm_routerd.client.tool_worker import ToolWorker
from llm_routerd.protocol.keys import TOOL_GROUP, Keys
from tests.support.queue import open_client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

REQUEST = "r1"


class Caller:
    """Calls tools for one request, whose inbox is there.

    Attributes:
        redis: a client that decodes.
    """

    def __init__(self, redis: Any, keys: Keys, request_id: str) -> None:
        self.redis = redis
        self.keys = keys
        self.request_id = request_id
        self._number = 0

    async def open_inbox(self) -> None:
        """Make it, empty and with a TTL."""
        inbox = self.keys.inbox(self.request_id)
        await self.redis.xgroup_create(inbox, "none", mkstream=True)
        await self.redis.xgroup_destroy(inbox, "none")
        await self.redis.expire(inbox, 600)

    async def made(self, tool: str, arguments: Any = None, *, seconds: float = 30.0, **other: Any) -> str:
        """A call, as it stands in the stream of a tool."""
        self._number += 1
        now, microseconds = await self.redis.time()
        call = {
            "id": self.request_id,
            "call_id": f"call_{self._number}",
            "name": tool,
            "arguments": {} if arguments is None else arguments,
            "turn": 1,
            "tenant_id": None,
            "deadline_ms": int((now + microseconds / 1e6 + seconds) * 1000),
            "traceparent": None,
        }
        return json.dumps(call | other)

    async def call(self, tool: str, arguments: Any = None, **options: Any) -> str:
        """Put a call on the stream of a tool; returns its `call_id`."""
        call = await self.made(tool, arguments, **options)
        await self.redis.xadd(self.keys.tool_calls(tool), {"call": call})
        return str(json.loads(call)["call_id"])

    async def answers(self) -> list[dict[str, str]]:
        """What the inbox holds."""
        return [fields for _, fields in await self.redis.xrange(self.keys.inbox(self.request_id))]

    async def answer(self, call_id: str, *, seconds: float = 20.0) -> dict[str, str]:
        """The one answer to a call, without its `call_id`."""
        give_up_at = time.monotonic() + seconds
        while True:
            answers = [dict(answer) for answer in await self.answers() if answer["call_id"] == call_id]
            if answers:
                assert len(answers) == 1
                del answers[0]["call_id"]
                return answers[0]
            assert time.monotonic() < give_up_at, f"no answer to {call_id}"
            await asyncio.sleep(0.01)

    async def asked(self, tool: str, arguments: Any = None, **options: Any) -> dict[str, str]:
        """The answer to a call that is made now."""
        return await self.answer(await self.call(tool, arguments, **options))

    async def left(self, tool: str) -> tuple[int, int]:
        """How many entries a tool's stream has, and how many are pending."""
        key = self.keys.tool_calls(tool)
        return await self.redis.xlen(key), (await self.redis.xpending(key, TOOL_GROUP))["pending"]

    async def until_done(self, tool: str, *, seconds: float = 10.0) -> None:
        """Return once nothing of a tool's stream is left."""
        await until(lambda: self._is_done(tool), seconds=seconds)

    async def _is_done(self, tool: str) -> bool:
        return await self.left(tool) == (0, 0)

    async def until_registered(self, *tools: str, seconds: float = 20.0) -> None:
        """Return once they are."""

        async def are_registered() -> bool:
            return set(tools) <= set(await self.redis.hkeys(self.keys.tools))

        await until(are_registered, seconds=seconds)


async def until(condition: Callable[[], Any], *, seconds: float = 10.0) -> None:
    """Return once what `condition()` awaits is true; fail after `seconds`."""
    give_up_at = time.monotonic() + seconds
    while not await condition():
        assert time.monotonic() < give_up_at, "the condition did not come true in time"
        await asyncio.sleep(0.01)


@asynccontextmanager
async def open_caller(url: str, *, keys: Keys | None = None, request_id: str = REQUEST) -> AsyncIterator[Caller]:
    """A caller whose inbox is open."""
    async with open_client(url) as redis:
        caller = Caller(redis, keys or Keys("llm"), request_id)
        await caller.open_inbox()
        yield caller


@asynccontextmanager
async def serving(worker: ToolWorker) -> AsyncIterator[ToolWorker]:
    """A worker that runs; at the end it is stopped in good order."""
    running = asyncio.create_task(worker.run())
    try:
        yield worker
    finally:
        worker.stop()
        with suppress(asyncio.CancelledError):
            await asyncio.wait_for(running, 15)


class Troubles:
    """What workers tell of."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.errors: list[Exception] = []

    def __call__(self, line: str, error: Exception | None) -> None:
        """Take it down."""
        self.lines.append(line)
        if error is not None:
            self.errors.append(error)


def make_worker(url: str, **options: Any) -> tuple[ToolWorker, Troubles]:
    """A worker that is quick to find what lost its worker, and to give up."""
    troubles = Troubles()
    settings: dict[str, Any] = {"lease_seconds": 1.0, "drain_seconds": 3.0, "on_trouble": troubles}
    return ToolWorker(url, **(settings | options)), troubles
