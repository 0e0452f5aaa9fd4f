"""Streams whose IDs run ahead of the server's clock, and their mending; see `mend.lua`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llm_routerd.queue import scripts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_routerd.queue.broker import Broker

AHEAD_MS = 60_000
MOST_ENTRIES = 10_000
MOST_BYTES = 33_554_432


@dataclass(frozen=True, slots=True, kw_only=True)
class Ahead:
    """A stream that runs ahead: what was done about it, how many entries were moved, its last ID before."""

    key: str
    verdict: str
    moved: int
    last_id: str


def ahead_ms(broker: Broker) -> int:
    """How far ahead of the clock an ID may lie.

    Not less than answers are kept: where it was the clock that was set back, IDs of a stream that is made anew are
    given a second time, and nobody is to find another's answer under his.
    """
    return max(AHEAD_MS, 2 * broker.limits.result_ttl_ms)


async def mend(broker: Broker, lanes: Sequence[str], others: Sequence[str] = ()) -> list[Ahead]:
    """Make anew those of these streams that run ahead and can be; `others` are no lanes of requests.

    Raises:
        ResponseError: Redis refuses even the look.
    """
    keys = (*lanes, *others)
    call = scripts.mend(
        streams=keys, ahead_ms=ahead_ms(broker), most=MOST_ENTRIES, most_bytes=MOST_BYTES, lane_count=len(lanes)
    )
    return [
        Ahead(key=keys[position], verdict=verdict.decode(), moved=moved, last_id=last_id.decode())
        for position, verdict, moved, last_id in await broker.pipe.run_script(call)
    ]
