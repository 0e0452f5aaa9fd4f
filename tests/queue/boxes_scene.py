"""The picture of the boxes, wherever it is kept, and time that passes when it is told to."""

from __future__ import annotations

import asyncio
import re
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, Protocol

from redis.asyncio import Redis

from llm_routerd.protocol.keys import Keys
from llm_routerd.queue.boxes import SharedBoxes
from llm_routerd.queue.connection import ConnectionFactory, Pipe
from llm_routerd.queue.local_boxes import LocalBoxes
from llm_routerd.queue.picture import CallDetails, Candidate, WaitingDetails, Waits

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from llm_routerd.protocol.keys import Lane
    from llm_routerd.queue.picture import Boxes, Picture

KEYS = Keys("llm")
HASHES = (KEYS.boxes, KEYS.box_calls, KEYS.box_waiting)
LEASE_SECONDS = 30
_TIMES = re.compile(rb'(?<=_ms":)\d{10,}|(?<="loading":\{)[^}]+')


class Scene(Protocol):
    """Where a picture is kept."""

    async def boxes(self, worker: str = "w1") -> Boxes:
        """A worker's verbs."""
        ...

    async def pass_time(self, seconds: float) -> None:
        """It is later."""
        ...


class LocalScene:
    """In this process, where there is one worker."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._boxes = LocalBoxes(worker="w1", lease_seconds=LEASE_SECONDS, clock=lambda: self.now)

    async def boxes(self, worker: str = "w1") -> Boxes:
        """Its verbs."""
        return self._boxes

    async def pass_time(self, seconds: float) -> None:
        """Its clock goes on."""
        self.now += seconds


class SharedScene:
    """In Redis: whatever stands there grows older."""

    def __init__(self, url: str, stack: AsyncExitStack) -> None:
        self.url = url
        self.client: Any = Redis.from_url(url)
        self._stack = stack
        stack.push_async_callback(self.client.aclose)
        self.pipes: list[Pipe] = []

    async def boxes(self, worker: str = "w1", *, url: str = "") -> SharedBoxes:
        """Those of a worker, with a pipe of its own."""
        pipe = Pipe(ConnectionFactory(url or self.url, client_name="test"))
        task = asyncio.create_task(pipe.run())

        async def stop() -> None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        self._stack.push_async_callback(stop)
        self.pipes.append(pipe)
        return SharedBoxes(pipe, KEYS, worker=worker, lease_seconds=LEASE_SECONDS)

    async def pass_time(self, seconds: float) -> None:
        """All times that stand there are earlier by that."""
        ms = round(seconds * 1000)

        def earlier(found: re.Match[bytes]) -> bytes:
            return re.sub(rb"\d{10,}", lambda digits: b"%d" % (int(digits[0]) - ms), found[0])

        for key in HASHES:
            for name, text in (await self.client.hgetall(key)).items():
                await self.client.hset(key, name, _TIMES.sub(earlier, text))

    async def everything(self) -> dict[str, Any]:
        """What stands there, without until when it counts."""
        found = {}
        for key in HASHES:
            texts = await self.client.hgetall(key)
            found[key] = {name: re.sub(rb'"(fresh_)?until_ms":\d+', b"", text) for name, text in texts.items()}
        return found


@asynccontextmanager
async def shared_scene(url: str) -> AsyncIterator[SharedScene]:
    """On this server."""
    async with AsyncExitStack() as stack:
        yield SharedScene(url, stack)


def call(box: str = "attic", lane: Lane = "normal", **more: Any) -> CallDetails:
    """A call that wants a slot."""
    return CallDetails(lane=lane, box=box, **more)


def waits(token: str, lane: Lane = "normal", *, waited_seconds: float = 0.0, **more: Any) -> Waits:
    """A call that waits."""
    details = WaitingDetails(lane=lane, candidates=(Candidate("attic", "m"),), **more)
    return Waits(token=token, details=details, waited_seconds=waited_seconds)


def tokens_of(picture: Picture) -> tuple[list[str], list[str]]:
    """Of those that hold a slot, and of those that wait."""
    return [each.token for each in picture.calls], [each.token for each in picture.waiting]
