"""Boxes and calls for tests of the fleet's rule: short to say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from llm_routerd.fleet.picture import Box, BoxView, Picture, Place, Resident, Running, Waiting
from llm_routerd.fleet.plan import make_plan

if TYPE_CHECKING:
    from llm_routerd.fleet.picture import Lane, Rules
    from llm_routerd.fleet.plan import Begin
    from llm_routerd.fleet.waits import Wait

NOW = 1000.0
GIB = 1 << 30
SIZES = {"a": 8 * GIB, "b": 8 * GIB, "c": 4 * GIB, "huge": 100 * GIB}


def resident(model: str, *, ago: float = 500.0, pinned: bool = False) -> Resident:
    """Loaded, and used, so many seconds ago."""
    return Resident(model=model, bytes=SIZES.get(model, 0), since=NOW - ago, used=NOW - ago, pinned=pinned)


def running(token: str, model: str, lane: Lane = "normal", *, left: float = 10.0, tenant: str = "") -> Running:
    """A call that is expected to last so many seconds more."""
    began = NOW - 5.0
    return Running(token=token, worker="w1", model=model, lane=lane, began=began, seconds=left + 5.0, tenant=tenant)


def view(name: str, *, slots: int = 1, reserve: int = 0, gib: int = 10, residents: Any = (), **more: Any) -> BoxView:
    """A box that has room for one model; `residents` by name, or as they are; None: it does not tell."""
    held = None if residents is None else tuple(resident(each) if isinstance(each, str) else each for each in residents)
    box = Box(name=name, slots=slots, reserve=reserve, memory_bytes=gib * GIB)
    return BoxView(box=box, residents=held, **more)


def waiting(token: str, model: str, boxes: str = "x", *, ago: float = 1.0, **more: Any) -> Waiting:
    """A call that waits for any of these boxes, named by a letter each."""
    given: dict[str, Any] = {"lane": "normal", "worker": "w1", "seconds": 5.0} | more
    return Waiting(token=token, candidates=tuple(Place(box, model) for box in boxes), since=NOW - ago, **given)


def picture(*boxes: BoxView, calls: tuple[Waiting, ...] | list[Waiting] = (), **more: Any) -> Picture:
    """All of it."""
    return Picture(boxes=boxes, waiting=tuple(calls), sizes=SIZES, **more)


def place(call: Waiting, seen: Picture, rules: Rules, now: float) -> Begin | Wait:
    """What becomes of one call, among all others that wait."""
    others = tuple(each for each in seen.waiting if each.token != call.token)
    plan = make_plan(replace(seen, waiting=(*others, call)), rules, now)
    return plan.waits.get(call.token) or next(each for each in plan.begin if each.token == call.token)
