"""One connection that hears many Pub/Sub channels, for whoever follows many requests at once.

Rules:
- Whatever was said while the connection was away is lost: `listening` is called for each channel whenever the server
  has it (again), and who hears that looks into the stream for what he has missed.
- What is asked for between two turns of the event loop goes out in one write: an UNSUBSCRIBE, a SUBSCRIBE.
- An UNSUBSCRIBE waits for the next SUBSCRIBE or PING, for a write of its own costs more than what is heard meanwhile:
  a request that has ended says nothing.
- The server is asked now and then whether it is there (PING); one that does not answer is left.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any

from llm_routerd.queue.connection.describing import describe
from llm_routerd.queue.connection.factory import Backoff, RedisError
from llm_routerd.queue.connection.silence import Silence

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis.asyncio.connection import AbstractConnection

    from llm_routerd.queue.connection.factory import ConnectionFactory

SILENT_SECONDS = 10.0  # longest silence after a PING before the connection counts as dead
PING_SECONDS = 5.0
_PING = ("PING",)


class Subscriber:
    """The connection; `run` drives it until it is cancelled.

    Args:
        factory: makes it.
        heard: is given a channel and what was said there; not bytes: it was too long to be kept.
        listening: is given a channel which the server sends from now on.
        on_state: is told why it is away, and "" when it is back.
    """

    def __init__(
        self,
        factory: ConnectionFactory,
        *,
        heard: Callable[[bytes, Any], None],
        listening: Callable[[bytes], None],
        on_state: Callable[[str], None] = lambda _why: None,
    ) -> None:
        self._factory = factory
        self._heard = heard
        self._listening = listening
        self._on_state = on_state
        self._channels: set[bytes] = set()
        self._asked: dict[bytes, bool] = {}  # what the server is still to be told: to send it, or no more
        self._is_ping_due = False
        self._wake = asyncio.Event()
        self._backoff = Backoff()
        self.is_connected = False

    def subscribe(self, channel: bytes) -> None:
        """Hear a channel from now on; `listening` tells when."""
        self._channels.add(channel)
        self._asked[channel] = True
        self._wake.set()

    def unsubscribe(self, channel: bytes) -> None:
        """Hear it no more, some seconds from now at the latest."""
        self._channels.discard(channel)
        self._asked[channel] = False

    async def run(self) -> None:
        """Listen for ever; close the connection when cancelled."""
        while True:
            try:
                connection = await self._factory.connect(loads=())
            except (RedisError, OSError, TimeoutError) as error:
                self._away(error)
            else:
                try:
                    await self._serve(connection)
                except (RedisError, OSError, TimeoutError) as error:
                    self._away(error)
                finally:
                    self.is_connected = False
                    await connection.disconnect(nowait=True)
            await asyncio.sleep(self._backoff.next_seconds())

    def _away(self, error: BaseException) -> None:
        self._factory.whereabouts.lost(error)
        self._on_state(describe(error))

    async def _serve(self, connection: AbstractConnection) -> None:
        self.is_connected = True
        self._asked = dict.fromkeys(self._channels, True)
        self._wake.set()
        async with Silence(SILENT_SECONDS, self._factory.whereabouts, connection) as silence:
            writing = asyncio.create_task(self._write(connection, silence), name="subscribe")
            try:
                await self._read(connection, silence)
            finally:
                writing.cancel()
                await asyncio.gather(writing, return_exceptions=True)

    async def _read(self, connection: AbstractConnection, silence: Silence) -> None:
        is_told = False
        while True:
            said = await connection.read_response(timeout=math.inf)
            silence.ends()
            if not is_told:  # not before: a server that lets itself be connected to may serve nothing
                is_told = True
                self._backoff.reset()
                self._on_state("")
            match said:
                case [b"message", bytes(channel), message]:
                    self._heard(channel, message)
                case [b"subscribe", bytes(channel), *_] if channel in self._channels:
                    self._listening(channel)
                case _:  # a PONG, an UNSUBSCRIBE, a channel that nobody wants any more
                    pass

    async def _write(self, connection: AbstractConnection, silence: Silence) -> None:
        """Tell the server what is wanted as it changes, and ask whether it is there."""
        pinging = asyncio.create_task(self._ping(), name="ping")
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                if commands := self._due():
                    silence.begins()
                    await connection.send_packed_command(connection.pack_commands(commands), check_health=False)
        except (RedisError, OSError):
            silence.break_off()
        finally:
            pinging.cancel()

    def _due(self) -> list[tuple[Any, ...]]:
        """What the server is to be told now."""
        asked, self._asked = self._asked, {}
        wanted = [channel for channel, is_wanted in asked.items() if is_wanted]
        unwanted = [channel for channel, is_wanted in asked.items() if not is_wanted]
        commands: list[tuple[Any, ...]] = []
        if unwanted:
            commands.append(("UNSUBSCRIBE", *unwanted))
        if wanted:
            commands.append(("SUBSCRIBE", *wanted))
        if self._is_ping_due:
            self._is_ping_due = False
            commands.append(_PING)
        return commands

    async def _ping(self) -> None:
        while True:
            self._is_ping_due = True
            self._wake.set()
            await asyncio.sleep(PING_SECONDS)
