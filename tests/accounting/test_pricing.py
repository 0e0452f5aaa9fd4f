from __future__ import annotations

import json
import subprocess
import sys

import pytest

from llm_routerd.accounting.pricing import Pricing, find_entry, read_litellm_table
from llm_routerd.config.tree import Deployment
from llm_routerd.protocol.outcome import Usage

TABLE = json.dumps(
    {
        "sample_spec": {"also": ["haiku", "anthropic/named"], "input_cost_per_token": 0.0},
        "haiku": {
            "litellm_provider": "anthropic",
            "input_cost_per_token": 1e-6,
            "output_cost_per_token": 5e-6,
            "cache_read_input_token_cost": 1e-7,
        },
        "anthropic/named": {
            "litellm_provider": "anthropic",
            "input_cost_per_token": 2e-6,
            "output_cost_per_token": 1e-5,
            "output_cost_per_reasoning_token": 2e-5,
        },
        "long": {
            "litellm_provider": "vertex_ai-language-models",
            "input_cost_per_token": 1e-6,
            "output_cost_per_token": 5e-6,
            "input_cost_per_token_above_128k_tokens": 2e-6,
            "input_cost_per_token_above_200k_tokens": 4e-6,
            "output_cost_per_token_above_200k_tokens": 2e-5,
            "input_cost_per_token_above_200k_tokens_priority": 9.0,
        },
        "painter": {"litellm_provider": "openai", "output_cost_per_image": 0.04},
        "broken": {"litellm_provider": "openai", "input_cost_per_token": "1e-6", "output_cost_per_token": 1e-6},
        "negative": {"litellm_provider": "openai", "input_cost_per_token": 1e-6, "output_cost_per_token": -1},
        "text": {"litellm_provider": "openai", "input_cost_per_token": True, "output_cost_per_token": 1e-6},
    },
    indent=4,
).encode()

LOCAL = Deployment(name="local", model="ollama/qwen2.5:7b", local=True)
HAIKU = Deployment(name="haiku", model="anthropic/haiku")
NAMED = Deployment(name="named", model="anthropic/named")
USAGE = Usage(prompt_tokens=1000, completion_tokens=100)


def pricing(*deployments: Deployment) -> Pricing:
    """The prices of these deployments by the table above."""
    prices = Pricing(deployments)
    prices.load(TABLE)
    return prices


def cost(deployment: Deployment, usage: Usage) -> float | None:
    """What one call costs by the table above."""
    return pricing(deployment).cost_usd(deployment, usage)


@pytest.mark.parametrize(
    "model",
    [
        "openai/nothing",
        "openai/painter",
        "openai/broken",
        "openai/negative",
        "openai/text",
        "openai/haiku",
        "hosted_vllm/haiku",
        "x",
    ],
)
def test_model_without_a_usable_price_is_named_and_its_calls_cost_nobody_knows_what(model: str) -> None:
    """A namesake of another provider is no price."""
    deployment = Deployment(name="d", model=model)
    prices = Pricing([LOCAL, deployment])
    assert prices.load(TABLE) == ("d",)
    assert prices.cost_usd(deployment, USAGE) is None


@pytest.mark.parametrize("table", [b"", b"{}", b"[]", b'{"haiku": {"input', b'{"haiku": 3}', b"\xff\xfe"])
def test_damaged_table_is_a_table_without_prices(table: bytes) -> None:
    """Costs are no reason to fail."""
    prices = Pricing([HAIKU])
    assert prices.load(table) == ("haiku",)
    assert prices.cost_usd(HAIKU, USAGE) is None


def test_nothing_has_a_price_before_the_table_is_loaded() -> None:
    """But what the configuration gives."""
    given = Deployment(name="given", model="openai/x", input_usd_per_mtok=1.0, output_usd_per_mtok=2.0)
    prices = Pricing([HAIKU, given])
    assert prices.cost_usd(HAIKU, USAGE) is None
    assert prices.cost_usd(given, USAGE) == pytest.approx(0.0012)


def test_half_a_price_is_none() -> None:
    """Where the table has not the other half either; but a local deployment's other half costs nothing."""
    assert cost(Deployment(name="d", model="openai/nothing", input_usd_per_mtok=1.0), USAGE) is None
    local = Deployment(name="d", model="openai/nothing", local=True, input_usd_per_mtok=1.0)
    assert cost(local, USAGE) == pytest.approx(0.001)


def test_local_deployment_costs_nothing() -> None:
    """Also where the table has its model."""
    assert cost(Deployment(name="d", model="anthropic/haiku", local=True), USAGE) == 0.0


def test_local_deployment_costs_what_its_configuration_says() -> None:
    """Electricity has a price, too."""
    assert cost(Deployment(name="d", model="ollama/x", local=True, input_usd_per_mtok=0.1), USAGE) == pytest.approx(
        0.0001
    )


def test_tokens_cost_what_the_bare_name_of_their_provider_says() -> None:
    """`anthropic/haiku` stands as `haiku` in the table."""
    assert cost(HAIKU, USAGE) == pytest.approx(0.0015)


def test_whole_name_wins_over_the_bare_one() -> None:
    """And being mentioned in a list is no entry."""
    entry = find_entry(TABLE, "anthropic/named")
    assert entry is not None
    assert entry["input_cost_per_token"] == 2e-6


def test_cached_tokens_cost_less() -> None:
    """They are among the prompt tokens, and paid once."""
    usage = Usage(prompt_tokens=1000, completion_tokens=0, cached_tokens=900)
    assert cost(HAIKU, usage) == pytest.approx(100e-6 + 90e-6)
    assert cost(NAMED, usage) == pytest.approx(2000e-6)


def test_reasoning_tokens_have_their_own_price() -> None:
    """They are among the completion tokens, and paid once."""
    usage = Usage(prompt_tokens=0, completion_tokens=100, reasoning_tokens=60)
    assert cost(NAMED, usage) == pytest.approx(400e-6 + 1200e-6)
    assert cost(HAIKU, usage) == pytest.approx(500e-6)


def test_senseless_counts_never_make_a_negative_cost() -> None:
    """More cached tokens than tokens."""
    usage = Usage(prompt_tokens=10, completion_tokens=10, cached_tokens=10_000, reasoning_tokens=10_000)
    assert cost(HAIKU, usage) == pytest.approx(1e-6 + 50e-6)
    assert cost(NAMED, usage) == pytest.approx(20e-6 + 200e-6)


@pytest.mark.parametrize(
    ("prompt_tokens", "expected"),
    [(128_000, 0.128 + 5e-5), (128_001, 0.256002 + 5e-5), (200_001, 0.800004 + 2e-4)],
)
def test_long_prompt_costs_more_per_token(prompt_tokens: int, expected: float) -> None:
    """Beyond the threshold for every token of the call; where no output price is given there, the usual one."""
    deployment = Deployment(name="d", model="vertex_ai/long")
    assert cost(deployment, Usage(prompt_tokens=prompt_tokens, completion_tokens=10)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("input_usd", "output_usd", "expected"),
    [(10.0, None, 0.01 + 0.0005), (None, 10.0, 0.0001 + 0.0009 + 0.001 - 0.00081), (0.0, 0.0, 0.0)],
)
def test_configured_price_wins_over_the_table(
    input_usd: float | None, output_usd: float | None, expected: float
) -> None:
    """Each for itself, cached tokens included, and 0 is a price."""
    deployment = Deployment(
        name="d", model="anthropic/haiku", input_usd_per_mtok=input_usd, output_usd_per_mtok=output_usd
    )
    usage = Usage(prompt_tokens=1000, completion_tokens=100, cached_tokens=900)
    assert cost(deployment, usage) == pytest.approx(expected)


def test_configured_price_holds_for_long_prompts_too() -> None:
    """It is the price."""
    deployment = Deployment(name="d", model="vertex_ai/long", input_usd_per_mtok=1.0, output_usd_per_mtok=1.0)
    usage = Usage(prompt_tokens=300_000, completion_tokens=0)
    assert cost(deployment, usage) == pytest.approx(0.3)


def test_saved_is_the_price_at_the_first_cloud_deployment_that_has_one() -> None:
    """Disabled ones count: it is a comparison of prices."""
    unknown = Deployment(name="unknown", model="openai/nothing")
    disabled = Deployment(name="haiku", model="anthropic/haiku", key_missing="ANTHROPIC_API_KEY")
    chain = (LOCAL, unknown, disabled, NAMED)
    assert pricing(*chain).saved_usd(chain, USAGE) == pytest.approx(0.0015)


def test_saved_is_less_what_was_spent_and_never_less_than_nothing() -> None:
    """A rejected cloud attempt before the local answer has to be paid."""
    prices = pricing(LOCAL, HAIKU)
    assert prices.saved_usd([LOCAL, HAIKU], USAGE, spent_usd=0.0005) == pytest.approx(0.001)
    assert prices.saved_usd([LOCAL, HAIKU], USAGE, spent_usd=1.0) == 0.0


def test_nothing_is_saved_without_a_cloud_deployment() -> None:
    """There is nothing to compare with, not even a local one that has a price."""
    priced = Deployment(name="priced", model="ollama/x", local=True, input_usd_per_mtok=1.0)
    assert pricing(LOCAL, priced).saved_usd([LOCAL, priced], USAGE) == 0.0


def test_litellms_table_has_the_prices_of_the_built_in_deployments() -> None:
    """As the table spells them, with a threshold among them."""
    models = ["claude-haiku-4-5-20251001", "claude-sonnet-4-6", "claude-sonnet-4-20250514"]
    builtin = [Deployment(name=model, model=f"anthropic/{model}") for model in models]
    builtin.append(Deployment(name="gpt-4o", model="openai/gpt-4o"))
    prices = Pricing(builtin)
    assert prices.load() == ()
    assert all(prices.cost_usd(each, USAGE) for each in builtin)


def test_found_entries_are_those_of_a_full_parse() -> None:
    """Looking for them in the text finds the same objects."""
    table = read_litellm_table()
    every = json.loads(table)
    for model in list(every)[1::40]:
        assert find_entry(table, model) == every[model]


def test_loading_prices_does_not_import_litellm() -> None:
    """It would take seconds and 150 MB."""
    code = "import sys; from llm_routerd.accounting.pricing import Pricing; Pricing([]).load(); print('litellm' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.strip() == "False"
