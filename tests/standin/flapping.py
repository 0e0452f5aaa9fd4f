"""A box that is there one moment and not the next, and one whose page of what is resident cannot be relied on.

`POST /_standin/flap` with a `Flap` as JSON, or `StandIn.flap`; each takes the place of the one before, so that `{}` ends
all of it.  What is under `/_standin/` answers whatever the flap, unless nobody listens.
"""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

PAGES = frozenset({"/api/ps", "/slots", "/metrics"})
"""The pages that tell what a box is at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flap:
    """What is wrong.

    Attributes:
        refuse_seconds: so long connections are refused, and those that are open dropped at its beginning.
        status: of every answer, in place of any other; 0: all is well.
        status_seconds: how long; None: until the next flap.
        ps: what the page of what is resident does: it comes late (`slow`), never, or names other models (`lies`).
        ps_seconds: how late.
        ps_models: that it names, where it lies.
    """

    refuse_seconds: float = 0.0
    status: int = 0
    status_seconds: float | None = None
    ps: Literal["", "slow", "never", "lies"] = ""
    ps_seconds: float = 1.0
    ps_models: tuple[str, ...] = ()


class Flapping:
    """The flap that is on, with its clock."""

    def __init__(self, flap: Flap | None = None) -> None:
        self._flap = flap or Flap()
        self._until = time.monotonic() + (math.inf if self._flap.status_seconds is None else self._flap.status_seconds)

    @property
    def status(self) -> int:
        """That is answered now; 0: all is well."""
        return self._flap.status if time.monotonic() < self._until else 0

    @property
    def lie(self) -> tuple[str, ...] | None:
        """The models that are told as resident; None: the truth is told."""
        return self._flap.ps_models if self._flap.ps == "lies" else None

    async def hold_up(self, path: str) -> None:
        """Let whoever asks for such a page wait."""
        if path in PAGES and self._flap.ps == "slow":
            await asyncio.sleep(self._flap.ps_seconds)
        elif path in PAGES and self._flap.ps == "never":
            await asyncio.Event().wait()  # until the client's leaving cancels this


def flap_from(values: Mapping[str, Any]) -> Flap:
    """A flap from JSON.

    Raises:
        TypeError: it has no such field.
    """
    return replace(Flap(**values), ps_models=tuple(values.get("ps_models", ())))
