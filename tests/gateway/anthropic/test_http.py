"""Anthropic's door over HTTP, with events that the test writes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest_asyncio

from llm_routerd.protocol.events import FINAL_ID
from llm_routerd.protocol.examples import EVENTS
from tests.gateway.application import Site, open_site

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

BODY = {"model": "house", "max_tokens": 64, "messages": [{"role": "user", "content": "Hi"}]}
PATH = "/v1/messages"


@pytest_asyncio.fixture
async def site(valkey_url: str) -> AsyncIterator[Site]:
    """The gateway at a real server."""
    async with open_site(valkey_url) as opened:
        yield opened


async def end(site: Site, text: str) -> None:
    """The answer to `r1`."""
    await site.begin("r1", text)
    data = {**EVENTS["result"][0], "id": "r1", "content": text, "raw_text": text, "attempt": 1}
    await site.write("r1", FINAL_ID, "result", data)


async def test_an_answer(site: Site) -> None:
    """Its id is where this door's clients look for it; the model is called what it was called."""
    await end(site, "Hello")
    status, headers, found = await site.post(PATH, BODY, Idempotency_Key="r1")
    assert (status, headers["request-id"], headers["X-Request-ID"]) == (200, "r1", "r1")
    assert (found["id"], found["model"], found["content"]) == (
        "msg_r1",
        "house",
        [{"type": "text", "text": "Hello"}],
    )


async def test_a_stream(site: Site) -> None:
    """Events, from the first to the last."""
    await end(site, "Hello")
    async with site.http.post(
        f"{PATH}?beta=true", json={**BODY, "stream": True}, headers={"Idempotency-Key": "r1"}
    ) as reply:
        assert (reply.status, reply.content_type, reply.headers["request-id"]) == (200, "text/event-stream", "r1")
        names = [line.removeprefix("event: ") for line in (await reply.text()).split("\n") if line.startswith("event")]
    assert names == [
        *("message_start", "content_block_start", "content_block_delta", "content_block_stop"),
        *("message_delta", "message_stop"),
    ]


async def test_no_answer(site: Site) -> None:
    """An error of HTTP, also where a stream was asked for; it has the id too."""
    data = {"id": "r1", "code": "chain_exhausted", "message": "none", "attempts": []}
    await site.write("r1", FINAL_ID, "error", data)
    status, headers, found = await site.post(PATH, {**BODY, "stream": True}, Idempotency_Key="r1")
    assert (status, headers["request-id"], headers["X-Request-ID"]) == (503, "r1", "r1")
    assert found == {
        "type": "error",
        "error": {"type": "overloaded_error", "message": "none"},
        "request_id": "r1",
    }


async def test_what_is_refused(site: Site) -> None:
    """In this door's shape, whoever refuses: the door, the request's schema, or the server."""
    for path, body, expected in (
        (PATH, {**BODY, "model": "nope"}, (404, "not_found_error")),
        (PATH, {**BODY, "mcp_servers": [{}]}, (400, "invalid_request_error")),
        (PATH, {**BODY, "temperature": 7}, (400, "invalid_request_error")),
        (PATH, [], (400, "invalid_request_error")),
        (f"{PATH}/batches", BODY, (404, "not_found_error")),
    ):
        status, _, found = await site.post(path, body)
        assert (status, found["error"]["type"]) == expected


async def test_counting(site: Site) -> None:
    """Nothing is asked."""
    status, headers, found = await site.post(f"{PATH}/count_tokens", {**BODY, "system": "x" * 38})
    assert (status, headers["X-LLM-Routerd-Estimate"], found) == (200, "true", {"input_tokens": 10})
    assert await site.redis.xlen("llm:requests") == 0
