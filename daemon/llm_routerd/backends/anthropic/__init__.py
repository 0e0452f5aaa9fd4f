"""Anthropic's protocol, `/v1/messages`, also of servers that imitate it.

Called directly and not through litellm: there a stream that was cut looks like a whole one (its `message_start`
carries usage already), and the built-in default chain would need 190 MB for an import.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_routerd.backends.anthropic.backend import AnthropicBackend

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llm_routerd.backends.wire.transport import Transport
    from llm_routerd.config.tree import Deployment
    from llm_routerd.protocol.backend import Backend


def make_backends(deployments: Mapping[str, Deployment], transport: Transport) -> Mapping[str, Backend]:
    """One for each of these deployments, by the same names; see `factory.Backends`."""
    return {name: AnthropicBackend(each, transport) for name, each in deployments.items()}
