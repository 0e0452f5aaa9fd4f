"""What a box costs a call: whether it may begin there at once, and if not, what has to happen first."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct
from msgspec.structs import replace

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from llm_routerd.fleet.estimates import Reckoning
    from llm_routerd.fleet.picture import Resident, Rules
    from llm_routerd.fleet.standing import Standing

# Half of what is pushed out is taken to be wanted again.
_RELOAD_SHARE: Final = 0.5


class Kind(IntEnum):
    """What a call finds on a box."""

    OPEN = 0  # its model, and a free slot
    QUEUED = 1  # its model, and no slot
    COMING = 2  # its model will be loaded, for another call
    LOAD = 3  # a slot, and memory that nobody wants
    DRAIN = 4  # memory in which calls run, no slot, or another load first
    HELD = 5  # memory that others want soon
    ASLEEP = 6  # nothing yet: it sleeps or boots


class Option(Struct, frozen=True, kw_only=True):
    """A candidate of a call.

    Attributes:
        ends: when each slot is free for the lane, as far as it is planned: a heap, which goes on changing.
        speed: tokens/s of an answer; None: not known.
        reading_speed: tokens/s of a prompt.
        ready: seconds until its model is there, or may be loaded; a slot may take longer.
        load_seconds: of loading it then.
        fixed_seconds: that, and what others lose.
        victims: what is taken to be pushed out.
        push_out: what is known to be, by the memory that the box has.
    """

    standing: Standing
    model: str
    kind: Kind
    ends: list[float]
    speed: float | None
    reading_speed: float
    ready: float = 0.0
    load_seconds: float = 0.0
    fixed_seconds: float = 0.0
    victims: tuple[str, ...] = ()
    push_out: tuple[str, ...] = ()


class Asked(Struct, frozen=True, kw_only=True):
    """For which kind of call options are looked for.

    Attributes:
        patience: for how many seconds yet others may go first; at 0 what they want holds a model for `min_resident`
            at most.
        heeds_plans: whether a model counts as coming that is not being loaded yet.
        wanted: how many calls of the lane and of higher ones wait for a model on a box.
    """

    rank: int
    now: float
    rules: Rules
    reckoning: Reckoning
    patience: float
    heeds_plans: bool
    wanted: Mapping[tuple[str, str], int]


def option(standing: Standing, model: str, asked: Asked) -> Option | None:
    """What the box is for a call of this model, if it is up or can be woken; None: it cannot serve it as things are."""
    if not standing.serves(asked.rank) or not (standing.is_up or standing.waking):
        return None
    if not standing.is_up:
        return _asleep(standing, model, asked)
    if standing.has(model):
        return _made(standing, model, asked, Kind.OPEN if standing.takes(asked.rank) else Kind.QUEUED)
    ready = standing.ready.get(model)
    if ready is not None and (asked.heeds_plans or model in standing.loads):
        return _made(standing, model, asked, Kind.COMING, ready=max(0.0, ready - asked.now))
    return _loading(standing, model, asked)


def _asleep(standing: Standing, model: str, asked: Asked) -> Option | None:
    """Once it is up nothing is in its memory, unless it does not tell; what is planned for it then is loaded once."""
    coming = standing.ready.get(model)
    if coming is not None:
        ready = max(standing.boot_left, coming - asked.now)
        return _made(standing, model, asked, Kind.ASLEEP, ready=ready)
    if standing.has(model):
        return _made(standing, model, asked, Kind.ASLEEP, ready=standing.boot_left)
    found = _loading(standing, model, asked)
    return None if found is None else replace(found, kind=Kind.ASLEEP, ready=standing.boot_left)


def _loading(standing: Standing, model: str, asked: Asked) -> Option | None:
    lack = _lack(standing, model)
    room = _room(standing, lack, asked)
    if room is None:
        return None
    kind, victims = room
    ready = standing.drain_seconds(victims)
    if standing.loads:
        ready = max(ready, *(standing.ready[each] - asked.now for each in standing.loads))
    if kind is Kind.HELD:
        ready = max(ready, *(_held_seconds(standing.residents[each], asked) for each in victims))
    elif standing.loads or not standing.takes(asked.rank) or asked.rank >= standing.loads_closed_from:
        kind = Kind.DRAIN
    load_seconds = asked.reckoning.load_seconds(standing.name, model)
    lost = sum(asked.reckoning.load_seconds(standing.name, each) for each in victims)
    return _made(
        standing,
        model,
        asked,
        kind,
        ready=ready,
        load_seconds=load_seconds,
        fixed_seconds=load_seconds + _RELOAD_SHARE * lost,
        victims=victims,
        push_out=() if lack is None else victims,
    )


def _made(standing: Standing, model: str, asked: Asked, kind: Kind, **more: Any) -> Option:
    return Option(
        standing=standing,
        model=model,
        kind=kind,
        ends=standing.ends_of(asked.rank),
        speed=asked.reckoning.tokens_per_second(standing.name, model),
        reading_speed=asked.reckoning.prompt_tokens_per_second(standing.name, model),
        **more,
    )


def _lack(standing: Standing, model: str) -> int | None:
    """How many bytes have to become free for the model; None: that is not known."""
    sizes = [*(standing.size(each) for each in standing.residents), *standing.loading_bytes.values()]
    size = standing.size(model)
    if not standing.box.memory_bytes or not size or not all(sizes):
        return None
    return max(0, sum(sizes) + size - standing.box.memory_bytes)


def _room(standing: Standing, lack: int | None, asked: Asked) -> tuple[Kind, tuple[str, ...]] | None:
    """Whether a model may be loaded, and in place of which others; None: there is no room for it.

    `lack` is how many bytes have to become free; None: that is not known.
    Those go first that nobody wants, and of them those whose last use is longest ago.
    """
    others = [each for each in standing.residents.values() if not each.pinned]
    held = _holds(standing, asked)
    others.sort(key=lambda each: (held(each), each.used, each.model))
    if lack is None:
        return _room_unknown(standing, others, held)
    kind, victims = Kind.LOAD, []
    for each in others:
        if lack <= 0:
            break
        lack -= standing.size(each.model)
        victims.append(each.model)
        kind = max(kind, held(each))
    # What is being loaded can be pushed out too, once it has been and its calls have ended.
    if 0 < lack <= sum(standing.loading_bytes.values()):
        return Kind.DRAIN, tuple(victims)
    return None if lack > 0 else (kind, tuple(victims))


def _room_unknown(
    standing: Standing, others: list[Resident], held: Callable[[Resident], Kind]
) -> tuple[Kind, tuple[str, ...]] | None:
    """What is not known is taken to need all that is not pinned; of a box of unknown memory a pinned model has all."""
    pinned = [each for each in standing.residents.values() if each.pinned]
    if pinned and sum(standing.size(each.model) for each in pinned) >= standing.box.memory_bytes:
        return None
    return max((held(each) for each in others), default=Kind.LOAD), tuple(each.model for each in others)


def _holds(standing: Standing, asked: Asked) -> Callable[[Resident], Kind]:
    """What keeps a model from being pushed out: those that want it soon (HELD), calls that run (DRAIN), or nothing."""

    def held(resident: Resident) -> Kind:
        if asked.wanted.get((standing.name, resident.model), 0) > 0 and _held_seconds(resident, asked) > 0:
            return Kind.HELD
        return Kind.DRAIN if standing.runs[resident.model] else Kind.LOAD

    return held


def _held_seconds(resident: Resident, asked: Asked) -> float:
    """How long those who want a model may hold it yet."""
    return max(asked.patience, resident.since + asked.rules.min_resident - asked.now)
