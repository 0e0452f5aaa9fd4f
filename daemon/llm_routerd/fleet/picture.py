"""What is known of boxes and calls, in all workers alike.

All times are seconds of one clock, all sizes bytes.  Everything may be late or wrong: it then leads to a slower choice.
"""

from __future__ import annotations

from typing import Final, Literal

from msgspec import Struct, field

from llm_routerd.fleet.estimates import Estimates

Lane = Literal["high", "normal", "low"]
LANES: Final[tuple[Lane, ...]] = ("high", "normal", "low")


class Place(Struct, frozen=True):
    """A model on a box."""

    box: str
    model: str


class Box(Struct, frozen=True, kw_only=True):
    """What an operator says of a box.

    Attributes:
        slots: calls at once, over all workers.
        reserve: how many of them are for the high lane only.
        memory_bytes: what models share; 0: not known, and then each model is taken to need all of it.
    """

    name: str
    slots: int
    reserve: int = 0
    memory_bytes: int = 0


class Resident(Struct, frozen=True, kw_only=True):
    """A model in a box's memory.

    Attributes:
        bytes: 0: not known.
        since: when it had been loaded.
        used: when a call last began or ended on it; what was used longest ago is pushed out first.
        pinned: nothing pushes it out.
    """

    model: str
    bytes: int = 0
    since: float = 0.0
    used: float = 0.0
    pinned: bool = False


class Loading(Struct, frozen=True, kw_only=True):
    """A model on its way into memory, for a call that is among those running.

    Whoever began it takes it out again, and a lease does where he died.
    """

    model: str
    began: float
    bytes: int = 0


class Running(Struct, frozen=True, kw_only=True):
    """A call that has a slot.

    Attributes:
        seconds: how long it was expected to take when it began, loading included.
        is_cut: its worker has been told to break it off, so that the slot is about to be free.
        is_firm: it has been cut often enough, and is not any more.
    """

    token: str
    worker: str
    model: str
    lane: Lane
    began: float
    seconds: float
    tenant: str = ""
    is_cut: bool = False
    is_firm: bool = False


class Waking(Struct, frozen=True, kw_only=True):
    """What can be done about a box that does not answer: it sleeps, or boots.

    Attributes:
        boot_seconds: from the packet until it answers, as expected.
        woken: when the packet was sent, if it is still expected to answer; None: it has not been, or in vain.
        not_before: no packet is sent before: it is still going to sleep, or did not come when it was woken last.
        is_late: it did not come.
    """

    boot_seconds: float
    woken: float | None = None
    not_before: float = 0.0
    is_late: bool = False


class BoxView(Struct, frozen=True, kw_only=True):
    """A box at this moment.

    Attributes:
        residents: None: it does not tell, and is taken to have whatever it may serve.
        down_until: no call begins on it before; 0: it is up.
        waking: None: it is up, or nobody can wake it.
    """

    box: Box
    residents: tuple[Resident, ...] | None = None
    loading: tuple[Loading, ...] = ()
    running: tuple[Running, ...] = ()
    down_until: float = 0.0
    waking: Waking | None = None


class Waiting(Struct, frozen=True, kw_only=True):
    """A call that waits for a slot.

    Attributes:
        token: its name, unlike all others'.
        worker: who will make it.
        candidates: where it may be served.
        seconds: what it is expected to take where nothing is known of a box's speed.
        tokens: of its answer, as expected; 0: `seconds` is all that is known.
        prompt_tokens: what a box reads that has not read the beginning before.
        key: of the beginning of its messages; "": no box is better than another.
        turn: when it was first passed over for others whose model was resident (`Plan.turns`); None: it was not.
        begin_by: when it is given up if it has no slot; None: never.  Asked of what waits for a boot alone.
        end_by: likewise, if it has no answer.
    """

    token: str
    worker: str
    lane: Lane
    candidates: tuple[Place, ...]
    since: float
    seconds: float = 10.0
    tenant: str = ""
    tokens: int = 0
    prompt_tokens: int = 0
    key: str = ""
    turn: float | None = None
    begin_by: float | None = None
    end_by: float | None = None


class Picture(Struct, frozen=True, kw_only=True):
    """All that is known.

    Attributes:
        waiting: the calls of all workers, in any order.
        sizes: of models, as they were seen anywhere.
        served: for a key the box that has served it last.
    """

    boxes: tuple[BoxView, ...]
    waiting: tuple[Waiting, ...] = ()
    estimates: Estimates = field(default_factory=Estimates)
    sizes: dict[str, int] = field(default_factory=dict)
    served: dict[str, str] = field(default_factory=dict)


class Rules(Struct, frozen=True, kw_only=True):
    """What an operator chooses.

    Attributes:
        max_wait: how many seconds others may go first, because their model is resident, once it is a call's turn.
        min_resident: how many seconds a model stays that was loaded, while calls wait for it.
        preempt: whether a call of the low lane is cut for one of the high lane that finds no place.
    """

    max_wait: float = 30.0
    min_resident: float = 20.0
    preempt: bool = False
