"""Durable Streams: the protocol's own conformance suite and its own client, from npm, against the read side."""

from __future__ import annotations

import asyncio
import json
import os
import re
from typing import TYPE_CHECKING, Any

import pytest

from llm_routerd.gateway.http import durable
from tests.clients.durable_writer import writing
from tests.clients.site import NODE
from tests.gateway.application import open_site
from tests.support.eventually import eventually

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

# What is about writing alone, which is not ours.
WRITING = (
    "Fork -", "Idempotent Producer", "TTL", "Append Operations", "Sequence Ordering Properties", "seq ordering",
    "sequence ordering", "duplicate seq", "on PUT", "on POST", "in CORS preflight", "different-body-dedup",
    "Create with Stream-Closed", "Close Operations", "producer-state",
)  # fmt: skip
LEAST_TESTS = 140
SUITE_SECONDS = 300


@pytest.mark.timeout(SUITE_SECONDS + 30)
async def test_conformance_suite(
    node: Callable[..., Awaitable[Any]], valkey_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it that reads passes."""
    monkeypatch.setattr(durable, "LONG_POLL_SECONDS", 1.0)
    report = tmp_path / "report.json"
    without = "|".join(map(re.escape, WRITING))
    async with open_site(valkey_url) as site, writing(site) as url:
        process = await asyncio.create_subprocess_exec(
            "node_modules/.bin/vitest", "run", "durable.conformance", "--testTimeout=30000",
            f"--testNamePattern=^(?!.*({without}))", "--reporter=json", f"--outputFile={report}",
            cwd=NODE, env={**os.environ, "CONFORMANCE_TEST_URL": url}, stdout=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        try:
            async with asyncio.timeout(SUITE_SECONDS):
                await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
    told = [each for file in json.loads(report.read_text())["testResults"] for each in file["assertionResults"]]
    failed = {each["fullName"]: each["failureMessages"] for each in told if each["status"] == "failed"}
    assert not failed
    assert sum(each["status"] == "passed" for each in told) >= LEAST_TESTS


@pytest.mark.parametrize("live", ["false", "long-poll", "sse"])
async def test_client_reads_what_was_and_what_comes_to_the_end(
    node: Callable[..., Awaitable[Any]], valkey_url: str, live: str
) -> None:
    """Every event once, from the beginning and from each offset that it has been told."""
    async with open_site(valkey_url) as site:
        url = f"{site.url}/v1/requests/a/stream"
        await site.begin("a", "one", "two")
        if live == "false":
            await site.end("a")
        reading = asyncio.ensure_future(node("durable.js", url, live))
        if live != "false":
            await eventually(lambda: site.exchange.plexer.followed, seconds=20)
            await site.begin("a", "three", attempt=2)
            await site.end("a")
        found = await reading
        every = [event_id for event_id, _ in await site.redis.xrange("llm:events:a")]
        assert found["ids"] == every
        for offset, ids in found["resumed"]:
            assert every[len(every) - len(ids) :] == ids, offset
        assert found["resumed"][-1][1] == []
        assert found["closed"]
