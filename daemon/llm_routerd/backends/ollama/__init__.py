"""Ollama's own protocol, `/api/chat`, also of servers that imitate it.

The one protocol that tells whether a model is in memory, and can be asked to load it.  `window` finds out how much of a
prompt such a server reads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_routerd.backends.ollama.backend import OllamaBackend

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llm_routerd.backends.wire.transport import Transport
    from llm_routerd.config.tree import Deployment
    from llm_routerd.protocol.backend import Backend


def make_backends(deployments: Mapping[str, Deployment], transport: Transport) -> Mapping[str, Backend]:
    """One for each of these deployments, by the same names; see `factory.Backends`."""
    return {name: OllamaBackend(each, transport) for name, each in deployments.items()}
