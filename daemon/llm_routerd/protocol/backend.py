"""What may be relied on in every backend, whatever wire protocol it speaks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from llm_routerd.protocol.call import Call, Delta, Finish, ProbeReport, Window


class Backend(Protocol):
    """The way to one deployment.  Safe to use for many calls at once, on one event loop."""

    def stream(self, call: Call) -> AsyncGenerator[Delta | Finish, None]:
        """Ask the model; yields `Delta`s, at most one per network read, then one `Finish`, the last item.

        A `Delta` whose texts are both empty says that the model is at work on a tool call: it counts against
        the idle bound, and there is nothing of it to show.

        Only the time to connect is bounded in here; the caller bounds everything else by cancelling or by
        `aclose()`.  Either closes the connection to the model at once, so that it stops generating.

        Raises:
            BackendError: the call failed, or its stream ended without the protocol's terminal event.
        """
        ...

    async def probe(self) -> ProbeReport:
        """Whether it answers and knows its model; spends no tokens, raises nothing, ends in seconds."""
        ...

    async def window(self) -> Window | None:
        """How much the model takes, where the server tells and would not refuse by itself what is too much.

        Raises:
            BackendError: it does not answer.
        """
        ...

    async def loaded_window(self) -> int | None:
        """How many tokens its model is loaded with, where calls decide it; 0: nobody tells; None: it is not loaded.

        Raises:
            BackendError: it does not answer.
        """
        ...

    async def resident(self) -> Mapping[str, int] | None:
        """Bytes in memory by the names of all models that its server has loaded; None: it does not tell.

        Raises:
            BackendError: it does not answer.
        """
        ...

    async def warm(self, *, num_ctx: int | None = None) -> None:
        """Load the model into memory where the backend can be asked to; elsewhere nothing.

        Returns once the model is loaded; the caller bounds the time.

        Args:
            num_ctx: for so many tokens of prompt and answer, as the calls will be; None: as it is loaded, or as the
                server likes.

        Raises:
            BackendError: it could not be loaded.
        """
        ...
