"""Configurations of models on local boxes, with a cloud behind them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from llm_routerd.config.boxes import with_boxes
from llm_routerd.config.fleet import Box
from llm_routerd.config.load import load_config
from tests.support.workers import CLOUD, LOCAL, make_config

if TYPE_CHECKING:
    from pathlib import Path

    from llm_routerd.config.tree import Config
    from llm_routerd.router import Router

ATTIC = Box(name="attic", api_base="http://attic:1")
DESK = Box(name="desk", api_base="http://desk:1")


def config_of(*boxes: Box, models: tuple[str, ...] = ("big",), **more: Any) -> Config:
    """Each model on all of these boxes, and the cloud behind them."""
    config = make_config()
    local = {
        name: replace(
            LOCAL,
            name=name,
            model=f"ollama/{name}:1b",
            backend="ollama",
            boxes=tuple(box.name for box in boxes),
            **more,
        )
        for name in models
    }
    chain = replace(config.chains["default"], deployments=(*models, "cloud"))
    return with_boxes(
        replace(
            config,
            boxes={box.name: box for box in boxes},
            deployments={**local, "cloud": CLOUD},
            chains={
                "default": chain,
                **{name: replace(chain, name=name, deployments=(name, "cloud")) for name in models},
            },
        )
    )


def config_for(directory: Path, *urls: str, slots: int = 1) -> Config:
    """Models a and b on boxes at these addresses, which tell their memory themselves."""
    names = [f"box{number}" for number in range(len(urls))]
    boxes = "\n".join(
        f'[boxes.{name}]\napi_base = "{url}"\nslots = {slots}\nmemory_gb = 8.0'
        for name, url in zip(names, urls, strict=True)
    )
    models = "\n".join(
        f"""
        [deployments.{model}]
        model = "ollama/{model}"
        boxes = {names}
        local = true
        timeout = 60.0
        [chains.{model}]
        deployments = ["{model}"]
        """
        for model in "ab"
    )
    path = directory / "config.toml"
    path.write_text(boxes + models)
    return load_config(str(path), {})


async def ask_by_turns(router: Router, count: int) -> list[str]:
    """So many requests at once, by turns for one model and the other; the deployments that answered."""
    asked = (router.route(prompt=f"hello {number}", model="ab"[number % 2]) for number in range(count))
    return [result.deployment for result in await asyncio.gather(*asked)]
