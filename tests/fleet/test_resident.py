"""Whatever is loaded, and where a key belongs."""

from __future__ import annotations

from llm_routerd.fleet.affinity import preference
from llm_routerd.fleet.picture import Place
from llm_routerd.fleet.resident import first_resident
from tests.fleet.scene import NOW, picture, view

CHAIN = (("big", (Place("x", "a"), Place("y", "a"))), ("small", (Place("x", "b"),)))


def test_first_deployment_that_is_resident_anywhere_is_taken() -> None:
    """In the chain's order."""
    assert first_resident(CHAIN, picture(view("x", residents=("b",)), view("y")), NOW) == "small"
    assert first_resident(CHAIN, picture(view("x", residents=("b",)), view("y", residents=("a",))), NOW) == "big"


def test_first_of_all_is_taken_where_none_is_resident() -> None:
    """Nor counts what is on a box that is down, or does not tell."""
    down = view("x", residents=("b",), down_until=NOW + 1)
    assert first_resident(CHAIN, picture(down), NOW) == "big"
    assert first_resident(CHAIN, picture(view("x", residents=None)), NOW) == "big"
    assert first_resident(CHAIN, picture(), NOW) == "big"


def test_box_that_goes_takes_only_its_own_keys_along() -> None:
    """Rendezvous hashing: others stay where they are, and all boxes have about as many."""
    boxes = [f"box{i}" for i in range(5)]
    keys = [f"key{i}" for i in range(2000)]
    home = {key: max(boxes, key=lambda box: preference(key, box)) for key in keys}
    left = {key: max(boxes[1:], key=lambda box: preference(key, box)) for key in keys}
    assert all(home[key] == left[key] for key in keys if home[key] != "box0")
    counts = [list(home.values()).count(box) for box in boxes]
    assert max(counts) < 1.25 * min(counts)
