"""What a worker tells the others of itself, and what becomes of it where it cannot."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_routerd.logs import get_logger
from llm_routerd.queue.connection import ResponseError, describe

if TYPE_CHECKING:
    from llm_routerd.config.tree import Config

log = get_logger()


def models_of(config: Config) -> tuple[str, ...]:
    """The names that a request may give as its `model`."""
    return tuple(dict.fromkeys((*config.chains, *config.deployments)))


class Told:
    """Says once that something is refused, and once that it is no more."""

    def __init__(self, event: str) -> None:
        self._event = event
        self._is_told = False

    def __call__(self, why: str | None) -> None:
        """A refusal of the server's in its own words, which may quote users and keys; None: none."""
        if (why is not None) is self._is_told:
            return
        self._is_told = why is not None
        if why is None:
            log.info("redis_allows_again", what=self._event)
        else:
            log.warning(self._event, why=describe(ResponseError(why)))
