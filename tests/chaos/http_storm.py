"""One run over HTTP: clients stream through gateways that are killed, as are the workers and the server behind them."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from tests.chaos.driver import Driver
from tests.chaos.http_clients import Clients, make_streams
from tests.chaos.http_verdict import HttpVerdict
from tests.chaos.plan import STORM, WORKERS, Kind, make_plan
from tests.chaos.storm import CALM_SECONDS, Report, calls_still_running, wait_for_calm
from tests.chaos.world import Slot, World
from tests.support.eventually import eventually
from tests.support.processes import lasting_port

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from enum import StrEnum

    from tests.chaos.http_clients import Stream

GATEWAYS = WORKERS  # a fault's `slot` is one of either
# How often each comes, and how long it lasts, in seconds.  The rest of `STORM` hits lanes, of which no client of a
# gateway knows.
BEHIND: dict[StrEnum, tuple[int, float, float]] = {
    kind: STORM[kind]
    for kind in (
        Kind.KILL_WORKER,
        Kind.STOP_WORKER,
        Kind.DRAIN_WORKER,
        Kind.KILL_SERVER,
        Kind.RESTART_SERVER,
        Kind.FREEZE_SERVER,
        Kind.FILL_MEMORY,
        Kind.KILL_CONNECTIONS,
    )
}
IN_FRONT: dict[StrEnum, tuple[int, float, float]] = {
    Kind.KILL_WORKER: (5, 0.1, 1.0),
    Kind.STOP_WORKER: (2, 0.5, 6.0),
    Kind.DRAIN_WORKER: (3, 0.0, 0.5),
}
_BEHIND_PAUSE_SECONDS = (0.5, 1.5)
_IN_FRONT_PAUSE_SECONDS = (0.8, 2.2)
_ASKED_WITHIN = 0.7  # of the storm: what comes last meets some of it too
# No model is given up because this machine is busy.
_IDLE_SECONDS = 10.0
_CONCURRENCY = 16


class HttpWorld(World):
    """Gateways as well; `gateways` are their places, `addresses` where they are asked."""

    def __init__(self) -> None:
        super().__init__(idle_seconds=_IDLE_SECONDS, concurrency=_CONCURRENCY)
        self.gateways: list[Slot] = []
        self._ports = [lasting_port() for _ in range(GATEWAYS)]

    @property
    def addresses(self) -> list[str]:
        """Of the gateways, dead or alive."""
        return [f"http://127.0.0.1:{port}" for port in self._ports]

    def _make_slots(self) -> None:
        super()._make_slots()
        for number, port in enumerate(self._ports):
            config = self.directory / f"gateway-{number}.toml"
            workers = self._config_path(number).read_text()
            config.write_text(f'{workers}\n[gateway]\nlisten = "127.0.0.1:{port}"\n')
            log = self.directory / f"gateway-{number}.log"
            slot = Slot(number, config, log, self._environment, command="gateway")
            self.gateways.append(slot)
            slot.start()

    def _close(self) -> None:
        for slot in self.gateways:
            slot.close()
        super()._close()

    async def ready(self) -> None:
        """Wait until all gateways and workers have been there; fails with their last words."""
        try:
            for slot in self.slots:
                await slot.ready()
            for port in self._ports:
                await eventually(partial(_listens, port), seconds=20.0)
        except AssertionError:
            raise AssertionError(self.worker_log()) from None

    def worker_log(self, *, lines: int = 15) -> str:
        """The gateways' too."""
        return "\n".join([super().worker_log(lines=lines), *(slot.last_words(lines) for slot in self.gateways)])


def _listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1.0):
        return True
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpReport(Report):
    """Also what the clients went through: how many of them resumed, and so on."""

    clients: Mapping[str, int]

    def tell(self, seed: int) -> int:
        """Print it; the exit status of a program that ran it."""
        print("clients: " + ", ".join(f"{what} {count}" for what, count in self.clients.items()))
        return super(HttpReport, self).tell(seed)


async def run_http_storm(seed: int, seconds: float, *, native: int = 400, openai: int = 100) -> HttpReport:
    """Run once; no process is left when this returns or raises.

    Args:
        seed: gives the faults, their times, and the clients; the timing is real.
        seconds: the length of the storm.
        native: clients of the native door.
        openai: clients of OpenAI's door.
    """
    streams = make_streams(seed, native=native, openai=openai, seconds=_ASKED_WITHIN * seconds)
    async with HttpWorld() as world:
        await world.ready()
        behind, in_front = Driver(world), Driver(world, world.gateways)
        clients = Clients(world.addresses, streams, seed)
        late: list[str] = []
        async with asyncio.TaskGroup() as group:
            group.create_task(behind.run(make_plan(seed, seconds, BEHIND, _BEHIND_PAUSE_SECONDS)), name="behind")
            plan = make_plan(seed + 1, seconds, IN_FRONT, _IN_FRONT_PAUSE_SECONDS)
            group.create_task(in_front.run(plan), name="in-front")
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds + CALM_SECONDS):
                    await clients.run()
        late += [f"{each.order.name} was not told its end" for each in streams if not (each.has_ended or each.leaves)]
        async with world.client(is_patient=True) as client:
            late += await wait_for_calm(client, [stream.order for stream in streams])
            running = await asyncio.to_thread(calls_still_running, world.models_url)
            verdict = HttpVerdict(world, streams)
            await verdict.reach(client)
        places = {"worker": world.slots, "gateway": world.gateways}
        ended = [f"{what} {slot.number}" for what, slots in places.items() for slot in slots if slot.has_ended]
        return HttpReport(
            faults=[
                *(f"{which} ended by itself" for which in ended),
                *(f"a drained process exited with {each}" for each in behind.unclean_exits + in_front.unclean_exits),
                *(f"gateway {slot.number} logged: {line}" for slot in world.gateways for line in slot.complaints()),
                *late,
                *(f"{call['id']} still runs on {call['model']}" for call in running),
                *verdict.faults,
            ],
            orders=len(streams),
            calls=len(verdict.calls),
            endings=verdict.endings,
            storm={
                **{str(kind): count for kind, count in behind.done.items()},
                **{f"{kind}".replace("worker", "gateway"): count for kind, count in in_front.done.items()},
            },
            worker_log=world.worker_log(),
            clients=_told(streams) | {f"lost in {what}": count for what, count in clients.lost.items()},
        )


def _told(streams: Sequence[Stream]) -> dict[str, int]:
    return {
        "told to the end": sum(each.has_ended for each in streams),
        "resumed": sum(each.connections > 1 for each in streams),
        "connections for events": sum(each.connections for each in streams),
        "left for good": sum(each.leaves for each in streams),
        "whole through OpenAI's door": sum(each.told_whole for each in streams),
        "cut there after some text": sum(bool(each.shown) and not each.told_whole for each in streams),
        "superseded": sum(each.broken == "superseded" for each in streams),
    }
