"""One run: start everything, let the storm pass, wait until all is answered, and judge."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llm_routerd.protocol.events import FINAL_ID
from llm_routerd.protocol.keys import Keys
from tests.chaos.driver import Driver
from tests.chaos.plan import make_plan
from tests.chaos.producers import Order, Producers
from tests.chaos.verdict import Verdict
from tests.chaos.world import World

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# Lease, its reclaiming, and the longest chain of calls that one request can cost, several times over.
CALM_SECONDS = 40.0
_KEYS = Keys()


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a run did and found; `faults` is empty if every promise was kept."""

    faults: Sequence[str]
    orders: int
    calls: int
    endings: Mapping[str, int]
    storm: Mapping[str, int]
    worker_log: str

    def tell(self, seed: int) -> int:
        """Print it; the exit status of a program that ran it."""
        print(f"requests {self.orders}, model calls {self.calls}, final events {dict(self.endings)}")
        print("faults: " + ", ".join(f"{kind} {count}" for kind, count in sorted(self.storm.items())))
        if not self.faults:
            print("every promise was kept")
            return 0
        print(self.worker_log)
        print(f"\nBROKEN with seed {seed}:")
        for fault in self.faults:
            print(f"- {fault}")
        return 1


async def run_storm(seed: int, seconds: float) -> Report:
    """Run once; no process is left when this returns or raises.

    The seed gives the same faults at the same times and the same requests.  What the machine makes of them in real
    time, which reply is lost and which lease runs out first, differs from run to run.
    """
    async with World() as world:
        driver, producers = Driver(world), Producers(world, seed)
        async with asyncio.TaskGroup() as group:
            group.create_task(driver.run(make_plan(seed, seconds)), name="driver")
            group.create_task(producers.run(seconds), name="producers")
        orders = [*producers.orders, *driver.orders]
        async with world.client(is_patient=True) as client:
            late = await wait_for_calm(client, orders)
            verdict = Verdict(world, orders)
            running = await asyncio.to_thread(calls_still_running, world.models_url)
            await verdict.reach(client)
        unexpected = [f"worker {n} ended by itself" for n, slot in enumerate(world.slots) if slot.has_ended]
        return Report(
            faults=[
                *unexpected,
                *(f"a drained worker exited with {status}" for status in driver.unclean_exits),
                *late,
                *(f"{call['id']} still runs on {call['model']}" for call in running),
                *verdict.faults,
            ],
            orders=len(orders),
            calls=len(verdict.calls),
            endings=verdict.endings,
            storm=Counter({str(kind): count for kind, count in driver.done.items()}),
            worker_log=world.worker_log(),
        )


async def wait_for_calm(client: Any, orders: Sequence[Order]) -> list[str]:
    """Wait until every request has its final event and no lane holds anything; tells what is missing at the end."""
    open_orders = [order for order in orders if order.accepted]
    waiting = 0
    try:
        async with asyncio.timeout(CALM_SECONDS):
            while True:
                async with client.pipeline(transaction=False) as pipe:
                    for order in open_orders:
                        pipe.xrange(order.events_key, FINAL_ID, FINAL_ID)
                    finals = await pipe.execute()
                open_orders = [order for order, final in zip(open_orders, finals, strict=True) if not final]
                waiting = sum([await client.xlen(lane) for lane in _KEYS.lanes])
                if not open_orders and not waiting:
                    return []
                await asyncio.sleep(0.1)
    except TimeoutError:
        names = ", ".join(f"{order.name} ({order.kind})" for order in open_orders)
        return [f"after {CALM_SECONDS:g} s of calm {waiting} entries wait, and there is no end of: {names}"]


def calls_still_running(models_url: str) -> list[dict[str, Any]]:
    """The calls that the stand-in is still busy with."""
    with urllib.request.urlopen(f"{models_url}/log", timeout=5) as answer:  # noqa: S310 - our own process
        calls: list[dict[str, Any]] = json.load(answer)["calls"]
    return [call for call in calls if call["end"] is None]
