"""What fits into whose window: asked of the servers, where a prompt may be too long, and learnt from their counts.

Here is what waits and asks; what follows from the answers is `model_window` and `routing.window`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from llm_routerd.logs import get_logger
from llm_routerd.protocol.call import BackendError
from llm_routerd.routing.prompt_size import WORTH_MEASURING
from llm_routerd.routing.window import (
    FITS,
    LEAST_WINDOW,
    MOST_UNASKED,
    Fit,
    Limits,
    fit,
    num_ctx_of,
    room_for,
    step_for,
)
from llm_routerd.running.model_window import ModelWindow

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping
    from typing import Any

    from llm_routerd.config.tree import Deployment
    from llm_routerd.protocol.backend import Backend
    from llm_routerd.protocol.call import TokenFactors
    from llm_routerd.protocol.outcome import Usage
    from llm_routerd.running.prompt import Prompt

    _Question = Callable[["_Deployed"], Coroutine[Any, Any, None]]

log = get_logger()

KNOWN_SECONDS: Final = 60.0  # how long what a server tells is taken for true
UNKNOWN_SECONDS: Final = 10.0  # how long one that tells nothing is not asked again
ASK_SECONDS: Final = 2.0
_POLL_SECONDS: Final = 0.1
_LOADING_SECONDS: Final = 5.0  # so long it is looked whether a model that has just answered is being loaded anew
_LOOKING_SECONDS: Final = _LOADING_SECONDS + ASK_SECONDS
LOOK_SECONDS: Final = 1.0
"""How old may be what is known of a model's window, for a call that would not change it; for others a half."""


class _Deployed:
    """One deployment, and the model that it may share with others."""

    def __init__(self, deployment: Deployment, model: ModelWindow) -> None:
        self.name = deployment.name
        self.model = model
        self.fixed = num_ctx_of(deployment.params)
        self.is_asked_for = deployment.protocol.loads == "model" and self.fixed is None
        self.cuts = bool(deployment.params.get("truncate"))
        self.context = deployment.context

    @property
    def limits(self) -> Limits:
        """Of its windows now."""
        model = self.model
        return Limits(window=model.window, bound=model.bound(self.context), fixed=self.fixed, cuts=self.cuts)

    def holds(self, prompt: Prompt) -> bool:
        """Whether every model holds the prompt, and nothing forbids it: nobody need be asked."""
        return prompt.most <= min(LEAST_WINDOW, self.context or LEAST_WINDOW)


class Windows:
    """The windows of all deployments under one configuration.

    Args:
        deployments: by name.
        backend: of a deployment, by its name.
    """

    def __init__(self, deployments: Mapping[str, Deployment], backend: Callable[[str], Backend]) -> None:
        self._backend = backend
        of_model: dict[tuple[str, str, str], list[Deployment]] = {}
        for name, each in deployments.items():
            of_model.setdefault((each.backend_kind, each.api_base or name, each.model_name), []).append(each)
        self._deployed: dict[str, _Deployed] = {}
        for sharing in of_model.values():
            model = ModelWindow(most_followed=max(MOST_UNASKED, *(each.context for each in sharing)))
            self._deployed |= {each.name: _Deployed(each, model) for each in sharing}
        self._asking: dict[tuple[int, str], asyncio.Task[None]] = {}  # by the model, and what is asked of it
        self._loop = asyncio.get_running_loop()

    def fits_any(self, deployment: Deployment, prompt: Prompt) -> Fit | None:
        """How a prompt fits that is so short that its server need not be asked; None: it is not, or must be."""
        known = self._deployed[deployment.name]
        if not known.holds(prompt):
            return None
        if not known.is_asked_for:
            return FITS
        model, now = known.model, self._loop.time()
        model.forget(now)
        return model.as_before if now < model.looked + LOOK_SECONDS else None

    async def fit(self, deployment: Deployment, prompt: Prompt, *, seconds_left: float | None = None) -> Fit:
        """How a prompt fits; where nobody tells, it does.

        Args:
            deployment: that is to be asked.
            prompt: what it is to be asked.
            seconds_left: of the request's time; None: no deadline.
        """
        known = self._deployed[deployment.name]
        model, now = known.model, self._loop.time()
        model.forget(now)
        is_short = known.holds(prompt)
        if now >= model.until and not is_short:
            await self._wait(known, self._learn, seconds_left)
        elif known.is_asked_for and now >= model.looked + LOOK_SECONDS:
            await self._wait(known, self._look, seconds_left)
        if is_short:
            return model.as_before
        fits = self._fit(known, prompt)
        if fits.num_ctx not in {None, model.loaded} and self._loop.time() >= model.looked + LOOK_SECONDS / 2:
            await self._wait(known, self._look, seconds_left)  # before it is loaded anew
            fits = self._fit(known, prompt)
        return fits

    def _fit(self, known: _Deployed, prompt: Prompt) -> Fit:
        model, limits = known.model, known.limits
        if limits.most is None and not limits.is_asked_for:
            return model.as_before if known.is_asked_for else FITS
        if (surely := self._fits_surely(model, limits, prompt)) is not None:
            return surely
        tokens = prompt.size.whole
        return fit(
            tokens.scaled(model.gauge.factors(tokens.kind)),
            limits,
            max_tokens=prompt.max_tokens,
            asked=model.in_force,
        )

    def _fits_surely(self, model: ModelWindow, limits: Limits, prompt: Prompt) -> Fit | None:
        """How a prompt fits that need not be measured; None: it is to be."""
        most = prompt.most + room_for(prompt.max_tokens)
        if not limits.is_asked_for:
            return FITS if limits.most is not None and most <= limits.most else None
        now = max(model.in_force or 0, limits.now or 0)
        if not now or most > min(now, limits.most or now):
            return None
        step = step_for(most)
        if step is None or step < now:
            return Fit(num_ctx=now, needs=step)
        return Fit(num_ctx=now) if model.is_just_needed(step, self._loop.time()) else None

    async def in_force(self, deployment: Deployment) -> int | None:
        """The window that a call of our own asks for, so that the model need not be loaded anew."""
        known = self._deployed[deployment.name]
        if not known.is_asked_for:
            return None
        known.model.forget(self._loop.time())
        if self._loop.time() >= known.model.looked + LOOK_SECONDS:
            await self._wait(known, self._look, None)
        return known.model.in_force

    async def larger(self, deployment: Deployment, num_ctx: int | None, seconds_left: float | None) -> Fit | None:
        """The largest window there is for a prompt that did not fit into this one; None: it was the largest."""
        known = self._deployed[deployment.name]
        if not known.is_asked_for:
            return None
        if self._loop.time() >= known.model.until:
            await self._wait(known, self._learn, seconds_left)
        limits = known.limits
        had = num_ctx or limits.now or LEAST_WINDOW
        if not limits.is_asked_for or limits.largest <= had:
            return None
        return Fit(num_ctx=limits.largest, needs=limits.largest)

    def begins(self, deployment: Deployment, fits: Fit) -> tuple[Fit, int | None]:
        """A call has its place that fits so; it may have waited for that.

        Returns:
            With no less than is in force by now; and what its model is loaded with, None where that is not known.
        """
        known = self._deployed[deployment.name]
        model = known.model
        model.needed(fits, self._loop.time())
        if known.is_asked_for and (in_force := model.in_force) is not None and in_force > (fits.num_ctx or 0):
            fits = replace(fits, num_ctx=in_force)
        return fits, model.loaded

    def answered(self, deployment: Deployment, fits: Fit) -> None:
        """A call that fitted so was answered."""
        self._deployed[deployment.name].model.answered(fits.num_ctx, self._loop.time())

    def factors(self, deployment: Deployment) -> Callable[[int], TokenFactors]:
        """Tells by a kind of text what the model counts of it, against what is guessed."""
        return self._deployed[deployment.name].model.gauge.factors

    def counted(self, deployment: Deployment, prompt: Prompt, usage: Usage) -> None:
        """Its server has read the whole prompt, and tells how many tokens it has."""
        known = self._deployed[deployment.name]
        if usage.estimated or usage.prompt_tokens < WORTH_MEASURING or known.model.window is None:
            return
        if (prompt.is_measured or known.model.may_learn(self._loop.time())) and prompt.size.is_plain:
            known.model.gauge.sample(prompt.size.whole, usage.prompt_tokens)

    def not_loaded(self, deployment: Deployment, num_ctx: int) -> None:
        """The model could not be loaded with this window: for a while it is asked for less."""
        self._deployed[deployment.name].model.not_loaded(num_ctx, self._loop.time())

    async def _wait(self, known: _Deployed, ask: _Question, seconds_left: float | None) -> None:
        """Ask the server, and wait for it as long as there is time; what goes wrong in it is not told."""
        longest = _LOOKING_SECONDS if known.model.may_be_loading(self._loop.time()) else ASK_SECONDS
        seconds = longest if seconds_left is None else min(longest, seconds_left)
        await asyncio.wait([self._ask(known, ask)], timeout=seconds)

    def _ask(self, known: _Deployed, ask: _Question) -> asyncio.Task[None]:
        """Several that want to know share one question."""
        key = id(known.model), ask.__name__
        if (asking := self._asking.get(key)) is None:
            asking = self._asking[key] = asyncio.create_task(self._told(known, ask), name=f"window-{known.name}")
            asking.add_done_callback(lambda _: self._asking.pop(key))
        return asking

    async def _told(self, known: _Deployed, ask: _Question) -> None:
        model = known.model
        try:
            async with asyncio.timeout(_LOOKING_SECONDS if ask == self._look else ASK_SECONDS):
                await ask(known)
        except (BackendError, TimeoutError):
            model.untold(self._loop.time() + UNKNOWN_SECONDS)  # the call itself will tell what is wrong
        except Exception:  # a bug of ours costs the question, and not the requests that wait for it
            log.exception("window_not_told", deployment=known.name)
            model.untold(self._loop.time() + UNKNOWN_SECONDS)

    async def _learn(self, known: _Deployed) -> None:
        window = await self._backend(known.name).window()
        now = self._loop.time()
        known.model.told(window, now)
        known.model.until = now + (UNKNOWN_SECONDS if window is None else KNOWN_SECONDS)

    async def _look(self, known: _Deployed) -> None:
        backend, model = self._backend(known.name), known.model
        loaded = await backend.loaded_window()
        began = self._loop.time()
        if loaded is None and model.may_be_loading(began):
            while loaded is None and self._loop.time() < began + _LOADING_SECONDS:
                await asyncio.sleep(_POLL_SECONDS)
                loaded = await backend.loaded_window()
            if loaded is None:
                model.is_gone(self._loop.time())
        model.seen(loaded, self._loop.time())

    async def aclose(self) -> None:
        """Stop asking."""
        asking = tuple(self._asking.values())
        for each in asking:
            each.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
