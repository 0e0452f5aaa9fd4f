"""No answer to a prompt that was cut, and none refused that fits: by an Ollama that cuts, in six languages and code."""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from llm_routerd.config.load import load_config
from llm_routerd.config.tree import Chain
from llm_routerd.router import NoAnswerError, Router
from llm_routerd.running import windows
from tests.standin.box import Box, Model
from tests.standin.server import StandIn
from tests.standin.tokens import tokens_in
from tests.standin.window import read_prompt
from tests.support.texts import TEXTS

if TYPE_CHECKING:
    from pathlib import Path

    from llm_routerd.config.tree import Config

WINDOW = 4_096
KINDS = ("English", "German", "Polish", "Russian", "Chinese", "Japanese", "C")
PNG = "data:image/png;base64,iVBORw0KGgo="


def config_for(url: str, directory: Path, **deployment: Any) -> Config:
    """One local model, and nobody behind it."""
    path = directory / "config.toml"
    more = "\n".join(f"{key} = {value}" for key, value in deployment.items())
    path.write_text(
        f"""
        [deployments.local]
        model = "ollama/m"
        api_base = "{url}"
        local = true
        timeout = 60.0
        {more}
        [chains.default]
        deployments = ["local"]
        """
    )
    return load_config(str(path), {})


def text(kind: str, tokens: float, rng: random.Random) -> str:
    """Sentences of a language in an order of their own, about as long as that."""
    words = (
        TEXTS[kind].split(" ") if " " in TEXTS[kind].strip() else [TEXTS[kind][at : at + 5] for at in range(0, 30, 5)]
    )
    each = len(tokens_in(" ".join(words))) / len(words)
    joined = " " if " " in TEXTS[kind].strip() else ""
    return joined.join(rng.choice(words) for _ in range(max(1, round(tokens / each))))


def request_of(kind: str, tokens: float, rng: random.Random) -> dict[str, Any]:
    """A prompt of about so many tokens: one message or a conversation, with tools or an image now and then."""
    parts = rng.choice([1, 1, 2, 3, 7])
    shares = [rng.random() + 0.1 for _ in range(parts)]
    said = [text(kind, tokens * share / sum(shares), rng) for share in shares]
    messages: list[dict[str, Any]] = [
        {"role": "assistant" if number % 2 else "user", "content": each} for number, each in enumerate(said)
    ]
    if parts % 2 == 0:
        messages.append({"role": "user", "content": "Go on."})
    if rng.random() < 0.3:
        messages.insert(0, {"role": "system", "content": "Answer in one word."})
    request: dict[str, Any] = {"messages": messages}
    if rng.random() < 0.2:
        described = {"name": "look", "description": text("English", 60, rng), "parameters": {"type": "object"}}
        request["tools"] = [{"type": "function", "function": described}]
    if rng.random() < 0.1:
        image = {"type": "image_url", "image_url": {"url": PNG}}
        messages[-1]["content"] = [{"type": "text", "text": messages[-1]["content"]}, image]
    return request


@dataclass
class Count:
    """What became of many prompts.

    Attributes:
        answered: by the local model.
        cut: of them, those of which it had read a part.
        false_alarms: sizes of those that would have fitted, and were not answered.
    """

    answered: int = 0
    cut: int = 0
    false_alarms: list[int] = field(default_factory=list)


async def ask(router: Router, server: StandIn, requests: list[dict[str, Any]]) -> Count:
    """All of them, one after the other, held against what the server knows."""
    count = Count()
    for request in requests:
        whole = len(read_prompt(request, Box(models={}).image_tokens).tokens)
        try:
            await router.route(**request)
        except NoAnswerError:
            if whole <= WINDOW - 16:
                count.false_alarms.append(whole)
        else:
            count.answered += 1
            count.cut += server.state()["calls"][-1]["cut"]
    return count


@pytest.mark.parametrize(("least", "most", "number"), [(0.5, 8.0, 200), (0.02, 1.0, 200)], ids=["long", "fitting"])
@pytest.mark.parametrize("version", ["0.12.9", "0.33.0"])
async def test_no_cut_prompt_is_answered_and_none_that_fits_is_refused(
    version: str, least: float, most: float, number: int, tmp_path: Path
) -> None:
    """With tools and images; by a version that refuses where it is asked to, and one that cuts all the same.

    The old one is found out by its counts.
    """
    rng = random.Random(14)
    box = Box(models={"m": Model(trained=WINDOW)}, version=version)
    async with StandIn(box=box) as server, Router(config_for(server.url, tmp_path)) as router:
        sizes = [WINDOW * least * (most / least) ** rng.random() for _ in range(number)]
        requests = [request_of(KINDS[at % len(KINDS)], size, rng) for at, size in enumerate(sizes)]
        count = await ask(router, server, requests)
    assert count.cut == 0
    assert count.answered > number * (0.9 if most == 1.0 else 0.2)
    assert count.false_alarms == []


async def test_window_that_holds_the_prompt_is_asked_for(tmp_path: Path) -> None:
    """So a server whose own window is small reads all of it; the model is loaded anew once for each step, not more."""
    rng = random.Random(15)
    model = Model(trained=131_072, load_seconds=0.05)
    async with (
        StandIn(box=Box(models={"m": model}, num_ctx=2_048, version="0.12.9")) as server,
        Router(config_for(server.url, tmp_path)) as router,
    ):
        requests = [request_of(rng.choice(KINDS), rng.uniform(100, 12_000), rng) for _ in range(60)]
        count = await ask(router, server, requests)
        loads = sum(server.state()["loads"].values())
    assert (count.answered, count.cut, count.false_alarms) == (60, 0, [])
    assert loads <= 5


async def test_window_that_is_not_given_is_no_window(tmp_path: Path) -> None:
    """A proxy that drops `num_ctx`: what the server tells after a call goes before what was asked for."""
    rng = random.Random(16)
    box = Box(models={"m": Model(trained=131_072)}, num_ctx=WINDOW, version="0.12.9", heeds_num_ctx=False)
    async with StandIn(box=box) as server, Router(config_for(server.url, tmp_path)) as router:
        sizes = [WINDOW * 0.3 * 15 ** rng.random() for _ in range(60)]
        requests = [request_of(KINDS[at % len(KINDS)], size, rng) for at, size in enumerate(sizes)]
        count = await ask(router, server, requests)
    assert (count.cut, count.false_alarms) == (0, [])
    assert count.answered > 10


@pytest.mark.parametrize("version", ["0.12.9", "0.33.0"])
async def test_workers_and_deployments_at_one_server_do_not_take_the_model_from_each_other(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has prompts of its own length; after a load for each step there are no more."""
    monkeypatch.setattr(windows, "LOOK_SECONDS", 0.1)  # a load takes longer than that
    model = Model(trained=131_072, load_seconds=0.2, says="first_ms=120")
    async with StandIn(box=Box(models={"m": model}, version=version)) as server, AsyncExitStack() as stack:
        config = config_for(server.url, tmp_path)
        local = config.deployments["local"]
        other = replace(local, name="other", params={"temperature": 0.5})
        config = replace(
            config,
            deployments={"local": local, "other": other},
            chains={"default": config.chains["default"], "other": Chain(name="other", deployments=("other",))},
        )
        routers = [await stack.enter_async_context(Router(config)) for _ in range(3)]
        rng = random.Random(17)

        async def work(router: Router, model: str, tokens: float) -> None:
            for _ in range(10):
                await router.route(**request_of("English", tokens, rng), model=model)

        async def all_work() -> int:
            """How often the model has been loaded by then."""
            async with asyncio.TaskGroup() as group:
                for router, (name, tokens) in zip(
                    routers, (("default", 50), ("other", 1_500), ("default", 5_000)), strict=True
                ):
                    group.create_task(work(router, name, tokens))
                group.create_task(work(routers[0], "other", 50))
            return sum(server.state()["loads"].values())

        loads = await all_work()
        await asyncio.sleep(0.15)  # what was seen is old by then
        assert await all_work() == loads
        (resident,) = server.state()["resident"]
    assert resident["window"] == 16_384
    assert loads < 20  # of 40 calls that came at once, while nobody knew of the others
