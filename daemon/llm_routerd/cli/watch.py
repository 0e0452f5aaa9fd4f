"""Waiting for a request at the command line: its events, Ctrl-C, and what to say when nothing happens."""

from __future__ import annotations

import asyncio
import signal
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Never

from llm_routerd.cli.exits import Exit
from llm_routerd.cli.unknown import unknown
from llm_routerd.cli.views import exit_of
from llm_routerd.errors import BrokerError, NotAllowedError, UnknownRequestError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterator

    from llm_routerd.cli.views import View
    from llm_routerd.client import Client

_HINT_SECONDS = 3.0
_CANCEL_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """One person waiting for one request.

    Attributes:
        last_id: the last event that was seen before.
        timeout_seconds: longest wait; None: for ever.
        cancel_on_interrupt: False: Ctrl-C ends the waiting only.
        wait_for_unknown: whether to go on when nothing is known of the request after a few seconds.
        beside: what is done as long as the events are followed; it never ends by itself.
    """

    client: Client
    view: View
    request_id: str
    last_id: str = "0-0"
    timeout_seconds: float | None = None
    cancel_on_interrupt: bool = True
    wait_for_unknown: bool = False
    beside: Callable[[], Coroutine[Any, Any, Never]] | None = None

    async def run(self, submit: Callable[[], Awaitable[object]] | None = None) -> Exit:
        """Submit, if that is still to be done, and show what happens until the final event or Ctrl-C.

        Raises:
            BrokerError: Redis went away for too long, or the time was over before it had taken the request.
        """
        accepted, happening, is_submitting = asyncio.Event(), asyncio.Event(), submit is not None
        with _interrupts() as interrupted:
            following = asyncio.create_task(self._follow(submit, accepted, happening), name="follow")
            interrupt = asyncio.create_task(interrupted.wait(), name="interrupt")
            hint = self._until_futile(accepted, happening, is_submitting=is_submitting)
            futile = asyncio.create_task(hint, name="futile")
            tasks: set[asyncio.Task[Any]] = {following, interrupt, futile}
            beside = None if self.beside is None else asyncio.create_task(self.beside(), name="beside")
            if beside is not None:
                tasks.add(beside)
            try:
                await asyncio.wait(tasks, timeout=self.timeout_seconds, return_when=asyncio.FIRST_COMPLETED)
                if following.done():
                    return following.result()
                if beside is not None and beside.done():
                    beside.result()  # which raises
                if futile.done() and not interrupted.is_set():
                    return futile.result()
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)  # or asyncio tells what nobody asked them for
            if interrupted.is_set():
                return await self._interrupt(has_submitted=is_submitting, is_accepted=accepted.is_set())
        if not accepted.is_set():
            raise unconfirmed(self.request_id)
        self.view.remark(
            f"no answer within {self.timeout_seconds:g} s; go on with: llm-routerd follow {self.request_id}"
        )
        return Exit.TIMED_OUT

    async def _follow(
        self, submit: Callable[[], Awaitable[object]] | None, accepted: asyncio.Event, happening: asyncio.Event
    ) -> Exit:
        if submit is not None:
            await submit()
        accepted.set()
        async for event in self.client.follow(self.request_id, self.last_id):
            happening.set()
            self.view.show(event)
            if event.is_final:
                return exit_of(event)
        return Exit.OK  # `last_id` was the final event's: all has been seen

    async def _interrupt(self, *, has_submitted: bool, is_accepted: bool) -> Exit:
        """Leave; or cancel what exists: a later request of that id would be dead on arrival."""
        if not is_accepted and not self.cancel_on_interrupt:
            self.view.remark(f"Redis: {unconfirmed(self.request_id)}")
            return Exit.INTERRUPTED
        if not self.cancel_on_interrupt:
            self.view.remark(f"the request goes on; see it with: llm-routerd follow {self.request_id}")
            return Exit.INTERRUPTED
        self.view.remark("cancelling; Ctrl-C once more leaves at once")
        try:
            async with asyncio.timeout(_CANCEL_SECONDS):
                reason = "interrupted at the command line"
                final = await self.client.cancel(self.request_id, reason, anyway=has_submitted)
        except UnknownRequestError as error:
            self.view.remark(f"{error}; nothing was cancelled")
            return Exit.INTERRUPTED
        except NotAllowedError as error:
            self.view.remark(f"the request goes on: {error}")
            return Exit.INTERRUPTED
        except (BrokerError, TimeoutError):
            what = "Redis does not answer" if is_accepted else "Redis has not confirmed that the request is queued"
            self.view.remark(f"{what}; cancel later with: llm-routerd cancel {self.request_id}")
            return Exit.INTERRUPTED
        if final.type != "cancelled":
            self.view.remark("too late to cancel")
        self.view.show(final)
        return Exit.INTERRUPTED if final.type == "cancelled" else exit_of(final)

    async def _until_futile(self, accepted: asyncio.Event, happening: asyncio.Event, *, is_submitting: bool) -> Exit:
        """After a few seconds of nothing, say once why that may be; returns only where waiting is of no use."""
        await accepted.wait()
        with suppress(TimeoutError):
            async with asyncio.timeout(_HINT_SECONDS):
                await happening.wait()
        try:
            if not happening.is_set() and await self._say_why(is_submitting=is_submitting):
                return Exit.UNKNOWN
        except BrokerError:
            pass  # a producer need not be allowed to look
        await asyncio.Event().wait()
        raise AssertionError("it is only ever cancelled")

    async def _say_why(self, *, is_submitting: bool) -> bool:
        """What a wait may be for; whether it is for nothing."""
        if not is_submitting:
            sighting = await self.client.look_up(self.request_id)
            if not sighting.is_known and not sighting.why_unsure:
                told = await unknown(self.client, self.request_id, sighting.others)
                self.view.remark(f"{told}; " + ("waiting on" if self.wait_for_unknown else "--wait waits for it"))
                return not self.wait_for_unknown
        lanes = await self.client.lanes()
        workers = frozenset[str]().union(*(lane.workers for lane in lanes))
        waiting, running = sum(lane.waiting for lane in lanes), sum(lane.running for lane in lanes)
        if not workers:
            self.view.remark("nobody has picked the request up: no worker is running; waiting for llm-routerd serve")
        else:
            self.view.remark(f"still waiting: workers {len(workers)}, requests running {running}, queued {waiting}")
        return False


def unconfirmed(request_id: str) -> BrokerError:
    """The error of who ceases to submit before Redis has said that the request is queued, which it may be."""
    return BrokerError(
        "it has not confirmed that the request is queued",
        f"submit it again with --id {request_id}: what arrives twice is answered once",
    )


@contextmanager
def _interrupts() -> Iterator[asyncio.Event]:
    """An event that the first Ctrl-C sets; the second one does what it did before: asyncio cancels all there is.

    KeyboardInterrupt, which Python itself raises wherever it is, would be lost in one of the tasks.
    """
    loop = asyncio.get_running_loop()
    interrupted = asyncio.Event()
    before = signal.getsignal(signal.SIGINT)

    def restore() -> None:
        loop.remove_signal_handler(signal.SIGINT)
        signal.signal(signal.SIGINT, before)

    def interrupt() -> None:
        restore()
        interrupted.set()

    loop.add_signal_handler(signal.SIGINT, interrupt)
    try:
        yield interrupted
    finally:
        restore()
