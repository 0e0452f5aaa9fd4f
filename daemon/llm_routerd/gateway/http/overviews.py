"""Looks at Redis for the page: once for all who look at the same time, and at the metrics events no event twice."""

from __future__ import annotations

import asyncio
import time
from datetime import datetime
from typing import TYPE_CHECKING, Final

from llm_routerd.errors import BrokerError
from llm_routerd.gateway.overview import Overview, overview
from llm_routerd.gateway.tally import Tally

if TYPE_CHECKING:
    from collections.abc import Callable

    from llm_routerd.client import Client, LaneState, Shard, Survey
    from llm_routerd.config.tree import Config
    from llm_routerd.gateway.admission import Caller

_KEPT_SECONDS: Final = 1.0
_LONGEST_SECONDS: Final = 5.0
_PAGE: Final = 500
_MOST_BACK: Final = 20_000  # entries of the metrics stream that a first look reads
_MOST_MISSED: Final = 2_000  # entries between two looks; of more one begins anew


class Overviews:
    """What callers see of one queue.

    Args:
        client: not closed here.
        now: Unix time.
    """

    def __init__(self, client: Client, *, now: Callable[[], float] = time.time) -> None:
        self._client = client
        self._now = now
        self._lock = asyncio.Lock()
        self._kept_until = 0.0
        self._kept: tuple[list[Survey], tuple[LaneState, ...]] | BrokerError | None = None
        self._looked_with: Config | None = None
        self._config: Config | None = None  # that of the tally
        self._tally = Tally((), 0.0)
        self._read: dict[str, str] = {}  # by metrics stream: the last ID that was fed

    async def see(self, config: Config, caller: Caller) -> Overview:
        """What a caller sees, by a look that is a second old at the most; so is a failure that is told once more.

        Args:
            config: in force, for deployments and metrics.
            caller: who looks.

        Raises:
            BrokerError: Redis is away, or refuses the look.
        """
        async with self._lock:
            clock = asyncio.get_running_loop().time
            if self._kept is None or clock() >= self._kept_until or config is not self._looked_with:
                self._kept = None
                self._kept, self._looked_with = await self._look_within(config), config
                self._kept_until = clock() + _KEPT_SECONDS
            if isinstance(self._kept, BrokerError):
                raise BrokerError(self._kept.detail, self._kept.remedy) from self._kept
            surveys, lanes = self._kept
            return overview(surveys, lanes, self._tally, config, caller)

    async def _look_within(self, config: Config) -> tuple[list[Survey], tuple[LaneState, ...]] | BrokerError:
        try:
            async with asyncio.timeout(_LONGEST_SECONDS):
                return await self._look(config)
        except BrokerError as error:
            return error
        except TimeoutError:
            return BrokerError("Redis does not answer")

    async def _look(self, config: Config) -> tuple[list[Survey], tuple[LaneState, ...]]:
        surveys = [await shard.survey() for shard in self._client.shards.all]
        lanes = await self._client.lanes()
        today = datetime.fromtimestamp(self._now())  # noqa: DTZ006 - the day of the people here
        midnight = today.replace(hour=0, minute=0, second=0, microsecond=0).timestamp()
        if config is not self._config or not await self._go_on(config, midnight):
            await self._begin(config, midnight)
        return surveys, lanes

    def _streams(self, config: Config) -> list[tuple[Shard, str]]:
        """The metrics streams, each with the shard whose server has it."""
        shards = self._client.shards
        return [
            (shard, shards.layout.metrics_channel(number, config.metrics.channel))
            for number, shard in enumerate(shards.all[: shards.layout.shards])
        ]

    async def _go_on(self, config: Config, midnight: float) -> bool:
        """Feed what has come since; False: more has come than one reads at a look, or than is kept."""
        self._tally.begin_day(midnight)
        most = min(_MOST_MISSED, config.metrics.stream_maxlen)
        for shard, stream in self._streams(config):
            entries = await shard.since(stream, self._read[stream], most)
            if len(entries) >= most > 0:
                return False
            for entry, text in entries:
                self._tally.feed(text)
                self._read[stream] = entry
        return True

    async def _begin(self, config: Config, midnight: float) -> None:
        """Feed what there is of today, and the last calls of all deployments."""
        tenants = {key.tenant for key in config.gateway.keys.values() if key.tenant is not None}
        tally, read = Tally(tuple(config.deployments), midnight, tenants), dict[str, str]()
        everything: list[tuple[str, bytes]] = []
        for shard, stream in self._streams(config):
            found, is_whole = await _newest(shard, stream, midnight, config.metrics.stream_maxlen)
            read[stream] = found[0][0] if found else "0-0"
            if found and not is_whole:
                tally.known_since = max(tally.known_since or 0.0, _seconds(found[-1][0]))
            everything += found
        for _, text in sorted(everything, key=lambda entry: _seconds(entry[0])):
            tally.feed(text)
        self._config, self._tally, self._read = config, tally, read


async def _newest(shard: Shard, stream: str, midnight: float, maxlen: int) -> tuple[list[tuple[str, bytes]], bool]:
    """The entries of today, and some from before, newest first; and whether that is all of today."""
    found: list[tuple[str, bytes]] = []
    before = "+"
    while len(found) < _MOST_BACK:
        page = await shard.newest(stream, before, _PAGE)
        found += page
        if found and _seconds(found[-1][0]) < midnight:
            return found, True
        if len(page) < _PAGE:
            return found, len(found) < maxlen  # a stream that is shorter than its bound has not been cut
        before = f"({page[-1][0]}"
    return found, False


def _seconds(entry: str) -> float:
    """Unix time of an entry."""
    return int(entry.partition("-")[0]) / 1000
