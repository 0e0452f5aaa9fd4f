"""Which deployments a request may ask, which none may under a configuration, and which chains that leaves without any.

That a deployment is down, busy or cooling down is no matter of this: it may answer the next request.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from llm_routerd.routing.chains import deployments_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llm_routerd.config.tree import Config, Deployment


class Need(Struct, frozen=True, kw_only=True):
    """What a request demands of every deployment that it asks."""

    local_only: bool = False
    tools: bool = False


def ineligibility(deployment: Deployment, need: Need) -> str | None:
    """Why the request may not ask the deployment, for its user to read; None: it may."""
    if need.local_only and not deployment.local:
        return "not local"
    if deployment.key_missing is not None:
        return f"no {deployment.key_missing}"
    if need.tools and not deployment.supports_tools:
        return "does not support tools"
    return None


def without_keys(config: Config) -> dict[str, str]:
    """The deployments that are disabled because their key is missing, and why: no request may ask them."""
    told = {name: ineligibility(deployment, Need()) for name, deployment in config.deployments.items()}
    return {name: why for name, why in told.items() if why is not None}


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
