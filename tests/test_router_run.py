"""Runs with tools in this process: scripted models, real functions, real threads."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from msgspec.structs import replace

import llm_routerd.router as router_module
from llm_routerd.client.tool import ToolError
from llm_routerd.config.agents import AgentsConfig
from llm_routerd.local_tools import tool
from llm_routerd.protocol.call import Delta, Finish
from llm_routerd.protocol.codes import AttemptCode, ErrorCode
from llm_routerd.protocol.events import Failed, Result, Token
from llm_routerd.protocol.outcome import ToolCall
from llm_routerd.protocol.tool import ToolRequest  # noqa: TC001 - of a tool's signature
from llm_routerd.router import NoAnswerError, Router
from tests.standin.server import StandIn
from tests.support.eventually import eventually
from tests.support.fakes import USAGE, FakeBackend, fails, hangs, says
from tests.support.workers import make_config, make_test_resources
from tests.test_router import config_for

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator
    from pathlib import Path

    from llm_routerd.local_tools import AnyTool, LocalTool
    from llm_routerd.protocol.call import Call
    from llm_routerd.protocol.events import ToolCalled
    from tests.support.fakes import Script

OSLO = '{"city": "Oslo"}'


def calls(*made: tuple[str, str], text: str = "") -> Script:
    """An answer that calls these tools, by name and arguments."""

    async def script(_backend: FakeBackend, _call: Call) -> AsyncGenerator[Delta | Finish, None]:
        if text:
            yield Delta(text)
        told = tuple(ToolCall.of(id=f"c{at}", name=name, arguments=given) for at, (name, given) in enumerate(made))
        yield Finish(finish_reason="tool_calls", usage=USAGE, tool_calls=told)

    return script


class Told:
    """What the models of a router are asked."""

    def __init__(self, local: FakeBackend, cloud: FakeBackend) -> None:
        self.local = local
        self.cloud = cloud

    def results(self, call: int = -1) -> list[str]:
        """What the local model is told of its calls."""
        return [message["content"] for message in self.local.calls[call].messages if message["role"] == "tool"]


@asynccontextmanager
async def router_on(
    *local: Script, monkeypatch: pytest.MonkeyPatch, cloud: Script | None = None, **agents: Any
) -> AsyncIterator[tuple[Router, Told]]:
    """A router whose local model plays these scripts."""
    config = replace(make_config(), agents=AgentsConfig(**agents))
    told = Told(FakeBackend(*local), FakeBackend(cloud or says("from the cloud")))
    backends = {"local": told.local, "cloud": told.cloud}
    monkeypatch.setattr(router_module, "make_resources", lambda config, **_: make_test_resources(config, backends))
    async with Router(config) as router:
        yield router, told


def temperature(city: str, hours: int = 0) -> float:
    """The temperature in a city."""
    return {"Oslo": 4.5, "Rome": 21.0}[city] + hours


async def unlock(door: str) -> str:
    """Unlock a door."""
    return f"{door} is open"


# What goes well


async def test_model_calls_tools_and_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sync in a thread, async on the loop, both at once; the result tells of all turns."""
    at: dict[str, int] = {}

    def look(room: str) -> dict[str, str]:
        """Look into a room."""
        at["look"] = threading.get_ident()
        return {"room": room}

    async def hear() -> str:
        """Listen."""
        at["hear"] = threading.get_ident()
        return "snow ☃"

    scripts = (calls(("look", '{"room": "hall"}'), ("hear", ""), text="Let me look."), says("All ", "is well."))
    async with router_on(*scripts, monkeypatch=monkeypatch) as (router, told):
        result = await router.run(prompt="How is it?", tools=[look, hear], metadata={"k": 1})
    assert at["hear"] == threading.get_ident() != at["look"]
    assert (result.answer.content, result.turns, result.attempt, result.metadata) == ("All is well.", 2, 2, {"k": 1})
    assert result.usage == USAGE + USAGE
    assert [attempt.outcome for attempt in result.attempts] == ["success", "success"]
    first, second = told.local.calls
    assert [each["function"]["name"] for each in first.tools] == ["hear", "look"] or len(first.tools) == 2
    assert first.tool_choice is None
    spoken = second.messages[1]
    assert (spoken["role"], spoken["content"]) == ("assistant", "Let me look.")
    ids = [call["id"] for call in spoken["tool_calls"]]
    assert [message["tool_call_id"] for message in second.messages[2:]] == ids
    assert told.results() == ['{"room":"hall"}', "snow ☃"]


async def test_last_turn_forbids_calls_and_a_schema_holds_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer is parsed; the turns before it are free."""
    schema = {"type": "object", "properties": {"c": {"type": "number"}}, "required": ["c"]}
    async with router_on(calls(("temperature", OSLO)), says('{"c": 4.5}'), monkeypatch=monkeypatch) as (router, told):
        result = await router.run(prompt="?", tools=[temperature], max_turns=2, schema=schema)
    assert result.answer.content == {"c": 4.5}
    assert [call.tool_choice for call in told.local.calls] == [None, "none"]
    assert all(len(call.tools) == 1 for call in told.local.calls)


async def test_handler_with_a_registration_is_a_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model sees its name without dots; the handler gets arguments and the call."""
    seen: list[ToolRequest] = []

    async def switch(arguments: dict[str, Any], call: ToolRequest) -> bytes:
        seen.append(call)
        return orjson.dumps(arguments)

    lights: LocalTool = ("lights.switch", {"description": "Switch.", "parameters": {"required": ["on"]}}, switch)
    scripts = (calls(("lights_switch", '{"on": true}')), says("Done."))
    async with router_on(*scripts, monkeypatch=monkeypatch) as (router, told):
        await router.run(prompt="Light!", tools=[lights], tenant_id="kid")
    (call,) = seen
    assert (call.name, call.arguments, call.turn, call.tenant_id) == ("lights.switch", {"on": True}, 1, "kid")
    assert told.results() == ['{"on":true}']


async def test_stream_tells_what_a_stream_would(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempt, text, calls, faults and the turn; then confirmations and results; the answer last."""
    made = (("temperature", OSLO), ("unlock", '{"door": "front"}'), ("nothing", "{}"))

    async def agree(call: ToolCalled) -> bool:
        assert (call.name, call.arguments, call.confirm) == ("unlock", {"door": "front"}, True)
        return True

    async with router_on(calls(*made, text="Look."), says("Done."), monkeypatch=monkeypatch) as (router, _):
        tools: list[AnyTool] = [temperature, tool(unlock, confirm=True)]
        async with router.stream_run(prompt="?", tools=tools, confirm=agree, stream="live") as events:
            seen = [event async for event in events]
    kinds = [event.type for event in seen]
    assert kinds[:7] == ["attempt", "token", "tool_call", "tool_call", "tool_call", "tool_result", "turn"]
    assert sorted(kinds[7:10]) == ["confirmed", "tool_result", "tool_result"]
    assert kinds[10:] == ["attempt", "token", "result"]
    assert len({event.data["call_id"] for event in seen if event.type == "tool_call"}) == 3
    assert isinstance(seen[-1], Result)
    assert seen[-1].turns == 2
    assert "".join(event.text for event in seen if isinstance(event, Token)) == "Look.Done."


# What goes wrong is told to the model


class OddError(Exception):
    """A tool's own."""


def _fails() -> None:
    """Fail."""
    raise OddError("hunter2")


async def _complains() -> None:
    """Complain."""
    raise ToolError("the door is stuck")


async def _is_no_json() -> object:
    """Give what is no JSON."""
    return object()


async def _is_huge() -> str:
    """Give much."""
    return "ü" * 1_000_000


async def _is_no_text() -> bytes:
    """Give bytes."""
    return b"\xff\xfe{"


def _hangs_in_a_thread() -> None:
    """Hang."""
    time.sleep(1.5)


async def _hangs() -> None:
    """Hang."""
    await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("function", "begins"),
    [
        (_fails, "error: the tool failed"),
        (_complains, "error: the door is stuck"),
        (_is_no_json, "error: the tool has acted, and its result is no JSON"),
        (_is_huge, "üüü"),
        (_is_no_text, "\ufffd\ufffd{"),
        (_hangs_in_a_thread, "error: unknown outcome: a tool has taken the call, and has not answered within 0.2 s"),
        (_hangs, "error: unknown outcome: a tool has taken the call, and has not answered within 0.2 s"),
    ],
)
async def test_tool_that_fails_costs_the_caller_nothing(
    function: Any, begins: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model goes on with what it is told; no exception's text is."""
    faulty = tool(function, timeout_seconds=0.2)
    scripts = (calls((faulty[0], "{}")), says("So be it."))
    async with router_on(*scripts, monkeypatch=monkeypatch) as (router, told):
        result = await router.run(prompt="?", tools=[faulty])
    assert result.answer.content == "So be it."
    (line,) = told.results()
    assert line.startswith(begins)
    assert "hunter2" not in line
    assert len(line.encode()) < 66_000


FAULTY = [("temperature", "no JSON"), ("temperature", '{"city": 7}'), ("temprature", OSLO)]


@pytest.mark.parametrize("faulty", FAULTY)
async def test_faulty_call_is_corrected_once_and_then_another_model_is_asked(
    faulty: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No tool is called with what it does not take."""
    acted: list[str] = []

    def temperature(city: str) -> float:
        """The temperature in a city."""
        acted.append(city)
        return 4.5

    async with router_on(calls(faulty), calls(("temperature", OSLO)), says("4.5"), monkeypatch=monkeypatch) as (
        router,
        told,
    ):
        assert (await router.run(prompt="?", tools=[temperature])).turns == 3
        assert told.results(1)[0].startswith("error: ")
        assert told.results(2)[1] == "4.5"
    assert acted == ["Oslo"]
    async with router_on(calls(faulty), calls(faulty), monkeypatch=monkeypatch) as (router, told):
        result = await router.run(prompt="?", tools=[temperature])
    assert (result.deployment, result.turns, len(told.local.calls)) == ("cloud", 2, 2)
    assert [attempt.outcome for attempt in result.attempts] == ["success", "invalid", "success"]
    assert acted == ["Oslo"]


# People


async def test_denied_call_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is told, and why where a reason is given."""
    for word, told_line in ((False, "error: a person denied this call"), ("at night?", "denied this call: at night?")):
        opened: list[str] = []

        def unlock(door: str) -> None:
            """Unlock a door."""
            opened.append(door)  # noqa: B023 - it is read in the same round

        async def deny(_: ToolCalled) -> bool | str:
            return word  # noqa: B023 - as above

        scripts = (calls(("unlock", '{"door": "front"}')), says("Very well."))
        async with router_on(*scripts, monkeypatch=monkeypatch) as (router, told):
            await router.run(prompt="Open!", tools=[tool(unlock, confirm=True)], confirm=deny)
        assert told_line in told.results()[0]
        assert not opened


async def test_person_may_change_the_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tool is called with them, and the model knows."""

    async def other(_: ToolCalled) -> dict[str, Any]:
        return {"door": "back"}

    scripts = (calls(("unlock", '{"door": "front"}')), says("Very well."))
    async with router_on(*scripts, monkeypatch=monkeypatch) as (router, told):
        await router.run(prompt="Open!", tools=[tool(unlock, confirm=True)], confirm=other)
    assert told.results() == ['[a person changed the arguments to {"door":"back"}]\nback is open']


@pytest.mark.parametrize(
    ("word", "error"),
    [({"door": 7}, ValueError), ({"dore": "x"}, ValueError), (None, TypeError), (OddError("x"), OddError)],
)
async def test_word_that_is_none_is_the_callers_error(
    word: Any, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No tool is called for it, and nobody waits for ten minutes; also of a stream, at its end."""
    opened: list[str] = []

    async def unlock(door: str) -> None:
        """Unlock a door."""
        opened.append(door)

    async def odd(_: ToolCalled) -> Any:
        if isinstance(word, Exception):
            raise word
        return word

    tools = [tool(unlock, confirm=True)]
    async with router_on(calls(("unlock", '{"door": "front"}')), monkeypatch=monkeypatch) as (router, _):
        with pytest.raises(error):
            await router.run(prompt="Open!", tools=tools, confirm=odd)
        with pytest.raises(error):
            async with router.stream_run(prompt="Open!", tools=tools, confirm=odd) as events:
                seen = [event async for event in events]
        assert isinstance(seen[-1], Failed)
    assert not opened


async def test_person_may_be_asked_by_a_function_that_is_not_async(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a thread, and about one call after the other; also where it gives what can be awaited."""
    asked: list[tuple[str, int]] = []
    under_way: list[str] = []
    most: list[int] = []

    def ask(call: ToolCalled) -> bool | str:
        under_way.append(call.call_id)
        most.append(len(under_way))
        asked.append((call.arguments["door"], threading.get_ident()))
        time.sleep(0.02)
        under_way.remove(call.call_id)
        return call.arguments["door"] == "front" or "not that one"

    async def says_of(_: ToolCalled, word: bool) -> bool:
        return word

    made = [("unlock", f'{{"door": "{door}"}}') for door in ("front", "back", "cellar")]
    tools = [tool(unlock, confirm=True)]
    denied = "error: a person denied this call: not that one"
    async with router_on(calls(*made), says("Done."), monkeypatch=monkeypatch) as (router, told):
        await router.run(prompt="Open!", tools=tools, confirm=ask)
        assert told.results() == ["front is open", denied, denied]
    assert sorted(door for door, _ in asked) == ["back", "cellar", "front"]
    assert threading.get_ident() not in {thread for _, thread in asked}
    assert most == [1, 1, 1]
    async with router_on(calls(made[1]), says("Done."), monkeypatch=monkeypatch) as (router, told):
        await router.run(prompt="Open!", tools=tools, confirm=lambda call: says_of(call, True))
        assert told.results() == ["back is open"]


async def test_nobody_who_answers_in_time_is_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the protocol's code; the callback is cancelled."""
    ended = asyncio.Event()

    async def sleeps(_: ToolCalled) -> bool:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return True

    script = calls(("unlock", '{"door": "front"}'))
    async with router_on(script, monkeypatch=monkeypatch, confirmation_seconds=0.2) as (router, told):
        with pytest.raises(NoAnswerError) as raised:
            await router.run(prompt="Open!", tools=[tool(unlock, confirm=True)], confirm=sleeps)
        assert raised.value.failure.code is ErrorCode.CONFIRMATION_EXPIRED
        assert ended.is_set()
        assert len(told.local.calls) == 1


async def test_tool_that_demands_a_word_needs_somebody_to_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    """That is found before any model is asked."""
    async with router_on(says("x"), monkeypatch=monkeypatch) as (router, told):
        with pytest.raises(ValueError, match="unlock"):
            await router.run(prompt="Open!", tools=[tool(unlock, confirm=True)])
        assert not told.local.calls


# Ends


async def test_model_that_only_calls_exhausts_its_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the last turn a call is no answer; all attempts are told."""
    script = calls(("temperature", OSLO))
    async with router_on(script, monkeypatch=monkeypatch, cloud=script) as (router, told):
        with pytest.raises(NoAnswerError) as raised:
            await router.run(prompt="?", tools=[temperature], max_turns=3)
    failure = raised.value.failure
    assert failure.code is ErrorCode.TURNS_EXHAUSTED
    assert [attempt.code for attempt in failure.attempts] == [
        None,
        None,
        AttemptCode.INVALID_JSON,
        AttemptCode.INVALID_JSON,
    ]
    assert [call.tool_choice for call in told.local.calls] == [None, None, "none"]


async def test_failed_attempts_of_all_turns_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn may be answered by another deployment than the one before."""
    scripts = (fails(AttemptCode.UPSTREAM), says("Fine."))
    async with router_on(*scripts, monkeypatch=monkeypatch, cloud=calls(("temperature", OSLO))) as (router, _):
        result = await router.run(prompt="?", tools=[temperature])
    assert [(each.deployment, each.code) for each in result.attempts] == [
        ("local", AttemptCode.UPSTREAM),
        ("cloud", None),
        ("local", None),
    ]
    assert result.attempt == 3


@pytest.mark.parametrize("script", [calls(("_hangs", "{}")), hangs()])
async def test_deadline_holds_for_the_whole_run(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a tool or a model is waited for."""
    async with router_on(script, monkeypatch=monkeypatch) as (router, _):
        with pytest.raises(NoAnswerError) as raised:
            await router.run(prompt="?", tools=[_hangs], timeout_ms=300)
    assert raised.value.failure.code is ErrorCode.DEADLINE_EXCEEDED


@pytest.mark.parametrize("leaves", [False, True])
async def test_cancelling_a_run_cancels_its_tools(leaves: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """And so does leaving a stream; what a tool does then is waited for."""
    begun, ended = asyncio.Event(), asyncio.Event()

    async def hang() -> None:
        """Hang."""
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)
            ended.set()

    async with router_on(calls(("hang", "{}")), monkeypatch=monkeypatch) as (router, _):
        if leaves:
            async with router.stream_run(prompt="?", tools=[hang]) as events:
                async for event in events:
                    if event.type == "turn":
                        await begun.wait()
                        break
        else:
            run = asyncio.create_task(router.run(prompt="?", tools=[hang]))
            await begun.wait()
            run.cancel()
            with pytest.raises(asyncio.CancelledError):
                await run
        assert ended.is_set()


@pytest.mark.parametrize(
    ("more", "says_what"),
    [
        ({"max_turns": 0}, "max_turns"),
        ({"max_turns": 21}, "max_turns"),
        ({"tools": []}, "tools"),
        ({"prompt": ""}, "prompt"),
        ({"tools": [("no name", {"description": "x"}, unlock)]}, None),
        ({"tools": [("x", {}, unlock)]}, None),
        ({"tools": [("x", {"description": "x", "parameters": {"type": 3}}, unlock)]}, None),
        ({"tools": [unlock, unlock]}, None),
    ],
)
async def test_what_cannot_run_is_said_before_anybody_is_asked(
    more: dict[str, Any], says_what: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that is none has the protocol's error; a tool that is none is a mistake of the program."""
    async with router_on(says("x"), monkeypatch=monkeypatch) as (router, told):
        with pytest.raises(NoAnswerError if says_what else ValueError) as raised:
            await router.run(**{"prompt": "?", "tools": [unlock], **more})
        if isinstance(raised.value, NoAnswerError):
            assert raised.value.failure.code is ErrorCode.INVALID_REQUEST
            assert says_what
            assert says_what in raised.value.failure.message
        assert not told.local.calls


async def test_tools_of_a_daemon_are_refused_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """`agent` would be passed over without a word."""
    async with router_on(says("x"), monkeypatch=monkeypatch) as (router, told):
        with pytest.raises(NoAnswerError, match=r"Router\.run"):
            await router.route(prompt="?", agent={"tools": ["weather"]})
        assert not told.local.calls


async def test_threads_of_a_cancelled_run_hold_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread cannot be stopped; the run is over all the same."""
    began = time.monotonic()
    slow = tool(_hangs_in_a_thread)
    async with router_on(calls((slow[0], "{}")), monkeypatch=monkeypatch) as (router, told):
        run = asyncio.create_task(router.run(prompt="?", tools=[slow]))
        await eventually(lambda: told.local.closed == 1)
        await asyncio.sleep(0.05)
        run.cancel()
        await asyncio.wait([run])
    assert time.monotonic() - began < 1


# Over real HTTP


@pytest.mark.parametrize("protocol", ["ollama", "openai", "anthropic"])
async def test_run_over_a_real_connection(protocol: str, tmp_path: Path) -> None:
    """Each protocol carries the calls, and the last turn is an answer."""
    async with StandIn({"good": ""}) as server:
        config = config_for(server.url, tmp_path)
        deployment = replace(config.deployments["second"], model=f"{protocol}/good")
        config = replace(
            config, deployments={"local": replace(deployment, name="local", local=True)} | {"second": deployment}
        )
        async with Router(config) as router:
            asked = f"[[call=temperature args='{OSLO}']]"
            result = await router.run(prompt=asked, tools=[temperature], max_turns=2, params={"max_tokens": 50})
    assert (result.turns, result.deployment) == (2, "local")
    last = server.requests[-1]["messages"][-1]
    assert "4.5" in orjson.dumps(last).decode()
