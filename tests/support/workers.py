"""Workers in this process, on fake models."""

from __future__ import annotations

import asyncio
import random
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from llm_routerd.accounting.metrics import Metrics
from llm_routerd.accounting.pricing import Pricing
from llm_routerd.config.tree import Chain, Config, DaemonConfig, Deployment, RedisConfig
from llm_routerd.judging.refusal import RefusalDetector
from llm_routerd.routing.health import Health
from llm_routerd.running.resources import Resources
from llm_routerd.wiring import make_parser, make_prompt_hash
from llm_routerd.worker.admission import Admission
from llm_routerd.worker.worker import Worker
from tests.support.eventually import eventually
from tests.support.fakes import FakeBackend, FakeBackends

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

DAEMON = DaemonConfig(
    concurrency=8, lease_seconds=1.0, drain_seconds=2.0, result_ttl_seconds=60, max_request_bytes=65_536
)
LOCAL = Deployment(name="local", model="ollama/tiny", local=True, timeout=2.0, idle_timeout=2.0, backend="openai")
CLOUD = Deployment(name="cloud", model="anthropic/big", timeout=2.0, idle_timeout=2.0, backend="openai")


def make_config(url: str = "", daemon: DaemonConfig = DAEMON, **chain: Any) -> Config:
    """A local deployment and one in the cloud, in a chain."""
    return Config(
        redis=RedisConfig(url=url),
        daemon=daemon,
        deployments={"local": LOCAL, "cloud": CLOUD},
        chains={"default": Chain(name="default", deployments=("local", "cloud"), **chain)},
    )


def make_test_resources(config: Config, backends: Mapping[str, FakeBackend], *, consumer: str = "") -> Resources:
    """The resources of a configuration on fake models; a deployment without one is not to be called."""
    rng = random.Random(1)
    everyone = {name: backends.get(name, FakeBackend()) for name in config.deployments}
    resources = Resources(
        config,
        backends=FakeBackends(everyone),
        health=Health(rng=rng),
        pricing=Pricing(config.deployments.values()),
        refusals=RefusalDetector("anchored"),
        rng=rng,
        consumer=consumer,
    )
    resources.prompt_hash = make_prompt_hash(config.audit)
    return resources


def make_test_admission(config: Config, backends: Mapping[str, FakeBackend], *, consumer: str = "") -> Admission:
    """What decides on entries, before `make_test_resources`."""
    return Admission(make_parser(config), make_test_resources(config, backends, consumer=consumer))


@asynccontextmanager
async def run_worker(
    url: str,
    backends: Mapping[str, FakeBackend],
    *,
    consumer: str = "w1",
    config: Config | None = None,
    until_ready: bool = True,
) -> AsyncIterator[Worker]:
    """A worker that runs; at the end it is stopped the hard way, unless it has been stopped already."""
    config = make_config(url) if config is None else replace(config, redis=replace(config.redis, url=url))
    worker = Worker(
        config,
        admission=make_test_admission(config, backends, consumer=consumer),
        metrics=Metrics(),
        rng=random.Random(1),
        consumer=consumer,
    )
    task = asyncio.create_task(worker.run(), name=f"worker-{consumer}")
    try:
        if until_ready:
            await eventually(lambda: worker.status().ready or task.done())
        yield worker
    finally:
        worker.stop()
        worker.stop()
        async with asyncio.timeout(15):
            await task
