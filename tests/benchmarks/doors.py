"""The daemon alone and the doors before it and beside it, as processes, and the lines over which each is asked."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Protocol

from tests.benchmarks.http_load import HttpClient, body_of, check_answer
from tests.benchmarks.load import Delivered, Follower, Producer, check
from tests.benchmarks.proxies import KINDS, Proxy
from tests.benchmarks.systems import Bed, Process
from tests.benchmarks.workloads import make_requests
from tests.support.processes import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping, Sequence

    from tests.benchmarks.systems import Running

OURS = ("daemon", "gateway")
_PEER_ROUNDS = 2
_numbers = count()


@dataclass(frozen=True, slots=True)
class Seen:
    """A stream: when its request was sent, and its tokens with the time at which each was there; Unix time."""

    began: float
    tokens: list[tuple[float, str]]


class Line(Protocol):
    """A connection over which one stream after the other is asked for."""

    @property
    def is_open(self) -> bool:
        """Whether it can still be used."""
        ...

    async def stream(self, model: str) -> Seen:
        """A whole stream, checked."""
        ...

    def close(self) -> None:
        """Close it."""
        ...


class _AloneLine:
    """A subscriber of the daemon's events."""

    def __init__(self, producer: Producer, turn: asyncio.Lock, follower: Follower) -> None:
        self._producer = producer
        self._turn = turn
        self._follower = follower
        self.is_open = True

    async def stream(self, model: str) -> Seen:
        [request] = make_requests(1, model, stream=True)
        following = self._follower.follow(self._producer.key(request))
        began = time.time()
        async with self._turn:  # a connection for each would be too many
            await self._producer.add([request])
        check(request, events := await following, Delivered())
        tokens = [event for event in events if event.kind == "token"]
        return Seen(began, [(event.received, event.data["text"]) for event in tokens])

    def close(self) -> None:
        self._follower.close()


class _DoorLine:
    """A client of a door."""

    def __init__(self, door: Door, client: HttpClient) -> None:
        self._door = door
        self._client = client

    @property
    def is_open(self) -> bool:
        return self._client.is_open

    async def stream(self, model: str) -> Seen:
        began = time.time()
        answer = await self._client.ask(self._door.body(model, streams=True))
        return Seen(began, check_answer(answer, model, streams=True))

    def close(self) -> None:
        self._client.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """Something that takes OpenAI's requests.

    Attributes:
        processes: of which it consists; the door itself is the first.
        whole_suffix: of the names of models for answers that are no streams: the stand-in's precomputed ones are always
            streams in OpenAI's protocol, in which the proxies ask it.
        share: of the requests of a burst that it is given.
    """

    port: int
    processes: Sequence[Running]
    headers: Mapping[str, str] = field(default_factory=dict)
    whole_suffix: str = ""
    share: float = 1.0

    def body(self, model: str, *, streams: bool) -> bytes:
        """Of a request."""
        return body_of(model if streams else model + self.whole_suffix, streams=streams)

    async def connect(self) -> HttpClient:
        """A connection to it."""
        return await HttpClient.connect(self.port, self.headers)


class Street:
    """The daemon alone, and all the doors, warm."""

    def __init__(self, bed: Bed, daemon: Process, producer: Producer, doors: Mapping[str, Door]) -> None:
        self.bed = bed
        self.daemon = daemon
        self.producer = producer
        self.doors = doors
        self._turn = asyncio.Lock()

    @classmethod
    @asynccontextmanager
    async def of(cls, bed: Bed, concurrency: int, peers: Iterable[str]) -> AsyncIterator[Street]:
        """Start them."""
        prefix = f"door{next(_numbers)}"
        port = free_port()
        more = f'[gateway]\nlisten = "127.0.0.1:{port}"\n'
        with (
            Process(bed, "daemon", prefix, concurrency, more=more) as daemon,
            Process(bed, "gateway", prefix, concurrency, more=more) as gateway,
        ):
            doors = {"gateway": Door(port=port, processes=(gateway, daemon))}
            proxies = []
            try:
                for name in peers:
                    proxies.append(proxy := Proxy(bed, KINDS[name]))
                    doors[name] = Door(
                        port=proxy.port,
                        processes=(proxy,),
                        headers=proxy.headers,
                        whole_suffix="-whole",
                        share=KINDS[name].share,
                    )
                async with Producer.of(bed, "daemon", prefix) as producer:
                    yield cls(bed, daemon, producer, doors)
            finally:
                for proxy in proxies:
                    proxy.stop()

    def in_round(self, number: int) -> list[str]:
        """Whom this round measures; -1 warms up."""
        return ["daemon", *(name for name in self.doors if number < _PEER_ROUNDS or name == "gateway")]

    def processes(self, system: str) -> Sequence[Running]:
        """Whose CPU is counted, the one that takes the requests first."""
        return (self.daemon,) if system == "daemon" else self.doors[system].processes

    def share(self, system: str) -> float:
        """Of the requests of a burst."""
        return 1.0 if system == "daemon" else self.doors[system].share

    async def connect(self, system: str) -> Line:
        """A line to one of them."""
        if system == "daemon":
            return _AloneLine(self.producer, self._turn, await Follower.connect(self.bed.redis_url))
        door = self.doors[system]
        return _DoorLine(door, await door.connect())
