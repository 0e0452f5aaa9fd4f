"""The properties of a request: each has its effect, in both forms; part of `test_wire.py`'s table."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from llm_routerd.protocol.call import Call, Delta, Finish
from llm_routerd.protocol.codes import AttemptCode
from llm_routerd.protocol.outcome import ToolCall
from llm_routerd.protocol.schema_files import load_schema
from tests.support.fakes import USAGE, FakeBackend, fails, hangs, says
from tests.support.queue import add, events_of, open_client
from tests.support.wire import (
    check_everything,
    final_of,
    metrics_of,
    next_message,
)
from tests.support.workers import run_worker

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable


_SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
_TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
_TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def calls_tool(_backend: FakeBackend, _call: Call) -> AsyncGenerator[Delta | Finish, None]:
    """A call of the tool."""

    async def script() -> AsyncGenerator[Delta | Finish, None]:
        call = ToolCall.of(id="c1", name="weather", arguments='{"city":"Oslo"}')
        yield Finish(finish_reason="tool_calls", usage=USAGE, tool_calls=(call,))

    return script()


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a request with one property more has led to."""

    entry: str
    events_id: str
    events: list[tuple[str, str, dict[str, Any]]]
    metrics: dict[str, Any]
    published: list[dict[str, Any]]
    calls: list[Call]
    cloud_calls: list[Call]

    @property
    def final(self) -> dict[str, Any]:
        """The data of the final event."""
        return self.events[-1][2]

    @property
    def tokens(self) -> str:
        """The text of the token events."""
        return "".join(data["text"] for _, kind, data in self.events if kind == "token")


@dataclass(frozen=True, slots=True, kw_only=True)
class Property:
    """A value for one property of a request, and what must come of it."""

    value: Any
    holds: Callable[[Seen], object]
    local: Any = field(default_factory=lambda: says("he", "llo"))
    more: dict[str, Any] = field(default_factory=dict)


_MESSAGES = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
_PROPERTIES = {
    "id": Property(
        value="mine:1._-", holds=lambda it: it.final["id"] == it.events_id == it.metrics["id"] == "mine:1._-"
    ),
    "messages": Property(value=_MESSAGES, holds=lambda it: it.calls[0].messages == tuple(_MESSAGES)),
    "prompt": Property(value="why?", holds=lambda it: it.calls[0].messages == ({"role": "user", "content": "why?"},)),
    "model": Property(value="cloud", holds=lambda it: it.final["deployment"] == it.metrics["chain"] == "cloud"),
    "schema": Property(
        value=_SCHEMA,
        local=says('{"n": ', "4}"),
        holds=lambda it: it.calls[0].schema == _SCHEMA and it.final["content"] == {"n": 4},
    ),
    "stream": Property(value=True, holds=lambda it: it.tokens == "hello" and it.metrics["stream"] is True),
    "tools": Property(
        value=[_TOOL],
        local=calls_tool,
        holds=lambda it: (
            it.calls[0].tools == (_TOOL,)
            and it.final["tool_calls"]
            == [{"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Oslo"}'}}]
        ),
    ),
    "tool_choice": Property(
        value="required",
        more={"tools": [_TOOL]},
        local=calls_tool,
        holds=lambda it: it.calls[0].tool_choice == "required",
    ),
    "agent": Property(value={"tools": ["nope"]}, holds=lambda it: it.final["code"] == "unknown_tool"),
    "params": Property(
        value={"temperature": 0.5, "stop": ["x"]},
        holds=lambda it: it.calls[0].params.items() >= {"temperature": 0.5, "stop": ["x"]}.items(),
    ),
    "tenant_id": Property(value="kid", holds=lambda it: it.final["tenant_id"] == it.metrics["tenant_id"] == "kid"),
    "context": Property(value="homework", holds=lambda it: it.final["context"] == it.metrics["context"] == "homework"),
    "metadata": Property(
        value={"row": [1, None, "é"]}, holds=lambda it: it.final["metadata"] == {"row": [1, None, "é"]}
    ),
    "timeout_ms": Property(
        value=150, local=hangs(), holds=lambda it: it.final["code"] == "deadline_exceeded" and it.calls
    ),
    "deadline_ms": Property(value=1000, holds=lambda it: it.final["code"] == "deadline_exceeded" and not it.calls),
    "local_only": Property(
        value=True,
        local=fails(AttemptCode.UPSTREAM),
        holds=lambda it: it.final["code"] == "local_exhausted" and not it.cloud_calls,
    ),
    "publish": Property(
        value=True,
        holds=lambda it: [(each["id"], each["type"], each["data"]) for each in it.published] == it.events,
    ),
    "traceparent": Property(value=_TRACE, holds=lambda it: it.calls[0].traceparent == _TRACE),
}
_STRINGS = frozenset({"id", "prompt", "model", "tenant_id", "context", "traceparent"})


def test_every_property_is_tested() -> None:
    """A property that is added to the protocol needs a case."""
    assert set(_PROPERTIES) == set(load_schema("request")["properties"])


@pytest.mark.parametrize("form", ["data", "fields"])
@pytest.mark.parametrize("name", _PROPERTIES)
async def test_property_has_its_effect_in_both_forms(redis_url: str, name: str, form: str) -> None:
    """As the one field `data`, and as one field per property; without it, the effect is not there."""
    tried = _PROPERTIES[name]
    plain: dict[str, Any] = {} if name in {"prompt", "messages"} else {"prompt": "hi"}
    seen = await _ask(redis_url, {**plain, **tried.more, name: tried.value}, tried.local, form)
    assert tried.holds(seen)
    without = await _ask(redis_url, {"prompt": "hi", **tried.more}, says("he", "llo"), form)
    assert not _holds_quietly(tried, without)


def _holds_quietly(tried: Property, seen: Seen) -> object:
    try:
        return tried.holds(seen)
    except (KeyError, IndexError):
        return False


async def _ask(url: str, request: dict[str, Any], script: Any, form: str) -> Seen:
    local, cloud = FakeBackend(script), FakeBackend(says("from the cloud"))
    fields = {
        name: value if name in _STRINGS else json.dumps(value, ensure_ascii=False) for name, value in request.items()
    }
    async with (
        open_client(url) as client,
        client.pubsub() as pubsub,
        run_worker(url, {"local": local, "cloud": cloud}),
    ):
        await pubsub.psubscribe("llm:events:*")
        await pubsub.get_message(timeout=5)
        entry = await client.xadd("llm:requests", {"data": json.dumps(request)} if form == "data" else fields)
        events_id = request.get("id", entry)
        await final_of(client, events_id)
        metrics = await metrics_of(client, events_id)
        events = await events_of(client, events_id)
        published = [await next_message(pubsub) for _ in events] if request.get("publish") else []
        await check_everything(client)
        return Seen(
            entry=entry,
            events_id=events_id,
            events=events,
            metrics=metrics,
            published=published,
            calls=local.calls,
            cloud_calls=cloud.calls,
        )


@pytest.mark.parametrize(
    ("given", "is_streamed"), [("false", False), ("true", True), ('"probe"', True), ('"live"', True), ("live", True)]
)
async def test_stream_says_whether_there_are_tokens(redis_url: str, given: str, is_streamed: bool) -> None:
    """Each of its values, also as one types it at a shell."""
    async with open_client(redis_url) as client, run_worker(redis_url, {"local": FakeBackend(says("a", "b"))}):
        entry = await add(client, stream=given)
        await final_of(client, entry)
        assert ("token" in [kind for _, kind, _ in await events_of(client, entry)]) == is_streamed


async def test_probe_holds_an_opening_that_live_shows(redis_url: str) -> None:
    """What is discarded within the opening was never shown with `probe`, and with `live` it was, and is taken back."""
    local = FakeBackend(says('{"n": ', '"four"}'))
    backends = {"local": local, "cloud": FakeBackend(says('{"n": 4}'))}
    shown = {}
    async with open_client(redis_url) as client, run_worker(redis_url, backends):
        for mode in ("probe", "live"):
            entry = await add(client, stream=mode, schema=json.dumps(_SCHEMA))
            await final_of(client, entry)
            events = await events_of(client, entry)
            shown[mode] = [
                data["text"] for event_id, kind, data in events if kind == "token" and event_id.startswith("1-")
            ]
            assert [kind for _, kind, _ in events].count("rejected") == 1
    assert shown == {"probe": [], "live": ['{"n": ']}
