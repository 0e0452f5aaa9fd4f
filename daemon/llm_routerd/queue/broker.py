"""A worker's side of the queue, each of its steps as one call, in four verbs: take up, keep, go on, settle."""

from __future__ import annotations

from llm_routerd.queue import scripts
from llm_routerd.queue.intake import OWN_PENDING, Intake
from llm_routerd.queue.lease import Lease
from llm_routerd.queue.runs import Runs

for _script in scripts.ALL:
    _script.put_together()


class Broker(Intake, Lease, Runs):
    """What a worker asks of Redis."""


__all__ = ["OWN_PENDING", "Broker"]
