"""Producers who follow what they have asked, and ask again by the same `id` when nothing is known of it any more."""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from llm_routerd.client import Client
from llm_routerd.protocol.keys import LANES, Lane

if TYPE_CHECKING:
    from llm_routerd.protocol.keys import Keys, Layout

# A stream in which nothing has come for so long is looked after.
PATIENCE_SECONDS = 4.0


class Seen(NamedTuple):
    """An event as its subscriber saw it, at a Unix time."""

    at: float
    stream_id: str
    kind: str
    data: str


@dataclass(slots=True, kw_only=True)
class Asked:
    """One request as its producer remembers it; `added` are the times at which an XADD was acknowledged."""

    name: str
    layout: Layout
    lane: Lane
    prompt: str
    live: bool
    added: list[float] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    ended_at: float | None = None

    @property
    def keys(self) -> Keys:
        """Those of its shard."""
        return self.layout.keys_of(self.name)


class Subscribers:
    """They ask for a while.

    Attributes:
        asked: what they remember.
        layouts: where they ask from now on, in one or the other.
    """

    def __init__(self, url: str, layout: Layout, seed: int) -> None:
        self.asked: list[Asked] = []
        self.layouts: tuple[Layout, ...] = (layout,)
        self._url = url
        self._clients: dict[Layout, Client] = {}
        self._rng = random.Random(f"subscribers-{seed}")

    def open_since(self, at: float) -> frozenset[str]:
        """The requests that had no end then, as their subscribers know."""
        return frozenset(each.name for each in tuple(self.asked) if each.ended_at is None or each.ended_at >= at)

    async def run(self, requests: int, seconds: float) -> None:
        """Ask for so many, spread over so long; return when each has been followed to its end."""
        async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
            at_times = sorted(self._rng.uniform(0.0, seconds) for _ in range(requests))
            began = time.monotonic()
            for number, at in enumerate(at_times):
                await asyncio.sleep(began + at - time.monotonic())
                asked = self._request(number)
                self.asked.append(asked)
                if asked.layout not in self._clients:
                    self._clients[asked.layout] = await stack.enter_async_context(self._client(asked.layout))
                group.create_task(self._ask(self._clients[asked.layout], asked), name=asked.name)

    def _client(self, layout: Layout) -> Client:
        draining = [earlier.shards for earlier in self._clients]
        return Client(self._url, prefix=layout.prefix, shards=layout.shards, draining=draining)

    def _request(self, number: int) -> Asked:
        name = f"request-{number}"
        directives = f"tokens={self._rng.randint(3, 40)} delay_ms={self._rng.randint(2, 30)}"
        return Asked(
            name=name,
            layout=self._rng.choice(self.layouts),
            lane=self._rng.choice(LANES),
            prompt=f"[[id={name}]][[{directives}]]",
            live=self._rng.random() < 0.3,
        )

    async def _ask(self, client: Client, asked: Asked) -> None:
        await self._add(client, asked)
        following = asyncio.create_task(self._follow(client, asked), name=f"follow-{asked.name}")
        try:
            while not (await asyncio.wait({following}, timeout=PATIENCE_SECONDS))[0]:
                last = max(asked.added[-1], asked.seen[-1].at if asked.seen else 0.0)
                if time.time() - last > PATIENCE_SECONDS and not (await client.look_up(asked.name)).is_known:
                    await self._add(client, asked)
            await following
        finally:
            following.cancel()

    async def _add(self, client: Client, asked: Asked) -> None:
        await client.submit(id=asked.name, prompt=asked.prompt, stream="live" if asked.live else True, lane=asked.lane)
        asked.added.append(time.time())

    async def _follow(self, client: Client, asked: Asked) -> None:
        async for event in client.follow(asked.name):
            raw = event.raw
            data = raw.decode() if isinstance(raw, bytes) else raw
            asked.seen.append(Seen(time.time(), event.stream_id, event.type, data))
        asked.ended_at = time.time()
