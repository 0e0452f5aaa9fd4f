"""Configurations of models on local boxes, with a cloud behind them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from llm_routerd.config.boxes import with_boxes
from llm_routerd.config.fleet import Box
from tests.support.workers import CLOUD, LOCAL, make_config

if TYPE_CHECKING:
    from llm_routerd.config.tree import Config

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
