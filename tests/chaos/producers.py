"""Producers that keep adding, on a server that comes and goes.

The rule of a good producer: an XADD whose reply was lost may have been done.  Whoever named an `id` adds again with the
same one; whoever did not cannot know, and lets it be.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from llm_routerd.protocol.events import FINAL_ID
from llm_routerd.protocol.keys import LANES, Keys, Lane
from tests.chaos.plan import WORKERS

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from tests.chaos.world import World

KEYS = Keys()
PRODUCERS = 3
PAUSE_SECONDS = (0.1, 0.5)
GIVE_UP_SECONDS = 30.0
_SCHEMA = json.dumps({"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]})
_LOST = (RedisConnectionError, RedisTimeoutError, OSError, TimeoutError)


@dataclass(slots=True, kw_only=True)
class Order:
    """One request as its producer remembers it.

    `name` is in the prompt, and so in the stand-in's log.  `key_id` is what the events stream is called after: the
    `id`, or the entry ID once XADD has returned it; None: nobody knows whether it was added.
    """

    name: str
    kind: str
    lane: Lane
    fields: dict[str, str]
    key_id: str | None = None
    accepted: bool = False
    copies: int = 1
    cancelled_at: float | None = None

    @property
    def events_key(self) -> str:
        """Its events stream."""
        assert self.key_id is not None
        return KEYS.events(self.key_id)


OVERSIZE_BYTES = 5_000_000  # of which no more than the beginning is ever kept
NEVER_ANSWERED = frozenset({"malformed", "oversized"})


def _on_first(directives: str) -> str:
    """Directives for the first deployment, whichever worker calls it."""
    return "".join(f"[[model=first-{slot} {directives}]]" for slot in range(WORKERS))


# What is asked: how often, the directives of the stand-in, and further fields of the request.
_KINDS: dict[str, tuple[int, Callable[[random.Random], tuple[str, dict[str, str]]]]] = {
    "plain": (6, lambda rng: (f"[[tokens={rng.randint(1, 40)} delay_ms={rng.randint(1, 25)}]]", {})),
    "long": (4, lambda rng: (f"[[tokens={rng.randint(40, 100)} delay_ms=40]]", {})),
    "silent": (3, lambda rng: (f"[[tokens=5 first_ms={rng.randint(1000, 6000)}]]", {"stream": "false"})),
    "fails": (2, lambda _: ("[[tokens=20 delay_ms=20]]" + _on_first("fail=503"), {})),
    "stalls": (1, lambda _: ("[[tokens=20 delay_ms=20]]" + _on_first("stall_after=3"), {"stream": '"live"'})),
    "cut": (1, lambda _: ("[[tokens=20 delay_ms=20]]" + _on_first("cut_after=4"), {"stream": '"live"'})),
    "schema": (2, lambda _: ("[[delay_ms=20]]" + _on_first("json=bad"), {"schema": _SCHEMA})),
    "cancelled": (2, lambda _: ("[[tokens=90 delay_ms=40]]", {})),
    "late": (1, lambda _: ("[[tokens=90 delay_ms=40]]", {"timeout_ms": "400"})),
    "malformed": (1, lambda rng: ("hello", rng.choice([{"promt": "x"}, {"stream": "7"}, {"messages": "[]"}]))),
    "oversized": (1, lambda _: ("x" * OVERSIZE_BYTES, {})),
}


class Producers:
    """They add until the storm is over; `orders` is what they remember."""

    def __init__(self, world: World, seed: int) -> None:
        self.orders: list[Order] = []
        self.refused = 0  # by a server without memory, or a lane without IDs: certainly not added
        self._world = world
        self._seed = seed
        self._over = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, seconds: float) -> None:
        """Add for so long; return when every producer knows what became of its last XADD."""
        for number in range(PRODUCERS):
            self._spawn(self._produce(number))
        await asyncio.sleep(seconds)
        self._over = True
        while self._tasks:
            await asyncio.gather(*self._tasks)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _produce(self, number: int) -> None:
        rng = random.Random(f"producer-{self._seed}-{number}")
        async with self._world.client() as client:
            while not self._over:
                order = self._order(rng, f"p{number}-{len(self.orders)}")
                self.orders.append(order)
                await self._add(client, order)
                if order.kind == "cancelled":
                    self._spawn(self._cancel(order, rng.uniform(0.0, 2.0)))
                elif "id" in order.fields and order.kind not in NEVER_ANSWERED and rng.random() < 0.2:
                    order.copies += 1
                    self._spawn(self._add_copy(order, rng.uniform(0.0, 2.0)))
                await asyncio.sleep(rng.uniform(*PAUSE_SECONDS))

    def _order(self, rng: random.Random, name: str) -> Order:
        kind = rng.choices(list(_KINDS), [weight for weight, _ in _KINDS.values()])[0]
        directives, more = _KINDS[kind][1](rng)
        fields = {"prompt": f"[[id={name}]]{directives}", "stream": rng.choice(["false", "true", '"live"']), **more}
        order = Order(name=name, kind=kind, lane=rng.choice(LANES), fields=fields)
        if rng.random() < 0.7:
            order.key_id = fields["id"] = f"order-{name}"
        return order

    async def _add(self, client: Any, order: Order) -> None:
        """XADD it, and again while it is not known whether it was added."""
        give_up_at = time.monotonic() + GIVE_UP_SECONDS
        while True:
            try:
                entry = await client.xadd(KEYS.requests(order.lane), order.fields)
            except ResponseError:  # out of memory, or the lane takes nothing until it has been mended
                self.refused += 1
            except _LOST:
                if "id" not in order.fields:
                    return
            else:
                order.key_id = order.key_id or entry
                order.accepted = True
                return
            assert time.monotonic() < give_up_at, "the server has not come back"
            await asyncio.sleep(0.2)

    async def _add_copy(self, order: Order, delay_seconds: float) -> None:
        await asyncio.sleep(delay_seconds)
        async with self._world.client() as client:
            await self._add(client, order)

    async def _cancel(self, order: Order, delay_seconds: float) -> None:
        """Write the final event oneself, as the protocol says; notes when that was, if it was first."""
        await asyncio.sleep(delay_seconds)
        if not order.accepted:
            return
        event = {"type": "cancelled", "data": json.dumps({"id": order.key_id, "reason": "changed my mind"})}
        give_up_at = time.monotonic() + GIVE_UP_SECONDS
        async with self._world.client() as client:
            while True:
                try:
                    await client.xadd(order.events_key, event, id=FINAL_ID)
                except ResponseError as error:
                    if "equal or smaller" in str(error):  # ended already; or our own, whose reply was lost
                        await self._note_cancellation(client, order)
                        return
                except _LOST:
                    pass
                else:
                    order.cancelled_at = time.time()
                    return
                assert time.monotonic() < give_up_at, "the server has not come back"
                await asyncio.sleep(0.2)

    async def _note_cancellation(self, client: Any, order: Order) -> None:
        try:
            ((_, fields),) = await client.xrange(order.events_key, FINAL_ID, FINAL_ID)
        except (RedisError, *_LOST):
            return
        if fields["type"] == "cancelled":
            order.cancelled_at = time.time()
