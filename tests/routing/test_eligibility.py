"""Who may be asked, and which chains are left without anybody who could answer."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from llm_routerd.config.tree import Chain, Config, Deployment
from llm_routerd.routing.eligibility import Need, ineligibility, unanswerable, without_keys
from tests.routing.routes import HAIKU, LOCAL

CONFIG = Config(
    deployments={
        "a": Deployment(name="a", model="openai/a", key_missing="OPENAI_API_KEY"),
        "b": Deployment(name="b", model="foo/b"),
        "c": Deployment(name="c", model="ollama/c"),
    },
    chains={
        "none": Chain(name="none", deployments=("a", "b")),
        "by_fallback": Chain(name="by_fallback", deployments=("a",), fallback=("some",)),
        "some": Chain(name="some", deployments=("b", "c")),
        "lost": Chain(name="lost", deployments=("a",), fallback=("none",)),
    },
)


@pytest.mark.parametrize(
    ("deployment", "need", "because"),
    [
        (HAIKU, Need(local_only=True), "not local"),
        (replace(HAIKU, key_missing="ANTHROPIC_API_KEY"), Need(), "no ANTHROPIC_API_KEY"),
        (replace(LOCAL, supports_tools=False), Need(tools=True), "does not support tools"),
        (replace(LOCAL, supports_tools=False), Need(local_only=True), None),
        (LOCAL, Need(local_only=True, tools=True), None),
        (HAIKU, Need(tools=True), None),
    ],
)
def test_ineligibility_says_why_not(deployment: Deployment, need: Need, because: str | None) -> None:
    """And nothing where the deployment may be asked."""
    assert ineligibility(deployment, need) == because


def test_chain_is_unanswerable_where_all_that_it_can_reach_are_unusable() -> None:
    """Fallbacks count; the line says of each why."""
    unusable = {**without_keys(CONFIG), "b": "litellm knows no provider `foo`"}
    why = "a: no OPENAI_API_KEY; b: litellm knows no provider `foo`"
    assert unanswerable(CONFIG, unusable) == {"none": why, "lost": why}


def test_missing_keys_alone_make_unusable() -> None:
    """Whether a server is up, or known to litellm, shows later."""
    assert without_keys(CONFIG) == {"a": "no OPENAI_API_KEY"}
    assert unanswerable(CONFIG, without_keys(CONFIG)) == {}
