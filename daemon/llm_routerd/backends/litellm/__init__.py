"""Every provider that has no backend of its own, through the library litellm.

The signs of its patches come next.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_routerd.backends.litellm.backend import LitellmBackend
from llm_routerd.backends.litellm.loading import LitellmModule

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llm_routerd.backends.wire.transport import Transport
    from llm_routerd.config.tree import Deployment
    from llm_routerd.protocol.backend import Backend


def make_backends(deployments: Mapping[str, Deployment], _transport: Transport) -> Mapping[str, Backend]:
    """One for each of these deployments, by the same names; they share the library, and its connections."""
    module = LitellmModule({each.provider for each in deployments.values()})
    return {name: LitellmBackend(each, module) for name, each in deployments.items()}
