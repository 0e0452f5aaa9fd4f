"""Whether a prompt fits into a window, and which one is asked for."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_routerd.protocol.call import Window
from llm_routerd.routing.text_tokens import Tokens
from llm_routerd.routing.window import FITS, LEAST_WINDOW, STEPS, Fit, Limits, fit, num_ctx_of

OLLAMA = Window(most=131_072, now=4_096, is_asked_for=True)


def asked(tokens: float, window: Window | None = OLLAMA, **more: Any) -> Fit:
    """Of a prompt whose tokens are known exactly."""
    given: dict[str, Any] = {"max_tokens": None, "asked": None, **more}
    limits = Limits(window=window, **{name: given.pop(name) for name in ("bound", "fixed", "cuts") if name in given})
    return fit(Tokens(tokens, tokens, tokens), limits, **given)


@pytest.mark.parametrize(
    ("tokens", "more", "num_ctx"),
    [
        (500, {}, None),
        (2_000, {}, 4_096),  # as it is loaded: said, for it may be loaded for another
        (3_500, {}, 8_192),  # with room for an answer
        (3_500, {"max_tokens": 100}, 4_096),
        (3_500, {"max_tokens": 100_000}, 8_192),
        (500, {"asked": 16_384}, 16_384),  # what is loaded stays
        (20_000, {"asked": 16_384}, 32_768),
        (31_900, {}, 32_768),  # the most that is taken without being told
        (31_900, {"bound": 65_536}, 65_536),
        (5_000, {"bound": 6_000}, 6_000),
        (5_000, {"fixed": 16_384}, None),  # the configuration asks for it
        (30_000, {"window": Window(most=8_192, is_asked_for=True)}, "too long"),
        (7_000, {"window": Window(most=8_192, is_asked_for=True)}, 8_192),
        (40_000, {}, "too long"),
        (40_000, {"bound": 131_072}, 65_536),
        (40_000, {"window": Window(most=131_072, now=65_536, is_asked_for=True)}, 65_536),
        (20_000, {"fixed": 16_384}, "too long"),
        (3_000, {"window": Window(is_asked_for=True)}, 4_096),
        (500, {"window": None}, None),
        (500_000, {"window": None}, None),  # nobody tells
        (9_000, {"window": None, "bound": 8_192}, "too long"),
        (9_000, {"window": Window(most=8_192)}, "too long"),
        (7_900, {"window": Window(most=8_192)}, None),
        (7_900, {"window": Window(most=8_192), "max_tokens": 200}, None),
        (7_900, {"window": Window(most=8_192), "max_tokens": 64_000}, "too long"),
        (7_000, {"window": Window(most=8_192), "max_tokens": 64_000}, None),  # sent by rote
        (20_000, {"window": Window(most=8_192, now=4_096), "bound": 100_000}, "too long"),
        (90_000, {"window": Window(is_asked_for=True)}, 32_768),  # nothing is known of the model: no reason to refuse
        (90_000, {"window": Window(now=4_096, is_asked_for=True)}, 32_768),
        (90_000, {"window": Window(is_asked_for=True), "bound": 65_536}, "too long"),  # but the operator says it
        (90_000, {"window": Window(most=8_192), "cuts": True}, None),  # he wants it cut
        (90_000, {"cuts": True}, 32_768),
        (5_000, {"window": Window(most=512)}, None),  # no model has so little
        (5_000, {"window": Window(most=512, now=100, is_asked_for=True)}, 8_192),
        (5_000, {"window": Window(most=131_072, now=500_000, is_asked_for=True)}, 131_072),  # nor more than it can
        (5_000, {"window": Window(now=500_000, is_asked_for=True)}, 262_144),
        (500, {"window": OLLAMA, "asked": 8_192}, 8_192),
        (3_000, {"window": Window(most=131_072, now=32_768, is_asked_for=True), "asked": 8_192}, 32_768),
    ],
)
def test_window_is_the_smallest_step_that_holds_prompt_and_answer(
    tokens: float, more: dict[str, Any], num_ctx: int | str | None
) -> None:
    """Up to what the model has, the operator allows, or is taken without being told."""
    found = asked(tokens, **more)
    if num_ctx == "too long":
        assert found.too_long is not None
        assert found.num_ctx is None
    else:
        assert (found.num_ctx, found.too_long) == (num_ctx, None)


def test_line_says_how_long_the_prompt_is_and_what_there_is() -> None:
    """For whoever reads why his request went elsewhere."""
    told = asked(9_000, Window(most=8_192), max_tokens=500).too_long
    assert told == "a prompt of about 9000 tokens and 500 for the answer does not fit its 8192"


windows = st.builds(
    Window,
    most=st.none() | st.integers(512, 300_000),
    now=st.none() | st.integers(512, 300_000),
    is_asked_for=st.booleans(),
)


@given(
    low=st.floats(0, 200_000),
    likely=st.floats(1, 2),
    high=st.floats(1, 2),
    window=st.none() | windows,
    bound=st.just(0) | st.integers(512, 300_000),
    cuts=st.booleans(),
    fixed=st.none() | st.integers(512, 300_000),
    max_tokens=st.none() | st.integers(1, 100_000),
    asked=st.none() | st.sampled_from(STEPS),
)
def test_no_prompt_that_fits_is_passed_over_and_no_window_is_beyond_its_bounds(
    low: float,
    likely: float,
    high: float,
    window: Window | None,
    bound: int,
    fixed: int | None,
    cuts: bool,
    **more: Any,
) -> None:
    """And what is asked for holds the prompt, or is the most that there is."""
    tokens = Tokens(low, low * likely, low * likely * high)
    found = fit(tokens, Limits(window=window, bound=bound, fixed=fixed, cuts=cuts), **more)
    told = window.most if window is not None and window.most and window.most >= LEAST_WINDOW else None
    most = min((each for each in (told, bound, fixed) if each), default=None)
    if most is None and (window is None or not window.is_asked_for):
        assert found == FITS
    if found.too_long is None:
        assert most is None or cuts or tokens.low <= most
    if most is None:
        assert found.too_long is None
    if found.num_ctx is not None:
        assert found.too_long is None
        assert window is not None
        assert window.is_asked_for
        assert fixed is None
        assert found.needs is None or found.num_ctx >= found.needs


@pytest.mark.parametrize(
    ("params", "found"),
    [
        ({}, None),
        ({"num_ctx": 8_192}, 8_192),
        ({"options": {"num_ctx": 4_096}}, 4_096),
        ({"num_ctx": 8_192, "options": {"num_ctx": 4_096}}, 8_192),
        ({"num_ctx": "many", "options": []}, None),
        ({"num_ctx": True, "options": {"num_ctx": 0}}, None),
    ],
)
def test_window_of_the_configuration_is_found_in_both_places(params: dict[str, Any], found: int | None) -> None:
    """As an option, and as Ollama nests it."""
    assert num_ctx_of(params) == found
