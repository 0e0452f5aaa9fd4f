"""Fixtures that every test may ask for."""

import llm_routerd.logs  # noqa: F401 - before anybody imports structlog: it keeps rich, which reads files, out
from tests.support.servers import broker_url, redis_url, valkey_server, valkey_url

__all__ = ["broker_url", "redis_url", "valkey_server", "valkey_url"]
