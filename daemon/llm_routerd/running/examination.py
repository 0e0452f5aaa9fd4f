"""A probe of our own: whether a local deployment answers at all, asked before its last caller is sent away.

It asks for one token, so it costs what one token of the local machine costs, and holds nobody's prompt.  A cloud
deployment is never asked like this: it would cost money that no tenant has spent.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING

from llm_routerd.logs import get_logger
from llm_routerd.protocol.call import BackendError, Call
from llm_routerd.protocol.codes import Fault

if TYPE_CHECKING:
    from llm_routerd.config.tree import Deployment
    from llm_routerd.protocol.backend import Backend
    from llm_routerd.running.slots import Slots
    from llm_routerd.running.warmth import Warmth
    from llm_routerd.running.windows import Windows

log = get_logger()

_MESSAGES = ({"role": "user", "content": "Hello"},)


class Examination:
    """The probe of one deployment.  Several requests that want to know at once share one."""

    def __init__(
        self, deployment: Deployment, backend: Backend, slots: Slots, warmth: Warmth, windows: Windows
    ) -> None:
        self._deployment = deployment
        self._backend = backend
        self._slots = slots
        self._warmth = warmth
        self._windows = windows
        self._running: asyncio.Task[bool | None] | None = None

    async def answers(self, *, wait_seconds: float | None) -> bool | None:
        """Whether the deployment generates a token within its own timeout.

        None: nobody knows, for the wait was over too early, or no place among its calls came free.

        Args:
            wait_seconds: what is left of the request's time; None: no deadline.
        """
        if self._running is None:
            self._running = asyncio.create_task(self._examine(), name=f"examine-{self._deployment.name}")
            self._running.add_done_callback(self._done)
        try:
            async with asyncio.timeout(wait_seconds):
                return await asyncio.shield(self._running)
        except TimeoutError:
            return None

    async def aclose(self) -> None:
        """Stop asking."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)

    async def _examine(self) -> bool | None:
        seconds = self._deployment.timeout
        if not await self._slots.acquire(seconds):
            return None
        try:
            async with asyncio.timeout(seconds):
                num_ctx = await self._windows.in_force(self._deployment)
                self._warmth.ask_for(num_ctx, loaded=num_ctx)
                return await self._warmth.ready(wait_seconds=seconds) is None and await self._says_something(num_ctx)
        except TimeoutError:
            return False
        except Exception:  # a bug of ours costs the probe, and not the requests that wait for it
            log.exception("probe_failed", deployment=self._deployment.name)
            return False
        finally:
            self._slots.release()

    async def _says_something(self, num_ctx: int | None) -> bool:
        params = self._deployment.params_for({"max_tokens": 1})
        if num_ctx is not None:  # another one would have the model loaded anew
            params["num_ctx"] = num_ctx
        call = Call(
            messages=_MESSAGES,
            params=params,
            connect_seconds=self._deployment.connect_timeout,
        )
        try:
            async with aclosing(self._backend.stream(call)) as stream:
                async for _ in stream:
                    return True
        except BackendError as error:
            # A server that will not have this call, with which nothing is wrong, is there and thinks.
            return error.code.blames(retryable=error.retryable) is Fault.CALL
        return False

    def _done(self, _task: asyncio.Task[bool | None]) -> None:
        self._running = None
