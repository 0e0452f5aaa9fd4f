"""OpenAI's protocol, `/chat/completions`, and all that is compatible: vLLM, llama.cpp, LM Studio.

`answer` reads for `litellm` too, where what lies behind that library is this protocol.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_routerd.backends.openai.backend import OpenAIBackend

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llm_routerd.backends.wire.transport import Transport
    from llm_routerd.config.tree import Deployment
    from llm_routerd.protocol.backend import Backend


def make_backends(deployments: Mapping[str, Deployment], transport: Transport) -> Mapping[str, Backend]:
    """One for each of these deployments, by the same names; see `factory.Backends`."""
    return {name: OpenAIBackend(each, transport) for name, each in deployments.items()}
