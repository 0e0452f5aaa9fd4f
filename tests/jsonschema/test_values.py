"""The walk through a JSON value, and the way along a reference."""

from __future__ import annotations

from typing import Any

import pytest

from llm_routerd.jsonschema.values import depth_of, follow, levels
from tests.support.schemas import nested

DOCUMENT: dict[str, Any] = {"$defs": {"a b": {"x": [1, {"y": 2}]}, "c/d~e": 3}, "": {"": 7}, "anchor": 8, "1": 9}


def test_levels_hold_each_value_once_from_the_top_down() -> None:
    """Names are no values; an empty container holds none."""
    assert list(levels({"a": [1, {}], "b": {"c": [None]}})) == [
        [{"a": [1, {}], "b": {"c": [None]}}],
        [[1, {}], {"c": [None]}],
        [1, {}, [None]],
        [None],
    ]
    assert list(levels(3)) == [[3]]


@pytest.mark.parametrize(
    ("value", "depth"), [(3, 0), ([], 0), ({"a": []}, 1), ([[], [[1]]], 3), (nested(5000, 1), 5000)]
)
def test_depth_is_that_of_the_deepest_value(value: Any, depth: int) -> None:
    """However deep: nothing recurses."""
    assert depth_of(value) == depth


@pytest.mark.parametrize(
    ("reference", "keys"),
    [
        ("", []),
        ("#", []),
        ("#/", [""]),
        ("#//", ["", ""]),
        ("#/anchor", ["anchor"]),
        ("#/1", ["1"]),
        ("#/$defs/a%20b/x/1/y", ["$defs", "a b", "x", 1, "y"]),
        ("#/%24defs%2Fa%20b", ["$defs", "a b"]),
        ("#/$defs/c~1d~0e", ["$defs", "c/d~e"]),
    ],
)
def test_reference_leads_down_the_document(reference: str, keys: list[str | int]) -> None:
    """Key by key, with what lies at each."""
    steps = follow(DOCUMENT, reference)
    assert steps is not None
    assert [key for key, _ in steps] == keys
    place: Any = DOCUMENT
    for key, value in steps:
        place = place[key]
        assert value is place


@pytest.mark.parametrize(
    "reference",
    ["#anchor", "anchor", "/anchor", "%23/anchor", "http://h/x#/anchor", "#/no", "#/$defs/a b/x/2", "#/$defs/a b/x/01",
     "#/$defs/a b/x/-", "#/$defs/a b/x/\u0661", "#/anchor/0", "#/1/x"],
)  # fmt: skip
def test_reference_that_is_no_pointer_or_leads_to_nothing(reference: str) -> None:
    """Anchors, other documents, and places that are not there."""
    assert follow(DOCUMENT, reference) is None
