"""What a line of a stream holds, and halves of characters that come apart."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llm_routerd.backends.wire.messages import HalvesJoiner, joined_halves, message_of
from llm_routerd.protocol.call import BackendError

if TYPE_CHECKING:
    from collections.abc import Iterable

SETTINGS = settings(max_examples=200, deadline=None)

units = st.lists(
    st.sampled_from(("a", "é", " ", "\ud83d", "\ud83d", "\ude00", "\ude00", "\ud800", "\udfff", "\udbff", "\udc00")),
    max_size=8,
)
objects = st.dictionaries(
    st.text(max_size=4), st.one_of(st.text(max_size=8), st.integers(-(2**63), 2**64 - 1), st.none()), max_size=3
)


def join(pieces: Iterable[str]) -> str | None:
    """The text of these pieces; None where half a character stands alone."""
    joiner = HalvesJoiner()
    try:
        text = "".join([joiner.join(piece) for piece in pieces])
        joiner.finish()
    except BackendError:
        return None
    return text


def by_codec(text: str) -> str | None:
    """The same of a whole text."""
    try:
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        return None


@SETTINGS
@given(units, st.lists(st.integers(0, 8), max_size=4))
@example(["\ud83d", "a", "\ude00"], [])
@example(["a", "\ud83d", "\ude00"], [2])
def test_halves_are_joined_wherever_they_come_apart(text: list[str], places: list[int]) -> None:
    """Each on its own, all at once, or cut anywhere: the characters, or a fault where one has no other half."""
    expected = by_codec("".join(text))
    ends = sorted(min(place, len(text)) for place in places)
    pieces = ["".join(text[a:b]) for a, b in zip([0, *ends], [*ends, len(text)], strict=True)]
    assert join(text) == join(pieces) == join(["".join(text)]) == expected


@SETTINGS
@given(st.text(max_size=20))
def test_whole_characters_pass(text: str) -> None:
    """As they are, also from a text of their halves."""
    halves = json.loads(json.dumps(text))
    assert joined_halves(halves) == text
    assert join(text) == text


@SETTINGS
@given(objects, st.sampled_from(("", " ", "\t")))
def test_object_is_the_message(value: dict[str, Any], blank: str) -> None:
    """However it is escaped."""
    for ascii_only in (True, False):
        payload = f"{blank}{json.dumps(value, ensure_ascii=ascii_only)}{blank}".encode()
        assert message_of(payload) == value


@SETTINGS
@given(st.binary(max_size=30))
def test_any_bytes_are_a_message_nothing_or_a_fault(payload: bytes) -> None:
    """Nothing else is raised; and what orjson reads is read as it does."""
    try:
        message = message_of(payload)
    except ValueError:
        with pytest.raises(orjson.JSONDecodeError):
            orjson.loads(payload)
        return
    assert message is None or isinstance(message, dict | list)


@pytest.mark.parametrize(
    "payload",
    [
        b'{"a": "\\ud83d", "b": NaN}',
        b'{"a": "\\ud83d", "b": Infinity}',
        b'{"a": "\\ud83d"',
        b'{"a": "\\ud83d\n"}',
        b'{"a": "\\ud83d", "b": ' + b"1" * 5000 + b"}",
        b'{"a": "\\ud83d", "b": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"a": "\\ud83"}',
        b"{'a': '\\ud83d'}",
    ],
    ids=["nan", "infinity", "cut", "line break", "long number", "deep", "short escape", "quotes"],
)
def test_half_a_character_makes_nothing_else_lawful(payload: bytes) -> None:
    """The other parser is as strict, and no depth is a crash."""
    with pytest.raises(ValueError, match=r"."):
        message_of(payload)


def test_megabytes_are_joined_in_linear_time() -> None:
    """Half a character in every piece."""
    began = time.process_time()
    assert join(["\ud83d", *(["\ude00\ud83d"] * 200_000), "\ude00"]) == "\U0001f600" * 200_001
    assert join(["\ud83d\ude00" * 500_000]) == "\U0001f600" * 500_000
    assert time.process_time() - began < 2.0
