"""Which chains are left without anybody who could answer."""

from __future__ import annotations

from llm_routerd.config.tree import Chain, Config, Deployment
from llm_routerd.routing.usability import unanswerable, without_keys

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


def test_chain_is_unanswerable_where_all_that_it_can_reach_are_unusable() -> None:
    """Fallbacks count; the line says of each why."""
    unusable = {**without_keys(CONFIG), "b": "litellm knows no provider `foo`"}
    why = "a: no OPENAI_API_KEY; b: litellm knows no provider `foo`"
    assert unanswerable(CONFIG, unusable) == {"none": why, "lost": why}


def test_missing_keys_alone_make_unusable() -> None:
    """Whether a server is up, or known to litellm, shows later."""
    assert without_keys(CONFIG) == {"a": "no OPENAI_API_KEY"}
    assert unanswerable(CONFIG, without_keys(CONFIG)) == {}
