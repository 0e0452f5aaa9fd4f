"""What fits into whose window: asked of the servers, where a prompt may be too long, and learnt from their counts."""

from __future__ import annotations

import asyncio
from functools import cached_property
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import orjson
from msgspec.structs import replace

from llm_routerd.protocol.call import BackendError
from llm_routerd.routing.prompt_size import Gauge, chars_of, most_tokens, size_of
from llm_routerd.routing.window import FITS, LEAST_WINDOW, Fit, fit, num_ctx_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from llm_routerd.config.tree import Deployment
    from llm_routerd.protocol.backend import Backend
    from llm_routerd.protocol.call import TokenFactors, Window
    from llm_routerd.protocol.outcome import Usage
    from llm_routerd.protocol.request import Request
    from llm_routerd.routing.prompt_size import PromptSize

KNOWN_SECONDS = 60.0  # how long what a server tells is taken for true
UNKNOWN_SECONDS = 10.0  # how long one that tells nothing is not asked again
ASK_SECONDS = 2.0
LARGE_SECONDS = 600.0  # how long a large window is asked for after the last prompt that wanted it


class Prompt:
    """What one request asks, and how long that is; measured when somebody wants to know."""

    def __init__(self, request: Request) -> None:
        self._messages: tuple[dict[str, Any], ...] = request.messages
        self._tools = request.tools
        asked = request.params.get("max_tokens")
        self.max_tokens: int | None = asked if isinstance(asked, int) else None

    @cached_property
    def most(self) -> float:
        """No tokenizer makes more of it; cheap."""
        tools = len(orjson.dumps(self._tools)) if self._tools else 0
        return most_tokens(chars_of(self._messages) + tools) + 16 * len(self._messages)

    def about_tokens(self) -> int:
        """So many, roughly; cheap."""
        return chars_of(self._messages) // 4

    @cached_property
    def key(self) -> str:
        """Alike for prompts that begin alike: of the first messages, but for the last one."""
        first = self._messages[: min(2, len(self._messages) - 1)]
        return blake2b(orjson.dumps(first), digest_size=12).hexdigest() if first else ""

    @cached_property
    def size(self) -> PromptSize:
        """In tokens."""
        return size_of(self._messages, self._tools)


class _Known:
    """Of one deployment."""

    def __init__(self, deployment: Deployment) -> None:
        self.gauge = Gauge()
        self.fixed = num_ctx_of(deployment.params)
        self.window: Window | None = None
        self.asking: asyncio.Task[None] | None = None
        self.until = float("-inf")  # loop time at which it is asked again
        self.usual: int | None = None  # the window that its server takes by itself
        self.asked: int | None = None  # the window that calls ask for
        self.asked_until = float("-inf")
        self.most: int | None = None  # more it could not be loaded with
        self.most_until = float("-inf")

    def with_usual(self, window: Window | None) -> Window | None:
        """What is told now; of a model that is not loaded, what it was loaded with when nobody had asked for more."""
        if window is None:
            return None
        if self.asked is None:
            self.usual = window.now or self.usual
        return window if window.now else replace(window, now=self.usual)

    @property
    def as_before(self) -> Fit:
        """With the window that calls ask for."""
        return FITS if self.asked is None else Fit(num_ctx=self.asked)

    @property
    def is_changed(self) -> bool:
        """Something is remembered that has its time."""
        return self.asked is not None or self.most is not None

    def forget(self, now: float) -> None:
        """What has had its time."""
        if now >= self.asked_until:
            self.asked = None
        if now >= self.most_until:
            self.most = None


class Windows:
    """The windows of all deployments under one configuration.

    Args:
        deployments: by name.
        backend: of a deployment, by its name.
    """

    def __init__(self, deployments: Mapping[str, Deployment], backend: Callable[[str], Backend]) -> None:
        self._backend = backend
        self._known = {name: _Known(each) for name, each in deployments.items()}
        self._loop = asyncio.get_running_loop()

    def fits_any(self, deployment: Deployment, prompt: Prompt) -> Fit | None:
        """How a prompt fits that is so short that its server need not be asked; None: it is not."""
        known = self._known[deployment.name]
        if known.is_changed:
            known.forget(self._loop.time())
        if prompt.most > min(LEAST_WINDOW, deployment.context or LEAST_WINDOW):
            return None
        return known.as_before

    async def fit(self, deployment: Deployment, prompt: Prompt) -> Fit:
        """How a prompt fits; where nobody tells, it does."""
        known, now = self._known[deployment.name], self._loop.time()
        if now >= known.until:
            await self._ask(deployment.name, known)
        if known.window is None and not deployment.context and known.fixed is None:
            return known.as_before
        fits = fit(
            prompt.size.scaled(self.factors(deployment, prompt)).whole,
            known.window,
            bound=min(deployment.context or known.most or 0, known.most or deployment.context),
            fixed=known.fixed,
            max_tokens=prompt.max_tokens,
            asked=known.asked,
        )
        if fits.num_ctx is not None and prompt.most > LEAST_WINDOW:
            known.asked, known.asked_until = fits.num_ctx, now + LARGE_SECONDS
        return fits

    def factors(self, deployment: Deployment, prompt: Prompt) -> TokenFactors:
        """What the model counts of such prompts, against what is guessed of them."""
        return self._known[deployment.name].gauge.factors(prompt.size.whole.kind)

    def counted(self, deployment: Deployment, prompt: Prompt, usage: Usage) -> None:
        """Its server has read the whole prompt, and tells how many tokens it has."""
        known = self._known[deployment.name]
        if prompt.most > LEAST_WINDOW and known.window is not None and not usage.estimated:
            known.gauge.sample(prompt.size.whole, usage.prompt_tokens)

    def not_loaded(self, deployment: Deployment, num_ctx: int) -> None:
        """The model could not be loaded with this window: for a while it is asked for less."""
        known = self._known[deployment.name]
        known.asked, known.most = None, max(num_ctx // 2, LEAST_WINDOW)
        known.most_until = self._loop.time() + LARGE_SECONDS

    async def _ask(self, name: str, known: _Known) -> None:
        """Ask the server; several that want to know wait for the same answer."""
        if known.asking is None:
            known.asking = asyncio.create_task(self._learn(name, known), name=f"window-{name}")
        await asyncio.shield(known.asking)

    async def _learn(self, name: str, known: _Known) -> None:
        try:
            async with asyncio.timeout(ASK_SECONDS):
                known.window = known.with_usual(await self._backend(name).window())
        except (BackendError, TimeoutError):
            known.window = None  # the call itself will tell what is wrong
        finally:
            known.until = self._loop.time() + (UNKNOWN_SECONDS if known.window is None else KNOWN_SECONDS)
            known.asking = None

    async def aclose(self) -> None:
        """Stop asking."""
        asking = [known.asking for known in self._known.values() if known.asking is not None]
        for each in asking:
            each.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
