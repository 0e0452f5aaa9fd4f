"""What was seen, and what is taken where nothing was."""

from __future__ import annotations

import pytest

from llm_routerd.fleet.estimates import Estimates, Reckoning, Seen, observe

GIB = 1 << 30


def test_average_follows_what_is_seen_and_forgets_what_is_old() -> None:
    """Of ten and twenty the mean; after a day the newest is nearly all."""
    seen = observe(observe(None, 10.0, 0.0), 20.0, 0.0)
    assert seen.value == pytest.approx(15.0)
    assert observe(seen, 100.0, 86_400.0).value == pytest.approx(100.0, abs=0.01)
    steady = None
    for _ in range(100):
        steady = observe(steady, 10.0, 0.0)
    assert steady is not None
    assert observe(steady, 100.0, 0.0).value == pytest.approx(20.0)


def test_clock_that_goes_back_loses_nothing() -> None:
    """Workers' clocks differ a little."""
    assert observe(Seen(10.0, 1.0, 50.0), 20.0, 40.0) == Seen(15.0, 2.0, 50.0)


def test_loading_is_estimated_by_the_nearest_that_is_known() -> None:
    """Seen there; by size; of the model elsewhere; of others on the box; and with nothing at all, 15 s."""
    seen = Estimates(load_seconds={("x", "a"): Seen(7.0, 1.0, 0.0), ("y", "b"): Seen(11.0, 1.0, 0.0)})
    reckoning = Reckoning(seen, {"b": 10 * GIB})
    assert reckoning.load_seconds("x", "a") == 7.0
    assert reckoning.load_seconds("x", "b") == pytest.approx(2.0 + 10 * GIB / 500e6)
    assert reckoning.load_seconds("z", "a") == 7.0
    assert reckoning.load_seconds("y", "c") == 11.0
    assert Reckoning(Estimates(), {}).load_seconds("z", "z") == 15.0


def test_speeds_are_those_of_the_nearest_that_is_known() -> None:
    """A prompt is read ten times as fast as an answer is written, until it is known better."""
    reckoning = Reckoning(Estimates(tokens_per_second={("x", "a"): Seen(40.0, 1.0, 0.0)}), {})
    assert [reckoning.tokens_per_second(*at) for at in (("x", "a"), ("y", "a"), ("x", "b"))] == [40.0] * 3
    assert reckoning.tokens_per_second("y", "b") is None
    assert reckoning.prompt_tokens_per_second("y", "a") == 400.0
    assert reckoning.prompt_tokens_per_second("y", "b") == 300.0
