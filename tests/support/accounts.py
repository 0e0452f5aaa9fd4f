"""Counting requests that stand, and reading a scrape."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from llm_routerd.accounting.gauges import Gauges
from llm_routerd.protocol.wire import encode

if TYPE_CHECKING:
    from llm_routerd.accounting.metrics import Finished, Metrics
    from llm_routerd.worker.worker import Worker


def counted(metrics: Metrics, finished: Finished) -> dict[str, Any]:
    """The metrics event of a request whose final event stands, as it is written."""
    booking = metrics.book(finished)
    metrics.settled(finished)
    event: dict[str, Any] = json.loads(encode(booking.event))
    return event


def scraped(metrics: Metrics, gauges: Gauges | None = None) -> dict[str, float]:
    """The samples of a scrape."""
    lines = metrics.render_prometheus(gauges or Gauges()).splitlines()
    samples = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name.removeprefix("llm_routerd_"): float(value) for name, value in samples}


def scraped_of(worker: Worker) -> dict[str, float]:
    """The samples of a scrape of a worker's counters."""
    return scraped(worker.metrics)
