"""Why a call waits, and for how long: for whoever waits."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from msgspec import Struct


class Why(StrEnum):
    """What a waiting call waits for."""

    QUEUED = "queued"  # a slot beside its model
    LOADING = "loading"  # its model
    OTHERS = "others"  # those whose model is resident
    DRAINING = "draining"  # calls that run where its model is to be loaded
    WAKING = "waking"  # its box
    LATE = "late"  # its box would be awake too late for it
    DOWN = "down"
    NEVER = "never"


_REASONS: Final = {
    Why.LOADING: "loading {model} on {box}",
    Why.OTHERS: "{box} answers for what it has loaded before it loads {model}",
    Why.DRAINING: "{box} finishes what runs before it loads {model}",
    Why.WAKING: "waking {box}",
    Why.LATE: "waking {box} takes longer than this may wait",
    Why.DOWN: "{box} is down",
}


class Wait(Struct, frozen=True, kw_only=True):
    """A call that does not begin now.

    Attributes:
        seconds: until it begins to be answered, as estimated; infinite: no box can serve it as things are.
        before: how many calls wait before it for this box.
        box: "" where there is none.
    """

    token: str
    worker: str
    seconds: float
    why: Why
    box: str = ""
    model: str = ""
    before: int = 0

    @property
    def reason(self) -> str:
        """For people."""
        if self.why is Why.QUEUED:
            return f"{self.before} before you on {self.box}" if self.before else f"next on {self.box}"
        if self.why is Why.NEVER:
            return f"no box has room for {self.model}" if self.model else "no box serves this"
        return _REASONS[self.why].format(box=self.box, model=self.model)
