"""What a box costs a request: the same requests to one model server, as a deployment at an address and as one on a box.

Both go through one daemon, in turn, so that its CPU is of one process at one time.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tests.benchmarks.load import EXPECTED, Producer
from tests.benchmarks.systems import LONG_TOKENS, Bed, Process
from tests.benchmarks.table import Comparison, Row, Target
from tests.benchmarks.workloads import make_requests

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

BOXES = Comparison(ours="box", base="address", titles={"address": "at an address", "box": "on a box"})
_CONCURRENCY = 32
_PREFIX = "boxed-"
_LOADS = (  # model, whether it streams, requests, what it is
    ("short", False, 1000, "short request (no stream, 32 at once)"),
    ("long", True, 200, f"request of {LONG_TOKENS} streamed tokens, 32 at once"),
)


def _tables(bed: Bed) -> str:
    deployments = (
        f'[deployments.{_PREFIX}{model}]\nmodel = "ollama/{model}"\nboxes = ["bench"]\nlocal = true\n'
        for model, *_ in _LOADS
    )
    return f'[boxes.bench]\napi_base = "{bed.model_url}"\nslots = {_CONCURRENCY}\nmemory_gb = 100\n' + "".join(
        deployments
    )


async def measure_boxes(bed: Bed, *, rounds: int) -> AsyncIterator[Row]:
    """CPU of the daemon and wall time per request."""
    EXPECTED.update({f"{_PREFIX}{model}": EXPECTED[model] for model, *_ in _LOADS})
    with Process(bed, "daemon", "boxed", _CONCURRENCY, more=_tables(bed)) as process:
        async with Producer.of(bed, "daemon", process.prefix) as producer:
            for model, streams, number, title in _LOADS:
                cpu = Row(key=f"box_{model}_cpu", title=f"CPU of a {title}", unit="ms", comparison=BOXES)
                wall = Row(
                    key=f"box_{model}_wall",
                    title=f"wall time of a {title}",
                    unit="ms",
                    target=Target.ratio(1.05),
                    comparison=BOXES,
                )
                for measured in range(-1, rounds):  # the first warms up
                    for system, name in (("address", model), ("box", f"{_PREFIX}{model}")):
                        requests = make_requests(number, name, stream=streams)
                        before, began = process.cpu_seconds(), time.perf_counter()
                        await producer.add(requests)
                        await producer.ended(requests[-1])
                        took = time.perf_counter() - began
                        await producer.check_all(requests)
                        if measured >= 0:
                            cpu.add(system, (process.cpu_seconds() - before) / number * 1e3)
                            wall.add(system, took / number * 1e3)
                yield cpu
                yield wall
