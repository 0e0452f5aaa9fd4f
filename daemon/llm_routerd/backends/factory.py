"""One backend per deployment, over shared connections."""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

from llm_routerd.backends.anthropic import AnthropicBackend
from llm_routerd.backends.litellm_backend import LitellmBackend, LitellmModule
from llm_routerd.backends.ollama import OllamaBackend
from llm_routerd.backends.openai import OpenAIBackend
from llm_routerd.backends.transport import Transport

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llm_routerd.config.tree import Deployment
    from llm_routerd.protocol.backend import Backend


class Backends:
    """The backends of one configuration.

    A new configuration gets a new `Backends`; the old one is closed when its calls are done.

    Raises:
        ConfigError: a deployment's `api_base` is not an address.
    """

    def __init__(self, deployments: Mapping[str, Deployment]) -> None:
        self._transport = Transport()
        self._litellm = LitellmModule(
            {each.model.partition("/")[0] for each in deployments.values() if each.backend_kind == "litellm"}
        )
        self._backends = {name: self._make(deployment) for name, deployment in deployments.items()}

    def get(self, name: str) -> Backend:
        """The backend of the deployment with this name.

        Raises:
            KeyError: there is none.
        """
        return self._backends[name]

    async def preload(self) -> Mapping[str, str]:
        """Import litellm, in a thread, if a deployment goes through it: a daemon does so once it is ready.

        Returns the deployments that can never answer, and why: litellm does not know their provider, or is broken, or
        their key is missing.
        """
        found = {name: each for name, each in self._backends.items() if isinstance(each, LitellmBackend)}
        try:
            faults = {name: await each.fault() for name, each in found.items()}
        except Exception as error:  # noqa: BLE001 - an import runs whatever stands in the package
            faults = dict.fromkeys(found, f"litellm cannot be imported ({type(error).__name__})")
        return {name: why for name, why in faults.items() if why is not None}

    async def aclose(self) -> None:
        """Close all connections; calls under way break off."""
        await self._transport.aclose()

    def _make(self, deployment: Deployment) -> Backend:
        match deployment.backend_kind:
            case "ollama":
                return OllamaBackend(deployment, self._transport)
            case "openai":
                return OpenAIBackend(deployment, self._transport)
            case "anthropic":
                return AnthropicBackend(deployment, self._transport)
            case "litellm":
                return LitellmBackend(deployment, self._litellm)
            case unreachable:
                assert_never(unreachable)
