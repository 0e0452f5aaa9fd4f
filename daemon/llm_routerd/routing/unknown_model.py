"""What is said of a model that the configuration does not know, by the daemon and the library alike."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llm_routerd.config.tree import Config


def unknown_model(config: Config, model: str) -> str:
    """The message for a request that names neither a chain nor a deployment."""
    names = list(dict.fromkeys((*config.chains, *config.deployments)))
    near = get_close_matches(model, names, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(names)}"
    return f"$.model: no chain or deployment has this name; {hint}"
