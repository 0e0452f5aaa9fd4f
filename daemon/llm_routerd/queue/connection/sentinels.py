"""The primary that Sentinels watch: https://redis.io/docs/latest/develop/reference/sentinel-clients/.

All of them are asked at once, when a first connection is made and when the last place does not hold any more.  While a
failover spreads they differ: the place that most name is tried first, then the others, and it must say of itself that
it is a primary.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

from redis.exceptions import AuthenticationError, NoPermissionError, RedisError, ResponseError

from llm_routerd.queue.connection.asking import text_of
from llm_routerd.queue.connection.describing import NobodyTells, SetupError, describe
from llm_routerd.queue.connection.whereabouts import Place

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from llm_routerd.queue.connection.asking import Asker
    from llm_routerd.queue.connection.fitness import Greeting


class Sentinels:
    """Where the primary of one service is.

    Args:
        nodes: the Sentinels.
        service: what they call it.
        asker: asks them.
        tell: told, once each time, that they name different places, and which.
    """

    may_move = True

    def __init__(
        self, nodes: Sequence[Place], service: str, asker: Asker, *, tell: Callable[[str], object] = lambda _what: None
    ) -> None:
        self._nodes = tuple(nodes)
        self._service = service
        self._asker = asker
        self._place: Place | None = None
        self._others: list[Place] = []  # that fewer of them name
        self._tell = tell
        self._agree = True
        self._asking = asyncio.Lock()

    async def find(self) -> Place:
        """Where most of them say that it is.

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
        """Whether most of them name another one."""
        try:
            named = await self._named()
        except RedisError:
            return False
        if named[0] == self._place:
            return False
        self._place, self._others = None, named
        return True

    async def _named(self) -> list[Place]:
        """The places that they name, of most of them first."""
        asked = [self._ask(node) for node in self._nodes]
        said = await asyncio.gather(*asked, return_exceptions=True)
        named = Counter(each for each in said if isinstance(each, Place))
        if not named:
            raise self._nobody([each for each in said if isinstance(each, BaseException)])
        agreed, self._agree = self._agree, len(named) == 1
        if agreed and not self._agree:
            places = ", ".join(f"{host}:{port} ({count})" for (host, port), count in named.most_common())
            self._tell(f"the Sentinels name several primaries of {self._service}: {places}")
        return [place for place, _ in named.most_common()]

    async def _ask(self, node: Place) -> Place:
        try:
            found = await self._asker.ask(node, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._service)
        except (OSError, TimeoutError) as error:
            raise NobodyTells("does not answer") from error
        return self._read(found)

    def _read(self, found: Any) -> Place:
        match found:
            case [host, port] if (name := text_of(host)) and text_of(port).isdecimal():
                return Place(name, int(text_of(port)))
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
