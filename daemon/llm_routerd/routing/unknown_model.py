"""What is said of a model that the configuration does not know, by the daemon and the library alike."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

from llm_routerd.protocol.codes import ErrorCode
from llm_routerd.protocol.request import RequestError

if TYPE_CHECKING:
    from llm_routerd.config.tree import Config
    from llm_routerd.protocol.request import Request


def unknown_model(config: Config, request: Request) -> RequestError:
    """Why a request that names neither a chain nor a deployment is none."""
    names = list(dict.fromkeys((*config.chains, *config.deployments)))
    near = get_close_matches(request.model, names, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(names)}"
    message = f"$.model: no chain or deployment has this name; {hint}"
    return RequestError(id=request.id, code=ErrorCode.UNKNOWN_MODEL, message=message, metadata=request.metadata)
