"""One backend per deployment, over shared connections."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Protocol, cast, runtime_checkable

from llm_routerd.backends.wire.transport import Transport

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llm_routerd.config.tree import Deployment
    from llm_routerd.protocol.backend import Backend


class BackendRoom(Protocol):
    """What the module of a backend has, which bears the backend's name (see `config.providers`)."""

    def make_backends(self, deployments: Mapping[str, Deployment], transport: Transport) -> Mapping[str, Backend]:
        """The backends of these deployments, by the same names; they may share what they like.

        Raises:
            ConfigError: a deployment's `api_base` is no address.
        """
        ...


@runtime_checkable
class Doubtful(Protocol):
    """A backend that finds out only once it has loaded something whether its deployment can answer at all."""

    async def fault(self) -> str | None:
        """Why no call can ever succeed, after loading; None: nothing is known against it."""
        ...


def room_of(backend: str) -> BackendRoom:
    """The module of the backend of this name, imported now if it has not been needed before."""
    return cast("BackendRoom", import_module(f"llm_routerd.backends.{backend}"))


class Backends:
    """The backends of one configuration.

    A new configuration gets a new `Backends`; the old one is closed when its calls are done.

    Raises:
        ConfigError: a deployment's `api_base` is not an address.
    """

    def __init__(self, deployments: Mapping[str, Deployment]) -> None:
        self._transport = Transport()
        kinds: dict[str, dict[str, Deployment]] = {}
        for name, deployment in deployments.items():
            kinds.setdefault(deployment.backend_kind, {})[name] = deployment
        self._backends: dict[str, Backend] = {}
        for kind, of_kind in kinds.items():
            self._backends |= room_of(kind).make_backends(of_kind, self._transport)

    def get(self, name: str) -> Backend:
        """The backend of the deployment with this name.

        Raises:
            KeyError: there is none.
        """
        return self._backends[name]

    async def preload(self) -> Mapping[str, str]:
        """Load what backends would load with their first call: a daemon does so once it is ready.

        Returns the deployments that can never answer, and why: litellm does not know their provider, or is broken, or
        their key is missing.
        """
        asked = {name: each for name, each in self._backends.items() if isinstance(each, Doubtful)}
        faults = {name: await each.fault() for name, each in asked.items()}
        return {name: why for name, why in faults.items() if why is not None}

    async def aclose(self) -> None:
        """Close all connections; calls under way break off."""
        await self._transport.aclose()
