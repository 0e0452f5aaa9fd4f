from __future__ import annotations

import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from llm_routerd.config.tree import Chain, Config, Deployment
from llm_routerd.protocol.codes import AttemptCode
from llm_routerd.protocol.outcome import Rejection
from llm_routerd.routing.chain_run import MOST_CUTS, ChainRun
from llm_routerd.routing.decisions import Ask, Examine, GiveUp
from llm_routerd.routing.eligibility import Need
from llm_routerd.routing.health import Health

NAMES = ["a", "b", "c", "d", "e"]
CHAINS = ["p", "q", "r"]
CODES = [code for code in AttemptCode if code is not AttemptCode.COOLDOWN]


@st.composite
def deployments(draw: st.DrawFn) -> dict[str, Deployment]:
    """Five deployments, each local or not, with or without key and tools."""
    return {
        name: Deployment(
            name=name,
            model=f"openai/{name}",
            local=draw(st.booleans()),
            supports_tools=draw(st.booleans()),
            key_missing=draw(st.sampled_from([None, None, "KEY"])),
        )
        for name in NAMES
    }


@st.composite
def chains(draw: st.DrawFn) -> dict[str, Chain]:
    """Three chains, cycles of fallbacks among them."""
    return {
        name: Chain(
            name=name,
            deployments=tuple(draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=4))),
            strategy=draw(st.sampled_from(["ordered", "latency"])),
            retries=draw(st.integers(0, 3)),
            repair=draw(st.integers(0, 2)),
            fallback=tuple(draw(st.lists(st.sampled_from(CHAINS), max_size=3))),
        )
        for name in CHAINS
    }


class Requests:
    """Requests one after the other, on one clock and one health, everything drawn from a seed."""

    def __init__(self, config: Config, seed: int) -> None:
        self.config = config
        self.rng = random.Random(seed)
        self.health = Health(rng=self.rng, cooldown_first_seconds=1.0, cooldown_max_seconds=4.0)
        self.now = 0.0

    def one(self, need: Need, time_left: float | None) -> tuple[list[Ask], GiveUp]:
        """A request that nobody answers."""
        deadline = None if time_left is None else self.now + time_left
        run = ChainRun(
            config=self.config,
            chain=self.config.chains["p"],
            health=self.health,
            need=need,
            deadline=deadline,
            rng=self.rng,
            tenant=self.rng.choice([None, "a", "b"]),
            messages=({"role": "user", "content": self.rng.choice("xyz")},),
        )
        tries: list[Ask] = []
        while not isinstance(decision := run.decide(self.now), GiveUp):
            if isinstance(decision, Examine):
                assert need.local_only
                assert decision.deployment.local
                self.now += self.rng.choice([0.0, 8.0])
                run.examined(decision.deployment, answers=self.rng.random() < 0.5)
                continue
            tries.append(decision)
            assert decision.wait_seconds >= 0
            assert deadline is None or self.now + decision.wait_seconds < deadline
            self.now += decision.wait_seconds
            elapsed = self.rng.choice([None, 0.0, 0.1, 3.0])
            self.now += elapsed or 0.0
            run.rejected(self.rejection(), self.now, elapsed)
        return tries, decision

    def rejection(self) -> Rejection:
        """Any verdict."""
        return Rejection(
            code=self.rng.choice(CODES),
            reason="r",
            retryable=self.rng.random() < 0.8,
            retry_after_seconds=self.rng.choice([None, None, 0.0, 0.5, 5.0, 1e9, float("inf"), float("nan")]),
        )


@given(
    deployments=deployments(),
    chains=chains(),
    need=st.builds(Need, local_only=st.booleans(), tools=st.booleans()),
    time_left=st.sampled_from([None, 0.0, 0.5, 5.0, 60.0]),
    seed=st.integers(0, 2**32),
)
def test_every_request_ends_within_its_budget_and_asks_only_what_it_may(
    deployments: dict[str, Deployment],
    chains: dict[str, Chain],
    need: Need,
    time_left: float | None,
    seed: int,
) -> None:
    """Whatever the configuration and whatever comes of each attempt."""
    requests = Requests(Config(deployments=deployments, chains=chains), seed)
    bound = max(1 + chain.retries + chain.repair for chain in chains.values())
    for _ in range(4):
        tries, end = requests.one(need, time_left)
        counts = Counter(decision.deployment.name for decision in tries)
        assert all(count <= bound + MOST_CUTS for count in counts.values())
        assert sum(max(0, count - bound) for count in counts.values()) <= MOST_CUTS
        for decision in tries:
            assert decision.deployment.key_missing is None
            assert decision.deployment.local or not need.local_only
            assert decision.deployment.supports_tools or not need.tools
        assert "\n" not in end.message
        decisions: list[Ask | GiveUp] = [*tries, end]
        passed = [record.deployment for decision in decisions for record in decision.passed]
        assert len(passed) == len(set(passed))
    assert all(state.in_flight == 0 for state in requests.health.states(requests.now).values())
