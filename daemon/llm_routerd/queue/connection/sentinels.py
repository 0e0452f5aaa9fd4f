"""The primary that Sentinels watch: https://redis.io/docs/latest/develop/reference/sentinel-clients/.

All of them are asked at once, when a first connection is made and when the last place does not hold any more.  While a
failover spreads they differ: the place of the latest is tried first (`config-epoch`; where that is not told, the one
that most name), then the others, and it must say of itself that it is a primary.

One after the other is asked once a second as long as somebody is connected: after SENTINEL FAILOVER the old primary
takes writes for ten seconds more, which are thrown away when it is made a replica.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from contextlib import suppress
from itertools import cycle
from typing import TYPE_CHECKING, Any

from redis.exceptions import AuthenticationError, NoPermissionError, RedisError, ResponseError

from llm_routerd.queue.connection.asking import fields_of, text_of
from llm_routerd.queue.connection.describing import NobodyTells, SetupError, describe
from llm_routerd.queue.connection.whereabouts import Place, sound_place

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from llm_routerd.queue.connection.asking import Asker
    from llm_routerd.queue.connection.fitness import Greeting

GLANCE_SECONDS = 0.9  # a little less than the time between two looks of one connection
_DIGITS = re.compile(r"\d{1,18}", re.ASCII)


class Sentinels:
    """Where the primary of one service is.

    Args:
        nodes: the Sentinels.
        service: what they call it.
        asker: asks them.
        tell: told, once each time, that they name different places, and which.
    """

    may_move = True
    is_fixed = False
    has_all = True

    def __init__(
        self, nodes: Sequence[Place], service: str, asker: Asker, *, tell: Callable[[str], object] = lambda _what: None
    ) -> None:
        self._nodes = tuple(nodes)
        self._turns = cycle(self._nodes)
        self._service = service
        self._asker = asker
        self._place: Place | None = None
        self._others: list[Place] = []  # that fewer of them name
        self._tell = tell
        self._agree = True
        self._asking = asyncio.Lock()
        self._glance_at = 0.0  # loop time of the next

    async def find(self) -> Place:
        """Where the latest failover has put it.

        Raises:
            NobodyTells: none answers.
            SetupError: none knows the service, or lets us ask.
        """
        if self._place is not None:
            return self._place
        async with self._asking:
            if self._place is None:
                if not self._others:
                    self._others = await self._named()
                self._place = self._others.pop(0)
            return self._place

    def lost(self, _error: BaseException, /) -> None:
        """The next connection asks again."""
        self._place = None

    async def accept(self, greeting: Greeting | None, /) -> None:
        """It must be a primary, where it says what it is.

        Raises:
            NobodyTells: it is a replica: the failover is not over.
        """
        if greeting is not None and greeting.role not in {"", "master"}:
            told = f"the server that the Sentinels name as primary of {self._service} is a replica"
            raise NobodyTells(told, "wait until the failover is over")
        self._others = []

    async def moved(self) -> bool:
        """Whether they name another one."""
        try:
            named = await self._named()
        except RedisError:
            return False
        if named[0] == self._place:
            return False
        self._place, self._others = None, named
        return True

    async def glance(self) -> bool:
        """The same; the others are asked only where the one whose turn it is does not name the place that was found.

        However many ask this, the Sentinels are asked once a second.
        """
        place, now = self._place, asyncio.get_running_loop().time()
        if now < self._glance_at:
            return False
        self._glance_at = now + GLANCE_SECONDS
        with suppress(RedisError):
            if await self._ask(next(self._turns)) == place:
                return False
        return place is not None and place == self._place and await self.moved()

    async def _named(self) -> list[Place]:
        """The places that they name, the latest first."""
        asked = [self._ask(node) for node in self._nodes]
        said = await asyncio.gather(*asked, return_exceptions=True)
        named = Counter(each for each in said if isinstance(each, Place))
        if len(named) == 1:
            self._agree = True
            return list(named)
        if not named:
            raise self._nobody([each for each in said if isinstance(each, BaseException)])
        if self._agree:
            self._agree = False
            places = ", ".join(f"{host}:{port} ({count})" for (host, port), count in named.most_common())
            self._tell(f"the Sentinels name several primaries of {self._service}: {places}")
        votes = [(node, each) for node, each in zip(self._nodes, said, strict=True) if isinstance(each, Place)]
        told = await asyncio.gather(*(self._epoch(node) for node, _ in votes))
        epochs: dict[Place, int] = {}
        for (_, place), epoch in zip(votes, told, strict=True):
            epochs[place] = max(epoch, epochs.get(place, 0))
        return sorted(named, key=lambda place: (epochs[place], named[place]), reverse=True)

    async def _epoch(self, node: Place) -> int:
        """How recent is what it knows of the service; 0 where it does not tell."""
        try:
            reply = await self._asker.ask(node, "SENTINEL", "MASTER", self._service)
        except (RedisError, OSError, TimeoutError):
            return 0
        epoch = fields_of(reply).get("config-epoch", "")
        return int(epoch) if _DIGITS.fullmatch(epoch) else 0

    async def _ask(self, node: Place) -> Place:
        try:
            found = await self._asker.ask(node, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._service)
        except (OSError, TimeoutError) as error:
            raise NobodyTells("does not answer") from error
        return self._read(found)

    def _read(self, found: Any) -> Place:
        match found:
            case [host, port] if _DIGITS.fullmatch(text_of(port)) and (
                place := sound_place(text_of(host), int(text_of(port)))
            ):
                return place
            case None:
                raise SetupError(
                    f'the Sentinels watch no service "{self._service}"',
                    "name it as `sentinel monitor` does, after the hosts of the Redis URL",
                )
            case _:
                raise NobodyTells("what answers is no Sentinel")

    def _nobody(self, why: Sequence[BaseException]) -> RedisError:
        """What is wrong where none has named a place: what somebody has to change, if there is such."""
        for error in why:
            if isinstance(error, (SetupError, AuthenticationError, NoPermissionError)):
                return error
        reasons = {_reason(error) for error in why}
        return NobodyTells(
            f"none of {len(self._nodes)} Sentinels tells where {self._service} is ({'; '.join(reasons)})"
        )


def _reason(error: BaseException) -> str:
    if isinstance(error, ResponseError) and "unknown command" in str(error).lower():
        return "what answers is no Sentinel"
    return str(error) if isinstance(error, NobodyTells) else describe(error)
