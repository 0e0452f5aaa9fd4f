"""Where a command gets its configuration and its connection from."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from msgspec.structs import replace

from llm_routerd.client import Client
from llm_routerd.config.addresses import check_redis_url
from llm_routerd.config.load import load_config
from llm_routerd.config.tree import Config, RedisConfig
from llm_routerd.errors import ConfigError

if TYPE_CHECKING:
    import argparse

PATIENCE_SECONDS = 60.0


def read_config(arguments: argparse.Namespace) -> Config:
    """The configuration, with `--redis`, `--prefix` and `--shards` put over it.

    Raises:
        ConfigError: it is unsound, or `--redis` is not a URL.
    """
    _check_option(arguments.redis)
    config = load_config(arguments.config, os.environ)
    return replace(config, redis=_given(arguments, config.redis))


def redis_of(arguments: argparse.Namespace) -> RedisConfig:
    """Where the queue is.  With `--redis` no file is read, which may hold what only the daemon may see.

    Raises:
        ConfigError: the configuration was needed, and is unsound; or `--redis` is not a URL.
    """
    _check_option(arguments.redis)
    if arguments.redis and not arguments.config:
        return _given(arguments, RedisConfig())
    return read_config(arguments).redis


def _given(arguments: argparse.Namespace, redis: RedisConfig) -> RedisConfig:
    given = {"url": arguments.redis, "prefix": arguments.prefix, "shards": arguments.shards}
    return replace(redis, **{key: said for key, said in given.items() if said})


async def open_client(
    redis: RedisConfig, request_id: str = "", *, patience_seconds: float = PATIENCE_SECONDS
) -> Client:
    """A client of a Redis that answers; later it is patient, but who starts a command wants to know at once.

    Of several servers that one must answer which takes a request of this id.

    Raises:
        BrokerError: Redis does not answer.
    """
    client = Client(
        redis.url,
        prefix=redis.prefix,
        shards=redis.shards,
        draining=redis.draining,
        patience_seconds=patience_seconds,
    )
    try:
        await client.ping(request_id)
    except BaseException:
        await client.aclose()
        raise
    return client


def _check_option(url: str | None) -> None:
    if url:
        try:
            check_redis_url(url)
        except ConfigError as error:
            raise ConfigError(f"--redis: {error}") from None
