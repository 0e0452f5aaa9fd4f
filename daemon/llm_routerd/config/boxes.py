"""A deployment on several boxes is several deployments: `qwen` on attic and desk is `qwen@attic` and `qwen@desk`.

So each has what a deployment has: connections, health, a model in memory or not.  Chains that name `qwen` have both in
its place; which of them is asked is decided when one has a slot.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llm_routerd.config.tree import Config, Deployment

UNASKED_QUEUE_SECONDS: Final = 60.0
"""How long a slot of a box is waited for where nobody has said: a model may have to be loaded first."""


def with_boxes(config: Config) -> Config:
    """The same configuration, in which a deployment stands at one address."""
    on_boxes = {name: _on_each(each, config) for name, each in config.deployments.items() if each.boxes}
    if not on_boxes:
        return config
    deployments: dict[str, Deployment] = {}
    for name, each in config.deployments.items():
        deployments.update({member.name: member for member in on_boxes.get(name, (each,))})
    chains = {
        name: replace(chain, deployments=tuple(_named(chain.deployments, on_boxes)))
        for name, chain in config.chains.items()
    }
    return replace(config, deployments=deployments, chains=chains)


def _on_each(deployment: Deployment, config: Config) -> tuple[Deployment, ...]:
    default = type(deployment)(name="", model="").queue_timeout
    waits = deployment.queue_timeout if deployment.queue_timeout != default else UNASKED_QUEUE_SECONDS
    return tuple(
        replace(
            deployment,
            name=f"{deployment.name}@{name}",
            api_base=config.boxes[name].api_base,
            concurrency=config.boxes[name].slots,
            queue_timeout=waits,
            boxes=(),
            box=name,
            group=deployment.name,
        )
        for name in deployment.boxes
    )


def _named(names: Iterable[str], on_boxes: dict[str, tuple[Deployment, ...]]) -> Iterable[str]:
    for name in names:
        if name in on_boxes:
            yield from (member.name for member in on_boxes[name])
        else:
            yield name
