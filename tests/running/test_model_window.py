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
    known.answered(None, LARGE_SECONDS + 30)
    known.seen(16_384, LARGE_SECONDS + 31)  # of somebody who has not seen it
    assert known.in_force is None
    known.seen(16_384, LARGE_SECONDS + 50)  # somebody else needs it
    assert known.in_force == 16_384


def test_whoever_needed_nothing_follows_in_both_directions() -> None:
    """So a window that one gives up is given up by all."""
    known = model()
    for loaded in (8_192, 32_768):
        known.seen(loaded, 1.0)
        assert known.in_force == loaded
    known.seen(4_096, 2.0)
    assert known.in_force == 32_768  # it was not given up, but somebody had not looked
    known.seen(32_768, 3.0)
    known.forget(LARGE_SECONDS)
    assert known.in_force == 32_768  # as it is loaded
    known.seen(4_096, LARGE_SECONDS)
    assert known.in_force == 4_096


def test_window_that_nobody_may_have_asked_for_is_not_asked_for() -> None:
    """A server's own is had without a word; and one that tells all its slots together would be asked for ever more."""
    known = model(131_072)
    assert known.as_before == FITS
    known.needed(SMALL, 1.0)
    known.seen(65_536, 2.0)
    assert known.in_force == 8_192
    more = ModelWindow(most_followed=65_536)  # that the operator has set for one that shares it
    more.seen(65_536, 2.0)
    assert more.in_force == 65_536


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
        known.answered(16_384, at)
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
        known.answered(16_384, float(at))
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


class Server:
    """An Ollama that answers call after call, each in its turn, and loads its model anew where one asks for it."""

    def __init__(self, load_seconds: float) -> None:
        self.loads: list[tuple[float, int]] = [(0.0, 4_096)]
        self._load_seconds = load_seconds
        self._free = 0.0  # when it has answered all that it was asked

    def answer(self, asked: int | None, now: float) -> float:
        """When a call is answered."""
        began = max(now, self._free)
        if (asked or 4_096) != self.loads[-1][1]:
            self.loads.append((began, asked or 4_096))
            began += self._load_seconds
        self._free = began + 0.05
        return self._free

    def tells(self, now: float) -> int:
        """The window of the load that was begun last."""
        return next(window for since, window in reversed(self.loads) if since <= now)


class Worker:
    """One that asks call after call, as it has seen a second ago at most."""

    def __init__(self, needs: list[int | None]) -> None:
        self.known = model()
        self.needs = needs
        self.asked: int | None = None
        self.next_at = 0.0

    def ask(self, server: Server, rng: random.Random, *, is_early: bool) -> None:
        """The next call; a larger need is that of the beginning alone."""
        known, now = self.known, self.next_at
        known.answered(self.asked, now)
        known.forget(now)
        if now >= known.looked + 1:
            known.seen(server.tells(now), now)
        step = rng.choice(self.needs) if is_early else self.needs[0]
        self.asked = max(known.in_force or 0, step or 0) or None
        known.needed(Fit(num_ctx=self.asked, needs=step), now)
        self.next_at = server.answer(self.asked, now) + rng.expovariate(2.0)


@pytest.mark.parametrize("load_seconds", [0.5, 5.0, 20.0])
@pytest.mark.parametrize("seed", range(6))
def test_workers_at_one_server_come_to_one_window_and_give_it_up(seed: int, load_seconds: float) -> None:
    """Some need much, in the first minutes: few loads until all have it, few until none has, and none between."""
    rng, server = random.Random(seed), Server(load_seconds)
    workers = [Worker([None]), Worker([None, 4_096]), Worker([None, 8_192]), Worker([None, 8_192, 32_768])]
    while (worker := min(workers, key=lambda each: each.next_at)).next_at < 1_500:
        worker.ask(server, rng, is_early=worker.next_at < 300)
    assert len([since for since, _ in server.loads if since < 180]) <= 20
    assert [window for since, window in server.loads if 180 < since < 600] == []
    assert server.tells(600.0) == 32_768
    assert len([since for since, _ in server.loads if since > 600]) <= 16
    assert load_seconds > 5 or server.tells(1_500.0) == 4_096  # of slow loads some do not see the end
