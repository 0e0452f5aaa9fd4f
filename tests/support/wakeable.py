"""Boxes that sleep until a packet comes to a UDP port of the loopback, for tests."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from llm_routerd.config.fleet import Box
from llm_routerd.protocol.call import BackendError
from llm_routerd.protocol.codes import AttemptCode
from llm_routerd.running.waking import PACKETS, magic_packet
from tests.support.fakes import FakeBackend

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping

    from llm_routerd.protocol.call import Call, Delta, Finish, Window
    from tests.support.fakes import Script

MAC = "aa:bb:cc:dd:ee:ff"


class Card(asyncio.DatagramProtocol):
    """A network card that is on though its box is off.

    Attributes:
        packets: that came for it.
        wakings: how many of them were the first of `PACKETS`; the loopback loses none.
        on_packet: called at the first of each waking.
    """

    def __init__(self) -> None:
        self.port = 0
        self.packets: list[bytes] = []
        self.wakings = 0
        self.on_packet: Callable[[], object] = lambda: None

    def datagram_received(self, data: bytes, _address: object) -> None:
        """A packet has come."""
        self.packets.append(data)
        if data == magic_packet(MAC) and len(self.packets) % PACKETS == 1:
            self.wakings += 1
            self.on_packet()


@asynccontextmanager
async def listening() -> AsyncIterator[Card]:
    """A card, on a port of the loopback."""
    loop = asyncio.get_running_loop()
    receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    receiver.setblocking(False)
    receiver.bind(("127.0.0.1", 0))
    transport, card = await loop.create_datagram_endpoint(Card, sock=receiver)
    card.port = receiver.getsockname()[1]
    try:
        yield card
    finally:
        transport.close()


def wakeable(card: Card, name: str = "attic", *, wake_seconds: float = 1.0, **more: object) -> Box:
    """A box that this card wakes."""
    told: dict[str, object] = {"wake": MAC, "wake_seconds": wake_seconds, "wake_address": f"127.0.0.1:{card.port}"}
    return Box(name=name, api_base=f"http://{name}:1", **(told | more))  # type: ignore[arg-type]  # of a table


class Machine:
    """A box that boots for so long after a packet; its models do not answer before.

    Attributes:
        is_up: whether they do.
    """

    def __init__(self, card: Card, *, boot_seconds: float = 0.3, is_up: bool = False) -> None:
        self.is_up = is_up
        self._boot_seconds = boot_seconds
        card.on_packet = self._boot

    def _boot(self) -> None:
        asyncio.get_running_loop().call_later(self._boot_seconds, self._rise)

    def _rise(self) -> None:
        self.is_up = True

    def check(self) -> None:
        """Nothing, if it is up.

        Raises:
            BackendError: it is not.
        """
        if not self.is_up:
            raise BackendError(AttemptCode.CONNECT, "nobody there", retryable=True)


class OnMachine(FakeBackend):
    """A model on it."""

    def __init__(self, machine: Machine, *scripts: Script) -> None:
        super().__init__(*scripts)
        self._machine = machine

    async def stream(self, call: Call) -> AsyncGenerator[Delta | Finish, None]:
        """If it is up."""
        self._machine.check()
        async for item in super().stream(call):
            yield item

    async def window(self) -> Window | None:
        """If it is up."""
        self._machine.check()
        return await super().window()

    async def resident(self) -> Mapping[str, int] | None:
        """If it is up."""
        self._machine.check()
        return await super().resident()
