"""A model that is loaded for a window: once, for all that want it, and not again for one that it has."""

from __future__ import annotations

import asyncio

from msgspec.structs import replace

from llm_routerd.protocol.call import BackendError
from llm_routerd.protocol.codes import AttemptCode
from llm_routerd.running.warmth import Warmth
from tests.support.fakes import FakeBackend, says
from tests.support.workers import LOCAL

OLLAMA = replace(LOCAL, backend="ollama")


async def test_joiner_of_a_load_for_another_window_does_not_share_its_failure() -> None:
    """Its own window is loaded for; what was tried is told, so that a smaller one is not taken for too large."""
    backend = FakeBackend(says("hi"))
    warmth = Warmth(OLLAMA, backend)
    began = asyncio.Event()

    async def load() -> None:
        began.set()
        await asyncio.sleep(0.02)
        if backend.warmed_for[-1] == 32_768:
            raise BackendError(AttemptCode.UPSTREAM, "500: more memory")

    backend.on_warm, backend.loaded = load, False
    warmth.ask_for(32_768)
    first = asyncio.create_task(warmth.ready(wait_seconds=None))
    await began.wait()
    warmth.ask_for(8_192)
    assert await warmth.ready(wait_seconds=None) is None
    assert await first is None
    assert (backend.warmed_for, warmth.tried) == ([32_768, 8_192], 8_192)


async def test_failure_tells_the_window_that_was_tried() -> None:
    """The one of the load, whatever is asked for meanwhile."""
    backend = FakeBackend(says("hi"))
    warmth = Warmth(OLLAMA, backend)

    async def load() -> None:
        raise BackendError(AttemptCode.UPSTREAM, "500: more memory")

    backend.on_warm, backend.loaded = load, False
    warmth.ask_for(32_768)
    cold = await warmth.ready(wait_seconds=None)
    warmth.ask_for(4_096)
    assert cold is not None
    assert warmth.tried == 32_768


async def test_window_that_the_model_has_is_no_change() -> None:
    """Said for the first time, for it may be loaded for another; so nobody is sent away by `cold_start = skip`."""
    backend = FakeBackend(says("hi"))
    warmth = Warmth(replace(OLLAMA, cold_start="skip"), backend)
    warmth.answered()
    warmth.ask_for(8_192, loaded=8_192)
    assert warmth.is_ready
    warmth.ask_for(16_384, loaded=8_192)
    assert not warmth.is_ready
    assert await warmth.ready(wait_seconds=None) is not None
    await warmth.aclose()


async def test_answer_with_the_window_says_that_the_model_has_it() -> None:
    """The call itself may have had it loaded."""
    warmth = Warmth(OLLAMA, FakeBackend(says("hi")))
    warmth.ask_for(16_384)
    warmth.answered(8_192)  # of a call that was under way
    assert not warmth.is_ready
    warmth.answered(16_384)
    assert warmth.is_ready
