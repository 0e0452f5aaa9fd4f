"""The router as a library, over real HTTP to the stand-in."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

import llm_routerd
from llm_routerd.config.load import load_config
from llm_routerd.protocol.codes import ErrorCode
from llm_routerd.protocol.events import AttemptRejected, AttemptStarted, Result, Token
from llm_routerd.router import STREAM_BUFFER, NoAnswerError, Router
from llm_routerd.routing.chains import unknown_model
from tests.standin.server import StandIn
from tests.support.eventually import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Iterable
    from pathlib import Path

    from llm_routerd.config.tree import Config
    from llm_routerd.protocol.events import Event
    from llm_routerd.protocol.request import RequestFields

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


def config_for(url: str, directory: Path, *, first: str = "stand-in", second: str = "good") -> Config:
    """Two deployments on the stand-in."""
    path = directory / "config.toml"
    path.write_text(
        f"""
        [deployments.local]
        model = "ollama/{first}"
        api_base = "{url}"
        local = true
        [deployments.second]
        model = "openai/{second}"
        api_base = "{url}"
        [chains.default]
        deployments = ["local", "second"]
        """
    )
    return load_config(str(path), {})


async def test_route_gives_the_result_that_the_daemon_would_write(tmp_path: Path) -> None:
    """Answer, usage and attempts, typed; with a schema the content is parsed."""
    async with StandIn() as server, Router(config_for(server.url, tmp_path)) as router:
        result = await router.route(prompt="hello", schema=SCHEMA, metadata={"k": 2**70}, tenant_id="kid")
        assert isinstance(result.answer.content["n"], int)
        assert (result.deployment, result.metadata, result.tenant_id) == ("local", {"k": 2**70}, "kid")
        assert result.usage.completion_tokens > 0
        assert result.data["attempts"][0]["outcome"] == "success"


async def test_stream_yields_the_events_of_the_protocol_and_ends_with_the_result(tmp_path: Path) -> None:
    """The first deployment fails in the middle; its text is superseded, and the second answers."""
    models = {"bad": "cut_after=3", "good": "answer=fine"}
    async with StandIn(models) as server, Router(config_for(server.url, tmp_path, first="bad")) as router:
        async with router.stream(prompt="hello", stream="live") as events:
            seen = [event async for event in events]
        kinds = [type(event) for event in seen]
        assert kinds[0] is AttemptStarted
        assert kinds.index(AttemptRejected) < len(kinds) - 2
        final = seen[-1]
        assert isinstance(final, Result)
        assert final.answer.content == "fine"
        after = seen[kinds.index(AttemptRejected) :]
        assert "".join(event.text for event in after if isinstance(event, Token)) == "fine"


async def test_leaving_a_stream_early_closes_the_model(tmp_path: Path) -> None:
    """Nobody generates for nobody."""
    models = {"slow": "tokens=1000 delay_ms=20"}
    async with StandIn(models) as server, Router(config_for(server.url, tmp_path, first="slow")) as router:
        async with router.stream(prompt="hello", stream="live") as events:
            async for event in events:
                if isinstance(event, Token):
                    break
        await eventually(lambda: server.calls[0]["how"] == "client_disconnected", seconds=2)


async def test_slow_reader_holds_the_model_and_not_memory(tmp_path: Path) -> None:
    """A reader that does not read is waited for."""
    models = {"fast": "tokens=20000 delay_ms=1"}
    async with (
        StandIn(models) as server,
        Router(config_for(server.url, tmp_path, first="fast")) as router,
        router.stream(prompt="hello", stream="live") as events,
    ):
        waiting = getattr(events, "waiting")  # noqa: B009 - not part of what is promised
        await eventually(lambda: len(waiting) == STREAM_BUFFER)
        await asyncio.sleep(0.1)
        assert len(waiting) == STREAM_BUFFER
        seen = [event async for _, event in azip(range(2 * STREAM_BUFFER), events)]
        assert len(seen) == 2 * STREAM_BUFFER


async def azip(numbers: Iterable[int], events: AsyncIterable[Event]) -> AsyncIterator[tuple[int, Event]]:
    """The first events, numbered."""
    iterator = aiter(events)
    for number in numbers:
        yield number, await anext(iterator)


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        ({}, ErrorCode.INVALID_REQUEST),
        ({"prompt": "x", "model": "nope"}, ErrorCode.UNKNOWN_MODEL),
        ({"prompt": "x", "schema": {"type": 3}}, ErrorCode.INVALID_SCHEMA),
        ({"prompt": "x", "deadline_ms": 1}, ErrorCode.DEADLINE_EXCEEDED),
    ],
)
async def test_no_answer_is_one_exception_with_the_protocols_error(
    tmp_path: Path, request_: RequestFields, code: ErrorCode
) -> None:
    """What would be a final `error` is a `NoAnswerError` that carries it."""
    async with StandIn() as server, Router(config_for(server.url, tmp_path)) as router:
        with pytest.raises(NoAnswerError) as caught:
            await router.route(**request_)
        assert caught.value.failure.code is code


async def test_unknown_model_is_told_in_the_daemons_words(tmp_path: Path) -> None:
    """With the name that was perhaps meant."""
    async with Router(config_for("http://127.0.0.1:9", tmp_path)) as router:
        with pytest.raises(NoAnswerError) as caught:
            await router.route(prompt="x", model="defalt")
        assert caught.value.failure.message == unknown_model(router.config, "defalt")
        assert "did you mean 'default'?" in caught.value.failure.message


async def test_router_outside_of_its_block_says_how_to_use_it(tmp_path: Path) -> None:
    """A clear error instead of an obscure one."""
    router = llm_routerd.Router(config_for("http://127.0.0.1:9", tmp_path))
    with pytest.raises(RuntimeError, match="async with"):
        await router.route(prompt="x")
