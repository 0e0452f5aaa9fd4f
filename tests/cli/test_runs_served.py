"""Runs with tools at the command line, with a worker that drives them: what is said there counts."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from llm_routerd.cli.exits import Exit
from llm_routerd.config.agents import AgentsConfig
from llm_routerd.protocol.events import FINAL_ID
from tests.cli.commands import environment, on_terminal, started
from tests.support.fakes import FakeBackend
from tests.support.queue import events_of, open_client
from tests.support.runs import ADD, SWITCH, answer, answers, calls_all, event_of, next_call, register, turns
from tests.support.workers import make_config, run_worker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from llm_routerd.config.tree import Config

ADA = environment(NO_COLOR="1", LOGNAME="ada")
MODEL = (
    calls_all(("add", '{"a": 2, "b": 3}'), ("switch", '{"lamp": "hall"}'), text="Let me see."),
    answers("it is on"),
)


@asynccontextmanager
async def served(url: str, config: Config | None = None) -> AsyncIterator[Any]:
    """A worker whose model adds and switches; `add` is answered by itself."""
    model = {"local": FakeBackend(turns(*MODEL))}
    async with open_client(url) as client, run_worker(url, model, config=config):
        await register(client, add=ADD, switch=SWITCH)
        adding = asyncio.create_task(_add(client))
        try:
            yield client
        finally:
            adding.cancel()
            await asyncio.gather(adding, return_exceptions=True)


async def _add(client: Any) -> None:
    _, call = await next_call(client, "add")
    await answer(client, call["id"], call["call_id"], str(sum(call["arguments"].values())))


async def say(url: str, *argv: str) -> tuple[int, str]:
    """A command of another terminal, and all that it writes."""

    def run() -> tuple[int, str]:
        with started(*argv, "--redis", url, env=ADA) as command:
            code = command.wait()
        return code, bytes(command.out + command.err).decode()

    return await asyncio.to_thread(run)


async def submit(client: Any, request_id: str = "r1") -> str:
    """A run; the id of the call that waits for a person."""
    agent = json.dumps({"tools": ["*"]})
    await client.xadd("llm:requests", {"prompt": "x", "id": request_id, "agent": agent})
    await event_of(client, request_id, "turn")
    (call_id,) = [
        data["call_id"]
        for _, kind, data in await events_of(client, request_id)
        if kind == "tool_call" and data.get("confirm")
    ]
    return str(call_id)


async def test_person_at_the_terminal_lets_a_run_go_on(valkey_url: str) -> None:
    """From the question to the answer."""

    def run() -> tuple[int, str]:
        with on_terminal("submit", "x", "--agent", "*", "--id", "r1", "--redis", valkey_url, env=ADA) as command:
            command.until_written("Allow it?")
            command.type("y\n")
            return command.wait(), command.out.decode()

    async with served(valkey_url) as client:
        running = asyncio.create_task(asyncio.to_thread(run))
        _, call = await next_call(client, "switch")
        assert call["arguments"] == {"lamp": "hall"}
        await answer(client, "r1", call["call_id"], "ok")
        code, shown = await running
        assert code == Exit.OK
    for part in ("Let me see.", 'calls add {"a":2,"b":3}', "add answered 5", "switch confirmed by ada", "it is on"):
        assert part in shown
    assert "discarded" not in shown


async def test_word_of_another_terminal_counts_once(valkey_url: str) -> None:
    """With other arguments, which are judged first; the second one is told whose stands."""
    async with served(valkey_url) as client:
        call_id = await submit(client)
        code, told = await say(valkey_url, "confirm", "r1", "--args", '{"lump": 1}')
        assert (code, "switch does not take these" in told) == (Exit.USAGE, True)
        code, told = await say(valkey_url, "confirm", "r1", call_id, "--args", '{"lamp": "attic"}')
        assert (code, "confirmed by ada" in told) == (Exit.OK, True)
        _, call = await next_call(client, "switch")
        assert call["arguments"] == {"lamp": "attic"}
        code, told = await say(valkey_url, "deny", "r1", call_id, "--by", "bob")
        assert (code, "confirmed already by ada" in told) == (Exit.FAILED, True)
        await answer(client, "r1", call["call_id"], "ok")
        assert (await event_of(client, "r1", "result"))["content"] == "it is on"
        code, told = await say(valkey_url, "confirm", "r1")
        assert (code, "no tool call of r1 waits" in told) == (Exit.FAILED, True)


async def test_call_that_is_denied_is_not_made(valkey_url: str) -> None:
    """Its model is told, and answers without it."""
    async with served(valkey_url) as client:
        await submit(client)
        code, told = await say(valkey_url, "deny", "r1", "--reason", "the hall is asleep")
        assert (code, "denied by ada" in told) == (Exit.OK, True)
        assert (await event_of(client, "r1", "denied"))["reason"] == "the hall is asleep"
        assert (await event_of(client, "r1", "result"))["content"] == "it is on"
        assert not await client.exists("llm:tools:switch")


async def test_interrupt_at_the_question_ends_the_run(valkey_url: str) -> None:
    """No tool acts for nobody."""

    def run() -> int:
        with on_terminal("submit", "x", "--agent", "*", "--id", "r1", "--redis", valkey_url, env=ADA) as command:
            command.until_written("Allow it?")
            command.interrupt()
            return command.wait()

    async with served(valkey_url) as client:
        assert await asyncio.to_thread(run) == Exit.INTERRUPTED
        ((_, fields),) = await client.xrange("llm:events:r1", FINAL_ID, FINAL_ID)
        assert fields["type"] == "cancelled"
        code, told = await say(valkey_url, "confirm", "r1", (await event_of(client, "r1", "tool_call", 2))["call_id"])
        assert (code, "the request has ended" in told) == (Exit.FAILED, True)
        assert not await client.exists("llm:tools:switch")


async def test_word_after_the_time_is_too_late(valkey_url: str) -> None:
    """The run has ended with that, and no tool was told."""
    config = replace(make_config(), agents=AgentsConfig(confirmation_seconds=0.3))
    async with served(valkey_url, config) as client:
        call_id = await submit(client)
        assert (await event_of(client, "r1", "error"))["code"] == "confirmation_expired"
        code, told = await say(valkey_url, "confirm", "r1", call_id)
        assert (code, "in which this call could be confirmed is over" in told) == (Exit.TIMED_OUT, True)
        assert not await client.exists("llm:tools:switch")
