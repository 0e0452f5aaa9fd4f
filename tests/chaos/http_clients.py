"""Clients of the gateways, as a careful program is one: whatever breaks, it asks again, and goes on where it stopped.

Those of the native door put their request until it is accepted, under one idempotency key, and read its events with
`Last-Event-ID` until the final one.  Those of OpenAI's door stream a chat completion under such a key, and read the
rest through the native door once they have been cut off.  Some hang up and never come back.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from contextlib import aclosing
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, NamedTuple

import aiohttp

from llm_routerd.protocol.events import FINAL_ID
from tests.chaos.plan import WORKERS
from tests.chaos.producers import Order

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

# A gateway that says nothing for so long may be frozen; another one is asked.
SILENCE_SECONDS = 4.0
# OpenAI's clients wait longer, and so are there when another worker's attempt says something else.
_CHAT = aiohttp.ClientTimeout(total=None, sock_connect=SILENCE_SECONDS, sock_read=3 * SILENCE_SECONDS)
PAUSE_SECONDS = (0.1, 0.5)
_WORDS = {"native": (10, 40), "openai": (20, 80)}
# How many of whose answers another worker's attempt would give otherwise, so that it cannot go on with shown text.
_FICKLE = {"native": 0.25, "openai": 0.6}
_LOST = (aiohttp.ClientError, OSError, TimeoutError)
# Of a gateway without Redis, of a request that ended otherwise than in an answer.
UNAVAILABLE = "unavailable"
_AGAIN = range(HTTPStatus.INTERNAL_SERVER_ERROR, 600)


class Seen(NamedTuple):
    """A server-sent event."""

    id: str
    type: str
    data: str


@dataclass(slots=True, kw_only=True)
class Stream:
    """One client, and what it remembers.

    Attributes:
        order: its request.
        starts_at: when it asks, in seconds from the beginning.
        cuts: after how many events more it cuts its connection, one after the other; then it leaves that to others.
        leaves: it never comes back after the last of `cuts`.
        seen: the events that it was told, in order, over all its connections.
        connections: how many times it began to read.
        shown: the text that came through OpenAI's door.
        told_whole: OpenAI's stream came to its `[DONE]`.
        broken: the code of the error that OpenAI's stream ended with.
        faults: what no gateway may ever do.
        asked_at: Unix time of its first request.
    """

    order: Order
    starts_at: float
    cuts: list[int] = field(default_factory=list)
    leaves: bool = False
    seen: list[Seen] = field(default_factory=list)
    connections: int = 0
    shown: str = ""
    told_whole: bool = False
    broken: str = ""
    faults: list[str] = field(default_factory=list)
    asked_at: float = 0.0

    @property
    def has_ended(self) -> bool:
        """Whether it was told the final event."""
        return bool(self.seen) and self.seen[-1].id == FINAL_ID

    def blame(self, what: str) -> None:
        """A fault, with its name before it."""
        self.faults.append(f"{self.order.name}: {what}")


def make_streams(seed: int, *, native: int, openai: int, seconds: float) -> list[Stream]:
    """The clients of a run, in the order in which they ask: all of them within `seconds`."""
    rng = random.Random(f"streams-{seed}")
    doors = ["native"] * native + ["openai"] * openai
    rng.shuffle(doors)
    starts = sorted(rng.uniform(0.0, seconds) for _ in doors)
    return [_stream(rng, f"{door}-{n}", door, at) for n, (door, at) in enumerate(zip(doors, starts, strict=True))]


def _stream(rng: random.Random, name: str, door: str, starts_at: float) -> Stream:
    words, delay_ms = rng.randint(*_WORDS[door]), rng.randint(20, 60)
    prompt = f"[[id={name} first_ms={rng.randint(0, 300)} delay_ms={delay_ms} {_answer(name, words)}]]"
    if rng.random() < _FICKLE[door]:
        prompt += "".join(f"[[model=first-{slot} {_answer(f'{name}.{slot}', words)}]]" for slot in range(WORKERS))
    order = Order(name=name, kind=door, lane="normal", fields={"prompt": prompt}, key_id=f"order-{name}")
    leaves = rng.random() < 0.1
    times = 1 if leaves else rng.choice([0, 0, 1, 2])
    return Stream(order=order, starts_at=starts_at, cuts=[rng.randint(0, 12) for _ in range(times)], leaves=leaves)


def _answer(name: str, words: int) -> str:
    """Words that no other request's answer has, so that what comes from elsewhere shows."""
    return 'answer="' + " ".join(f"{name}:{number}" for number in range(words)) + '"'


class Clients:
    """They ask and read until each has its final event, or has left.

    Args:
        gateways: their addresses; a client asks one after the other.
        streams: the clients.
        seed: which gateway each begins with, and how long it waits before it asks again.
    """

    def __init__(self, gateways: Sequence[str], streams: Sequence[Stream], seed: int) -> None:
        self.lost: Counter[str] = Counter()  # connections, by what was being done
        self._gateways = gateways
        self._streams = streams
        self._seed = seed

    async def run(self) -> None:
        """Do it all; a caller bounds the time."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=SILENCE_SECONDS, sock_read=SILENCE_SECONDS)
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        async with (
            aiohttp.ClientSession(timeout=timeout, connector=connector) as session,
            asyncio.TaskGroup() as group,
        ):
            for stream in self._streams:
                rng = random.Random(f"client-{self._seed}-{stream.order.name}")
                client = _Client(stream, session, self._gateways, rng, self.lost)
                group.create_task(client.run(), name=stream.order.name)


class _Client:
    def __init__(
        self,
        stream: Stream,
        session: aiohttp.ClientSession,
        gateways: Sequence[str],
        rng: random.Random,
        lost: Counter[str],
    ) -> None:
        self._stream = stream
        self._session = session
        self._gateways = gateways
        self._turn = rng.randrange(len(gateways))
        self._rng = rng
        self._lost = lost
        self._key = {"Idempotency-Key": stream.order.key_id or ""}

    async def run(self) -> None:
        await asyncio.sleep(self._stream.starts_at)
        self._stream.asked_at = time.time()
        if self._stream.order.kind == "native":
            await self._until_done(self._put)
        else:
            await self._until_done(self._chat)
        if not self._has_left:
            await self._until_done(self._read)

    @property
    def _has_left(self) -> bool:
        return self._stream.leaves and not self._stream.cuts

    async def _until_done(self, attempt: Callable[[str], Awaitable[bool]]) -> None:
        """Try, at one gateway after the other, until it is done, or a gateway did what it must not."""
        while not self._stream.faults:
            try:
                if await attempt(self._gateways[self._turn % len(self._gateways)]):
                    return
            except _LOST:
                self._lost[attempt.__name__] += 1
            self._turn += 1
            await asyncio.sleep(self._rng.uniform(*PAUSE_SECONDS))

    async def _put(self, base: str) -> bool:
        """Put the request; whether it was accepted: else nobody knows what became of it."""
        body = {"prompt": self._stream.order.fields["prompt"], "stream": "live"}
        async with self._session.post(f"{base}/v1/requests", json=body, headers=self._key) as response:
            if not self._is_good(response, HTTPStatus.OK, HTTPStatus.ACCEPTED):
                return False
            self._accepted((await response.json())["id"])
        return True

    async def _read(self, base: str) -> bool:
        """Read events from the last one on; whether that was all, or all that this client wants."""
        stream = self._stream
        headers = {"Last-Event-ID": stream.seen[-1].id} if stream.seen else {}
        url = f"{base}/v1/requests/{stream.order.key_id}/events"
        async with self._session.get(url, headers=headers) as response:
            if not self._is_good(response, HTTPStatus.OK):
                return False
            stream.connections += 1
            until = len(stream.seen) + stream.cuts.pop(0) if stream.cuts else None
            async with aclosing(events_of(response.content)) as events:
                async for event in events:
                    stream.seen.append(event)
                    if stream.has_ended:
                        return True
                    if until is not None and len(stream.seen) >= until:
                        break
        return self._has_left

    async def _chat(self, base: str) -> bool:
        """Stream a completion as far as it goes; whether its head came."""
        stream = self._stream
        message = {"role": "user", "content": stream.order.fields["prompt"]}
        body = {"model": "default", "messages": [message], "stream": True}
        url = f"{base}/v1/chat/completions"
        async with self._session.post(url, json=body, headers=self._key, timeout=_CHAT) as response:
            if not self._is_good(response, HTTPStatus.OK):
                return response.status in _AGAIN and await self._has_failed(response)
            self._accepted(response.headers.get("X-Request-ID"))
            try:
                await self._hear(response, stream.cuts.pop(0) if stream.cuts else None)
            except _LOST:
                self._lost["_chat after its head"] += 1
        return True

    async def _has_failed(self, response: aiohttp.ClientResponse) -> bool:
        """Whether the request has ended without an answer; else it is the gateway that cannot serve now."""
        code = (await response.json())["error"]["code"]
        if code == UNAVAILABLE:
            return False
        self._stream.order.accepted, self._stream.broken = True, code
        return True

    async def _hear(self, response: aiohttp.ClientResponse, most: int | None) -> None:
        """Take the chunks in."""
        stream, count = self._stream, 0
        async with aclosing(events_of(response.content)) as events:
            async for event in events:
                if event.data == "[DONE]":
                    stream.told_whole = True
                    return
                chunk = json.loads(event.data)
                if "error" in chunk:
                    stream.broken = chunk["error"]["code"]
                    return
                stream.shown += "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
                count += 1
                if most is not None and count >= most:
                    return

    def _is_good(self, response: aiohttp.ClientResponse, *expected: int) -> bool:
        """Whether a status is one of those; any other but "come again" is a fault."""
        if response.status in expected:
            return True
        if response.status not in _AGAIN:
            self._stream.blame(f"{response.method} {response.url.path} was answered with {response.status}")
        return False

    def _accepted(self, request_id: str | None) -> None:
        self._stream.order.accepted = True
        if request_id != self._stream.order.key_id:
            self._stream.blame(f"was given the id {request_id}")


async def events_of(lines: aiohttp.StreamReader) -> AsyncGenerator[Seen]:
    """Server-sent events as they come; what a cut leaves of one is none."""
    fields: dict[str, str] = {}
    async for line in lines:
        text = line.decode()
        if not text.endswith("\n"):
            return
        if name_and_value := text.rstrip("\r\n"):
            name, _, value = name_and_value.partition(":")
            fields[name] = value.removeprefix(" ")
        elif "data" in fields:
            yield Seen(fields.get("id", ""), fields.get("event", ""), fields["data"])
            fields = {}
        else:
            fields = {}
