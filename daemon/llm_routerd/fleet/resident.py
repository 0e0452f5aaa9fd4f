"""The strategy `resident`: whatever is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_routerd.fleet.picture import Picture, Place


def first_resident(deployments: Sequence[tuple[str, Sequence[Place]]], picture: Picture, now: float) -> str:
    """The name of the first deployment whose model is resident on a box that is up, else the first of all.

    Args:
        deployments: names in the chain's order, with the places of each; at least one.
        picture: what is resident where; a box that does not tell counts for none.
        now: by the picture's clock.
    """
    resident = {
        (view.box.name, each.model) for view in picture.boxes if view.down_until <= now for each in view.residents or ()
    }
    for name, places in deployments:
        if any((place.box, place.model) in resident for place in places):
            return name
    return deployments[0][0]
