"""Putting boxes to sleep: the operator's command, once no worker has used one for long enough.

Whether nobody has, and which worker runs the command, the shared picture says; from then on no call begins there.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
from contextlib import suppress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from llm_routerd.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from llm_routerd.config.fleet import Box
    from llm_routerd.queue.picture import Boxes

log = get_logger()

COMMAND_SECONDS = 60.0
TELL_SECONDS = 0.5
SETTLE_SECONDS = 20.0  # from the command's end until the machine is off, and a packet wakes it
RETRY_SECONDS = 300.0  # at least so long after a command that failed it is not run again
LONGEST_TICK_SECONDS = 5.0  # between two looks whether it is time
_LOOKS = 3
_TICKS = 4  # at least, in `sleep_after`
# Of our environment no more: the command needs none of our keys.
_PASSED_ON = frozenset(
    {"PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "TMPDIR", "SSH_AUTH_SOCK", "XDG_RUNTIME_DIR"}
)


class Sleeping:
    """Puts boxes to sleep.

    Args:
        boxes: of the configuration; those without `sleep_after` are none of its business.
        picture: where all workers' calls are seen; None: this worker sees its own alone, and puts nothing to sleep.
        look_at: asks a box whether it answers, and tells all workers.
    """

    def __init__(
        self, boxes: Mapping[str, Box], picture: Callable[[], Boxes | None], look_at: Callable[[str], Awaitable[bool]]
    ) -> None:
        self._boxes = {name: box for name, box in boxes.items() if box.sleep_after}
        self._picture = picture
        self._look_at = look_at
        self._used: dict[str, float] = {}  # loop time, by box
        self._going: list[asyncio.Task[None]] = []
        self._loop = asyncio.get_running_loop()

    def start(self) -> None:
        """From now on."""
        if not self._going:
            self._going = [
                asyncio.create_task(self._watch(box), name=f"sleep-{name}") for name, box in self._boxes.items()
            ]

    def used(self, name: str) -> None:
        """A call of this worker begins or ends there."""
        if name in self._boxes:
            self._used[name] = self._loop.time()

    async def aclose(self) -> None:
        """Stop; a command that runs is ended."""
        for each in self._going:
            each.cancel()
        await asyncio.gather(*self._going, return_exceptions=True)

    async def _watch(self, box: Box) -> None:
        while True:
            await asyncio.sleep(min(LONGEST_TICK_SECONDS, box.sleep_after / _TICKS))
            try:
                await self._rest(box)
            except Exception:  # a bug of ours, or a Redis that is away: it is put to sleep another time
                log.exception("fleet_failed")

    async def _rest(self, box: Box) -> None:
        picture, name, token = self._picture(), box.name, secrets.token_hex(8)
        if picture is None:
            return
        idle = self._loop.time() - self._used.get(name, float("-inf"))
        if not await picture.rest(
            name,
            token,
            idle_seconds=idle,
            after_seconds=box.sleep_after,
            claim_seconds=COMMAND_SECONDS + SETTLE_SECONDS,
        ):
            return
        if not await self._answers(name):
            log.info("box_asleep", box=name, why="it does not answer")
            await picture.slept(name, token, is_asleep=True, pause_seconds=0.0)
            return
        try:
            why = await run_command(box)
        except asyncio.CancelledError:  # we stop: it was not put to sleep, and the others are to know that
            telling = asyncio.ensure_future(picture.slept(name, token, is_asleep=False, pause_seconds=0.0))
            await asyncio.wait([telling], timeout=TELL_SECONDS)
            raise
        if why is None:
            log.info("box_asleep", box=name, idle_seconds=round(box.sleep_after))
        else:
            log.warning("box_not_put_to_sleep", box=name, why=why)
        pause = SETTLE_SECONDS if why is None else max(RETRY_SECONDS, box.sleep_after)
        await picture.slept(name, token, is_asleep=why is None, pause_seconds=pause)

    async def _answers(self, name: str) -> bool:
        """Whether it is up; one that is slow for once is not taken to be asleep already."""
        for _ in range(_LOOKS):
            if await self._look_at(name):
                return True
        return False


async def run_command(box: Box) -> str | None:
    """Run the box's `sleep_command`, and wait for its end; None: it went well; else why not, in one line."""
    try:
        process = await asyncio.create_subprocess_exec(
            *box.sleep_command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            env=_environment(box),
            start_new_session=True,
        )
    except (OSError, ValueError) as error:  # ValueError: a NUL in a word
        return f"sleep_command cannot be run: {getattr(error, 'strerror', None) or error}"
    try:
        async with asyncio.timeout(COMMAND_SECONDS):
            status = await process.wait()
    except TimeoutError:
        return f"sleep_command took longer than {COMMAND_SECONDS:g} s"
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    if status == 0:
        return None
    return f"sleep_command ended with status {status}" if status > 0 else f"sleep_command was ended by signal {-status}"


def _environment(box: Box) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if name in _PASSED_ON}
    return own | {
        "LLM_ROUTERD_BOX": box.name,
        "LLM_ROUTERD_BOX_HOST": urlsplit(box.api_base).hostname or "",
        "LLM_ROUTERD_BOX_MAC": box.wake,
    }
