"""Small configurations, and a run through one of their chains."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from llm_routerd.config.tree import Chain, Config, Deployment
from llm_routerd.protocol.codes import AttemptCode
from llm_routerd.protocol.outcome import Rejection
from llm_routerd.routing.chain_run import ChainRun
from llm_routerd.routing.chains import resolve
from llm_routerd.routing.decisions import Ask, GiveUp
from llm_routerd.routing.eligibility import Need
from llm_routerd.routing.health import Health

LOCAL = Deployment(name="local", model="ollama/qwen2.5:7b", local=True)
HAIKU = Deployment(name="haiku", model="anthropic/claude-haiku-4-5-20251001")
SONNET = Deployment(name="sonnet", model="anthropic/claude-sonnet-4-6")


def rejection(code: AttemptCode = AttemptCode.UPSTREAM, *, after: float | None = None) -> Rejection:
    """A verdict that its backend calls retryable."""
    return Rejection(code=code, reason=f"why {code}", retryable=True, retry_after_seconds=after)


def config(*deployments: Deployment, **chains: dict[str, Any]) -> Config:
    """The deployments, and chains by name; without any, `c` of them all."""
    every = tuple(deployment.name for deployment in deployments)
    given = chains or {"c": {}}
    return Config(
        deployments={deployment.name: deployment for deployment in deployments},
        chains={name: Chain(**{"name": name, "deployments": every, **chain}) for name, chain in given.items()},
    )


@dataclass
class Setting:
    """A run and what it was made of."""

    run: ChainRun
    health: Health

    def ask(self, now: float = 0.0) -> Ask:
        """The next `Ask`, which must be one."""
        decision = self.run.decide(now)
        assert isinstance(decision, Ask), decision
        return decision

    def end(self, now: float = 0.0) -> GiveUp:
        """The end, which must be one."""
        decision = self.run.decide(now)
        assert isinstance(decision, GiveUp), decision
        return decision

    def reject(self, code: AttemptCode = AttemptCode.UPSTREAM, now: float = 0.0, *, after: float | None = None) -> None:
        """The last `Ask` comes to nothing."""
        self.run.rejected(rejection(code, after=after), now, 0.1)

    def asked(self, code: AttemptCode = AttemptCode.UPSTREAM) -> list[str]:
        """Whom the run asks, and how it ends, when everyone fails."""
        names: list[str] = []
        while isinstance(decision := self.run.decide(0.0), Ask):
            names.append(decision.deployment.name)
            self.reject(code)
        assert isinstance(decision, GiveUp), decision
        return [*names, decision.code]


def start(
    tree: Config,
    chain: str = "c",
    *,
    need: Need | None = None,
    deadline: float | None = None,
    health: Health | None = None,
    seed: int = 1,
) -> Setting:
    """A new run through the chain of that name."""
    resolved = resolve(tree, chain)
    assert resolved is not None
    health = health or Health(rng=random.Random(2))
    run = ChainRun(
        config=tree,
        chain=resolved,
        health=health,
        need=need or Need(),
        deadline=deadline,
        rng=random.Random(seed),
    )
    return Setting(run, health)


def cool(health: Health, name: str, code: AttemptCode = AttemptCode.AUTH) -> None:
    """Make a deployment cool down from time 0."""
    permit = health.admit(name, 0.0)
    assert permit is not None
    health.rejected(permit, rejection(code), 0.0, 0.1)
    assert not health.available(name, 0.0)
