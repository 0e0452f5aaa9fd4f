"""Fixtures that every test may ask for, and which tests there are."""

import signal

from hypothesis import settings

import llm_routerd.logs  # noqa: F401 - before anybody imports structlog: it keeps rich, which reads files, out
from tests.support.binaries import server_binary
from tests.support.clusters import cluster
from tests.support.order import pytest_collection_modifyitems
from tests.support.sentinels import sentinels
from tests.support.servers import broker_url, redis_url, valkey_server, valkey_url

__all__ = [
    "broker_url",
    "cluster",
    "pytest_collection_modifyitems",
    "redis_url",
    "sentinels",
    "server_binary",
    "valkey_server",
    "valkey_url",
]

settings.register_profile("llm-routerd", deadline=None)  # a machine that is busy is no failure
settings.load_profile("llm-routerd")

# What a shell runs beside other things ignores it, and so would the processes that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
