"""What a gate is shown, and what it says."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from llm_routerd.config.tree import Config
    from llm_routerd.protocol.codes import ErrorCode
    from llm_routerd.protocol.request import Request
    from llm_routerd.worker.placement import Placement


class Asked(Struct, frozen=True):
    """What is known when a request is about to be run.

    Attributes:
        request: it.
        entry: its ID in the lane.
        deliveries: how often it has been delivered.
        placement: the shard that it stands in.
        config: the one in force.
    """

    request: Request
    entry: str
    deliveries: int
    placement: Placement
    config: Config


class Refusal(Struct, frozen=True, kw_only=True):
    """Why a request is not answered.

    Attributes:
        code, message: of its final error.
        elsewhere: another worker may answer it.
        was_begun: its events stream is its own, and tells of attempts.
    """

    code: ErrorCode
    message: str
    elsewhere: bool = False
    was_begun: bool = False


Gate = Callable[[Asked], Refusal | None]
