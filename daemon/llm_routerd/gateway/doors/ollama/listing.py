"""What Ollama's clients look up: which models there are, and what is known of one."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

from llm_routerd.gateway.door import Body, Looked
from llm_routerd.gateway.properties import Properties
from llm_routerd.protocol.wire import encode

if TYPE_CHECKING:
    from llm_routerd.gateway.catalogue import Catalogue, Model

# Whose protocol this is: clients ask for it to find out what they may do.
OLLAMA_VERSION: Final = "0.33.0"
SHOW: Final = Properties(
    heeded=frozenset({"model", "name"}), idle=frozenset({"verbose", "system", "template", "options"})
)
_NEVER: Final = "0001-01-01T00:00:00Z"  # Ollama's own for a time that is not known
_CAPABILITIES: Final = ("completion", "tools")
_ARCHITECTURE: Final = "llm-routerd"


def tags(body: Body, catalogue: Catalogue) -> Looked:  # noqa: ARG001 - a lookup has one
    """Every name that a request may give as its model."""
    return _looked({"models": [_listed(model) for model in catalogue.models]})


def running(body: Body, catalogue: Catalogue) -> Looked:  # noqa: ARG001 - a lookup has them
    """What is in memory: nobody here knows, so that nothing is told."""
    return _looked({"models": []})


def version(body: Body, catalogue: Catalogue) -> Looked:  # noqa: ARG001 - a lookup has them
    """Of the protocol."""
    return _looked({"version": OLLAMA_VERSION})


def show(body: Body, catalogue: Catalogue) -> Looked:
    """What is known of one model.

    Raises:
        RefusedError: there is no such model.
    """
    given = SHOW.of(body)
    given.setdefault("model", given.get("name"))
    catalogue.model_of(given)
    model = catalogue.find(given["model"])
    return _looked(
        {
            "modelfile": "",
            "parameters": "",
            "template": "",
            "details": _details(model),
            "model_info": {"general.architecture": _ARCHITECTURE, "general.basename": model.name},
            "capabilities": _CAPABILITIES,
            "modified_at": _NEVER,
        }
    )


def _looked(told: dict[str, Any]) -> Looked:
    return Looked(body=encode(told))


def _listed(model: Model) -> dict[str, Any]:
    return {
        "name": model.name,
        "model": model.name,
        "modified_at": _NEVER,
        "size": 0,
        "digest": sha256(encode((model.name, model.models))).hexdigest(),  # clients cut it; it tells the same
        "details": _details(model),
        "capabilities": _CAPABILITIES,
    }


def _details(model: Model) -> dict[str, Any]:
    """Whom it stands for, where a client looks for a model's kin."""
    return {
        "parent_model": "",
        "format": "",
        "family": model.kind,
        "families": model.models,
        "parameter_size": "",
        "quantization_level": "",
    }
