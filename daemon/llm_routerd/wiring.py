"""Puts the parts together; the only place that knows which class stands behind which protocol."""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING, NamedTuple

from llm_routerd.accounting.pricing import Pricing
from llm_routerd.backends.factory import Backends
from llm_routerd.jsonschema.compiled import SchemaCache
from llm_routerd.judging.refusal import RefusalDetector
from llm_routerd.protocol.audit import PromptHash
from llm_routerd.protocol.parsing import RequestParser
from llm_routerd.routing.eligibility import without_keys
from llm_routerd.running.resources import Resources

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Mapping

    from llm_routerd.config.audit import AuditConfig
    from llm_routerd.config.tree import Config
    from llm_routerd.protocol.audit import Messages
    from llm_routerd.routing.health import Health
    from llm_routerd.running.shortage import Shortage


def make_parser(config: Config) -> RequestParser:
    """The parser of requests, with its own cache of compiled schemas."""
    return RequestParser(max_request_bytes=config.daemon.max_request_bytes, schemas=SchemaCache())


def make_resources(
    config: Config,
    *,
    health: Health,
    rng: random.Random,
    consumer: str = "",
    shortage: Shortage | None = None,
    prompt_hash: Callable[[Messages], str | None] = lambda _messages: None,
) -> Resources:
    """The resources of a configuration; prices are unknown until `get_ready`.

    Raises:
        ConfigError: a deployment's address is not valid.
    """
    resources = Resources(
        config,
        backends=Backends(config.deployments),
        health=health,
        pricing=Pricing(config.deployments.values()),
        refusals=RefusalDetector(config.refusal.mode, config.refusal.patterns),
        rng=rng,
        consumer=consumer,
        shortage=shortage,
    )
    resources.prompt_hash = prompt_hash
    return resources


def make_prompt_hash(config: AuditConfig) -> Callable[[Messages], str | None]:
    """What makes the audit's `prompt_sha256`: under the key of the configuration, or one that nobody else has."""
    if not config.enabled:
        return lambda _messages: None
    return PromptHash(secrets.token_bytes(32) if config.key is None else config.key.encode())


class Found(NamedTuple):
    """What shows only once everything is loaded.

    Attributes:
        unpriced: the cloud deployments whose price is not known.
        unusable: those that can never answer, and why.
    """

    unpriced: tuple[str, ...]
    unusable: Mapping[str, str]


async def get_ready(resources: Resources) -> Found:
    """Do what can wait until a daemon serves: load prices, litellm, and local models into memory."""
    resources.warm()
    pricing = resources.pricing
    unpriced = await asyncio.to_thread(pricing.load)
    unusable = {**await resources.backends.preload(), **without_keys(resources.config)}
    return Found(unpriced, unusable)
