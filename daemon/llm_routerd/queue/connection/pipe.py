"""One connection that all commands of a worker share, in one pipeline.

Rules:
- A batch is written at once when the connection is idle; what is asked for while a batch is under way forms the
  next one.  No timer delays anything.
- Commands are answered in the order in which they were handed in.
- A connection that is lost, or a server that is unfit (LOADING, READONLY, out of memory, ...), loses no command: what
  has no answer yet is sent again, in order, when the server is back.  So every command must be one that may be
  repeated: explicit event IDs and scripts that recognise their own work.
- What is to stand on replicas, too, is answered when they have it, after the rest of its batch (`replicas`).
- Every change of state is told once: a server that lets itself be connected to, and then serves nothing, stays away.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

import hiredis
from msgspec import Struct
from redis.exceptions import ConnectionError as RedisConnectionError

from llm_routerd.errors import UnsuitableServerError
from llm_routerd.queue.connection.bounded_parser import tell_progress
from llm_routerd.queue.connection.factory import (
    Backoff,
    ConnectionFactory,
    RedisError,
    ResponseError,
    describe,
    is_missing_script,
    is_out_of_memory,
    is_unfit,
    lasts,
)
from llm_routerd.queue.connection.reach import Reach
from llm_routerd.queue.connection.silence import Silence

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from redis.asyncio.connection import AbstractConnection

    from llm_routerd.queue.connection.replicas import Replicas
    from llm_routerd.queue.scripts.binding import Call

BATCH_SECONDS = 10.0  # longest silence of the server before the connection counts as dead
BATCH_COMMANDS = 1000
OUT_OF_MEMORY_PAUSE_SECONDS = 1.0


class PipeState(StrEnum):
    """What the pipe knows of its server."""

    CONNECTING = "connecting"
    READY = "ready"
    OUT_OF_MEMORY = "out_of_memory"
    AWAY = "away"
    UNUSABLE = "unusable"  # until somebody changes something: the server, its users, our configuration


_TAKEN_OVER = RedisConnectionError("another server has taken its place")
_TAKES_WRITES = frozenset({PipeState.READY})
_ANSWERS = frozenset({PipeState.READY, PipeState.OUT_OF_MEMORY})


class Command(Struct):
    """One command on its way; `answered` gets its reply, or the ResponseError that is its reply.

    Where replicas are asked for, what `needs_replicas` has no answer before they have it.  A reply that is to come
    whole (`is_whole`) is as long as the command allows, and is not cut.
    """

    args: Sequence[Any]
    answered: Callable[[Any], None]
    needs_replicas: bool = False
    is_whole: bool = False


class Source(Protocol):
    """Something that gathers commands between two batches (the outbox)."""

    def take_commands(self) -> list[Command]:
        """What is to be sent now; called when a batch is put together."""
        ...


class Pipe:
    """The pipeline; `run` drives it until it is cancelled."""

    def __init__(
        self,
        factory: ConnectionFactory,
        *,
        on_state: Callable[[PipeState, str], None] = lambda _state, _why: None,
        longest_pause_seconds: float = 5.0,
        replicas: Replicas | None = None,
    ) -> None:
        self._factory = factory
        self._replicas = replicas
        self._silent_seconds = BATCH_SECONDS + (0.0 if replicas is None else replicas.wait_seconds)
        self._on_state = on_state
        self._waiting: deque[Command] = deque()
        self._unanswered: list[Command] = []
        self._sources: list[Source] = []
        self._wake = asyncio.Event()
        self._ready = asyncio.Event()
        self._reachable = asyncio.Event()
        self._backoff = Backoff(cap_seconds=longest_pause_seconds)
        self._connection: AbstractConnection | None = None
        self._silence: Silence | None = None
        self._is_leaving = False
        self.reach = Reach()
        self.state = PipeState.CONNECTING
        self.generation = 0  # rises with every new connection
        self.ready_since = 0.0  # loop time at which it last became so

    def add_source(self, source: Source) -> None:
        """Ask `source` for commands whenever a batch is put together."""
        self._sources.append(source)

    def notify(self) -> None:
        """A source has something to send."""
        self._wake.set()

    async def ready(self) -> None:
        """Return when the server takes writes; at once if it does."""
        await self._ready.wait()

    async def reachable(self) -> None:
        """Return when the server answers, though it may be out of memory."""
        await self._reachable.wait()

    def leave(self) -> None:
        """Give the connection up for where the factory leads by now; what has no answer yet is sent there."""
        self._is_leaving = True
        if self._silence is not None:
            self._silence.break_off()
        self.reach.reached()

    def call(self, *args: Any, is_whole: bool = False) -> asyncio.Future[Any]:
        """Send one command; what is returned has its reply, however long the server is away; see `Command`.

        Raises:
            ResponseError: by what is returned: the server's refusal.
        """
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append(Command(args, resolving(future), is_whole=is_whole))
        self._wake.set()
        return future

    def run_script(self, call: Call, *, is_whole: bool = False) -> asyncio.Future[Any]:
        """Run one of our scripts; see `call`."""
        return self.call(*call.command, is_whole=is_whole)

    async def run(self) -> None:
        """Write batches and read their replies for ever; close the connection when cancelled.

        Raises:
            UnsuitableServerError: the first server that is ever met cannot serve us.  A later one may have taken the
                place of a good one for a while, and is tried again.
        """
        try:
            while True:
                connection = await self._connect()
                try:
                    silence = Silence(self._silent_seconds, self._factory.whereabouts, connection)
                    async with silence as self._silence:
                        tell_progress(connection, silence.begins)
                        while True:
                            await self._one_batch(connection, silence)
                except (RedisError, OSError, TimeoutError) as error:
                    await connection.disconnect(nowait=True)
                    self._connection = self._silence = None
                    if not self._is_leaving:
                        self._away(_TAKEN_OVER if silence.has_moved else error)
                        await self.reach.pause(self._backoff.next_seconds())
        finally:
            if self._connection is not None:
                await self._connection.disconnect(nowait=True)
                self._connection = None

    async def _connect(self) -> AbstractConnection:
        while True:
            self._is_leaving = False
            try:
                async with asyncio.timeout(None) as bound:
                    with self.reach.hurries(bound):
                        self._connection = await self._factory.connect()
            except (RedisError, OSError, TimeoutError) as error:
                self._away(error)
                await self.reach.pause(self._backoff.next_seconds())
            else:
                if self._is_leaving:  # this is where the factory led when it began
                    await self._connection.disconnect(nowait=True)
                    continue
                self.generation += 1
                if not self._unanswered:  # else the first batch tells
                    self._enter(PipeState.READY, "")
                return self._connection

    def _away(self, error: BaseException) -> None:
        if isinstance(error, UnsuitableServerError) and not self.generation:
            raise error
        self._factory.whereabouts.lost(error)
        self._enter(PipeState.UNUSABLE if lasts(error) else PipeState.AWAY, describe(error))

    def _enter(self, state: PipeState, why: str) -> None:
        for event, states in ((self._ready, _TAKES_WRITES), (self._reachable, _ANSWERS)):
            if state in states:
                event.set()
            else:
                event.clear()
        if state is not self.state:
            was, self.state = self.state, state
            if state is PipeState.READY:
                self.ready_since = asyncio.get_running_loop().time()
            self._on_state(state, why)
            if state is PipeState.READY and was is not PipeState.OUT_OF_MEMORY:
                self.reach.reached()

    async def _one_batch(self, connection: AbstractConnection, silence: Silence) -> None:
        if not self._unanswered:
            await self._wake.wait()
        self._wake.clear()
        # What was refused goes first, and what has come since goes along: a full server still renews leases.
        batch = self._unanswered + self._gather()
        if not batch:
            return
        self._unanswered = batch
        packed = b"".join([hiredis.pack_command(tuple(command.args)) for command in batch])
        question = self._ask_replicas(batch)
        if question is not None:
            packed += hiredis.pack_command(question)
        silence.begins()
        await connection.send_packed_command(packed, check_health=False)
        refused = await self._read_replies(connection, batch, None if question is None else self._replicas)
        silence.ends()
        if refused is None:
            self._backoff.reset()
            if self.state is not PipeState.READY:
                self._enter(PipeState.READY, "")
        elif is_out_of_memory(refused):
            self._enter(PipeState.OUT_OF_MEMORY, describe(refused))
            await asyncio.sleep(min(self._backoff.next_seconds(), OUT_OF_MEMORY_PAUSE_SECONDS))
        else:
            raise refused

    def _gather(self) -> list[Command]:
        batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), BATCH_COMMANDS))]
        if self._waiting:
            self._wake.set()
        for source in self._sources:
            batch.extend(source.take_commands())
        return batch

    def _ask_replicas(self, batch: list[Command]) -> tuple[Any, ...] | None:
        """The command that tells whether replicas have what is in this batch, where that is asked for."""
        if self._replicas is None or not any(command.needs_replicas for command in batch):
            return None
        return self._replicas.question(asyncio.get_running_loop().time())

    async def _read_replies(
        self, connection: AbstractConnection, batch: list[Command], asked: Replicas | None
    ) -> ResponseError | None:
        """Deliver the replies; keep the commands that the server could not serve now, and return why.

        Where replicas were asked, their reply is the last, and what needs them is kept until it has come.
        """
        refused: ResponseError | None = None
        kept: list[Command] = []
        held: dict[int, Any] = {}  # replies, by the places of their commands among those kept
        for position, command in enumerate(batch):
            self._factory.is_whole = command.is_whole
            try:
                reply = await connection.read_response(timeout=math.inf)
            except ResponseError as error:
                if is_unfit(error) or is_out_of_memory(error) or is_missing_script(error):
                    refused = refused or error
                    kept.append(command)
                    continue
                reply = error
            except BaseException:
                self._unanswered = kept + batch[position:]
                raise
            if asked is not None and command.needs_replicas:
                held[len(kept)] = reply
                kept.append(command)
            else:
                command.answered(reply)
        self._unanswered = kept
        if asked is not None and (elsewhere := await _hear(connection, asked)) is not None:
            return elsewhere
        if held:
            self._unanswered = [command for place, command in enumerate(kept) if place not in held]
            for place, reply in held.items():
                kept[place].answered(reply)
        return refused


async def _hear(connection: AbstractConnection, replicas: Replicas) -> ResponseError | None:
    """Read what replicas say of a batch; returns why nothing of it counts that needs them."""
    try:
        reply = await connection.read_response(timeout=math.inf)
    except ResponseError as error:
        reply = error
    return replicas.answered(reply, asyncio.get_running_loop().time())


def resolving(future: asyncio.Future[Any]) -> Callable[[Any], None]:
    """An `answered` that hands the reply, or the refusal, to whoever waits for the future."""

    def answered(reply: Any) -> None:
        if future.done():
            return
        if isinstance(reply, ResponseError):
            future.set_exception(reply)
        else:
            future.set_result(reply)

    return answered
