"""Runs with tools: models that call them, tools that answer, people who agree."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from llm_routerd.protocol.call import Finish
from llm_routerd.protocol.outcome import ToolCall, Usage
from tests.support.accounts import scraped_of
from tests.support.eventually import eventually
from tests.support.fakes import FakeBackend
from tests.support.queue import events_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from llm_routerd.protocol.call import Call, Delta
    from llm_routerd.worker.worker import Worker
    from tests.support.fakes import Script

ADD = {
    "description": "Adds two numbers.",
    "parameters": {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        "required": ["a", "b"],
    },
    "idempotent": True,
}
SWITCH = {
    "description": "Switches a lamp.",
    "parameters": {"type": "object", "properties": {"lamp": {"type": "string"}}, "required": ["lamp"]},
    "confirm": True,
}


async def register(client: Any, prefix: str = "llm", **tools: dict[str, Any]) -> None:
    """Tools, by name; `__` stands for the dot."""
    for name, registration in tools.items():
        await client.hset(f"{prefix}:tools", name.replace("__", "."), json.dumps(registration))


def adds() -> FakeBackend:
    """A model that wants one sum."""
    return FakeBackend(turns(calls("add", a=1, b=1), answers("done")))


def adds_once() -> FakeBackend:
    """A model that wants one sum, and is content with whatever it is told."""
    return FakeBackend(turns(calls("add", a=2, b=3), answers("so be it")))


def told(model: FakeBackend, turn: int = 2) -> list[str]:
    """What the model was told of its calls, in its turn of this number."""
    call = next(each for each in model.calls if sum(m["role"] == "assistant" for m in each.messages) == turn - 1)
    return [message["content"] for message in call.messages if message["role"] == "tool"]


async def is_gone(client: Any, key: str) -> bool:
    """Whether a stream holds nothing."""
    return not await client.xlen(key)


async def metrics_all(client: Any, name: str = "r1") -> list[dict[str, Any]]:
    """All metrics events of a request."""
    found = [json.loads(fields["data"]) for _, fields in await client.xrange("llm_router_metrics")]
    return [event for event in found if event["id"] == name]


async def submit(client: Any, name: str = "r1", agent: dict[str, Any] | None = None, **more: str) -> str:
    """A request that may use any tool."""
    fields = {"prompt": "do it", "id": name, "agent": json.dumps(agent or {"tools": ["*"]}), **more}
    await client.xadd("llm:requests", fields)
    return name


async def agree(client: Any, asked: dict[str, Any], name: str = "r1", **more: str) -> None:
    """As a person does, to a `tool_call` event."""
    word = {"confirm": asked["call_id"], "args_sha256": asked["args_sha256"], "by": "ada", **more}
    await client.xadd(f"llm:consent:{name}", word)


def calls(name: str, text: str = "", usage: Usage | None = None, **arguments: Any) -> Finish:
    """The end of an answer that calls one tool."""
    return calls_all((name, json.dumps(arguments)), text=text, usage=usage)


def calls_all(*made: tuple[str, str], text: str = "", usage: Usage | None = None) -> Finish:
    """The end of an answer that calls several: name, arguments as text."""
    told = tuple(
        ToolCall.of(id=f"c{number}", name=name, arguments=arguments) for number, (name, arguments) in enumerate(made)
    )
    return Finish(
        finish_reason="tool_calls",
        tool_calls=told,
        text=text,
        usage=usage or Usage(prompt_tokens=5, completion_tokens=3),
    )


def answers(text: str) -> Finish:
    """The end of an answer that is text."""
    return Finish(finish_reason="stop", text=text, usage=Usage(prompt_tokens=7, completion_tokens=2))


def turns(*finishes: Finish | Callable[[Call], Finish]) -> Script:
    """A model whose turns are these: it goes by how many assistant messages the call shows, as a stateless one must."""

    async def script(_backend: FakeBackend, call: Call) -> AsyncGenerator[Delta | Finish, None]:
        number = sum(message["role"] == "assistant" for message in call.messages)
        finish = finishes[min(number, len(finishes) - 1)]
        yield finish if isinstance(finish, Finish) else finish(call)

    return script


async def next_call(client: Any, name: str, after: str = "0-0", prefix: str = "llm") -> tuple[str, dict[str, Any]]:
    """The next call on a tool's stream: its ID there, and what it says."""
    found = await client.xread({f"{prefix}:tools:{name}": after}, count=1, block=5000)
    ((_, ((entry, fields),)),) = found
    return entry, json.loads(fields["call"])


async def answer(
    client: Any, request_id: str, call_id: str, result: Any = None, *, prefix: str = "llm", **more: Any
) -> None:
    """As a tool does."""
    fields = {"call_id": call_id, **({"result": result} if result is not None else {}), **more}
    await client.xadd(f"{prefix}:inbox:{request_id}", fields, nomkstream=True)


async def counts(worker: Worker, sample: str, number: int) -> None:
    """It has counted so many, or does soon: a counter waits until an event is known to stand."""
    await eventually(lambda: scraped_of(worker).get(sample, 0) == number)


async def event_of(client: Any, request_id: str, kind: str, number: int = 1) -> dict[str, Any]:
    """The so-manieth event of a type, once it stands."""
    async with asyncio.timeout(10):
        while True:
            found = [data for _, type_, data in await events_of(client, request_id) if type_ == kind]
            if len(found) >= number:
                return found[number - 1]
            await asyncio.sleep(0.01)


BOTH = calls_all(("add", '{"a": 1, "b": 1}'), ("switch", '{"lamp": "x"}'))
"""The end of an answer that wants a sum, and a lamp switched."""
