"""Fixtures that every test may ask for."""

from tests.support.servers import broker_url, redis_url, valkey_server, valkey_url

__all__ = ["broker_url", "redis_url", "valkey_server", "valkey_url"]
