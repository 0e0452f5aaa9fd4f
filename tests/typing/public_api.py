"""What callers write, as a type checker sees it; it is never run.

What must be refused bears the `type: ignore` of its fault, and one that nothing needs is a fault itself.
"""

from __future__ import annotations

from typing import assert_never, assert_type

from llm_routerd import Router  # noqa: TC001 - as callers have it
from llm_routerd.client import (
    AttemptRejected,
    AttemptStarted,
    CallConfirmed,
    CallDenied,
    Cancelled,
    Client,
    Failed,
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
                case AttemptStarted() | AttemptRejected() | Failed():
                    pass
                case Result():
                    assert_type(event.answer.raw_text, str)
                case _:
                    assert_never(event)
