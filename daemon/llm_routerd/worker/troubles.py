"""What is wrong though Redis is there: told in the log once when it begins, and once when it is over."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_routerd.logs import get_logger
from llm_routerd.queue.connection import ResponseError, describe

if TYPE_CHECKING:
    from collections.abc import Callable

    from llm_routerd.protocol.keys import Keys, Lane

log = get_logger()


class Troubles:
    """The troubles of one worker.

    Args:
        keys: of the queue.
        on_change: called when one begins or is over.
    """

    def __init__(self, keys: Keys, on_change: Callable[[], None]) -> None:
        self._keys = keys
        self._on_change = on_change
        self._lanes: dict[Lane, str] = {}  # those whose keys are of another type, and of which
        self._refusals: dict[str, str] = {}  # what Redis refuses us, and why
        self._done_without: set[str] = set()
        self._reading: str | None = None
        self._replicas: str | None = None

    def first(self, shortage: str | None) -> str:
        """The gravest in one line, `shortage` being what this process lacks; "": there is none."""
        for lane, other in self._lanes.items():
            return f"{self._keys.requests(lane)} is not a stream but a {other}"
        return next(iter(self._refusals.values()), None) or shortage or self._reading or ""

    @property
    def note(self) -> str:
        """What keeps nobody from being answered, and should be mended all the same, in one line; "": nothing."""
        return "" if self._replicas is None else f"answers are not on the replicas: {self._replicas}"

    def reading(self, why: str | None) -> None:
        """Requests cannot be read although Redis answers (`maxclients`, say); None: they can."""
        if (why is None) == (self._reading is None):
            return
        self._reading = why
        if why is None:
            log.info("reading_again")
        else:
            log.warning("cannot_read_requests", why=why)
        self._on_change()

    def refused(self, what: str, why: str | None) -> None:
        """Redis refuses us something for good; None: it does no more.  Nothing is lost meanwhile."""
        if (why is None) == (what not in self._refusals):
            return
        if why is None:
            del self._refusals[what]
            log.info("redis_allows_again", what=what)
        else:
            self._refusals[what] = why
            log.error(what, why=why)
        self._on_change()

    def done_without(self, what: str, why: str | None) -> None:
        """Redis refuses us something that is no trouble, in words that may quote users and keys; None: it does not."""
        if (why is None) == (what not in self._done_without):
            return
        if why is None:
            self._done_without.remove(what)
            log.info("redis_allows_again", what=what)
        else:
            self._done_without.add(what)
            log.warning(what, why=describe(ResponseError(why)))

    def replicas(self, why: str | None) -> None:
        """Answers count without replicas, for these do not have them; None: they have them."""
        if why == self._replicas:
            return
        self._replicas = why
        if why is None:
            log.info("replicas_acknowledge_again")
        else:
            log.warning("answers_not_on_replicas", why=why)
        self._on_change()

    def lane(self, lane: Lane, other: str | None) -> None:
        """A lane's key is of another type; None: it is a lane again."""
        key = self._keys.requests(lane)
        if other is None:
            self._lanes.pop(lane, None)
            log.info("lane_mended", key=key)
        else:
            self._lanes[lane] = other
            log.error("lane_of_another_type", key=key, type=other, remedy=f"RENAME {key} to another name, or DEL it")
        self._on_change()
