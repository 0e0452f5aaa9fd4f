"""Whether replicas have what a batch has committed: `WAIT`, at its end.

What was committed counts when they have it, so that a failover between the two loses no answer: no reply has come, and
the commit is sent again, to the new primary.  Where they are not there it counts all the same, for the primary has it:
one batch waits for them as long as it may; from then on there is a short look once in a while, until they are back.
Whoever wants no answer to count without them sets `min-replicas-to-write` of the server.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redis.exceptions import NoPermissionError, ResponseError

from llm_routerd.queue.connection.describing import describe

if TYPE_CHECKING:
    from collections.abc import Callable

LOOK_EVERY_SECONDS = 1.0  # while they are away
LOOK_SHARE = 0.1  # of the wait, that such a look may take


class Replicas:
    """How many must have it.

    Args:
        count: of them, 1 at the least.
        wait_seconds: how long a batch waits for them.
        on_trouble: told, whenever that was asked for, why they do not have it; None: they have it.
    """

    def __init__(
        self, count: int, *, wait_seconds: float, on_trouble: Callable[[str | None], object] = lambda _why: None
    ) -> None:
        self.count = count
        self.wait_seconds = wait_seconds
        self._on_trouble = on_trouble
        self._look_at: float | None = None  # when to look for them again; None: they are there

    def question(self, now: float) -> tuple[str | int, ...] | None:
        """The command that a batch with a commit ends with; None: not now, the primary has to do."""
        seconds = self.wait_seconds
        if self._look_at is not None:
            if now < self._look_at:
                return None
            seconds *= LOOK_SHARE
        return "WAIT", self.count, max(1, round(seconds * 1000))  # 0 were for ever

    def answered(self, reply: Any, now: float) -> ResponseError | None:
        """Take the reply in; returns a refusal that is none of replicas, but of a server that serves us no more."""
        why = None
        if isinstance(reply, ResponseError):
            if not _is_for_good(reply):
                return reply
            why = describe(reply)
        elif reply < self.count:
            why = f"fewer than {self.count} have acknowledged it in {self.wait_seconds:g} s"
        self._look_at = None if why is None else now + LOOK_EVERY_SECONDS
        self._on_trouble(why)
        return None


def _is_for_good(refusal: ResponseError) -> bool:
    """Whether WAIT is not to be had here; else (LOADING, UNBLOCKED, a replica by now) the server is another one."""
    return isinstance(refusal, NoPermissionError) or "unknown command" in str(refusal)
