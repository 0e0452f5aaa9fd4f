"""What callers write, as a type checker sees it; it is never run.

What must be refused bears the `type: ignore` of its fault, and one that nothing needs is a fault itself.
"""

from __future__ import annotations

from typing import assert_never, assert_type

from llm_routerd import Router, ToolRequest, tool
from llm_routerd.client import (
    AttemptRejected,
    AttemptStarted,
    CallConfirmed,
    CallDenied,
    Cancelled,
    Client,
    Failed,
    Queued,
    Reasoning,
    RequestFields,
    Result,
    Token,
    ToolCalled,
    ToolReturned,
    TurnEnded,
    UnknownEvent,
)
from llm_routerd.protocol.codes import AttemptCode, ErrorCode


async def one_request_serves_both(client: Client, router: Router) -> None:
    """By name, or as a value that is made before."""
    request: RequestFields = {"prompt": "Why?", "stream": "live", "params": {"temperature": 0.2}}
    assert_type(await client.submit(**request), str)
    assert_type(await router.route(**request), Result)
    assert_type(await client.submit(lane="high", messages=[{"role": "user", "content": "Why?"}], local_only=True), str)
    assert_type(await router.route(prompt="Why?", schema={"type": "object"}, metadata={"row": 12}), Result)


async def typing_mistakes_are_found(client: Client, router: Router) -> None:
    """Of a name, of a word, of a value; with either of the two."""
    await client.submit(promt="Why?")  # type: ignore[call-arg]
    await router.route(promt="Why?")  # type: ignore[call-arg]
    router.stream(promt="Why?")  # type: ignore[call-arg]
    await client.submit(prompt=7)  # type: ignore[arg-type]
    await router.route(prompt=7)  # type: ignore[arg-type]
    await router.route(prompt="Why?", stream="lively")  # type: ignore[arg-type]
    await router.route(prompt="Why?", params={"temprature": 0.2})  # type: ignore[typeddict-unknown-key]
    await router.route(prompt="Why?", params={"reasoning_effort": "most"})  # type: ignore[typeddict-item]
    await client.submit(prompt="Why?", lane="fast")  # type: ignore[arg-type]


async def events_of_a_stream_are_typed(client: Client) -> None:  # noqa: C901 - an event, a case
    """All of them, and no other."""
    async for event in client.follow("r"):
        assert_type(event.id, str)
        assert_type(event.stream_id, str)
        assert_type(event.type, str)
        assert_type(event.attempt, int)
        match event:
            case AttemptStarted():
                assert_type(event.deployment, str)
            case Token(text=text) | Reasoning(text=text):
                assert_type(text, str)
            case AttemptRejected():
                assert_type(event.code, AttemptCode)
            case Queued():
                assert_type(event.estimated_wait_ms, int | None)
                assert_type(event.summary, str)
            case Result():
                assert_type(event.answer.raw_text, str)
                assert_type(event.attempts[0].code, AttemptCode | None)
                event.answr  # type: ignore[attr-defined]  # noqa: B018 - that it is refused
                event.deployment = "other"  # type: ignore[misc]
            case Failed():
                assert_type(event.code, ErrorCode)
            case Cancelled():
                assert_type(event.reason, str)
            case ToolCalled() | ToolReturned() | CallConfirmed() | CallDenied():
                assert_type(event.call_id, str)
            case TurnEnded():
                assert_type(event.turn, int)
            case UnknownEvent():
                assert_type(event.data["text"], object)  # type: ignore[assert-type]
            case _:
                assert_never(event)


async def ends_are_ends(client: Client) -> None:
    """What is waited for is none of the events on the way."""
    assert_type(await client.result("r"), Result | Failed | Cancelled | UnknownEvent)
    assert_type(await client.final("r"), Result | Failed | Cancelled | UnknownEvent | None)
    assert_type(await client.cancel("r"), Result | Failed | Cancelled | UnknownEvent)


async def events_of_the_library_are_the_same(router: Router) -> None:
    """Nobody cancels there but who leaves the block, and nobody else writes."""
    async with router.stream(prompt="Why?") as events:
        async for event in events:
            match event:
                case Token(text=text) | Reasoning(text=text):
                    assert_type(text, str)
                case AttemptStarted() | AttemptRejected() | Queued() | Failed():
                    pass
                case Result():
                    assert_type(event.answer.raw_text, str)
                case _:
                    assert_never(event)


def look(room: str) -> str:
    """Look into a room."""
    return room


async def hear(arguments: dict[str, object], call: ToolRequest) -> bytes:
    """As a handler."""
    return call.name.encode() or str(arguments).encode()


async def agree(call: ToolCalled) -> bool | str:
    """To what is called `look`."""
    return call.name == "look" or "no"


async def runs_take_functions(router: Router) -> None:
    """And what they are made to; what is none is found."""
    assert_type(await router.run(prompt="Why?", tools=[look, tool(look, confirm=True)], confirm=agree), Result)
    await router.run(prompt="Why?", tools=[("hear", {"description": "Listen."}, hear)], max_turns=3)
    await router.run(prompt="Why?", tools=[7])  # type: ignore[list-item]
    await router.run(prompt="Why?", tools=[("hear", {"descripton": "Listen."}, hear)])  # type: ignore[typeddict-item, typeddict-unknown-key]
    await router.run(promt="Why?", tools=[look])  # type: ignore[call-arg]
    await router.run(prompt="Why?", tools=[look], tool_choice="none")  # type: ignore[call-arg]
    await router.run(prompt="Why?", tools=[look], confirm=look)  # type: ignore[arg-type]
    async with router.stream_run(prompt="Why?", tools=[look], stream="live") as events:
        async for event in events:
            match event:
                case Token(text=text) | Reasoning(text=text):
                    assert_type(text, str)
                case AttemptStarted() | AttemptRejected() | Queued() | Failed():
                    pass
                case ToolCalled() | ToolReturned() | CallConfirmed() | CallDenied() | TurnEnded():
                    pass
                case Result():
                    assert_type(event.turns, int | None)
                case _:
                    assert_never(event)
