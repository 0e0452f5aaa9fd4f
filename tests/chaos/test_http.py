"""The short chaos run over HTTP; `python -m tests.chaos --http` is the long one."""

from __future__ import annotations

import os

import pytest

from tests.chaos.http_clients import make_streams
from tests.chaos.http_storm import run_http_storm

SECONDS = 16.0


def test_seed_reproduces_the_clients() -> None:
    """What is printed after a failure is enough to have the same ones again."""
    streams = make_streams(7, native=400, openai=100, seconds=SECONDS)
    assert streams == make_streams(7, native=400, openai=100, seconds=SECONDS)
    assert streams != make_streams(8, native=400, openai=100, seconds=SECONDS)
    assert sum(stream.order.kind == "openai" for stream in streams) == 100


@pytest.mark.timeout(150)
async def test_every_stream_is_whole_whatever_dies() -> None:
    """500 clients, gateways, workers and server killed and frozen: who resumes has every event once, and no more."""
    seed = int(os.environ.get("SEED", "20261128"))
    print(f"chaos over HTTP: seed {seed}, {SECONDS:g} s (the seed gives the schedule; the timing is real)")
    report = await run_http_storm(seed, SECONDS)
    assert not report.faults, "\n".join([f"seed {seed}:", *report.faults, report.worker_log])
    assert sum(count for kind, count in report.storm.items() if "gateway" in kind) > 2
    assert report.endings["result"] > 490  # the others met three workers that died
    assert report.clients["resumed"] > 100
    assert report.clients["left for good"] > 20
    assert report.clients["whole through OpenAI's door"] > 10
    assert report.clients["cut there after some text"] > 10
