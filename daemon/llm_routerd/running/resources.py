"""What all requests under one configuration share: backends, health, prices, places among the calls, warmth."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from llm_routerd.routing.chains import deployments_of
from llm_routerd.running.clock import Clocks
from llm_routerd.running.examination import Examination
from llm_routerd.running.fleet import Fleet
from llm_routerd.running.shortage import Shortage
from llm_routerd.running.slots import Slots
from llm_routerd.running.validation import ValidationProcess
from llm_routerd.running.warmth import Warmth
from llm_routerd.running.windows import Windows

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterable, Mapping

    from llm_routerd.config.tree import Chain, Config, Deployment
    from llm_routerd.judging.refusal import RefusalDetector
    from llm_routerd.protocol.audit import Messages
    from llm_routerd.protocol.backend import Backend
    from llm_routerd.protocol.outcome import Usage
    from llm_routerd.routing.health import Health


class BackendSource(Protocol):
    """Where the backend of a deployment is found."""

    def get(self, name: str) -> Backend:
        """The backend of the deployment with this name."""
        ...

    async def preload(self) -> Mapping[str, str]:
        """Import what is slow to import, if any deployment needs it; returns those that can never answer, and why."""
        ...

    async def aclose(self) -> None:
        """Close all connections."""
        ...


class Pricing(Protocol):
    """What tokens cost."""

    def load(self) -> tuple[str, ...]:
        """Read the price table (not on the event loop); returns the deployments whose price is not known."""
        ...

    def cost_usd(self, deployment: Deployment, usage: Usage) -> float | None:
        """The price of one call; 0 for a local one, None where it is not known."""
        ...

    def saved_usd(self, deployments: Iterable[Deployment], usage: Usage, *, spent_usd: float = 0.0) -> float:
        """What the same tokens would have cost at the first cloud deployment of these, less what was spent."""
        ...


class Resources:
    """What all requests under one configuration share; a reload makes new ones, and the old ones serve what has begun.

    Args:
        config: the tree in force.
        backends: one for each of its deployments.
        health: shared with the resources before and after a reload.
        pricing: what tokens cost.
        refusals: finds refusals in text.
        rng: for jitter and choice.
        consumer: written into attempt events; "" outside of the daemon.
        shortage: what the process lacks, shared as `health` is.

    Attributes:
        prompt_hash: of the messages of a call, for the audit; None where none is wanted.
    """

    def __init__(
        self,
        config: Config,
        *,
        backends: BackendSource,
        health: Health,
        pricing: Pricing,
        refusals: RefusalDetector,
        rng: random.Random,
        consumer: str = "",
        shortage: Shortage | None = None,
    ) -> None:
        self.config = config
        self.prompt_hash: Callable[[Messages], str | None] = lambda _messages: None
        self.backends = backends
        self.health = health
        self.pricing = pricing
        self.refusals = refusals
        self.rng = rng
        self.consumer = consumer
        self.shortage = Shortage() if shortage is None else shortage
        self.slots = {name: Slots(each.concurrency) for name, each in config.deployments.items()}
        self.warmth = {name: Warmth(each, backends.get(name)) for name, each in config.deployments.items()}
        self.windows = Windows(config.deployments, backends.get)
        self.examinations = {
            name: Examination(each, backends.get(name), self.slots[name], self.warmth[name], self.windows)
            for name, each in config.deployments.items()
            if each.local
        }
        self.fleet = Fleet(config, backends.get, worker=consumer)
        self.fleet.on_awake = lambda deployment: health.restarted(deployment.name)
        self.clocks = Clocks()
        self.validation = ValidationProcess()
        self._deployments_of: dict[str, tuple[Deployment, ...]] = {}
        self.loop = asyncio.get_running_loop()

    def warm(self) -> None:
        """Start loading the local models that stand in a chain, so that the first request meets a warm one.

        Of those on boxes the pinned ones alone: which others are loaded, and where, follows from what is asked for.
        """
        self.fleet.start()
        chained = {name for chain in self.config.chains.values() for name in chain.deployments}
        for name, deployment in self.config.deployments.items():
            is_for_itself = deployment.box is None or deployment.pin  # else models push each other out
            if deployment.protocol.loads == "model" and deployment.local and name in chained and is_for_itself:
                self.warmth[name].load()

    def is_resident(self, deployment: Deployment) -> bool:
        """Whether its model is in memory, as far as is known; what is nobody's box may have answered just now."""
        if deployment.box is not None:
            return self.fleet.is_resident(deployment)
        return deployment.protocol.loads == "model" and self.warmth[deployment.name].is_ready

    def cost_usd(self, deployment: Deployment, usage: Usage) -> float | None:
        """The price of one call; see `Pricing.cost_usd`."""
        return self.pricing.cost_usd(deployment, usage)

    def saved_usd(self, chain: Chain, usage: Usage, *, spent_usd: float) -> float:
        """What a local answer saved; see `Pricing.saved_usd`."""
        deployments = self._deployments_of.get(chain.name)
        if deployments is None:
            deployments = self._deployments_of[chain.name] = deployments_of(self.config, chain)
        return self.pricing.saved_usd(deployments, usage, spent_usd=spent_usd)

    async def aclose(self) -> None:
        """Stop warming and examining, close the backends; what still runs breaks off."""
        try:
            for examination in self.examinations.values():
                await examination.aclose()
            await self.windows.aclose()
            await self.fleet.aclose()
            for warmth in self.warmth.values():
                await warmth.aclose()
            await self.validation.aclose()
        finally:  # also where the time that we are given is over
            self.clocks.close()
            await self.backends.aclose()
