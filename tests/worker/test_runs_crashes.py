"""A worker stops after each step of a run, or loses the reply to it: the run ends as if nothing had happened."""

from __future__ import annotations

import asyncio
import json
import traceback
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace
from redis.exceptions import ConnectionError as RedisConnectionError

from llm_routerd.queue import scripts
from tests.support.accounts import scraped_of
from tests.support.eventually import eventually
from tests.support.fakes import FakeBackend
from tests.support.queue import open_client
from tests.support.runs import ADD, SWITCH, answer, answers, calls, register, turns
from tests.support.wire import check_everything, eventually_true, metrics_of
from tests.support.workers import DAEMON, make_config, run_worker

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from llm_routerd.config.tree import Config
    from llm_routerd.protocol.call import Call, Delta, Finish
    from llm_routerd.worker.worker import Worker

STEPS = (scripts.begin, scripts.write, scripts.dispatch, scripts.observe, scripts.withdraw, scripts.commit)
MOST_STEPS = 20
_SHAS = {script.sha: script.name for script in STEPS}
_SCRIPT = turns(calls("add", a=1, b=1), calls("switch", lamp="x"), answers("done"))


class Trouble:
    """Lets a worker do so many steps of a run, and then stops it, or loses a reply.

    Attributes:
        steps: that it has done.
        met: the trouble has come.
        over: the worker goes on.
    """

    def __init__(self, worker: Worker, after: int, *, loses_reply: bool) -> None:
        self.steps: list[str] = []
        self.met = asyncio.Event()
        self.over = asyncio.Event()
        self._after = after
        self._loses_reply = loses_reply
        pipe: Any = worker.shards[0].pipe
        self._one_batch, self._read_replies = pipe._one_batch, pipe._read_replies
        pipe._one_batch, pipe._read_replies = self.one_batch, self.read_replies

    async def one_batch(self, *args: Any) -> None:
        """Nothing is sent by a worker that stands still."""
        if self.met.is_set() and not self._loses_reply:
            await self.over.wait()
        await self._one_batch(*args)

    async def read_replies(self, connection: Any, batch: list[Any], asked: Any) -> Any:
        """What was sent is done; its reply may never come."""
        before = len(self.steps)
        self.steps += [_SHAS[command.args[1]] for command in batch if command.args[1:2] and command.args[1] in _SHAS]
        if before < self._after <= len(self.steps) and not self.met.is_set():
            self.met.set()
            if self._loses_reply:
                await connection.read_response()  # of the first command of these; then they are done, all or most
                raise RedisConnectionError("lost")
            await self.over.wait()
        return await self._read_replies(connection, batch, asked)


class Scene:
    """One run under one prefix, its model, its tools and the person that it asks."""

    client: Any  # while it is played: of its own, for one has so many connections only

    def __init__(self, number: int) -> None:
        self.prefix = f"p{number}"
        self.name = f"r{number}"
        self.is_over = False
        self.made: Counter[str] = Counter()  # how often each call stood on a tool's stream
        self.asked_again: list[int] = []  # turns that stood
        self.model = FakeBackend(self.script)

    async def script(self, backend: FakeBackend, call: Call) -> AsyncGenerator[Delta | Finish, None]:
        """Three turns; whether the one that is asked for stands already."""
        told = sum(message["role"] == "assistant" for message in call.messages)
        if await asyncio.create_task(self.count("turn")) != told:  # a task: no code of the daemon stands behind it
            self.asked_again.append(told + 1)
        async for each in _SCRIPT(backend, call):
            yield each

    async def events(self) -> list[tuple[str, dict[str, Any]]]:
        """Type and data of each."""
        found = await self.client.xrange(f"{self.prefix}:events:{self.name}")
        return [(fields["type"], json.loads(fields["data"])) for _, fields in found]

    async def count(self, kind: str) -> int:
        """How many of a type stand."""
        return [each for each, _ in await self.events()].count(kind)

    async def serve(self, tool: str) -> None:
        """A tool that answers each call that it sees."""
        at = "0-0"
        while not self.is_over:
            for _, entries in await self.client.xread({f"{self.prefix}:tools:{tool}": at}, block=200):
                for entry, fields in entries:
                    at, call = entry, json.loads(fields["call"])
                    self.made[call["call_id"]] += 1
                    await answer(self.client, self.name, call["call_id"], "2", prefix=self.prefix)

    async def agree(self) -> None:
        """A person who says yes, and once more to be sure."""
        while not self.is_over:
            for kind, data in await self.events():
                if kind == "tool_call" and data.get("confirm"):
                    word = {"confirm": data["call_id"], "args_sha256": data["args_sha256"], "by": "ada"}
                    for _ in range(2):
                        await self.client.xadd(f"{self.prefix}:consent:{self.name}", word)
                    return
            await asyncio.sleep(0.02)

    async def ends_as_ever(self) -> None:
        """Each thing has happened once."""
        await eventually_true(lambda: self.count("result"))
        events = await self.events()
        counts = Counter(kind for kind, _ in events)
        del counts["attempt"]  # a turn that did not stand is asked again
        assert counts == {"tool_call": 2, "turn": 2, "tool_result": 2, "confirmed": 1, "result": 1}
        result = events[-1][1]
        assert (result["content"], result["turns"]) == ("done", 3)
        assert sorted(self.made.values()) == [1, 1]
        assert self.asked_again == []

    def config(self) -> Config:
        """Short leases, under its prefix."""
        config = make_config(daemon=replace(DAEMON, lease_seconds=0.5))
        return replace(config, redis=replace(config.redis, prefix=self.prefix))

    async def play(self, url: str, after: int, *, loses_reply: bool) -> int:
        """The whole of it; returns how many steps the first worker has done, 0 where it has met no trouble."""
        async with open_client(url) as self.client:
            return await self._play(url, after, loses_reply=loses_reply)

    async def _play(self, url: str, after: int, *, loses_reply: bool) -> int:
        client, config, backends = self.client, self.config(), {"local": self.model}
        await register(client, self.prefix, add=ADD, switch=SWITCH)
        actors = [asyncio.create_task(each) for each in (self.serve("add"), self.serve("switch"), self.agree())]
        try:
            async with run_worker(url, backends, consumer=f"{self.prefix}-1", config=config) as first:
                trouble = Trouble(first, after, loses_reply=loses_reply)
                fields = {"prompt": "do it", "id": self.name, "agent": '{"tools": ["*"]}'}
                await client.xadd(f"{self.prefix}:requests", fields)
                await eventually_true(lambda: self.is_over_or(trouble))
                if loses_reply or not trouble.met.is_set():
                    await self.ends_as_ever()
                    workers = [first]
                else:
                    async with run_worker(url, backends, consumer=f"{self.prefix}-2", config=config) as second:
                        await self.ends_as_ever()
                    workers = [first, second]
                stood = await self.events()
                trouble.over.set()
                await eventually(lambda: not list(first.shards[0].in_flight))
                await metrics_of(client, self.name)
                assert await self.events() == stood
                self.is_counted_once(workers)
        finally:
            self.is_over = True
            await asyncio.gather(*actors)
        await check_everything(client, self.prefix)
        return len(trouble.steps) if trouble.met.is_set() else 0

    async def is_over_or(self, trouble: Trouble) -> bool:
        """The worker has stopped, or the run has ended before."""
        return trouble.met.is_set() or bool(await self.count("result"))

    def is_counted_once(self, workers: list[Worker]) -> None:
        """By whichever worker."""
        total: Counter[str] = Counter()
        for worker in workers:
            total.update({name: int(value) for name, value in scraped_of(worker).items() if "_total" in name})
        assert total['requests_total{type="result",code=""}'] == 1, total
        assert total['runs_total{end="result"}'] == 1


@pytest.mark.parametrize("loses_reply", [False, True], ids=["stops", "loses-reply"])
async def test_worker_in_trouble_after_each_step(valkey_url: str, *, loses_reply: bool) -> None:
    """All at once, each under a prefix of its own; the last ones are beyond the end of the run."""
    async with open_client(valkey_url) as client:
        scenes = [Scene(number) for number in range(1, MOST_STEPS + 1)]
        ends = await asyncio.gather(
            *(scene.play(valkey_url, at, loses_reply=loses_reply) for at, scene in enumerate(scenes, 1)),
            return_exceptions=True,
        )
        failed = {
            number: "".join(traceback.format_exception(end))
            for number, end in enumerate(ends, 1)
            if isinstance(end, BaseException)
        }
        assert not failed, "\n".join(failed.values())
        assert ends[-1] == 0, "there are more steps"
        assert sum(bool(end) for end in ends) >= len(STEPS)
        events = [json.loads(fields["data"]) for _, fields in await client.xrange("llm_router_metrics")]
        assert Counter(event["id"] for event in events) == {scene.name: 1 for scene in scenes}
        assert {event["tool_calls"] for event in events} == {2}
