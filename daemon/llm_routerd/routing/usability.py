"""Which deployments can never answer under a configuration, and which chains are left without any.

That a deployment is down, busy or cooling down is no matter of this: it may answer the next request.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llm_routerd.config.tree import Chain, Config, Deployment


def deployments_of(config: Config, chain: Chain) -> tuple[Deployment, ...]:
    """The deployments of a chain and its fallbacks, in the order in which they would be asked, each once."""
    names: dict[str, None] = {}
    seen: set[str] = set()
    coming = [chain]
    while coming:
        current = coming.pop()
        if current.name not in seen:
            seen.add(current.name)
            names |= dict.fromkeys(current.deployments)
            coming += [config.chains[name] for name in reversed(current.fallback)]
    return tuple(config.deployments[name] for name in names)


def without_keys(config: Config) -> dict[str, str]:
    """The deployments that are disabled because their key is missing, and why, for a person."""
    return {name: f"no {each.key_missing}" for name, each in config.deployments.items() if each.key_missing is not None}


def unanswerable(config: Config, unusable: Mapping[str, str]) -> dict[str, str]:
    """The chains of which every deployment is unusable, and why, in one line each.

    Args:
        config: the tree.
        unusable: by deployment, why it can never answer.
    """
    left = {}
    for name, chain in config.chains.items():
        reached = [each.name for each in deployments_of(config, chain)]
        if all(each in unusable for each in reached):
            left[name] = "; ".join(f"{each}: {unusable[each]}" for each in reached)
    return left
