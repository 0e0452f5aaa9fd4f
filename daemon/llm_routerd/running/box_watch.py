"""What is known of the boxes: what they have in memory, how fast they load and answer; told to all workers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from llm_routerd.fleet.estimates import Seen, observe
from llm_routerd.protocol.call import BackendError
from llm_routerd.queue.picture import BoxReport
from llm_routerd.running.boxes import ASK_SECONDS, resident_name

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from llm_routerd.config.tree import Config, Deployment
    from llm_routerd.protocol.backend import Backend

WATCH_SECONDS = 5.0  # so often a box that is used is asked what it has loaded
FIRST_LOOK_SECONDS = 0.5
_SERVER_ERROR = 500
SAMPLE_SECONDS = 0.05  # so far apart are the calls that count
BOOT_LOOK_SECONDS = 1.0  # so often one that may be booting is asked whether it answers
DOWN_SECONDS = 5.0  # so long a box that does not answer is not asked for calls


class BoxWatch:
    """Looks at boxes now and then.

    Args:
        config: the tree in force.
        backend: of a deployment, by its name.
        report: tells all workers what was seen of a box.
        later: does what nobody waits for.
        on_news: called when something has been seen.
        is_used: whether calls run on a box, of any worker.

    Attributes:
        askable: by box the deployment by which it is asked what it has in memory; of others that is not known.
    """

    def __init__(
        self,
        config: Config,
        backend: Callable[[str], Backend],
        *,
        report: Callable[[str, BoxReport], Awaitable[None]],
        later: Callable[[Callable[[], Awaitable[object]]], asyncio.Task[None]],
        on_news: Callable[[], None],
        is_used: Callable[[str], bool],
    ) -> None:
        members = [each for each in config.deployments.values() if each.box is not None]
        self.askable: Mapping[str, str] = {
            each.box or "": each.name for each in members if config.boxes[each.box or ""].kind == "ollama"
        }
        # By box the deployment by which one that can be woken is asked whether it answers.
        self._wakeable = {each.box or "": each.name for each in members if config.boxes[each.box or ""].wake}
        self._backend = backend
        self._report = report
        self._later = later
        self._on_news = on_news
        self._is_used = is_used
        self._due: dict[str, float] = {}  # by box: loop time of the next look
        self._seen: dict[tuple[str, str, str], Seen] = {}
        self._untold: dict[str, set[str]] = {}  # by box: models whose speed has been seen since it was told
        self._sampled = float("-inf")  # loop time
        self._loop = asyncio.get_running_loop()

    async def look(self, used: Iterable[str]) -> None:
        """Ask the boxes that are used what they have loaded, each now and then.

        Only a first answer is waited for, and not for long: a box that is slow to tell holds nobody up.
        """
        now = self._loop.time()
        due = [box for box in used if self._due.get(box, float("-inf")) <= now]
        new = [box for box in due if box not in self._due and box in self.askable]
        looks = {box: self._later(lambda box=box: self.look_at(box)) for box in due}  # type: ignore[misc]
        for box in due:
            self._due[box] = now + WATCH_SECONDS
        if new:
            await asyncio.wait([looks[box] for box in new], timeout=FIRST_LOOK_SECONDS)

    def loaded(self, deployment: Deployment, seconds: float) -> None:
        """Its model was loaded in so many seconds."""
        box, model = deployment.box or "", resident_name(deployment)
        average = self._average("load", box, model, seconds)
        self._later(lambda: self._report(box, BoxReport(load_seconds={model: average})))
        self._due[box] = float("-inf")
        self._on_news()

    def answered(self, deployment: Deployment, tokens: int, seconds: float) -> None:
        """A call has brought so many tokens in so many seconds; told with the next look.  Of very many some count."""
        if tokens > 0 and seconds > 0 and (now := self._loop.time()) >= self._sampled + SAMPLE_SECONDS:
            self._sampled = now
            box, model = deployment.box or "", resident_name(deployment)
            self._average("speed", box, model, tokens / seconds)
            self._average("tokens", "", model, float(tokens))
            self._untold.setdefault(box, set()).add(model)

    def expected_tokens(self, deployment: Deployment, max_tokens: int | None) -> int:
        """Of an answer: as of those of its model before, and no more than is allowed; 0: nothing was seen yet."""
        seen = self._seen.get(("tokens", "", resident_name(deployment)))
        if seen is None:
            return 0
        return max(1, round(seen.value if max_tokens is None else min(seen.value, max_tokens)))

    async def look_at(self, box: str) -> bool:
        """Ask one box, and tell all workers; returns whether it answers, as far as that can be told."""
        speeds = {model: self._seen["speed", box, model].value for model in self._untold.pop(box, ())}
        if box not in self.askable and box not in self._wakeable:
            if speeds:
                await self._report(box, BoxReport(tokens_per_second=speeds))
            return True
        began = self._loop.time()
        try:
            answers, resident = await self._asked(box)
        except TimeoutError:
            if box in self._wakeable and self._is_used(box):
                return True  # it works, and has no time for us: nobody is to take that for sleep
            answers, resident = False, None
        down_seconds = 0.0 if answers else DOWN_SECONDS
        if not answers and box in self._wakeable:
            self._due[box] = self._loop.time() + BOOT_LOOK_SECONDS
        report = BoxReport(
            resident=resident,
            down_seconds=down_seconds,
            tokens_per_second=speeds,
            age_seconds=self._loop.time() - began if box in self._wakeable else 0.0,
        )
        await self._report(box, report)
        self._on_news()
        return answers

    async def _asked(self, box: str) -> tuple[bool, Mapping[str, int] | None]:
        """Whether it answers, and what it has in memory, if it tells.

        Raises:
            TimeoutError: it does not say.
        """
        try:
            async with asyncio.timeout(ASK_SECONDS):
                if box in self.askable:
                    return True, await self._backend(self.askable[box]).resident()
                await self._backend(self._wakeable[box]).window()
        except BackendError as error:
            # It may be we that lack something; and a server that says no is there, unless a proxy says it for one.
            is_there = error.lack is not None or (error.status is not None and error.status <= _SERVER_ERROR)
            return is_there, None
        return True, None

    def _average(self, what: str, box: str, model: str, value: float) -> float:
        key = what, box, model
        self._seen[key] = seen = observe(self._seen.get(key), value, self._loop.time())
        return seen.value
