"""Numbers that come out of the parser as they went in, against arithmetic that keeps every digit."""

from __future__ import annotations

import json
import time
from decimal import Decimal
from typing import Any

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llm_routerd.protocol.numbers import carries_numbers, holds_inexact

MEGABYTE = 1_000_000
SETTINGS = settings(max_examples=300, deadline=None)

digits = st.text("0123456789", min_size=1, max_size=24)
integers = st.one_of(
    st.integers(-(10**25), 10**25),
    st.sampled_from((2**53, 2**63, 2**64, -(2**53), -(2**63), 10**16, 10**19)).flatmap(
        lambda near: st.integers(near - 3, near + 3)
    ),
).map(str)
fractions = st.tuples(integers, digits).map(".".join)
exponents = st.one_of(st.integers(-30, 30), st.integers(-400, 310))
scientific = st.tuples(
    st.one_of(integers, fractions), st.sampled_from("eE"), st.sampled_from(("", "+")), exponents
).map(lambda parts: f"{parts[0]}{parts[1]}{parts[2] if parts[3] >= 0 else ''}{parts[3]}")
literals = st.one_of(integers, fractions, scientific)


def carried(literal: str) -> Decimal | None:
    """What becomes of a number; None where the parser does not take it."""
    try:
        return Decimal(orjson.dumps(orjson.loads(literal)).decode())
    except orjson.JSONDecodeError:
        return None


def is_integer(number: Decimal) -> bool:
    """Exactly."""
    return number == 0 or number.as_tuple().exponent >= 0 or number == number.to_integral_value()  # type: ignore[operator] # it is finite


@SETTINGS
@given(literals)
@example("90071992.54740993e9")
@example("9007199254740993.0")
@example("90071992.54740993e8")
@example("123456789012345678e-1")
@example("18446744073709551616")
@example("-9223372036854775809")
@example("9007199254740993")
@example("-0")
@example("-0.0")
@example("1e22")
@example("1e23")
def test_integer_that_comes_out_as_another_is_found(literal: str) -> None:
    """However it is written; and one that comes out as itself is let through."""
    exact, result = Decimal(literal), carried(literal)
    if result is None:
        return
    for text in (literal, f"[{literal}]", f'{{"a": [1, {{"b": {literal}}}, 2]}}', f" {literal}\n"):
        told = carries_numbers(text)
        if literal.lstrip("-").isdigit():  # beyond 64 bits it would be a float, even one of the same value
            assert told == (-(2**63) <= exact < 2**64), literal
        elif is_integer(exact):
            assert told == (exact == result), (literal, result)
        elif abs(exact) < 2**53 - 1:
            assert told, literal  # digits that no reader keeps


@SETTINGS
@given(st.recursive(st.one_of(literals, st.text(max_size=8).map(json.dumps), st.sampled_from(("true", "null"))),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4).map(lambda each: f"[{','.join(each)}]"),
        st.lists(st.tuples(st.text(max_size=4).map(json.dumps), inner), max_size=4).map(
            lambda each: "{" + ",".join(f"{name}:{value}" for name, value in each) + "}"
        ),
    ), max_leaves=8))  # fmt: skip
def test_of_several_numbers_each_counts(text: str) -> None:
    """Against a parse that keeps all digits; digits in strings are no numbers."""
    numbers: list[str] = []
    json.loads(text, parse_int=numbers.append, parse_float=numbers.append)
    assert carries_numbers(text) == all(map(carries_numbers, numbers))


@SETTINGS
@given(st.text(max_size=40), st.text("0123456789eE+-.", max_size=40))
def test_digits_in_strings_are_no_numbers(text: str, digits: str) -> None:
    """An account number, a hash: nothing is parsed of them."""
    assert carries_numbers(json.dumps({text: digits, digits: [text + digits]}))


@SETTINGS
@given(literals)
def test_float_that_may_have_been_an_integer_is_found_after_parsing(literal: str) -> None:
    """Arguments of calls come parsed: whatever the text's own check refuses is refused there, too."""
    if carried(literal) is None:
        return
    value: Any = orjson.loads(literal)
    if not carries_numbers(literal):
        assert holds_inexact({"a": [value]})
    if isinstance(value, int) or abs(value) < 2**53:
        assert not holds_inexact([{"a": value}])


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1, 2.0**53, -1e300, [[{"a": 2**64}]], {"a": {"b": [1e16]}}])
def test_what_no_parser_of_ours_can_have_kept(value: Any) -> None:
    """At any depth."""
    assert holds_inexact(value)
    assert holds_inexact([1, {"x": "y"}, value])


@pytest.mark.parametrize("value", [None, True, "18446744073709551616", 2**64 - 1, -(2**63), 0.5, 2.0**53 - 1, [], {}])
def test_what_is_certain(value: Any) -> None:
    """No number, or one that is kept."""
    assert not holds_inexact(value)
    assert not holds_inexact({"a": [value]})


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_depth_is_no_crash(opening: str, closing: str) -> None:
    """As deep as orjson goes, and deeper."""
    deepest = 1000
    text = opening * deepest + "1e16" + closing * deepest
    assert holds_inexact(orjson.loads(text))
    for depth in (100, deepest, 200_000):
        carries_numbers(opening * depth + "1e16" + closing * depth)


HOSTILE = {
    "digits": "1" * MEGABYTE,
    "digits after a point": "0." + "1" * MEGABYTE,
    "digits, an exponent": "1" * MEGABYTE + "e5",
    "digits and a small exponent": "1" * MEGABYTE + f"e-{MEGABYTE}",
    "zeros": "1" + "0" * MEGABYTE + ".0",
    "zeros after a point": "9007199254740992." + "0" * MEGABYTE,
    "a huge exponent": "1e" + "9" * MEGABYTE,
    "a huge small exponent": "1e-" + "9" * MEGABYTE,
    "numbers": "[" + "1e16," * (MEGABYTE // 5) + "1]",
    "long numbers": "[" + "9007199254740992.5," * (MEGABYTE // 19) + "1]",
    "short runs": '["' + "123456789012345 " * (MEGABYTE // 16) + '"]',
    "exponents in strings": '["' + "1e1 " * (MEGABYTE // 4) + '"]',
    "brackets": "[" * MEGABYTE + "1e16",
    "no JSON": "1e16 " * (MEGABYTE // 5),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_numbers_are_looked_at_in_linear_time(name: str) -> None:
    """A megabyte of them."""
    began = time.process_time()
    carries_numbers(HOSTILE[name])
    assert time.process_time() - began < 1.5
