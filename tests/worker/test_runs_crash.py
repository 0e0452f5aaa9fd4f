"""A worker of a run stands still at any step: another goes on, and nothing is asked or done twice."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from llm_routerd.queue.connection import Pipe
from llm_routerd.queue.settle import Settlement
from tests.support.eventually import eventually
from tests.support.fakes import FakeBackend
from tests.support.queue import events_of, open_client
from tests.support.runs import (
    ADD,
    answer,
    answers,
    calls,
    calls_all,
    event_of,
    next_call,
    register,
    submit,
    turns,
)
from tests.support.wire import cancellation, check_everything, eventually_true, final_of, metrics_of
from tests.support.workers import DAEMON, make_config, run_worker

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable

    from llm_routerd.protocol.call import Call, Delta, Finish
    from llm_routerd.queue.scripts.binding import Call as ScriptCall

CONFIG = make_config(daemon=replace(DAEMON, lease_seconds=0.4, concurrency=2))
SLOW = ADD | {"timeout_ms": 60_000}
STEPS = frozenset({"begin", "journal", "registry", "hear", "dispatch", "observe", "withdraw", "commit"})
BOTH = calls_all(("add", '{"a":1,"b":2}'), ("switch", '{"lamp":"hall"}'))


class Stall:
    """The worker that takes the first step of a run stands still at its so-manieth, before or after it is done.

    Once it thaws, what it was about to say is said, as by a machine that slept.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, step: int, *, is_done: bool) -> None:
        self._step, self._is_done = step, is_done
        self._victim: Pipe | None = None
        self._held: list[tuple[Callable[[], asyncio.Future[Any]], asyncio.Future[Any]]] = []
        self._seen = 0
        self._is_frozen = False
        self.at = ""
        call, run_script, after_events = Pipe.call, Pipe.run_script, Settlement._after_events

        def called(pipe: Pipe, *command: Any, **named: Any) -> asyncio.Future[Any]:
            send = partial(call, pipe, *command, **named)
            return self._hold(send) if self._is_frozen and pipe is self._victim else send()

        def ran(pipe: Pipe, given: ScriptCall, **named: Any) -> asyncio.Future[Any]:
            return self._stepped(pipe, given, partial(run_script, pipe, given, **named))

        def sent(broker: Settlement, given: ScriptCall, **named: Any) -> asyncio.Future[Any]:
            return self._stepped(broker.pipe, given, partial(after_events, broker, given, **named))

        monkeypatch.setattr(Pipe, "call", called)
        monkeypatch.setattr(Pipe, "run_script", ran)
        monkeypatch.setattr(Settlement, "_after_events", sent)

    def _stepped(self, pipe: Pipe, given: ScriptCall, send: Callable[[], asyncio.Future[Any]]) -> asyncio.Future[Any]:
        if self._is_frozen and pipe is self._victim:
            return self._hold(send)
        if given.script.name in STEPS and not self.at and pipe is (self._victim or pipe):
            self._victim = pipe
            self._seen += 1
            if self._seen == self._step:
                self.at = given.script.name
                if self._is_done:
                    send()  # and its reply never comes
                self._is_frozen = True
                return self._hold(send)
        return send()

    def _hold(self, send: Callable[[], asyncio.Future[Any]]) -> asyncio.Future[Any]:
        future = asyncio.get_running_loop().create_future()
        self._held.append((send, future))
        return future

    def thaw(self) -> None:
        """Go on."""
        self._is_frozen = False
        for send, future in self._held:
            send().add_done_callback(partial(_pass, future))
        self._held.clear()


def _pass(to: asyncio.Future[Any], done: asyncio.Future[Any]) -> None:
    if to.done() or done.cancelled():
        return
    error = done.exception()
    if error is None:
        to.set_result(done.result())
    else:
        to.set_exception(error)


class Model:
    """A model that notes when it is asked for a turn that stands."""

    def __init__(self, client: Any, *finishes: Finish) -> None:
        self._client, self._turns = client, turns(*finishes)
        self.again: list[int] = []
        self.backend = FakeBackend(self._script)

    async def _script(self, backend: FakeBackend, call: Call) -> AsyncGenerator[Delta | Finish, None]:
        shown = sum(message["role"] == "assistant" for message in call.messages)
        # In a task of its own: what makes its connection may block, and this is the worker's own.
        events = await asyncio.ensure_future(events_of(self._client, "r1"))
        stand = [kind for _, kind, _ in events].count("turn")
        if stand != shown:
            self.again.append(shown)
        async for each in self._turns(backend, call):
            yield each


@asynccontextmanager
async def tool_and_person(client: Any) -> AsyncIterator[dict[str, int]]:
    """Whatever is called is answered once, and whoever asks is told yes; {call id: how often it was put on a stream}."""
    seen: dict[str, int] = {}

    async def serve(tool: str) -> None:
        after = "0-0"
        while True:
            await asyncio.sleep(0.02)  # a blocking read of this client does not always end when it is cancelled
            for _, entries in await client.xread({f"llm:tools:{tool}": after}):
                for entry, fields in entries:
                    after, call = entry, json.loads(fields["call"])
                    seen[call["call_id"]] = seen.get(call["call_id"], 0) + 1
                    await client.xadd(f"llm:inbox:{call['id']}", {"call_id": call["call_id"], "result": "5"})

    async def agree() -> None:
        asked: set[str] = set()
        while True:
            await asyncio.sleep(0.02)
            events = await events_of(client, "r1")
            stand = {kind for _, kind, _ in events}
            for _, kind, data in events:
                if kind == "tool_call" and data.get("confirm") and data["call_id"] not in asked and "turn" in stand:
                    asked.add(data["call_id"])
                    word = {"confirm": data["call_id"], "args_sha256": data["args_sha256"], "by": "ada"}
                    await client.xadd("llm:consent:r1", word)

    tasks = [asyncio.create_task(each) for each in (serve("add"), serve("switch"), agree())]
    try:
        yield seen
        assert not [task for task in tasks if task.done()]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _stalls_or_ends(client: Any, stall: Stall) -> bool:
    return bool(stall.at) or any(kind == "result" for _, kind, _ in await events_of(client, "r1"))


async def test_run_that_is_cancelled_while_its_tool_has_not_begun(broker_url: str) -> None:
    """The call is taken back, `cancelled` stays, and it is counted once."""
    async with open_client(broker_url) as client:
        model = FakeBackend(turns(calls("add", a=1, b=2), answers("done")))
        async with run_worker(broker_url, {"local": model}) as worker:
            await register(client, add=SLOW)
            await submit(client)
            await next_call(client, "add")
            await eventually(lambda: worker.in_flight == 0)
            await client.xadd("llm:events:r1", cancellation("r1"), id="9007199254740991-0")
            await eventually_true(lambda: _is_gone(client, "llm:tools:add"))
            assert (await metrics_of(client, "r1"))["type"] == "cancelled"
            await eventually_true(lambda: _is_gone(client, "llm:requests"))
        assert (await final_of(client, "r1"))[0] == "cancelled"
        assert len(model.calls) == 1
        assert (await check_everything(client))["metrics"] == 1


async def _is_gone(client: Any, key: str) -> bool:
    return not await client.xlen(key)


async def test_run_that_is_cancelled_while_the_reply_to_its_dispatch_is_lost(
    valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The calls stand in their stream, and nobody here has heard of it: they are taken back all the same."""
    sent, lost = Settlement._after_events, asyncio.Event()

    async def repeated(broker: Settlement, given: ScriptCall, **named: Any) -> Any:
        await sent(broker, given, **named)
        lost.set()
        await asyncio.sleep(0.1)
        return await sent(broker, given, **named)

    def run_script(broker: Settlement, given: ScriptCall, **named: Any) -> asyncio.Future[Any]:
        if given.script.name == "dispatch" and not lost.is_set():
            return asyncio.ensure_future(repeated(broker, given, **named))
        return sent(broker, given, **named)

    monkeypatch.setattr(Settlement, "_after_events", run_script)
    async with open_client(valkey_url) as client:
        model = FakeBackend(turns(calls("add", a=1, b=2), answers("done")))
        async with run_worker(valkey_url, {"local": model}):
            await register(client, add=SLOW)
            await submit(client)
            await asyncio.wait_for(lost.wait(), 5)
            assert await client.xlen("llm:tools:add") == 1
            await client.xadd("llm:events:r1", cancellation("r1"), id="9007199254740991-0")
            await eventually_true(lambda: _is_gone(client, "llm:tools:add"))
            await eventually_true(lambda: _is_gone(client, "llm:requests"))


async def test_worker_that_leaves_in_the_middle_of_a_waking_takes_nothing_back(
    valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The calls are of use to whoever goes on with the run, and what was answered is there for it."""
    sent, is_stuck = Settlement._after_events, asyncio.Event()

    def stuck(broker: Settlement, given: ScriptCall, **named: Any) -> asyncio.Future[Any]:
        if given.script.name == "observe" and broker.consumer == "w1":
            is_stuck.set()
            return asyncio.get_running_loop().create_future()
        return sent(broker, given, **named)

    async with open_client(valkey_url) as client:
        await register(client, add=SLOW)
        both = calls_all(("add", '{"a":1,"b":2}'), ("add", '{"a":3,"b":4}'))
        model = FakeBackend(turns(both, answers("done")))
        async with run_worker(valkey_url, {"local": model}, consumer="w1", config=CONFIG) as worker:
            await submit(client)
            entry, first = await next_call(client, "add")
            _, second = await next_call(client, "add", after=entry)
            await eventually(lambda: worker.in_flight == 0)
            monkeypatch.setattr(Settlement, "_after_events", stuck)
            await answer(client, "r1", first["call_id"], "3")
            await asyncio.wait_for(is_stuck.wait(), 5)
        assert await client.xlen("llm:tools:add") == 2
        assert await client.xlen("llm:inbox:r1") == 1
        async with run_worker(valkey_url, {"local": model}, consumer="w2", config=CONFIG):
            await answer(client, "r1", second["call_id"], "7")
            assert (await final_of(client, "r1"))[0] == "result"
        assert [each["content"] for each in model.calls[1].messages if each["role"] == "tool"] == ["3", "7"]


@pytest.mark.parametrize("count", [1, 50])
async def test_drain_while_runs_wait_and_another_worker_goes_on(valkey_url: str, count: int) -> None:
    """Their calls stay where they are, and nothing of them is lost."""
    model = FakeBackend(turns(calls("add", a=1, b=2), answers("done")))
    names = [f"r{number}" for number in range(1, count + 1)]
    async with open_client(valkey_url) as client:
        await register(client, add=SLOW)
        async with run_worker(valkey_url, {"local": model}, consumer="w1", config=CONFIG) as first:
            for name in names:
                await submit(client, name)
            for name in names:
                await event_of(client, name, "turn")
            await eventually(lambda: first.in_flight == 0)
        assert await client.xlen("llm:tools:add") == count
        async with run_worker(valkey_url, {"local": model}, consumer="w2", config=CONFIG):
            for _, fields in await client.xrange("llm:tools:add"):
                call = json.loads(fields["call"])
                await client.xadd(f"llm:inbox:{call['id']}", {"call_id": call["call_id"], "result": "3"})
            for name in names:
                assert (await final_of(client, name))[0] == "result"
        assert len(model.calls) == 2 * count
        assert await client.xlen("llm:tools:add") == 0
