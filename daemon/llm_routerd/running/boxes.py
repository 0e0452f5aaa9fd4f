"""From the picture that is shared to the one that the rule reads, and the names that both have for a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_routerd.fleet.estimates import Estimates, Seen
from llm_routerd.fleet.picture import Box, BoxView, Loading, Picture, Place, Resident, Running, Waiting, Waking

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from llm_routerd.config.fleet import Box as ConfiguredBox
    from llm_routerd.config.tree import Deployment
    from llm_routerd.queue.picture import BoxCall, BoxSeen
    from llm_routerd.queue.picture import Picture as SharedPicture

_GIGABYTE = 10**9
ASK_SECONDS = 2.0  # so long whether a box answers is waited for


def resident_name(deployment: Deployment) -> str:
    """What its box calls its model: for Ollama a name without a tag is that of the latest."""
    name = deployment.model_name
    is_tagged = deployment.backend_kind != "ollama" or ":" in name.rpartition("/")[2]
    return name if is_tagged else f"{name}:latest"


def plannable(
    shared: SharedPicture,
    boxes: Mapping[str, ConfiguredBox],
    *,
    pinned: Collection[tuple[str, str]],
    turns: Mapping[str, float],
    served: dict[str, str],
) -> Picture:
    """The rule's picture, in seconds of the clock of whoever keeps the shared one.

    Args:
        shared: what all workers know.
        boxes: of the configuration.
        pinned: boxes and models that nothing pushes out.
        turns: of calls that were passed over, since when, as far as this worker has seen it and none is told.
        served: see `fleet.picture.Picture`.
    """
    resident = [found for seen in shared.boxes.values() for found in (seen.resident or {}).items()]
    sizes = {model: found.bytes for model, found in resident if found.bytes}
    views = tuple(_view(box, shared, pinned, sizes) for box in boxes.values())
    waiting = tuple(
        Waiting(
            token=each.token,
            worker=each.worker,
            lane=each.lane,
            candidates=tuple(Place(place.box, place.model) for place in each.candidates if place.box in boxes),
            since=min(each.since_ms, shared.now_ms) / 1000,
            seconds=each.expected_seconds,
            tenant=each.tenant or "",
            tokens=each.tokens,
            prompt_tokens=each.prompt_tokens,
            key=each.affinity or "",
            turn=_turn(each.turn_ms, turns.get(each.token), shared.now_ms),
            begin_by=(each.since_ms / 1000 + each.begin_within) if each.begin_within else None,
            end_by=(each.since_ms / 1000 + each.end_within) if each.end_within else None,
        )
        for each in shared.waiting
    )
    return Picture(boxes=views, waiting=waiting, estimates=_estimates(shared), sizes=sizes, served=served)


def _view(
    box: ConfiguredBox, shared: SharedPicture, pinned: Collection[tuple[str, str]], sizes: Mapping[str, int]
) -> BoxView:
    seen = shared.boxes.get(box.name)
    running = [each for each in shared.calls if each.box == box.name]
    waking = _waking(box, seen, shared.now_ms)
    residents = _residents(box.name, seen, pinned)
    if waking is not None:  # what was in its memory is not there any more
        residents = () if box.kind == "ollama" else None
    loading = () if residents is None else _loading(residents, running)
    memory = round(box.memory_gb * _GIGABYTE)
    if residents and loading:
        busy = {each.model for each in running}
        need = [sizes.get(each.model, 0) for each in loading]
        residents = _left_beside(need, residents, busy, memory)
    return BoxView(
        box=Box(name=box.name, slots=box.slots, reserve=box.reserve, memory_bytes=memory),
        residents=residents,
        loading=loading,
        running=tuple(
            Running(
                token=each.token,
                worker=each.worker,
                model=each.model,
                lane=each.lane,
                began=min(each.began_ms, shared.now_ms) / 1000,
                seconds=each.expected_seconds,
                tenant=each.tenant or "",
                is_firm=each.is_firm,
            )
            for each in running
        ),
        down_until=_down_until(box, seen, shared.now_ms) / 1000,
        waking=waking,
    )


def boot_seconds(box: ConfiguredBox, seen: BoxSeen | None) -> float:
    """From the packet until it answers, as was seen, or as the operator says."""
    return (0.0 if seen is None else seen.power.boot_seconds) or box.wake_seconds


def has_awoken(box: ConfiguredBox, before: SharedPicture, now: SharedPicture) -> bool:
    """Whether a box that can be woken, and was, or was put to sleep, or silent, has answered since."""
    earlier, later = before.boxes.get(box.name), now.boxes.get(box.name)
    if not box.wake or earlier is None or later is None or not later.power.is_awake(now.now_ms):
        return False
    power = earlier.power
    return bool(power.woken_ms or power.asleep_ms or earlier.down_until_ms is not None)


def _down_until(box: ConfiguredBox, seen: BoxSeen | None, now_ms: int) -> int:
    """No call begins there before (ms); where it may be asleep, not before somebody has looked whether it is."""
    if seen is not None and seen.down_until_ms is not None:
        return seen.down_until_ms
    is_unsure = box.wake and (seen is None or not seen.power.is_awake(now_ms))
    return now_ms + round(ASK_SECONDS * 1000) if is_unsure else 0


def _turn(told_ms: int | None, noted: float | None, now_ms: int) -> float | None:
    """Since when a call is passed over; a clock that was set back makes it no longer."""
    turn = noted if told_ms is None else told_ms / 1000
    return None if turn is None else min(turn, now_ms / 1000)


def _waking(box: ConfiguredBox, seen: BoxSeen | None, now_ms: int) -> Waking | None:
    """Of a box that does not answer and can be woken; None: it does, or nobody knows, or nobody can."""
    if not box.wake or seen is None or seen.power.is_awake(now_ms):
        return None
    power = seen.power
    if not (power.asleep_ms or power.woken_ms or seen.down_until_ms is not None):
        return None
    boots = bool(power.woken_ms) and now_ms < power.boots_until_ms
    return Waking(
        boot_seconds=boot_seconds(box, seen),
        woken=power.woken_ms / 1000 if boots else None,
        not_before=power.wake_after_ms / 1000,
        is_late=bool(power.woken_ms) and not boots,
    )


def _residents(name: str, seen: BoxSeen | None, pinned: Collection[tuple[str, str]]) -> tuple[Resident, ...] | None:
    if seen is None or seen.resident is None:
        return None
    return tuple(
        Resident(model=model, bytes=found.bytes, since=found.since_ms / 1000, pinned=(name, model) in pinned)
        for model, found in seen.resident.items()
    )


def _loading(residents: tuple[Resident, ...], running: list[BoxCall]) -> tuple[Loading, ...]:
    """Whose model is not resident, though a call of it runs, is being loaded."""
    there = {each.model for each in residents}
    began: dict[str, float] = {}
    for call in running:
        if call.model and call.model not in there:
            began.setdefault(call.model, call.began_ms / 1000)
    return tuple(Loading(model=model, began=at) for model, at in began.items())


def _left_beside(
    need: list[int], residents: tuple[Resident, ...], busy: Collection[str], memory: int
) -> tuple[Resident, ...]:
    """What stays in memory beside models that are being loaded; the box has not been asked since they were begun.

    Else calls would begin there whose model is being pushed out, and it would be loaded again at once.  What is not
    known is taken to need all that is neither pinned nor used, as the rule takes it (`fleet.options`).

    Args:
        need: bytes of what is being loaded; 0: not known.
        residents: as the box told last.
        busy: models that calls run on, which nothing pushes out.
        memory: bytes; 0: not known.
    """
    idle = sorted((each for each in residents if not (each.pinned or each.model in busy)), key=lambda each: each.model)
    sizes = [*need, *(each.bytes for each in residents)]
    if not memory or not all(sizes):
        gone = {each.model for each in idle}
    else:
        gone, lack = set(), sum(sizes) - memory
        for each in idle:
            if lack <= 0:
                break
            gone.add(each.model)
            lack -= each.bytes
    return tuple(each for each in residents if each.model not in gone)


def _estimates(shared: SharedPicture) -> Estimates:
    at = shared.now_ms / 1000
    return Estimates(
        load_seconds={
            (name, model): Seen(value, 1.0, at)
            for name, seen in shared.boxes.items()
            for model, value in seen.load_seconds.items()
        },
        tokens_per_second={
            (name, model): Seen(value, 1.0, at)
            for name, seen in shared.boxes.items()
            for model, value in seen.tokens_per_second.items()
        },
    )
