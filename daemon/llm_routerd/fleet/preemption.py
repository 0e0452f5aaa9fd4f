"""Whom to cut for a call of the high lane that finds no place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from msgspec import Struct

from llm_routerd.fleet.options import Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from llm_routerd.fleet.options import Option
    from llm_routerd.fleet.picture import Place, Running, Waiting
    from llm_routerd.fleet.standing import Standing
    from llm_routerd.fleet.waits import Wait

_WORTH_A_CUT_SECONDS: Final = 1.0  # what is free sooner needs no cut


class Cut(Struct, frozen=True, kw_only=True):
    """A call of the low lane to break off, and to begin again later.

    Attributes:
        worker: whose call it is.
        for_token: the call that gets its place.
    """

    token: str
    worker: str
    box: str
    for_token: str


def cuts_for(
    late: Sequence[Wait],
    calls: Mapping[str, Waiting],
    boxes: Mapping[str, Standing],
    ask: Callable[[str, str], Option | None],
) -> tuple[Cut, ...]:
    """For each waiting call, in turn, the fewest calls of the low lane whose end lets it begin, those begun last first.

    Args:
        late: of the high lane, those that do not begin now.
        calls: the waiting calls, by token.
        boxes: as the plan for the high lane leaves them.
        ask: what a box is for a call of the high lane, of a model, to which what others want is no obstacle.
    """
    cuts: list[Cut] = []
    spared = {name for name, standing in boxes.items() if not any(map(_may_be_cut, standing.running))}
    gone: set[str] = set()
    in_vain: set[Place] = set()
    for wait in late:
        if wait.seconds <= _WORTH_A_CUT_SECONDS:
            continue
        ways = []
        for place in calls[wait.token].candidates:
            if place.box in spared or place in in_vain or place.box not in boxes:
                continue
            way = _way(boxes[place.box], ask(place.box, place.model), gone)
            if way:
                ways.append((len(way), -way[0].began, place.box, way))
            else:
                in_vain.add(place)
        if ways:
            *_, box, way = min(ways, key=lambda each: each[:3])
            gone.update(each.token for each in way)
            cuts += (Cut(token=each.token, worker=each.worker, box=box, for_token=wait.token) for each in way)
    return tuple(cuts)


def _way(standing: Standing, found: Option | None, gone: set[str]) -> list[Running]:
    """The calls to cut so that a call begins there, the last begun first; empty: cutting does not help."""
    if found is None or standing.loads:
        return []
    running = [call for call in standing.running if call.token not in gone and not call.is_cut]
    running.sort(key=lambda call: (-call.began, call.token))
    obstacles = [call for call in running if call.model in found.victims]
    if not obstacles and found.kind in (Kind.QUEUED, Kind.DRAIN):  # a slot is all that lacks
        return [call for call in running if _may_be_cut(call)][:1]
    return obstacles if all(map(_may_be_cut, obstacles)) else []


def _may_be_cut(call: Running) -> bool:
    return call.lane == "low" and not call.is_firm
