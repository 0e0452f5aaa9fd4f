"""One request and the windows of whom it asks: whether it fits, for how large a one its calls ask, what is learnt."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_routerd.protocol.codes import AttemptCode
from llm_routerd.protocol.outcome import Rejection
from llm_routerd.routing.window import FITS
from llm_routerd.running.faults import fault
from llm_routerd.running.prompt import Prompt

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from llm_routerd.config.tree import Deployment
    from llm_routerd.protocol.call import TokenFactors
    from llm_routerd.protocol.outcome import Usage
    from llm_routerd.protocol.request import Request
    from llm_routerd.running.warmth import Warmth
    from llm_routerd.running.windows import Windows


class Fitting:
    """Of one request, turn by turn.

    Args:
        windows: of all deployments.
        request: what is asked.
        seconds_left: of its time; None: no deadline.

    Attributes:
        prompt: what the turn under way asks.
        fit: how that fits.
    """

    def __init__(self, windows: Windows, request: Request, seconds_left: Callable[[], float | None]) -> None:
        self._windows = windows
        self._request = request
        self._seconds_left = seconds_left
        self._first = self.prompt = Prompt(request)
        self.fit = FITS

    async def too_long(self, deployment: Deployment, more: tuple[dict[str, Any], ...] = ()) -> Rejection | None:
        """Why a deployment's turn is over before it begins; what goes wrong in finding out is no reason not to ask.

        Args:
            deployment: that is to be asked.
            more: messages that go along with this call, after the request's own.
        """
        windows = self._windows
        self.prompt = Prompt(self._request, more) if more else self._first
        try:
            self.fit = windows.fits_any(deployment, self.prompt) or await windows.fit(
                deployment, self.prompt, seconds_left=self._seconds_left()
            )
        except Exception as error:  # noqa: BLE001 - see `fault`
            fault(self._request.id, deployment, error)
            self.fit = FITS
        if self.fit.too_long is None:
            return None
        return Rejection(code=AttemptCode.CONTEXT_WINDOW, reason=self.fit.too_long)

    def begins(self, deployment: Deployment, warmth: Warmth) -> None:
        """The turn has its place."""
        self.fit, loaded = self._windows.begins(deployment, self.fit)
        warmth.ask_for(self.fit.num_ctx, loaded=loaded)

    def not_loaded(self, deployment: Deployment, cold: Rejection | None, warmth: Warmth) -> None:
        """The model was waited for, and this is why it is not there; where the window may be why, it is noted."""
        if cold is not None and cold.code is AttemptCode.UPSTREAM and warmth.tried is not None:
            self._windows.not_loaded(deployment, warmth.tried)

    def answered(self, deployment: Deployment, warmth: Warmth) -> None:
        """The model has said something."""
        warmth.answered(self.fit.num_ctx)
        self._windows.answered(deployment, self.fit)

    def counted(self, deployment: Deployment, usage: Usage | None) -> None:
        """A whole answer came, to a prompt that was counted."""
        if usage is not None:
            self._windows.counted(deployment, self.prompt, usage)

    async def is_larger(self, deployment: Deployment, verdict: object) -> bool:
        """Whether the call that came to this is to be made once more, with the largest window that there is."""
        if not isinstance(verdict, Rejection) or verdict.code is not AttemptCode.CONTEXT_WINDOW:
            return False
        try:
            larger = await self._windows.larger(deployment, self.fit.num_ctx, self._seconds_left())
        except Exception as error:  # noqa: BLE001 - see `fault`
            fault(self._request.id, deployment, error)
            return False
        self.fit = larger or self.fit
        return larger is not None

    def asks_for(self, deployment: Deployment, params: dict[str, Any]) -> Callable[[int], TokenFactors]:
        """Put the window into the parameters of a call; returns what is known of the model's tokens."""
        if self.fit.num_ctx is not None:
            params["num_ctx"] = self.fit.num_ctx
        return self._windows.factors(deployment)
