"""The gateway: what HTTP costs on top of the daemon, beside the daemon alone and beside other people's proxies.

Every round measures all of them in turn.  The daemon is one process, asked over its stream ("alone") and through the
gateway.  Proxies are those that were asked for (`--peers`); they are slow, or far off, and take part in fewer rounds.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.benchmarks.doors import OURS, Street
from tests.benchmarks.http_load import check_answer
from tests.benchmarks.load import DeliveryError
from tests.benchmarks.proxies import KINDS
from tests.benchmarks.systems import LONG_TOKENS, OPEN_TOKENS, TRICKLE_TOKENS, Bed
from tests.benchmarks.table import Comparison, Row, Target
from tests.benchmarks.workloads import STAMP, make_requests, percentile

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence

    from tests.benchmarks.doors import Seen
    from tests.benchmarks.http_load import Answer, HttpClient
    from tests.benchmarks.systems import Running

GATEWAY = Comparison(
    ours="gateway",
    base="daemon",
    titles={"daemon": "daemon alone", "gateway": "gateway"}
    | {name: f"{kind.title} {kind.version}" for name, kind in KINDS.items()},
)
_MEGABYTE = 1_048_576


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpBurst:
    """So many requests over so many connections, one after the other on each.

    Attributes:
        units: what CPU time is divided by, per request.
        requests: of ours; of proxies it is their share.
    """

    key: str
    what: str
    how: str
    unit: str
    scale: float
    units: int
    model: str
    streams: bool
    connections: int
    requests: int


TOKENS = HttpBurst(
    key="http_token",
    what="streamed token",
    how=f"{LONG_TOKENS}-token answers, 32 at once",
    unit="µs",
    scale=1e6,
    units=LONG_TOKENS,
    model="long",
    streams=True,
    connections=32,
    requests=600,
)
SHORT = HttpBurst(
    key="http_short",
    what="short request",
    how="no stream, 64 at once",
    unit="ms",
    scale=1e3,
    units=1,
    model="short",
    streams=False,
    connections=64,
    requests=2500,
)


@dataclass(frozen=True, slots=True)
class Used:
    """CPU in seconds: of the door itself, of all that is behind it, of Redis; and wall time."""

    door: float
    behind: float
    redis: float
    wall: float

    @property
    def together(self) -> float:
        """Of the door and what is behind it, without Redis."""
        return self.door + self.behind


class Meter:
    """Tells what some processes have used since it was made."""

    def __init__(self, bed: Bed, processes: Sequence[Running]) -> None:
        self._bed = bed
        self._processes = processes
        self._began = self._read()

    def _read(self) -> tuple[float, ...]:
        used = [process.cpu_seconds() for process in self._processes]
        return (self._bed.redis_cpu_seconds(), time.perf_counter(), *used)

    def read(self) -> Used:
        """Since then."""
        redis, wall, door, *behind = (now - then for now, then in zip(self._read(), self._began, strict=True))
        return Used(door=door, behind=sum(behind), redis=redis, wall=wall)


def _cost_rows(key: str, what: str, how: str, unit: str) -> dict[str, Row]:
    def row(name: str, title: str, target: Target | None = None) -> Row:
        return Row(key=f"{key}_{name}", title=title, unit=unit, target=target, comparison=GATEWAY)

    return {
        "together": row("cpu", f"CPU per {what} over HTTP ({how}), gateway and daemon together", Target.ahead()),
        "door": row("cpu_gateway", "of that the gateway alone, against the daemon", Target.ratio(1)),
        "behind": row("cpu_daemon", "of that the daemon behind the gateway"),
        "redis": row("cpu_redis", f"CPU of Redis per {what}"),
        "wall": row("wall", f"wall time per {what}"),
    }


def _add_costs(rows: Mapping[str, Row], system: str, used: Used, scale: float) -> None:
    """Of the daemon alone, which is its own door, each row has what it is compared with."""
    for name, row in rows.items():
        if system in OURS or name in {"together", "wall"}:
            part = "door" if system == "daemon" and name == "behind" else name
            row.add(system, getattr(used, part) * scale)


async def measure_http_bursts(
    bed: Bed, bursts: Sequence[HttpBurst], *, rounds: int, peers: Sequence[str]
) -> AsyncIterator[Row]:
    """CPU per unit of several bursts, the daemon alone and the doors in turn."""
    for burst in bursts:
        rows = _cost_rows(burst.key, burst.what, burst.how, burst.unit)
        async with Street.of(bed, burst.connections, peers) as street:
            for number in range(-1, rounds):
                for system in street.in_round(number):
                    requests = round(burst.requests * street.share(system))
                    run = _alone if system == "daemon" else _through
                    used = await run(street, system, burst, requests if number >= 0 else requests // 4)
                    if number >= 0:
                        _add_costs(rows, system, used, burst.scale / requests / burst.units)
        for row in rows.values():
            yield row


async def _alone(street: Street, system: str, burst: HttpBurst, number: int) -> Used:
    requests = make_requests(number, burst.model, stream=burst.streams)
    meter = Meter(street.bed, street.processes(system))
    await street.producer.add(requests)
    await street.producer.ended(requests[-1])
    await street.producer.all_done()
    used = meter.read()
    await street.producer.check_all(requests)
    return used


async def _through(street: Street, system: str, burst: HttpBurst, number: int) -> Used:
    door = street.doors[system]
    body = door.body(burst.model, streams=burst.streams)
    left = iter(range(number))
    answers: list[Answer] = []

    async def ask(client: HttpClient) -> None:
        answers.extend([await client.ask(body) for _ in left])

    clients = [await door.connect() for _ in range(burst.connections)]
    meter = Meter(street.bed, street.processes(system))
    async with asyncio.TaskGroup() as group:
        for client in clients:
            group.create_task(ask(client))
    used = meter.read()
    for client in clients:
        client.close()
    for answer in answers:
        check_answer(answer, burst.model, streams=burst.streams)
    return used


async def _streams(street: Street, system: str, model: str, *, amount: int, gap: float, ready: int) -> list[Seen]:
    """So many streams, one begun every `gap` seconds, over `ready` connections and more where they do not suffice."""
    idle = [await street.connect(system) for _ in range(ready)]

    async def one() -> Seen:
        while idle:
            if (line := idle.pop()).is_open:  # a server may have tired of it
                break
        else:
            line = await street.connect(system)
        seen = await line.stream(model)
        idle.append(line)
        return seen

    async with asyncio.TaskGroup() as group:
        tasks = []
        for _ in range(amount):
            tasks.append(group.create_task(one()))
            await asyncio.sleep(gap)
    for line in idle:
        line.close()
    return [task.result() for task in tasks]


def _percentile_rows(key: str, title: str, targets: Sequence[Target | None]) -> dict[int, Row]:
    titles = (f"{title}, p50", "the same, p99")
    return {
        which: Row(key=f"{key}_p{which}", title=title, unit="ms", target=target, comparison=GATEWAY)
        for which, title, target in zip((50, 99), titles, targets, strict=True)
    }


async def measure_http_trickle(
    bed: Bed, *, rounds: int, seconds: float, peers: Sequence[str], rate: int = 20
) -> AsyncIterator[Row]:
    """Requests whose tokens come one by one: CPU per token, and time to the first."""
    how = f"{rate} requests/s of {TRICKLE_TOKENS} tokens, 5 ms apart"
    rows = _cost_rows("http_trickle", "trickled token", how, "µs")
    del rows["wall"]
    title = f"time to first token over HTTP at {rate} requests/s"
    ttfts = _percentile_rows("http_ttft", title, (Target.above(1), Target.above(3)))
    async with Street.of(bed, 64, peers) as street:
        for number in range(-1, rounds):
            amount = round((seconds if number >= 0 else 1.0) * rate)
            for system in street.in_round(number):
                meter = Meter(bed, street.processes(system))
                streams = await _streams(street, system, "trickle", amount=amount, gap=1 / rate, ready=16)
                used = meter.read()
                if number >= 0:
                    _add_costs(rows, system, used, 1e6 / amount / TRICKLE_TOKENS)
                    firsts = [seen.tokens[0][0] - seen.began for seen in streams]
                    for which, row in ttfts.items():
                        row.add(system, percentile(firsts, which) * 1e3)
    for row in (*rows.values(), *ttfts.values()):
        yield row


async def measure_http_open(bed: Bed, *, rounds: int, peers: Sequence[str], streams: int = 1024) -> AsyncIterator[Row]:
    """Many slow streams open at once: memory of each door, and the way of a token from the model to a client."""
    memory = Row(
        key="http_rss_open",
        title=f"resident memory, {streams} open streams over HTTP",
        unit="MB",
        target=Target.at_most(150),
        comparison=GATEWAY,
    )
    title = f"delay of a token, {streams} open streams of 1 token/s over HTTP"
    delays = _percentile_rows("http_delay", title, (None, Target.above(5)))
    async with Street.of(bed, streams, peers) as street:
        for number in range(rounds):
            for system in street.in_round(number):
                peak = _Peak(street.processes(system)[0])
                seen = await peak.during(
                    _streams(street, system, "open-stamped", amount=streams, gap=0.9 / streams, ready=streams)
                )
                memory.add(system, peak.bytes / _MEGABYTE)
                found = [delay for stream in seen for delay in _delays_of(stream)]
                for which, row in delays.items():
                    row.add(system, percentile(found, which) * 1e3)
    for row in (memory, *delays.values()):
        yield row


def _delays_of(seen: Seen) -> list[float]:
    """Of the later tokens, which no opening that is held back delays."""
    delays = [received - float(stamp) for received, text in seen.tokens for stamp in STAMP.findall(text)]
    if len(delays) != OPEN_TOKENS:
        raise DeliveryError(f"{len(delays)} tokens of {OPEN_TOKENS}")
    return delays[OPEN_TOKENS // 2 :]


class _Peak:
    """The most memory that a process takes while something is done."""

    def __init__(self, process: Running) -> None:
        self._process = process
        self.bytes = 0

    async def during(self, work: Awaitable[list[Seen]]) -> list[Seen]:
        """Do it."""
        task = asyncio.ensure_future(work)
        while not task.done():
            self.bytes = max(self.bytes, self._process.rss_bytes())
            await asyncio.wait([task], timeout=0.2)
        return await task
