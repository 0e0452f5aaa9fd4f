"""Does to the processes what the plan says, each fault at its time, and undoes it again."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, assert_never

from redis.exceptions import ResponseError

from llm_routerd.protocol.keys import GROUP, Keys
from tests.chaos.plan import Fault, Kind
from tests.chaos.producers import Order
from tests.chaos.world import Span
from tests.support.servers import ValkeyProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from llm_routerd.protocol.keys import Lane
    from tests.chaos.world import Slot, World

_KEYS = Keys()
_LAST_ID = "18446744073709551615-18446744073709551615"


class Driver:
    """One storm.  A fault whose victim is still busy with an earlier one is passed over.

    Args:
        world: whose server it hits.
        slots: whose processes it hits; None: the workers'.
    """

    def __init__(self, world: World, slots: Sequence[Slot] | None = None) -> None:
        self._world = world
        self._slots = world.slots if slots is None else slots
        self.done: Counter[str] = Counter()
        self.unclean_exits: list[int] = []  # of workers that were asked to end
        self.orders: list[Order] = []  # requests of its own

    async def run(self, plan: Sequence[Fault]) -> None:
        """Work off the plan; every fault has been undone when this returns."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with asyncio.TaskGroup() as group:
            for fault in plan:
                await asyncio.sleep(began + fault.at_seconds - loop.time())
                group.create_task(self._do(fault), name=fault.kind)

    async def _do(self, fault: Fault) -> None:
        slot = self._slots[fault.slot]
        hits_worker = fault.kind in {Kind.KILL_WORKER, Kind.STOP_WORKER, Kind.DRAIN_WORKER}
        lock = slot.lock if hits_worker else self._world.server_lock
        if lock.locked():
            return
        async with lock:
            self.done[fault.kind] += 1
            if hits_worker:
                await self._to_worker(fault, slot)
            else:
                await self._to_server(fault)

    async def _to_worker(self, fault: Fault, slot: Slot) -> None:
        if fault.kind is Kind.STOP_WORKER:
            await slot.stop_for(fault.seconds)
            return
        if fault.kind is Kind.KILL_WORKER:
            await slot.kill()
        else:
            slot.signal(signal.SIGTERM)
            status = await slot.ended()
            if status not in {0, -signal.SIGTERM}:  # the latter: it had not come so far as to handle it
                self.unclean_exits.append(status)
        await asyncio.sleep(fault.seconds)
        slot.start()

    async def _to_server(self, fault: Fault) -> None:
        kind, server = fault.kind, self._world.server
        assert isinstance(kind, Kind)
        assert isinstance(server, ValkeyProcess)
        match kind:
            case Kind.KILL_SERVER | Kind.RESTART_SERVER:
                with self._trouble():
                    await to_its_end(server.kill if kind is Kind.KILL_SERVER else server.stop)
                    await asyncio.sleep(fault.seconds)
                    await to_its_end(server.start)
            case Kind.FREEZE_SERVER:
                with self._trouble():
                    server.freeze()
                    await asyncio.sleep(fault.seconds)
                    server.thaw()
            case Kind.FILL_MEMORY:
                with self._trouble():
                    await self._command("CONFIG", "SET", "maxmemory", "1")
                    await asyncio.sleep(fault.seconds)
                    await self._command("CONFIG", "SET", "maxmemory", "0")
            case Kind.KILL_CONNECTIONS:
                with self._trouble():
                    await self._command("CLIENT", "KILL", "TYPE", "pubsub")
                    await self._command("CLIENT", "KILL", "TYPE", "normal")
            case Kind.DROP_GROUP | Kind.GROUP_AT_END:
                with self._trouble():
                    await self._drop_group(_KEYS.requests(fault.lane), made_at_end=kind is Kind.GROUP_AT_END)
            case Kind.FORGET_CONSUMERS:
                with self._trouble():
                    await self._forget_consumers(_KEYS.requests(fault.lane))
            case Kind.FLUSH_SCRIPTS:
                with self._trouble():
                    await self._command("SCRIPT", "FLUSH")
            case Kind.ADD_LAST_ID:
                await self._add_last_id(fault.lane)
            case Kind.KILL_WORKER | Kind.STOP_WORKER | Kind.DRAIN_WORKER:
                raise AssertionError(kind)
            case _:
                assert_never(kind)

    async def _drop_group(self, lane: str, *, made_at_end: bool) -> None:
        await self._command("XGROUP", "DESTROY", lane, GROUP)
        if made_at_end:
            with suppress(ResponseError):  # a worker may have been quicker
                await self._command("XGROUP", "CREATE", lane, GROUP, "$", "MKSTREAM")

    async def _add_last_id(self, lane: Lane) -> None:
        """As a producer who leaves no ID for others; his request is answered as any other."""
        name = f"last-{len(self.orders)}"
        fields = {"prompt": f"[[id={name}]][[tokens=5]]", "id": f"order-{name}"}
        async with self._world.client() as client:
            with suppress(ResponseError):  # there is one already
                await client.xadd(_KEYS.requests(lane), fields, id=_LAST_ID)
                order = Order(name=name, kind="last-id", lane=lane, fields=fields, key_id=fields["id"], accepted=True)
                self.orders.append(order)

    async def _forget_consumers(self, lane: str) -> None:
        """As an operator cleans up who looks dead: all of them, with all that they have."""
        async with self._world.client() as client:
            with suppress(ResponseError):  # the group is not there
                for consumer in await client.xinfo_consumers(lane, GROUP):
                    await client.xgroup_delconsumer(lane, GROUP, consumer["name"])

    @contextmanager
    def _trouble(self) -> Iterator[None]:
        began = time.time()
        try:
            yield
        finally:
            self._world.troubles.append(Span(began, time.time()))

    async def _command(self, *words: str) -> None:
        async with self._world.client(is_patient=True) as client:
            await client.execute_command(*words)


async def to_its_end(work: Callable[[], None]) -> None:
    """Run something that blocks; when this is cancelled it ends all the same, and whoever cleans up comes after it."""
    running = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        await asyncio.shield(running)
    finally:
        await running
