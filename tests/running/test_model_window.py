"""One window for all that ask one server: seen before it is asked for, kept while it is needed, given up together."""

from __future__ import annotations

import random

import pytest

from llm_routerd.protocol.call import Window
from llm_routerd.routing.window import FITS, Fit
from llm_routerd.running.model_window import LARGE_SECONDS, ModelWindow

TOLD = Window(most=131_072, now=4_096, is_asked_for=True, loaded=4_096)
SMALL, LARGE = Fit(num_ctx=8_192, needs=8_192), Fit(num_ctx=16_384, needs=16_384)


def model(loaded: int | None = 4_096) -> ModelWindow:
    """One that is loaded with so much, as its server tells at the time 0."""
    known = ModelWindow()
    known.told(Window(most=131_072, now=loaded, is_asked_for=True, loaded=loaded), 0.0)
    return known


def test_nothing_is_asked_for_of_which_nothing_is_known() -> None:
    """As before anybody has looked."""
    assert ModelWindow().as_before == FITS


def test_less_than_the_model_has_is_never_asked_for() -> None:
    """Another worker has had it loaded with more."""
    known = model()
    known.needed(SMALL, 1.0)
    known.seen(32_768, 2.0)
    assert known.in_force == 32_768


def test_larger_window_is_kept_by_prompts_that_need_it_and_by_no_others() -> None:
    """A smaller one, which is needed all the time, is what is left of it."""
    known = model()
    known.needed(LARGE, 0.0)
    for at in range(0, int(LARGE_SECONDS), 60):
        known.needed(Fit(num_ctx=16_384, needs=8_192), float(at))
        known.seen(16_384, float(at))
        known.forget(float(at))
        assert known.in_force == 16_384
    known.forget(LARGE_SECONDS)
    assert known.in_force == 8_192


def test_window_that_is_given_up_is_not_taken_up_again_before_the_smaller_one_has_come() -> None:
    """What is seen meanwhile is what it was; after an answer it counts again."""
    known = model()
    known.needed(LARGE, 0.0)
    known.seen(16_384, LARGE_SECONDS - 1)
    known.forget(LARGE_SECONDS)
    known.seen(16_384, LARGE_SECONDS + 1)
    assert known.in_force is None
    known.answered(None)
    known.seen(16_384, LARGE_SECONDS + 2)  # somebody else needs it
    assert known.in_force == 16_384


def test_whoever_needed_nothing_follows_in_both_directions() -> None:
    """So a window that one gives up is given up by all."""
    known = model()
    for loaded in (16_384, 65_536, 4_096):
        known.seen(loaded, 1.0)
        assert known.in_force == loaded


@pytest.mark.parametrize("told", [None, 7, 2_047])
def test_model_that_is_not_loaded_is_loaded_as_its_server_likes(told: int | None) -> None:
    """What is no window counts as none."""
    known = model(16_384)
    known.seen(told, 1.0)
    assert known.in_force is None


def test_window_that_is_passed_over_is_not_the_one_there_is() -> None:
    """Twice, for a worker that gives one up may do it between a call and the look after it."""
    known = model()
    known.needed(LARGE, 0.0)
    for at, bound in ((1.0, 0), (2.0, 4_096)):
        known.answered(16_384)
        assert known.looked < 0  # to be looked at again
        known.seen(4_096, at)
        assert known.bound(0) == bound
    assert known.in_force == 4_096
    known.forget(2.0 + LARGE_SECONDS)
    assert known.bound(65_536) == 65_536


def test_window_that_is_heeded_now_and_then_is_there() -> None:
    """One that was given up for a moment is no server that passes over it."""
    known = model()
    for at, loaded in enumerate((4_096, 16_384) * 4):
        known.answered(16_384)
        known.seen(loaded, float(at))
    assert known.bound(0) == 0


def test_window_that_could_not_be_loaded_is_not_asked_for() -> None:
    """Half of it is, where that is needed; whoever needed more is not heard until its time is over."""
    known = model()
    known.needed(SMALL, 0.0)
    known.needed(LARGE, 0.0)
    known.not_loaded(16_384, 1.0)
    assert (known.in_force, known.bound(0), known.bound(4_096), known.bound(65_536)) == (8_192, 8_192, 4_096, 8_192)


def test_model_that_is_gone_has_what_it_had_when_nobody_had_asked_for_more() -> None:
    """That is what its server loads it with by itself."""
    known = model()
    known.needed(LARGE, 0.0)
    known.seen(16_384, 1.0)
    known.seen(None, 2.0)
    assert known.window == Window(most=131_072, now=4_096, is_asked_for=True)


@pytest.mark.parametrize("seed", range(5))
def test_workers_at_one_server_come_to_one_window(seed: int) -> None:
    """Each asks for what its prompts need, a moment after it has looked: a load for each step, and one when it goes."""
    rng = random.Random(seed)
    workers, loaded, loads = [model() for _ in range(4)], 4_096, 0
    needs = [None, 4_096, 8_192, 32_768]
    for second in range(int(LARGE_SECONDS) - 1):
        for worker, step in rng.sample([*zip(workers, needs, strict=True)], 4):
            now = second + rng.random()
            worker.forget(now)
            worker.seen(loaded, now)
            asked = max(worker.in_force or 0, step or 0) or None
            worker.needed(Fit(num_ctx=asked, needs=step), now)
            loads += loaded != (asked or 4_096)
            loaded = asked or 4_096
            worker.answered(asked)
    assert loaded == 32_768
    assert loads <= 2
