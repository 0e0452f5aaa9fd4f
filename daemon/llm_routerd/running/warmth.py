"""Whether a model can be called at once, and getting it there, so that this does not eat the model's own time.

A local model has to be in memory, and a call through litellm needs litellm, whose import takes seconds.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

from llm_routerd.logs import get_logger
from llm_routerd.protocol.call import BackendError
from llm_routerd.protocol.codes import AttemptCode
from llm_routerd.protocol.outcome import Rejection

if TYPE_CHECKING:
    from llm_routerd.config.tree import Deployment
    from llm_routerd.protocol.backend import Backend

    _Loaded = tuple[Rejection | None, int | None]  # why it was not loaded, and the window that was tried

log = get_logger()

TRUST_SECONDS = 60.0  # how long an answer is taken as proof that the model is still loaded
PROBE_SECONDS = 2.0


class Warmth:
    """One deployment's model in memory, or litellm.  Several requests that meet a cold one wait for the same load.

    Attributes:
        tried: the window of the load that `ready` has waited for; None: as the server likes.
    """

    def __init__(self, deployment: Deployment, backend: Backend) -> None:
        self._deployment = deployment
        self._backend = backend
        self._loop = asyncio.get_running_loop()
        self._warm_until = float("-inf")
        self._loading: asyncio.Task[_Loaded] | None = None
        self._loads = deployment.protocol.loads
        self._is_through_litellm = self._loads == "library"
        self._num_ctx: int | None = None  # the window that it is to be loaded with
        self._is_changed = False  # to another than it was loaded with
        self.tried: int | None = None

    def answered(self, num_ctx: int | None = None) -> None:
        """The model has just said something to a call that asked for this window, so it is loaded with it."""
        if num_ctx == self._num_ctx:
            self._is_changed = False
        # What has been imported stays.
        self._warm_until = math.inf if self._is_through_litellm else self._loop.time() + TRUST_SECONDS

    def ask_for(self, num_ctx: int | None, *, loaded: int | None = None) -> None:
        """The next call wants this window; where it is another than the last one's, the model is loaded anew.

        Args:
            num_ctx: the window; None: as the server likes.
            loaded: what it was seen loaded with a moment ago; None: nobody knows.
        """
        if num_ctx != self._num_ctx:
            self._num_ctx, self._is_changed = num_ctx, num_ctx is None or num_ctx != loaded

    def gone(self) -> None:
        """It is not in memory any more, as far as is known: the next call asks."""
        if not self._is_through_litellm:
            self._warm_until = float("-inf")

    @property
    def is_ready(self) -> bool:
        """Whether nothing is to be waited for, as far as that is known without asking."""
        return self._is_warm() or self._loads is None

    async def ready(self, *, wait_seconds: float | None) -> Rejection | None:
        """Return None once the model is loaded, or when that cannot be told; else why it is not waited for.

        Args:
            wait_seconds: what is left of the request's time; None: no deadline.
        """
        through_litellm = self._is_through_litellm
        if self.is_ready:
            return None
        if self._loading is None and not through_litellm:
            try:
                async with asyncio.timeout(PROBE_SECONDS):
                    report = await self._backend.probe()
            except TimeoutError:
                return None  # the call itself will tell what is wrong
            if not report.ok or (report.loaded is not False and not self._is_changed):
                return None
        loading = self.load()
        if self._deployment.cold_start == "skip" and not through_litellm:
            return Rejection(code=AttemptCode.COOLDOWN, reason="the model is not loaded yet (cold_start = skip)")
        try:
            async with asyncio.timeout(wait_seconds):
                while True:
                    cold, self.tried = await asyncio.shield(loading)
                    if self.tried == self._num_ctx or self.is_ready:
                        return cold
                    loading = self.load()  # it was for another window, of which nothing follows for this one
        except TimeoutError:
            what = "litellm was being imported" if through_litellm else "the model was loading"
            return Rejection(code=AttemptCode.TIMEOUT, reason=f"the request's deadline came while {what}")

    def load(self) -> asyncio.Task[_Loaded]:
        """Load the model, or join the load that is under way."""
        if self._loading is None:
            self._loading = asyncio.create_task(self._load(), name=f"warm-{self._deployment.name}")
            self._loading.add_done_callback(self._loaded)
        return self._loading

    async def aclose(self) -> None:
        """Stop loading."""
        if self._loading is not None:
            self._loading.cancel()
            await asyncio.gather(self._loading, return_exceptions=True)

    def _is_warm(self) -> bool:
        return not self._is_changed and self._loop.time() < self._warm_until

    async def _load(self) -> _Loaded:
        # An import cannot be broken off, and is nobody's fault but ours.
        seconds = None if self._is_through_litellm else self._deployment.load_timeout
        num_ctx = self._num_ctx
        try:
            async with asyncio.timeout(seconds):
                await self._backend.warm(num_ctx=num_ctx)
        except BackendError as error:
            reason = f"loading the model: {error.reason}"
            return Rejection(code=error.code, reason=reason, retryable=error.retryable, lack=error.lack), num_ctx
        except TimeoutError:
            reason = f"the model was not loaded within {seconds:g} s"
            return Rejection(code=AttemptCode.TIMEOUT, reason=reason), num_ctx
        if num_ctx == self._num_ctx:
            self.answered(num_ctx)
        return None, num_ctx

    def _loaded(self, task: asyncio.Task[_Loaded]) -> None:
        self._loading = None
        if not task.cancelled() and (fault := task.exception()) is not None:
            log.error("warming_failed", deployment=self._deployment.name, exc_info=fault)
