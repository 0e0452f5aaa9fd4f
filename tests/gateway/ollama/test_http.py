"""Ollama's door over HTTP, with events that the test writes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest_asyncio

from llm_routerd.protocol.events import FINAL_ID
from llm_routerd.protocol.examples import EVENTS
from tests.gateway.application import Site, open_site

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

CHAT = {"model": "house:latest", "messages": [{"role": "user", "content": "Hi"}]}


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


async def test_it_is_streamed_unless_it_is_not(site: Site) -> None:
    """A line for each piece, or one object."""
    await end(site, "Hello")
    async with site.http.post("/api/chat", json=CHAT, headers={"Idempotency-Key": "r1"}) as reply:
        assert (reply.status, reply.content_type, reply.headers["X-Request-ID"]) == (200, "application/x-ndjson", "r1")
        pieces = [json.loads(line) for line in (await reply.text()).splitlines()]
    assert [(piece["message"]["content"], piece["done"]) for piece in pieces] == [("Hello", False), ("", True)]
    _, headers, found = await site.post("/api/chat", {**CHAT, "stream": False}, Idempotency_Key="r1")
    assert headers["Content-Type"].startswith("application/json")
    assert (found["model"], found["message"]["content"]) == ("house:latest", "Hello")


async def test_loading_asks_nobody(site: Site) -> None:
    """It is answered at once."""
    status, _, found = await site.post("/api/generate", {"model": "house"})
    assert (status, found) == (200, {"model": "house", "response": "", "done": True, "done_reason": "load"})
    assert await site.redis.xlen("llm:requests") == 0


async def test_no_answer(site: Site) -> None:
    """An error of HTTP in this door's shape, also where a stream was asked for."""
    await site.write("r1", FINAL_ID, "error", {"id": "r1", "code": "deadline_exceeded", "message": "late"})
    status, headers, found = await site.post("/api/chat", CHAT, Idempotency_Key="r1")
    assert (status, headers["X-Request-ID"], found) == (504, "r1", {"error": "late"})


async def test_what_is_refused(site: Site) -> None:
    """In this door's shape, whoever refuses: the door, the request's schema, or the server."""
    for path, body, expected in (
        ("/api/chat", {**CHAT, "model": "nope"}, 404),
        ("/api/chat", {**CHAT, "options": {"mirostat": 1}}, 400),
        ("/api/chat", {**CHAT, "options": {"temperature": 7}}, 400),
        ("/api/chat", [], 400),
        ("/api/embed", {"model": "house", "input": "x"}, 404),
        ("/api/tags", {}, 405),
    ):
        status, _, found = await site.post(path, body)
        assert (status, found.keys()) == (expected, {"error"})


async def test_what_there_is(site: Site) -> None:
    """As it is looked up."""
    assert [each["name"] for each in (await site.get("/api/tags"))[2]["models"]][-1] == "house"
    assert (await site.get("/api/version"))[2].keys() == {"version"}
    assert (await site.get("/api/ps"))[2] == {"models": []}
    assert (await site.post("/api/show", {"model": "house"}))[2]["details"]["families"] == ["ollama/small"]
