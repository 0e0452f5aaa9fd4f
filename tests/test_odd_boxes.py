"""Local boxes that are not what they seem: a slower choice comes of it, and nothing worse."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from llm_routerd.config.load import load_config
from llm_routerd.router import NoAnswerError, Router
from tests.standin.box import GB, Box, Model
from tests.standin.boxes import At, at_box
from tests.standin.flapping import Flap
from tests.standin.server import StandIn
from tests.support.boxes import ask_by_turns, config_for

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

COUNT = 24
SLOTS = 2


def box_with(**more: Model) -> Box:
    """Two models, of which one fits at a time; or others."""
    models = {name: Model(size=6 * GB, load_seconds=0.1, says="delay_ms=2") for name in ("a", "b")}
    return Box(models={**models, **more}, memory=8 * GB, slots=SLOTS)


@asynccontextmanager
async def routed(directory: Path, *boxes: Box) -> AsyncIterator[tuple[Router, list[StandIn]]]:
    """These boxes, and a router that knows them."""
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(StandIn(box=box)) for box in boxes]
        config = config_for(directory, *(each.url for each in servers), slots=SLOTS)
        yield await stack.enter_async_context(Router(config)), servers


@pytest.mark.parametrize(
    "flap",
    [
        Flap(ps="lies", ps_models=()),
        Flap(ps="lies", ps_models=("a", "b")),
        Flap(ps="lies", ps_models=("b", "c", "d:13b")),
        Flap(ps="slow", ps_seconds=1.5),
        Flap(ps="never"),
    ],
    ids=["nothing is there", "both are there", "others are there", "slow", "never"],
)
async def test_box_that_tells_no_truth_answers_all_the_same(tmp_path: Path, flap: Flap) -> None:
    """Beside one that does; no more calls at once than it has slots, and not a load for each call."""
    async with routed(tmp_path, box_with(), box_with()) as (router, servers):
        servers[0].flap(flap)
        answered = await ask_by_turns(router, COUNT)
        states = [each.state() for each in servers]
    assert [each[0] for each in answered] == ["a", "b"] * (COUNT // 2)
    assert max(state["most_running"] for state in states) <= SLOTS
    assert sum(sum(state["loads"].values()) for state in states) <= COUNT // 2


async def test_box_that_cannot_load_a_model_is_left_for_the_other(tmp_path: Path) -> None:
    """As an Ollama whose memory others have taken: it says 500. What is there goes on being used."""
    async with routed(tmp_path, box_with(b=Model(size=60 * GB)), box_with()) as (router, servers):
        answered = await ask_by_turns(router, COUNT)
        failed = [each["model"] for each in servers[0].state()["history"] if each["what"] == "failed"]
    assert set(failed) <= {"b"}
    assert len(failed) <= SLOTS + 1, "each has tried it"
    assert {each for each in answered if each[0] == "b"} == {"b@box1"}
    assert [each[0] for each in answered] == ["a", "b"] * (COUNT // 2)


async def test_model_that_no_box_can_load_is_an_error_that_says_so(tmp_path: Path) -> None:
    """And the other model's requests are answered meanwhile."""
    async with routed(tmp_path, box_with(b=Model(size=60 * GB))) as (router, _):
        told = await asyncio.gather(
            *(router.route(prompt="hello", model="ab"[number % 2]) for number in range(8)), return_exceptions=True
        )
    good, bad = told[::2], told[1::2]
    assert {getattr(each, "deployment", None) for each in good} == {"a@box0"}
    assert all(isinstance(each, NoAnswerError) and "b@box0" in str(each) for each in bad), bad


async def test_model_has_one_name_with_its_tag_and_without(tmp_path: Path) -> None:
    """It is loaded once, whoever asks for it."""
    async with StandIn(box=box_with()) as server:
        config_for(tmp_path, server.url, slots=SLOTS)
        path = tmp_path / "config.toml"
        path.write_text(path.read_text().replace('model = "ollama/b"', 'model = "ollama/a:latest"'))
        async with Router(load_config(str(path), {})) as router:
            answered = await ask_by_turns(router, COUNT)
        loads = server.state()["loads"]
    assert sorted(set(answered)) == ["a@box0", "b@box0"]
    assert loads == {"a": 1}


async def test_box_that_others_use_beside_us_answers_all(tmp_path: Path) -> None:
    """They push our models out and take its slots; what we take to be there is not, and is loaded again."""

    async def use(at: At, calls: list[str]) -> None:
        while True:
            await at.chat("c")
            calls.append("c")

    async with at_box(box_with(c=Model(size=6 * GB, load_seconds=0.05, says="delay_ms=2"))) as at:
        theirs: list[str] = []
        using = asyncio.create_task(use(at, theirs))
        async with Router(config_for(tmp_path, at.server.url, slots=SLOTS)) as router:
            answered = await ask_by_turns(router, COUNT)
        using.cancel()
        await asyncio.gather(using, return_exceptions=True)
    assert [each[0] for each in answered] == ["a", "b"] * (COUNT // 2)
    assert theirs, "they were answered as well"
