"""From the picture that is shared to the one that the rule reads, and the names that both have for a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_routerd.fleet.estimates import Estimates, Seen
from llm_routerd.fleet.picture import Box, BoxView, Loading, Picture, Place, Resident, Running, Waiting

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from llm_routerd.config.fleet import Box as ConfiguredBox
    from llm_routerd.config.tree import Deployment
    from llm_routerd.queue.picture import BoxCall, BoxSeen
    from llm_routerd.queue.picture import Picture as SharedPicture

_GIGABYTE = 10**9


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
        turns: of calls that were passed over, since when.
        served: see `fleet.picture.Picture`.
    """
    views = tuple(_view(box, shared, pinned) for box in boxes.values())
    waiting = tuple(
        Waiting(
            token=each.token,
            worker=each.worker,
            lane=each.lane,
            candidates=tuple(Place(place.box, place.model) for place in each.candidates if place.box in boxes),
            since=each.since_ms / 1000,
            seconds=each.expected_seconds,
            tenant=each.tenant or "",
            tokens=each.tokens,
            prompt_tokens=each.prompt_tokens,
            key=each.affinity or "",
            turn=turns.get(each.token),
        )
        for each in shared.waiting
    )
    resident = [found for seen in shared.boxes.values() for found in (seen.resident or {}).items()]
    sizes = {model: found.bytes for model, found in resident if found.bytes}
    return Picture(boxes=views, waiting=waiting, estimates=_estimates(shared), sizes=sizes, served=served)


def _view(box: ConfiguredBox, shared: SharedPicture, pinned: Collection[tuple[str, str]]) -> BoxView:
    seen = shared.boxes.get(box.name)
    running = [each for each in shared.calls if each.box == box.name]
    residents = _residents(box.name, seen, pinned)
    loading = () if residents is None else _loading(residents, running)
    return BoxView(
        box=Box(
            name=box.name,
            slots=box.slots,
            reserve=box.reserve,
            memory_bytes=round(box.memory_gb * _GIGABYTE),
        ),
        residents=residents,
        loading=loading,
        running=tuple(
            Running(
                token=each.token,
                worker=each.worker,
                model=each.model,
                lane=each.lane,
                began=each.began_ms / 1000,
                seconds=each.expected_seconds,
                tenant=each.tenant or "",
                is_firm=each.is_firm,
            )
            for each in running
        ),
        down_until=0.0 if seen is None or seen.down_until_ms is None else seen.down_until_ms / 1000,
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
