"""Where a command gets its configuration and its connection from."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from llm_routerd.client import Client
from llm_routerd.config.load import load_config
from llm_routerd.config.tree import Config, RedisConfig

if TYPE_CHECKING:
    import argparse

_PATIENCE_SECONDS = 60.0


def read_config(arguments: argparse.Namespace) -> Config:
    """The configuration, with `--redis` and `--prefix` put over it.

    Raises:
        ConfigError: it is unsound.
    """
    config = load_config(arguments.config, os.environ)
    redis = RedisConfig(url=arguments.redis or config.redis.url, prefix=arguments.prefix or config.redis.prefix)
    return replace(config, redis=redis)


def redis_of(arguments: argparse.Namespace) -> RedisConfig:
    """Where the queue is.  With `--redis` no file is read, which may hold what only the daemon may see.

    Raises:
        ConfigError: the configuration was needed, and is unsound.
    """
    if arguments.redis and not arguments.config:
        return RedisConfig(url=arguments.redis, prefix=arguments.prefix or RedisConfig().prefix)
    return read_config(arguments).redis


async def open_client(redis: RedisConfig, *, patience_seconds: float = _PATIENCE_SECONDS) -> Client:
    """A client of a Redis that answers; later it is patient, but who starts a command wants to know at once.

    Raises:
        BrokerError: Redis does not answer.
    """
    client = Client(redis.url, prefix=redis.prefix, patience_seconds=patience_seconds)
    try:
        await client.ping()
    except BaseException:
        await client.aclose()
        raise
    return client


def masked(url: str) -> str:
    """The URL to be shown: without password and without options, which may hold one."""
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "(a URL that cannot be read)"
    user = parts.username or ""
    credentials = f"{user}:***@" if parts.password else f"{user}@" if user else ""
    return f"{parts.scheme}://{credentials}{parts.hostname or ''}{port}{parts.path}"
