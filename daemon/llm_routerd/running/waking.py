"""Waking boxes: the packet, and looking whether it has helped.

Whom to wake is the plan's to say, and who sends the packet the shared picture's: of all workers one, once in a boot.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from typing import TYPE_CHECKING

from llm_routerd.logs import get_logger
from llm_routerd.running.box_watch import BOOT_LOOK_SECONDS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from llm_routerd.config.fleet import Box
    from llm_routerd.queue.picture import Boxes

log = get_logger()

PACKETS = 3  # of one waking: UDP may lose one
PACKET_GAP_SECONDS = 0.1


def magic_packet(mac: str) -> bytes:
    """Six bytes FF, then sixteen times the MAC address, which is hex with any separators."""
    return b"\xff" * 6 + bytes.fromhex(mac.replace(":", "").replace("-", "")) * 16


async def send_packets(mac: str, host: str, port: int) -> None:
    """Send the packet some times over.

    Raises:
        OSError: the address has no meaning, or there is no way to it.
    """
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, family=socket.AF_INET, type=socket.SOCK_DGRAM)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        for number in range(PACKETS):
            if number:
                await asyncio.sleep(PACKET_GAP_SECONDS)
            sender.sendto(magic_packet(mac), found[0][4])


class Waking:
    """Wakes the boxes of one worker's calls.

    Args:
        boxes: of the configuration.
        picture: where it is kept who wakes which.
        look_at: asks a box whether it answers, and tells all workers.
    """

    def __init__(
        self, boxes: Mapping[str, Box], picture: Callable[[], Boxes], look_at: Callable[[str], Awaitable[bool]]
    ) -> None:
        self._boxes = boxes
        self._picture = picture
        self._look_at = look_at
        self._going: dict[str, asyncio.Task[None]] = {}  # by box

    def wake(self, name: str, boot_seconds: float) -> None:
        """Wake a box, unless that is under way; it is expected to take so long."""
        if name not in self._going:
            task = asyncio.create_task(self._wake(self._boxes[name], boot_seconds), name=f"wake-{name}")
            self._going[name] = task
            task.add_done_callback(lambda _: self._going.pop(name, None))

    async def aclose(self) -> None:
        """Stop looking; what has been sent has been sent."""
        going = list(self._going.values())
        for each in going:
            each.cancel()
        await asyncio.gather(*going, return_exceptions=True)

    async def _wake(self, box: Box, boot_seconds: float) -> None:
        loop = asyncio.get_running_loop()
        began, longest = loop.time(), max(box.wake_seconds, boot_seconds)
        try:
            if not await self._picture().wake(box.name, secrets.token_hex(8), boot_seconds=longest):
                return
            log.info("box_woken", box=box.name, expected_seconds=round(boot_seconds))
            await send_packets(box.wake, *box.wake_at)
            while loop.time() < began + 2 * longest:
                await asyncio.sleep(BOOT_LOOK_SECONDS)
                if await self._look_at(box.name):
                    log.info("box_awake", box=box.name, seconds=round(loop.time() - began, 1))
                    return
            log.warning("box_not_woken", box=box.name, why=f"no answer within {2 * longest:g} s")
        except OSError as error:
            log.warning("box_not_woken", box=box.name, why=f"the packet could not be sent: {error.strerror or error}")
        except Exception:  # a bug of ours costs a waking, and not those that wait
            log.exception("fleet_failed")
