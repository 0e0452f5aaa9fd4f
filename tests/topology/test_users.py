"""The users of `users.acl` on a Cluster, with shards: each may do what it needs, and find the way."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace
from structlog.testing import capture_logs

from llm_routerd.client import Client
from llm_routerd.protocol.keys import Layout
from tests.support.clusters import running_cluster
from tests.support.fakes import FakeBackend, says
from tests.support.processes import ROOT
from tests.support.workers import DAEMON, make_config, run_worker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.clusters import Cluster

PASSWORD = "p%40ss"
LAYOUT = Layout("llm", 3)


def users() -> list[str]:
    """As docs/scale.md says that the file is made for shards, each user with a password."""
    text = re.sub(r"llm_router_metrics", r"{llm:*}:\g<0>", (ROOT / "systemd" / "users.acl").read_text())
    text = re.sub(r"([~&])llm:", r"\1{llm:*}:", text)
    return [f"{line} >p@ss" for line in text.splitlines() if line and not line.startswith("user default")]


@pytest.fixture
def guarded() -> Iterator[Cluster]:
    """A Cluster that has these users beside the tests' own."""
    with running_cluster(lines=users()) as cluster:
        yield cluster


async def test_daemon_and_producer_do_with_what_they_may(guarded: Cluster) -> None:
    """From a seed that has none of some keys; nothing is refused."""
    at = f"127.0.0.1:{guarded.nodes[0].port}"
    config = make_config(daemon=DAEMON)
    config = replace(config, redis=replace(config.redis, shards=LAYOUT.shards))
    with capture_logs() as logs:
        async with run_worker(
            f"redis+cluster://daemon:{PASSWORD}@{at}", {"local": FakeBackend(says("hi"))}, config=config
        ):
            for keys in LAYOUT.keys:
                ids = (f"r{number}" for number in range(100))
                request_id = next(each for each in ids if LAYOUT.keys_of(each) == keys)
                url = f"redis+cluster://producer:{PASSWORD}@{at}"
                async with Client(url, prefix=keys.prefix, patience_seconds=5) as client:
                    await client.submit(id=request_id, prompt="hello", stream=True)
                    assert (await client.result(request_id, 10)).type == "result"
    assert [line for line in logs if line["log_level"] in {"warning", "error"}] == []
