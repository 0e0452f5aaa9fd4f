"""What tokens cost, by the configuration or by the price table that ships with litellm.

The rules:

- A local deployment costs nothing, unless the configuration gives it a price.
- The configuration's `input_usd_per_mtok` and `output_usd_per_mtok` win over the table, each for itself.
- The table's entry is the one named as the deployment's `model`; or as the part after the provider, if the
  entry is of that provider: `claude-haiku-4-5-20251001` for `anthropic/…`, but never OpenAI's price for a
  namesake elsewhere.
- Cached prompt tokens and reasoning tokens have their own price where the entry gives one; else they cost
  what the others do.  What a provider charges for writing its cache is not in `Usage`, and not counted.
- Some models cost more for a long prompt: beyond the entry's threshold every token of the call has the higher
  price.
- What a cloud deployment's call costs whose price is not known, is not known: None, and never 0.  `Pricing.load` names
  the deployments that it concerns, so that the operator hears of it once.

The table is a file of 2.4 MB and most of it is about other models.  Parsed whole it would cost 7 MB for as
long as the daemon lives, so only the entries asked for are looked for in it, and parsed.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from llm_routerd.config.tree import Deployment
    from llm_routerd.protocol.outcome import Usage

_TABLE_NAME: Final = "model_prices_and_context_window_backup.json"
_LONGEST_ENTRY_BYTES: Final = 65_536
_TOKENS_PER_MTOK: Final = 1_000_000
_LONG_PROMPT_KEY: Final = re.compile(r"input_cost_per_token(_above_(\d+)k_tokens)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """US dollars per token."""

    prompt: float
    completion: float
    cached: float
    reasoning: float

    def cost_usd(self, usage: Usage) -> float:
        """The price of a call."""
        # A server that counts more cached tokens than tokens must not make the call cheaper than free.
        cached = min(usage.cached_tokens or 0, usage.prompt_tokens)
        reasoning = min(usage.reasoning_tokens or 0, usage.completion_tokens)
        return (
            (usage.prompt_tokens - cached) * self.prompt
            + cached * self.cached
            + (usage.completion_tokens - reasoning) * self.completion
            + reasoning * self.reasoning
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """What a deployment charges.

    Attributes:
        rates: for most calls.
        long_prompts: thresholds in prompt tokens, the highest first, and the rates of calls beyond them.
    """

    rates: Rates
    long_prompts: tuple[tuple[int, Rates], ...] = ()

    def cost_usd(self, usage: Usage) -> float:
        """The price of a call."""
        for threshold, rates in self.long_prompts:
            if usage.prompt_tokens > threshold:
                return rates.cost_usd(usage)
        return self.rates.cost_usd(usage)


class Pricing:
    """The prices of one configuration's deployments.

    Until `load` has returned, only those prices are known which the configuration gives.
    """

    def __init__(self, deployments: Iterable[Deployment]) -> None:
        self._deployments = tuple(deployments)
        self._prices = self._price_all({})

    def load(self, table: bytes | None = None) -> tuple[str, ...]:
        """Read the price table: some 10 ms of file reading, so not on the event loop.

        Args:
            table: the table's JSON; None: litellm's, which is not imported for it.

        Returns:
            The names of the cloud deployments that have no price, in order.

        Raises:
            OSError: the table is there and cannot be read; nothing has changed.
        """
        if table is None:
            table = read_litellm_table()
        clouds = [each for each in self._deployments if not each.local]
        self._prices = self._price_all({each.name: find_entry(table, each.model) for each in clouds})
        return tuple(each.name for each in clouds if each.name not in self._prices)

    def cost_usd(self, deployment: Deployment, usage: Usage) -> float | None:
        """What one call costs; None: its price is not known."""
        price = self._prices.get(deployment.name)
        if price is None:
            return 0.0 if deployment.local else None
        return price.cost_usd(usage)

    def saved_usd(self, deployments: Iterable[Deployment], usage: Usage, *, spent_usd: float = 0.0) -> float:
        """What a local answer saved: its tokens' price at the next cloud deployment, less what was spent.

        It compares prices and nothing else: that the deployment is disabled or cools down does not matter,
        and its own tokenizer would have counted a little differently.

        Args:
            deployments: those of the request's chain and its fallbacks, in order.
            usage: of the local call.
            spent_usd: the cost of the request's attempts.

        Returns:
            Never less than 0; 0 where no cloud deployment has a known price.
        """
        for deployment in deployments:
            price = None if deployment.local else self._prices.get(deployment.name)
            if price is not None:
                return max(0.0, price.cost_usd(usage) - spent_usd)
        return 0.0

    def _price_all(self, entries: Mapping[str, dict[str, Any] | None]) -> dict[str, Price]:
        priced = ((each.name, price_of(each, entries.get(each.name))) for each in self._deployments)
        return {name: price for name, price in priced if price is not None}


def read_litellm_table() -> bytes:
    """The price table of the installed litellm; an empty one if there is none."""
    spec = find_spec("litellm")
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        path = Path(folder, _TABLE_NAME)
        if path.is_file():
            return path.read_bytes()
    return b"{}"


def find_entry(table: bytes, model: str) -> dict[str, Any] | None:
    """The table's entry for a model named as `provider/name`, or None."""
    entry = _find_key(table, model)
    provider, _, name = model.partition("/")
    if entry is None and name:
        entry = _find_key(table, name)
        # litellm_provider refines the name: `bedrock_converse`, `vertex_ai-anthropic_models`.
        if entry is not None and not str(entry.get("litellm_provider", "")).startswith(provider):
            return None
    return entry


def price_of(deployment: Deployment, entry: Mapping[str, Any] | None) -> Price | None:
    """The price of a deployment, given its entry of the table; None: it is not known, or there is none."""
    given_in, given_out = deployment.input_usd_per_mtok, deployment.output_usd_per_mtok
    listed = None if entry is None else _parse(entry)
    if given_in is None and given_out is None:
        return listed
    if listed is None and not deployment.local and None in {given_in, given_out}:
        return None  # half a price is none
    free = Rates(prompt=0.0, completion=0.0, cached=0.0, reasoning=0.0)
    known = free if listed is None else listed.rates
    long_prompts = () if listed is None else listed.long_prompts
    return Price(
        rates=_override(known, given_in, given_out),
        long_prompts=tuple((above, _override(rates, given_in, given_out)) for above, rates in long_prompts),
    )


def _override(rates: Rates, input_usd_per_mtok: float | None, output_usd_per_mtok: float | None) -> Rates:
    prompt, cached = rates.prompt, rates.cached
    completion, reasoning = rates.completion, rates.reasoning
    if input_usd_per_mtok is not None:
        prompt = cached = input_usd_per_mtok / _TOKENS_PER_MTOK
    if output_usd_per_mtok is not None:
        completion = reasoning = output_usd_per_mtok / _TOKENS_PER_MTOK
    return Rates(prompt=prompt, completion=completion, cached=cached, reasoning=reasoning)


def _find_key(table: bytes, key: str) -> dict[str, Any] | None:
    """The object that is the value of a key, wherever in the JSON text it stands first."""
    opening = re.compile(rb"\s*:\s*(?=\{)")
    needle = json.dumps(key).encode()
    at = table.find(needle)
    while at >= 0:
        at += len(needle)
        match = opening.match(table, at)
        if match is not None:
            start = match.end()
            text = table[start : start + _LONGEST_ENTRY_BYTES].decode(errors="replace")
            try:
                entry, _ = json.JSONDecoder().raw_decode(text)
            except ValueError:
                return None
            return entry if isinstance(entry, dict) else None
        at = table.find(needle, at)
    return None


def _parse(entry: Mapping[str, Any]) -> Price | None:
    rates = _parse_rates(entry, "", None)
    if rates is None:
        return None
    long_prompts: list[tuple[int, Rates]] = []
    for key in entry:
        match = _LONG_PROMPT_KEY.fullmatch(key)
        beyond = None if match is None else _parse_rates(entry, match[1], rates)
        if match is not None and beyond is not None:
            long_prompts.append((int(match[2]) * 1000, beyond))
    return Price(rates=rates, long_prompts=tuple(sorted(long_prompts, key=lambda pair: pair[0], reverse=True)))


def _parse_rates(entry: Mapping[str, Any], suffix: str, default: Rates | None) -> Rates | None:
    """The entry's rates with this suffix to their keys; None: it has no price for prompt or completion."""
    prompt = _number(entry, f"input_cost_per_token{suffix}")
    completion = _number(entry, f"output_cost_per_token{suffix}")
    if completion is None and default is not None:
        completion = default.completion
    if prompt is None or completion is None:
        return None
    cached = _number(entry, f"cache_read_input_token_cost{suffix}")
    reasoning = _number(entry, f"output_cost_per_reasoning_token{suffix}")
    return Rates(
        prompt=prompt,
        completion=completion,
        cached=prompt if cached is None else cached,
        reasoning=completion if reasoning is None else reasoning,
    )


def _number(entry: Mapping[str, Any], key: str) -> float | None:
    value = entry.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        return None
    return float(value)
