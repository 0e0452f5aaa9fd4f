"""What a request's `model` names: a chain, with all that it falls back to; or nothing that is known here."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

from llm_routerd.config.tree import Chain

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llm_routerd.config.tree import Config, Deployment


def resolve(config: Config, model: str) -> Chain | None:
    """The chain named `model`, or one of the deployment of that name, on all its boxes; None: there is neither."""
    chain = config.chains.get(model)
    if chain is None and model in config.deployments:
        chain = Chain(name=model, deployments=(model,))
    if chain is None and (members := tuple(name for name, each in config.deployments.items() if each.group == model)):
        chain = Chain(name=model, deployments=members)
    return chain


def names(config: Config) -> tuple[str, ...]:
    """What a request may give as its `model`: chains, and deployments."""
    groups = (each.group for each in config.deployments.values() if each.group is not None)
    return tuple(dict.fromkeys((*config.chains, *groups, *config.deployments)))


def unknown_model(config: Config, model: str) -> str:
    """The message for a request that names neither a chain nor a deployment."""
    known = names(config)
    near = get_close_matches(model, known, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known)}"
    return f"$.model: no chain or deployment has this name; {hint}"


def with_fallbacks(config: Config, chain: Chain) -> Iterator[Chain]:
    """A chain and those that it falls back to, in the order in which they are entered: depth-first, each once."""
    entered: set[str] = set()
    coming = [chain]
    while coming:
        current = coming.pop()
        if current.name not in entered:
            entered.add(current.name)
            yield current
            coming += [config.chains[name] for name in reversed(current.fallback)]


def deployments_of(config: Config, chain: Chain) -> tuple[Deployment, ...]:
    """The deployments of a chain and its fallbacks, in the order in which they would be asked, each once."""
    names = dict.fromkeys(name for each in with_fallbacks(config, chain) for name in each.deployments)
    return tuple(config.deployments[name] for name in names)
