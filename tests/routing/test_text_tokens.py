"""How many tokens a text has: the guess holds for real tokenizers, and what was counted narrows it."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_routerd.protocol.call import TokenFactors
from llm_routerd.routing.text_tokens import Tokens, bytes_in, tokens_of
from tests.routing.tokenizers import TEXT_OF, TOKENIZERS, counter
from tests.support.texts import TEXTS

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(scope="module", params=TOKENIZERS)
def count(request: pytest.FixtureRequest) -> Callable[[str], int]:
    """Counts a text's tokens."""
    return counter(request.param)


@pytest.mark.parametrize("name", TEXT_OF)
def test_count_lies_within_the_guess(name: str, count: Callable[[str], int]) -> None:
    """For whatever language and script, by whatever tokenizer."""
    guess = tokens_of(TEXT_OF[name])
    counted = count(TEXT_OF[name])
    assert guess.low <= counted <= guess.high
    assert guess.low <= guess.likely <= guess.high
    assert counted <= bytes_in(TEXT_OF[name])


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=400))
def test_no_text_has_more_tokens_than_bytes(text: str) -> None:
    """However rare its letters; so that is the most that is guessed, too."""
    assert counter("cl100k")(text) <= bytes_in(text)
    assert counter("o200k")(text) <= bytes_in(text)
    assert tokens_of(text).high <= max(bytes_in(text), tokens_of(text).likely)


def test_long_text_is_sampled_in_bounded_time() -> None:
    """Ten megabytes in the time of some pages; the guess grows with the text."""
    page = "".join(random.Random(3).choices(TEXTS["English"].split(" "), k=3_000))
    few = tokens_of(page)
    times = 10_000_000 // len(page)
    began = time.process_time()
    book = tokens_of(page * times)
    assert time.process_time() - began < 0.2
    assert 0.8 < book.likely / (few.likely * times) < 1.25
    assert book.low < few.low * times < few.high * times < book.high


@pytest.mark.parametrize(
    "text", ["", " ", " " * 200_000, "\n" * 200_000, "-" * 200_000, "\x00" * 9, "\ud800", "\U0001f600" * 40_000]
)
def test_any_text_has_a_size(text: str) -> None:
    """Also one without words, and one that is no Unicode."""
    guess = tokens_of(text)
    assert 0 <= guess.low <= guess.likely <= guess.high


def test_text_is_of_the_kind_that_most_of_it_is() -> None:
    """Whatever single letters there are."""
    kinds = {name: tokens_of(TEXT_OF[name]).kind for name in ("English", "Spanish", "Russian", "Chinese", "Thai")}
    assert kinds["English"] == kinds["Spanish"]
    assert len(set(kinds.values())) == 4


@given(
    st.floats(0, 1_000), st.floats(0, 1_000), st.floats(0, 1_000), st.floats(0, 3), st.floats(0, 3), st.floats(0, 500)
)
def test_what_was_counted_never_makes_the_least_more(
    low: float, more: float, most: float, least_factor: float, most_factor: float, unread: float
) -> None:
    """Nor the most; and what is no text is not made less of by counts of text."""
    guess = Tokens(low, low + more, low + more + most + unread, 0, unread)
    scaled = guess.scaled(TokenFactors(least_factor, max(least_factor, most_factor)))
    assert scaled.low == guess.low
    assert scaled.low <= scaled.likely <= scaled.high <= guess.high
    assert scaled.high >= min(unread, guess.high)
