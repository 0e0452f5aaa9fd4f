"""Many requests under way at once, over two connections a server: one to write, one to hear.

A client that follows by XREAD holds a connection for each request.  Here all share one: what is published is heard on
it, and what was missed, or is not published, is found in the streams.  A request that is submitted here is published.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec

from llm_routerd.client.events import check_id
from llm_routerd.client.following import Following, order_of
from llm_routerd.client.shard import STRAY_SECONDS
from llm_routerd.errors import BrokerError
from llm_routerd.protocol.events import FINAL_ID, Cancelled
from llm_routerd.protocol.keys import Keys
from llm_routerd.protocol.reading import read_event
from llm_routerd.protocol.wire import encode
from llm_routerd.queue.connection import (
    ConnectionFactory,
    Needs,
    Pipe,
    PipeState,
    ResponseError,
    Subscriber,
    as_broker_error,
    whereabouts_of,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable

    from llm_routerd.client.client import Client
    from llm_routerd.client.shard import Shard
    from llm_routerd.protocol.keys import Lane

PATIENCE_SECONDS = 5.0
SWEEP_SECONDS = 1.0  # so often it is looked for what nobody has published: a cancellation, what was lost on the way
_FIRST_POLL_SECONDS = 0.05  # of a request that is not published at all
_LAST_POLL_SECONDS = 0.5
_STREAMS_PER_READ = 100
_MOST_READS = 64  # at once, each on a connection: when the server is back, all who follow have missed something
_TURN_SECONDS = 15.0
_MOST_MESSAGE_BYTES = 16_777_216


class _Published(msgspec.Struct):
    id: str
    type: str
    data: msgspec.Raw


_read_message = msgspec.json.Decoder(_Published).decode


class _Line:
    """The two connections to one server."""

    def __init__(self, plexer: Multiplexer, url: str, prefix: str) -> None:
        needs = Needs(prefix=prefix)
        whereabouts = whereabouts_of(url, Keys(prefix).dead)

        def factory(name: str) -> ConnectionFactory:
            return ConnectionFactory(
                url,
                client_name=f"llm-{name}:{os.getpid()}",
                most_entry_bytes=_MOST_MESSAGE_BYTES,
                needs=needs,
                whereabouts=whereabouts,
                loads=(),
            )

        self.why = "it has not answered yet"
        self.pipe = Pipe(factory("write"), on_state=lambda _state, why: self._tell(why))
        self.subscriber = Subscriber(
            factory("hear"), heard=plexer.heard, listening=plexer.listening, on_state=self._tell
        )

    def _tell(self, why: str) -> None:
        """Keep why it was away last; "": it is back."""
        self.why = why or self.why

    async def ready(self) -> None:
        """Return when it takes writes.

        Raises:
            BrokerError: it does not, for as long as anybody waits for an answer.
        """
        if self.pipe.state is PipeState.READY:
            return
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await self.pipe.ready()
        except TimeoutError:
            raise BrokerError(f"Redis takes nothing now: {self.why}") from None


class Multiplexer:
    """Submits and follows; `run` drives it.  What is rare is asked of the `client`, which remains the caller's.

    Args:
        client: knows the shards.
        url: of Redis.
    """

    def __init__(self, client: Client, url: str) -> None:
        self._client = client
        made: dict[int, _Line] = {}
        self._lines: dict[str, _Line] = {}
        for shard in client.shards.all:
            prefix = shard.keys.prefix
            key = id(shard.server)
            self._lines[prefix] = made[key] = made.get(key) or _Line(self, url, prefix)
        self._each = tuple(made.values())
        self._followings: dict[bytes, set[Following]] = {}
        self._acks: dict[bytes, asyncio.Future[None]] = {}
        self._hasty: set[Following] = set()  # those that may not be published
        self._hurry = asyncio.Event()
        self._turns = asyncio.Semaphore(_MOST_READS)

    async def run(self) -> None:
        """Serve until cancelled.

        Raises:
            UnsuitableServerError: the server can never serve us.
        """
        async with asyncio.TaskGroup() as tasks:
            for line in self._each:
                tasks.create_task(line.pipe.run(), name="write")
                tasks.create_task(line.subscriber.run(), name="hear")
            tasks.create_task(self._sweep(), name="sweep")

    @property
    def trouble(self) -> str:
        """Why not all servers can be used now; "": they can."""
        for line in self._each:
            if line.pipe.state is not PipeState.READY or not line.subscriber.is_connected:
                return line.why
        return ""

    @property
    def followed(self) -> int:
        """How many requests are followed."""
        return sum(map(len, self._followings.values()))

    # ------------------------------------------------------------------ submitting

    async def submit(self, request_id: str, data: bytes, lane: Lane = "normal", *, is_new: bool = True) -> None:
        """Add a request.

        Args:
            request_id: its id.
            data: its JSON.
            lane: where it goes.
            is_new: only who is told that it was added knows its id: one of which that cannot be told is cancelled.
                Else somebody may come back for it, or have added it elsewhere meanwhile.

        Raises:
            BrokerError: Redis refuses, or does not answer in time.
        """
        keys = self._client.shards.home(check_id(request_id)).keys
        line = self._lines[keys.prefix]
        await line.ready()
        added = line.pipe.call("XADD", keys.requests(lane), "*", "data", data)
        try:
            await _patiently(added)
        except ResponseError as error:
            raise as_broker_error(error, keys.requests(lane)) from error
        except TimeoutError:
            if is_new:
                self.give_up(request_id, "its sender was told that it was not accepted")
            raise BrokerError(f"Redis does not answer: {line.why}") from None
        except asyncio.CancelledError:
            if is_new:
                self.give_up(request_id, "its sender has gone")
            raise

    def give_up(self, request_id: str, reason: str) -> None:
        """Have a request that was submitted end, whenever the server is there again."""
        keys = self._client.shards.home(request_id).keys
        events, pipe = keys.events(request_id), self._lines[keys.prefix].pipe
        data = encode(Cancelled(request_id=request_id, reason=reason))
        for command in (
            ("XADD", events, FINAL_ID, "type", Cancelled.type, "data", data),
            ("EXPIRE", events, STRAY_SECONDS, "NX"),
        ):
            pipe.call(*command).add_done_callback(_without_reply)

    # ------------------------------------------------------------------ following

    def follow(self, request_id: str, after: str = "0-0", *, is_new: bool = False) -> Following:
        """Follow a request from the event after `after`; enter what is returned.

        Args:
            request_id: of the request.
            after: an event's ID.
            is_new: nobody knows of it yet, and it is submitted here once it is followed.

        Raises:
            ValueError: the id or `after` is not valid.
        """
        shards = self._client.shards
        homes = (shards.home(check_id(request_id)),) if is_new else shards.homes(request_id)
        return Following(self, request_id, homes, after=after, is_new=is_new)

    async def join(self, following: Following) -> None:
        """Hear what is published of it, from the return of this on.

        A new one is not waited for where the connection stands: what is said before the server has heard of it is
        missed by the next event, or by the sweep, and that round trip was a fifth of the time to the first token.

        Raises:
            BrokerError: the server does not answer in time.
        """
        following.poll_seconds = _least_seconds(following)
        following.polled_at = asyncio.get_running_loop().time()
        waits = []
        for shard, channel in _channels(following):
            others = self._followings.setdefault(channel, set())
            others.add(following)
            line = self._lines[shard.keys.prefix]
            if len(others) == 1:
                self._acks[channel] = asyncio.get_running_loop().create_future()
                line.subscriber.subscribe(channel)
            is_early = following.is_new and line.subscriber.is_connected
            if not ((ack := self._acks[channel]).done() or is_early):
                waits.append((line, ack))
        try:
            for line, ack in waits:
                try:
                    await _patiently(ack)
                except TimeoutError:
                    raise BrokerError(f"Redis does not answer: {line.why}") from None
        except BaseException:
            self.leave(following)
            raise
        if not following.is_published:
            self._hasty.add(following)
            self._hurry.set()

    def leave(self, following: Following) -> None:
        """Follow it no more."""
        self._hasty.discard(following)
        for shard, channel in _channels(following):
            others = self._followings.get(channel)
            if others is None:
                continue
            others.discard(following)
            if not others:
                del self._followings[channel]
                self._acks.pop(channel).cancel()
                self._lines[shard.keys.prefix].subscriber.unsubscribe(channel)

    @asynccontextmanager
    async def turn(self) -> AsyncGenerator[None]:
        """One of the turns to read what was missed.

        Raises:
            BrokerError: none has come, for those who have them do not get on.
        """
        try:
            async with asyncio.timeout(_TURN_SECONDS):
                await self._turns.acquire()
        except TimeoutError:
            raise BrokerError("Redis answers too slowly: too many wait for what they have missed") from None
        try:
            yield
        finally:
            self._turns.release()

    def listening(self, channel: bytes) -> None:
        """The server sends what is published there from now on; before, something may have been missed."""
        ack = self._acks.get(channel)
        if ack is not None and not ack.done():
            ack.set_result(None)
            return
        for following in self._followings.get(channel, ()):
            following.fall_behind()

    def heard(self, channel: bytes, message: Any) -> None:
        """Something was published."""
        followings = self._followings.get(channel)
        if not followings:
            return
        try:
            told = _read_message(message)
            event = order_of(told.id), read_event(told.id, told.type, bytes(told.data))
        except (msgspec.MsgspecError, ValueError, TypeError, RecursionError):  # too long, or no event of ours
            for following in followings:
                following.fall_behind()
            return
        now = asyncio.get_running_loop().time()
        for following in followings:
            following.polled_at = now
            following.hear(event, len(message))

    # ------------------------------------------------------------------ what was not heard

    async def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        swept = 0.0
        while True:
            self._hurry.clear()
            try:
                async with asyncio.timeout(_FIRST_POLL_SECONDS if self._hasty else SWEEP_SECONDS):
                    await self._hurry.wait()
                await asyncio.sleep(_FIRST_POLL_SECONDS)
            except TimeoutError:
                pass
            now = loop.time()
            if now >= swept + SWEEP_SECONDS:
                swept = now
                every = [each for several in self._followings.values() for each in several]
                for first in range(0, len(every), _STREAMS_PER_READ):  # tokens go on between
                    some = every[first : first + _STREAMS_PER_READ]
                    for following in some:
                        following.tick(now)
                        self._calm(following)
                    await self._poll(some, now)
                    await asyncio.sleep(0)
            elif self._hasty:
                await self._poll(self._hasty, now)

    def _calm(self, following: Following) -> None:
        if following.is_published and following in self._hasty:
            self._hasty.discard(following)
            following.poll_seconds = SWEEP_SECONDS

    async def _poll(self, followings: Iterable[Following], now: float) -> None:
        """Look into the streams of those of which nothing has been heard for their time."""
        due: dict[_Line, list[tuple[bytes, Following]]] = {}
        for following in followings:
            if following.is_waiting and now >= following.polled_at + following.poll_seconds:
                following.polled_at = now
                following.poll_seconds = min(following.poll_seconds * 1.5, _most_seconds(following))
                for shard, channel in _channels(following):
                    due.setdefault(self._lines[shard.keys.prefix], []).append((channel, following))
        for line, several in due.items():
            if line.pipe.state is not PipeState.READY:
                continue
            for first in range(0, len(several), _STREAMS_PER_READ):
                await self._look(line, several[first : first + _STREAMS_PER_READ])

    async def _look(self, line: _Line, several: list[tuple[bytes, Following]]) -> None:
        positions: dict[bytes, str] = {}
        for channel, following in several:
            positions.setdefault(channel, following.position)
        reading = line.pipe.call("XREAD", "COUNT", 1, "STREAMS", *positions, *positions.values())
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                reply = await reading
        except (ResponseError, TimeoutError):  # a key of another type: whoever reads that stream is told
            return
        found = {stream for stream, _ in reply or ()}
        for channel, following in several:
            if channel in found:
                following.poll_seconds = _least_seconds(following)
                following.fall_behind()


async def _patiently(answer: asyncio.Future[None]) -> None:
    """Wait for an answer, which others may wait for too, or which must be taken whoever waits: it is not cancelled.

    As `asyncio.timeout` around `asyncio.shield`, at half of their price; each request pays it twice.

    Raises:
        TimeoutError: it does not come for as long as anybody waits for one.
    """
    loop = asyncio.get_running_loop()
    waiter = loop.create_future()

    def wake(_: object = None) -> None:
        if not waiter.done():
            waiter.set_result(None)

    timer = loop.call_later(PATIENCE_SECONDS, wake)
    answer.add_done_callback(wake)
    try:
        await waiter
    finally:
        timer.cancel()
        answer.remove_done_callback(wake)
    if not answer.done():
        raise TimeoutError
    answer.result()


def _channels(following: Following) -> list[tuple[Shard, bytes]]:
    """Where events may be published, which is named as the stream is."""
    return [(shard, shard.keys.events(following.request_id).encode()) for shard in following.known_homes]


def _least_seconds(following: Following) -> float:
    return SWEEP_SECONDS if following.is_published else _FIRST_POLL_SECONDS


def _most_seconds(following: Following) -> float:
    return SWEEP_SECONDS if following.is_published else _LAST_POLL_SECONDS


def _without_reply(done: asyncio.Future[Any]) -> None:
    """Nobody waits for it, and that there is another end already is well."""
    if not done.cancelled():
        done.exception()
