from __future__ import annotations

from llm_routerd.config.tree import Chain
from llm_routerd.routing.chains import deployments_of, resolve, unknown_model, with_fallbacks
from tests.routing.routes import HAIKU, LOCAL, SONNET, config


def test_unknown_model_resolves_to_nothing() -> None:
    """The caller turns it into `unknown_model`."""
    assert resolve(config(LOCAL), "http://example.org") is None


def test_name_of_a_deployment_resolves_to_a_chain_of_it_alone() -> None:
    """Without retries and fallbacks."""
    assert resolve(config(LOCAL, HAIKU), "haiku") == Chain(name="haiku", deployments=("haiku",))


def test_chain_wins_over_a_deployment_of_the_same_name() -> None:
    """As `local` is both in the built-in configuration."""
    tree = config(LOCAL, HAIKU, local={"deployments": ("haiku",)})
    assert resolve(tree, "local") is tree.chains["local"]


def test_unknown_model_names_the_nearest_or_all() -> None:
    """Chains and deployments alike, each once."""
    tree = config(LOCAL, HAIKU, local={}, default={})
    assert unknown_model(tree, "hiku").endswith("; did you mean 'haiku'?")
    assert unknown_model(tree, "http://example.org").endswith("; there are: local, default, haiku")


def test_fallbacks_are_entered_depth_first_and_each_once() -> None:
    """Cycles or no cycles; their deployments in the same order."""
    tree = config(
        LOCAL, HAIKU, SONNET,
        a={"deployments": ("haiku",), "fallback": ("b", "c")},
        b={"deployments": ("haiku", "local"), "fallback": ("d",)},
        c={"deployments": ("local",), "fallback": ("a", "d")},
        d={"deployments": ("sonnet",), "fallback": ("b",)},
    )  # fmt: skip
    assert [chain.name for chain in with_fallbacks(tree, tree.chains["a"])] == ["a", "b", "d", "c"]
    assert deployments_of(tree, tree.chains["a"]) == (HAIKU, LOCAL, SONNET)
