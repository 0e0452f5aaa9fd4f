"""A client of the wire protocol, for Python producers and for the command line.

    async with Client("redis://127.0.0.1:6379/0") as client:
        request_id = await client.submit(prompt="Why is the sky blue?", stream=True)
        async for event in client.follow(request_id):
            match event:
                case Token(text=text):
                    print(text, end="")
                case Result():
                    print(event.answer.content)

The events are those of the library (`llm_routerd.protocol.events`), with their place in the stream.

Of a queue that is spread over shards the client knows by the id which one a request stands in.

Redis may go away meanwhile: everything here is idempotent (a request has an id, an event an explicit stream
ID), so it is repeated until it succeeds or the client's patience is over.
"""

from __future__ import annotations

import asyncio
import uuid
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack

from llm_routerd.client.audit import read_audit
from llm_routerd.client.events import check_id, check_stream_id
from llm_routerd.client.lane_state import LaneState, added_up
from llm_routerd.client.look_up import Sighting
from llm_routerd.client.shard import Sealing
from llm_routerd.client.shards import Shards
from llm_routerd.client.tool_list import ToolList
from llm_routerd.errors import BrokerError, UnknownRequestError
from llm_routerd.protocol.consent import Word
from llm_routerd.protocol.events import BEFORE_FINAL_ID, FINAL_ID, Cancelled
from llm_routerd.protocol.keys import Layout
from llm_routerd.protocol.reading import as_end, read_event
from llm_routerd.protocol.request import as_json
from llm_routerd.protocol.wire import encode
from llm_routerd.queue.connection import Needs, fitness, pooled

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence

    from redis.asyncio import Redis

    from llm_routerd.client.shard import Shard
    from llm_routerd.protocol.audit import AuditEntry, Kind
    from llm_routerd.protocol.keys import Keys, Lane
    from llm_routerd.protocol.reading import SeenEnd, SeenEvent
    from llm_routerd.protocol.request import RequestFields
    from llm_routerd.queue.connection import Greeting

T = TypeVar("T")

_BLOCK_MS = 5_000
_SEARCH_BLOCK_MS = 500  # where events may come in another shard than the one that is waited at
_CANCEL_TRIES = 10
_MOST_SEARCHES = 2  # at once: a look through long lanes is work that the server does beside all else


class Client:
    """Submits, follows and cancels requests.  Safe for many tasks of one event loop at once.

    Every method raises `BrokerError` when Redis refuses, or stays away for longer than `patience_seconds`; of its
    subclasses `NotAllowedError` tells that the user may not do it, `UnsuitableServerError` that the server is too old
    or a cluster that does not keep the queue in one place.
    """

    def __init__(
        self,
        redis: str | Redis = "redis://127.0.0.1:6379/0",
        *,
        prefix: str = "llm",
        shards: int = 1,
        draining: Sequence[int] = (),
        patience_seconds: float = 60.0,
    ) -> None:
        """Make a client; nothing is connected yet.

        Args:
            redis: URL, or a client that remains the caller's: `aclose` leaves it open.  Where that has led to, it
                stays: Sentinels and a Cluster are followed by URL only.
            prefix: of the queue's keys.
            shards: how many the queue is spread over, as the daemon's configuration has it.
            draining: numbers of shards of earlier layouts, as there: what was added to them is found.
            patience_seconds: how long a call goes on trying while Redis is away.

        Raises:
            BrokerError: the URL is unsound; the message says how, and quotes nothing of it but an option's name.
            TypeError: `redis` is neither, as a RedisCluster is.
        """
        self.shards = Shards(redis, Layout(prefix, shards), draining, patience_seconds=patience_seconds)
        socket_seconds = self.redis.connection_pool.connection_kwargs.get("socket_timeout") or pooled.REPLY_SECONDS
        self._block_ms = max(1, min(_BLOCK_MS, int(socket_seconds * 500)))
        self._searches = asyncio.Semaphore(_MOST_SEARCHES)

    @property
    def keys(self) -> Keys:
        """Of the queue, or of its first shard."""
        return self._first.keys

    @property
    def redis(self) -> Redis:
        """A client of the server that has them."""
        return self._first.redis

    @property
    def _first(self) -> Shard:
        return self.shards.all[0]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections, unless they were given to us."""
        await self.shards.aclose()

    async def submit(
        self,
        *,
        lane: Lane = "normal",
        on_trouble: Callable[[BrokerError], None] | None = None,
        **request: Unpack[RequestFields],
    ) -> str:
        """Add a request, and return its id: the given one, else a new one.

        It always has an id, because that is what makes it safe to add once more after a lost reply: whoever
        submits the same id twice gets one answer.  `on_trouble` is told of each try that failed and is repeated.

        Raises:
            ValueError: the id is not valid.
            TypeError: a value is not JSON.
        """
        request_id = check_id(request.get("id") or uuid.uuid4().hex)
        await self.shards.home(request_id).add(lane, as_json({"id": request_id, **request}), on_trouble)
        return request_id

    async def follow(self, request_id: str, last_id: str = "0-0") -> AsyncGenerator[SeenEvent, None]:
        """Yield the events after `last_id` as they come; ends after the final one.  An event knows its `stream_id`.

        It waits without end for a request that nobody answers, or whose events have expired.

        Raises:
            ValueError: the id or `last_id` is not valid.
        """
        position = last_id
        homes = self.shards.homes(check_id(request_id))
        if check_stream_id(last_id) >= check_stream_id(FINAL_ID):
            return
        while True:
            if len(homes) > 1:
                homes = await self._with_events(homes, request_id)
            block_ms = self._block_ms if len(homes) == 1 else min(self._block_ms, _SEARCH_BLOCK_MS)
            for event in await homes[0].read(request_id, position, block_ms):
                homes = homes[:1]
                position = event.stream_id
                yield event
                if event.is_final:
                    return

    @staticmethod
    async def _with_events(homes: tuple[Shard, ...], request_id: str) -> tuple[Shard, ...]:
        """The one of them that has events of the request; where none has, all of them."""
        for shard in homes:
            if await shard.has_events(request_id):
                return (shard,)
        return homes

    async def result(self, request_id: str, timeout_seconds: float | None = None) -> SeenEnd:
        """Wait for the final event, whichever of `result`, `error` and `cancelled` it is.

        Raises:
            TimeoutError: there was none within `timeout_seconds`.
        """
        async with asyncio.timeout(timeout_seconds):
            async for event in self.follow(request_id, BEFORE_FINAL_ID):
                return as_end(event)
        raise AssertionError("a stream ends with its final event")

    async def final(self, request_id: str) -> SeenEnd | None:
        """The final event if there is one by now."""
        for shard in self.shards.homes(check_id(request_id)):
            if final := await shard.final(request_id):
                return final
        return None

    async def last(self, request_id: str) -> SeenEvent | None:
        """The newest event; None: there is none."""
        for shard in self.shards.homes(check_id(request_id)):
            if event := await shard.last(request_id):
                return event
        return None

    async def at(self, request_id: str, stream_id: str) -> SeenEvent | None:
        """The event with this ID if there is one."""
        for shard in self.shards.homes(check_id(request_id)):
            if event := await shard.at(request_id, stream_id):
                return event
        return None

    async def events_after(self, request_id: str, last_id: str, most: int) -> list[SeenEvent]:
        """The events after `last_id` that are there by now, at most so many.

        Raises:
            ValueError: the id or `last_id` is not valid.
        """
        check_stream_id(last_id)
        for shard in self.shards.homes(check_id(request_id)):
            if events := await shard.read(request_id, last_id, None, count=most):
                return events
        return []

    async def confirm(
        self,
        request_id: str,
        call_id: str,
        *,
        args_sha256: str,
        by: str,
        args: dict[str, Any] | None = None,
        always: bool = False,
        reason: str = "",
    ) -> None:
        """Agree, for a person, to a tool call that waits; its event `confirmed` tells that the word counts.

        Args:
            request_id: whose call it is.
            call_id: of the event `tool_call`.
            args_sha256: likewise: of the arguments that the person has seen.
            by: who agrees, for the record.
            args: with these the tool is called instead; they have to satisfy its `parameters`.
            always: further calls of this tool wait for nobody, for the rest of the run.
            reason: for the record.

        Raises:
            ValueError: the id is not valid.
            TypeError: `args` are not JSON.
            NotAllowedError: this user may not speak for a person.
        """
        word = Word(agrees=True, args_sha256=args_sha256, args=args, always=always, reason=reason)
        await self.consent(request_id, word.fields(call_id, by))

    async def deny(self, request_id: str, call_id: str, *, by: str, reason: str = "") -> None:
        """Refuse, for a person, a tool call that waits: it is not made, and its model is told, with the reason.

        Raises:
            ValueError: the id is not valid.
            NotAllowedError: this user may not speak for a person.
        """
        await self.consent(request_id, Word(agrees=False, reason=reason).fields(call_id, by))

    async def consent(self, request_id: str, fields: Mapping[str, str | bytes]) -> None:
        """Write what a person says to a tool call, as it stands; nobody looks here whether the call is there.

        Raises:
            ValueError: the id is not valid.
            NotAllowedError: this user may not speak for a person.
        """
        homes = self.shards.homes(check_id(request_id))
        for shard in homes[:-1]:
            if await shard.has_events(request_id):
                await shard.consent(request_id, fields)
                return
        await homes[-1].consent(request_id, fields)

    async def audit(
        self,
        *,
        since_ms: int = 0,
        until_ms: int | None = None,
        tenant_id: str | None = None,
        request_id: str | None = None,
        kind: Kind | None = None,
        follow: bool = False,
    ) -> AsyncGenerator[AuditEntry]:
        """Yield the entries of the audit that were written between two moments (Unix time in ms), the oldest first.

        It is read in pages, of all shards at once.  `follow` goes on with what comes, without end.

        Raises:
            ValueError: the id is not valid.
            NotAllowedError: this user may not read it.
        """
        shards = self.shards.all if request_id is None else self.shards.homes(check_id(request_id))
        async with aclosing(read_audit(shards, since_ms=since_ms, until_ms=until_ms, follows=follow)) as entries:
            async for entry in entries:
                if (
                    (tenant_id is None or entry.tenant_id == tenant_id)
                    and (request_id is None or entry.id == request_id)
                    and (kind is None or entry.kind == kind)
                ):
                    yield entry

    async def cancel(
        self, request_id: str, reason: str = "cancelled by the client", *, anyway: bool = False
    ) -> SeenEnd:
        """Cancel a request wherever it is, and return the final event that stands now.

        It tells who won the race: a `Cancelled`, or the `Result` or `Failed` that was there before.
        Only what exists is cancelled: what has events, or stands in a lane all the while.  Where there are no events,
        the lanes are looked through, their newest 100,000 entries: tenths of a second for 50,000.  `anyway` does not
        look, and a request of that id that is submitted within the next hour is dead on arrival.

        Raises:
            UnknownRequestError: nothing is known of it, and nothing was written.
            NotAllowedError: this user may submit and follow, and not cancel.
        """
        homes = self.shards.homes(check_id(request_id))
        data = encode(Cancelled(request_id=request_id, reason=reason))
        must_exist, sighting = True, None
        for _ in range(_CANCEL_TRIES):
            sealing = await self._seal(homes, request_id, data, must_exist=must_exist)
            if sealing is Sealing.DONE:
                return as_end(read_event(FINAL_ID, Cancelled.type, data))
            if sealing is Sealing.LATE:
                if final := await self.final(request_id):
                    return final
                # It expired between the two.
            elif anyway:
                must_exist = False
            elif sighting is None:
                sighting = await self._look_in_lanes(request_id)
                must_exist = not sighting.is_known
                homes = tuple(shard for shard in homes if shard.keys.prefix == sighting.prefix) or homes
            else:  # nor did a worker begin it while the lanes were looked at
                raise UnknownRequestError(request_id, why_unsure=sighting.why_unsure, others=sighting.others)
        raise BrokerError(f"the events of {request_id} cannot take a final event: somebody has written past its place")

    @staticmethod
    async def _seal(homes: Sequence[Shard], request_id: str, data: bytes, *, must_exist: bool) -> Sealing:
        """Write the final event where the events are; where there need be none, in every shard that it may stand in."""
        sealing = Sealing.ABSENT
        for shard in homes:
            sealing = await shard.seal(request_id, data, must_exist=must_exist)
            if sealing is Sealing.LATE or (sealing is Sealing.DONE and must_exist):
                break
        return sealing

    async def look_up(self, request_id: str) -> Sighting:
        """Whether anything is known of a request; costs what `cancel` costs."""
        check_id(request_id)
        if found := await self._look_for_events(request_id):
            return found
        sighting = await self._look_in_lanes(request_id)
        # Meanwhile a worker may have taken it from the lane.
        return await self._look_for_events(request_id) or sighting

    async def _look_for_events(self, request_id: str) -> Sighting | None:
        for shard in self.shards.homes(request_id):
            if await shard.has_events(request_id):
                return Sighting(is_known=True, prefix=shard.keys.prefix)
        return None

    async def _look_in_lanes(self, request_id: str) -> Sighting:
        """Whether it stands in a lane of a shard that it may stand in."""
        why_unsure, others = "", list[str]()
        for shard in self.shards.homes(request_id):
            async with self._searches:
                sighting = await shard.look_in_lanes(request_id)
            if sighting.is_known:
                return sighting
            why_unsure = why_unsure or sighting.why_unsure
            others += sighting.others
        return Sighting(is_known=False, why_unsure=why_unsure, others=tuple(others))

    async def lanes(self) -> tuple[LaneState, ...]:
        """What waits, what runs, and who works, in all shards together, the most urgent lane first."""
        return added_up([await shard.lanes() for shard in self.shards.all])

    async def tools(self) -> ToolList:
        """The tools that are registered, and who serves them: of each shard the first thousand, all by name."""
        lists = [await shard.tools() for shard in self.shards.all]
        tools = sorted((tool for each in lists for tool in each.tools), key=lambda tool: tool.name)
        return ToolList(tools=tuple(tools), more=sum(each.more for each in lists))

    async def server_time_ms(self, request_id: str = "") -> int:
        """Unix time by the clock of the Redis server that takes a request of this id, by which `deadline_ms` counts."""
        shard = self.shards.home(request_id)
        seconds, microseconds = await shard.patiently(lambda: shard.redis.time())  # noqa: PLW0108 - another after a MOVED
        return int(seconds) * 1000 + int(microseconds) // 1000

    async def greeting(self, metrics_channel: str = "") -> Greeting | None:
        """What the server says of itself, of several that of the first shard; None: nothing.

        Raises:
            UnsuitableServerError: it cannot serve a daemon with this prefix and this metrics channel.
        """
        found = await self.patiently(lambda: fitness.ask(self.redis.execute_command))
        channel = metrics_channel and self.shards.layout.metrics_channel(0, metrics_channel)
        fitness.check(found, Needs(prefix=self.keys.prefix, metrics_channel=channel))
        return found

    async def losing(self, request_id: str) -> BrokerError | None:
        """Why a request of this id would be lost though Redis takes it: that server is a replica; None: it is none."""
        return await self.shards.home(request_id).losing()

    async def ping(self, request_id: str = "") -> None:
        """Ask once whether Redis answers, that server which takes a request of this id; no patience.

        Raises:
            BrokerError: it does not; the message says why.
        """
        await self.shards.home(request_id).ping()

    async def patiently(
        self,
        operation: Callable[[], Awaitable[T]],
        on_trouble: Callable[[BrokerError], None] | None = None,
        *,
        stream: str = "",
    ) -> T:
        """As `Shard.patiently`, on `redis`.

        Raises:
            BrokerError: the patience is over, or the server refuses what was asked.
        """
        return await self._first.patiently(operation, on_trouble, stream=stream)
