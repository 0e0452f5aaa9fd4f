"""A run without Redis: its tools, what models answer, and a journal that is read back as it was written."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from llm_routerd.agents.calls import Turn
from llm_routerd.agents.offering import offer
from llm_routerd.agents.registration import Tool, read_tool
from llm_routerd.agents.run import AgentRun
from llm_routerd.config.agents import AgentsConfig
from llm_routerd.jsonschema.compiled import SchemaCache
from llm_routerd.protocol.events import AttemptStarted, Result
from llm_routerd.protocol.outcome import ToolCall, Usage
from llm_routerd.protocol.reading import UnknownEvent, read_event
from llm_routerd.protocol.request import AgentSpec, Request
from llm_routerd.protocol.wire import encode
from tests.support.runs import ADD, SWITCH

if TYPE_CHECKING:
    from llm_routerd.agents.offering import Offer
    from llm_routerd.protocol.events import StreamEvent
    from llm_routerd.protocol.reading import SeenEvent
    from llm_routerd.protocol.tool import ToolRequest

NOW_MS = 1_700_000_000_000
SCHEMAS = SchemaCache()


def tool(name: str, registration: dict[str, Any] | None = None, **more: Any) -> Tool:
    """A tool, as its registration is read."""
    fields = {"description": "Does it.", **(registration or {}), **more}
    found = read_tool(name, json.dumps(fields).encode(), SCHEMAS)
    assert isinstance(found, Tool), found
    return found


def tools_of(*tools: Tool) -> dict[str, Tool]:
    """By name."""
    return {each.name: each for each in tools}


TOOLS = tools_of(tool("add", ADD), tool("lights.switch", SWITCH), tool("clock", timeout_ms=1000))
SPEC = AgentSpec(tools=("*",))
OFFER = offer(SPEC, TOOLS, AgentsConfig(), None)


def request_of(spec: AgentSpec = SPEC, **more: Any) -> Request:
    """A request for a run."""
    return Request(**{"id": "r1", "messages": ({"role": "user", "content": "do it"},), "agent": spec, **more})


def answer_of(*made: tuple[str, str], text: str = "", **more: Any) -> Result:
    """What a model's turn has come to: its calls, {name as the model knows it, arguments as text}."""
    told = tuple(ToolCall.of(id=f"c{at}", name=name, arguments=arguments) for at, (name, arguments) in enumerate(made))
    fields: dict[str, Any] = {
        "request_id": "r1",
        "content": text,
        "raw_text": text,
        "finish_reason": "tool_calls" if made else "stop",
        "tool_calls": told,
        "model_used": "ollama/tiny",
        "deployment": "local",
        "attempts": (),
        "usage": Usage(prompt_tokens=5, completion_tokens=3),
        "cost_usd": 0.25,
        "latency_ms": 7,
        "ttft_ms": 2,
        "queue_ms": 1,
        "tenant_id": None,
        "context": None,
        "metadata": None,
    }
    return Result(**(fields | more))


def turn_of(**more: Any) -> Turn:
    """The first one, of a run that is asked for now."""
    fields: dict[str, Any] = {
        "number": 1,
        "origin": "1-0",
        "attempt": 1,
        "now_ms": NOW_MS,
        "started_ms": NOW_MS - 100,
        "deadline_ms": None,
        "confirmation_ms": 600_000,
        "always": frozenset(),
    }
    return Turn(**(fields | more))


class Journal:
    """The events of one run: what is written is read back from its JSON, and its calls are on their way.

    Attributes:
        entries: ID, type and data of each.
        sent: the calls, in the order in which they were put on their tools' streams.
        attempt: the first part of the next event's ID.
    """

    def __init__(self) -> None:
        self.entries: list[tuple[str, str, bytes]] = []
        self.sent: list[ToolRequest] = []
        self.attempt = 0
        self._seq = 0

    def begin_attempt(self) -> SeenEvent:
        """The next attempt; the first one tells of its entry, as `begin.lua` has it."""
        self.attempt, self._seq = self.attempt + 1, -1
        event = AttemptStarted(deployment="local", model="ollama/tiny", consumer="w1")
        return self.write(event if self.entries else replace(event, entry="1-0", lane="normal"))

    def write(self, event: StreamEvent, call: ToolRequest | None = None, *, now_ms: int = NOW_MS) -> SeenEvent:
        """One event, and the call that goes with it, as `write_run` of the scripts does."""
        self._seq += 1
        data = encode(event)
        if call is not None:
            self.sent.append(call)
            data = data[:-1] + f',"entry":"{now_ms}-{len(self.sent)}"}}'.encode()
        self.entries.append((f"{self.attempt}-{self._seq}", event.type, data))
        return read_event(*self.entries[-1])

    def replayed(self, max_turns: int, count: int | None = None) -> AgentRun:
        """Where a worker stands that takes the run over, and finds so many of its events."""
        run = AgentRun(max_turns)
        for entry in self.entries[:count]:
            event = read_event(*entry)
            assert not isinstance(event, UnknownEvent), entry
            run.apply(event)
        return run


def offer_of(*tools: Tool, confirm: tuple[str, ...] = ()) -> Offer:
    """All of these, by a request that has some of them ask."""
    return offer(AgentSpec(tools=("*",), confirm=confirm), tools_of(*tools), AgentsConfig(), None)
