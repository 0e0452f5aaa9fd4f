"""Runs with tools over HTTP, with a worker that drives them: submitted, seen to wait, agreed to, answered."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest_asyncio

from tests.gateway.application import Site, open_site
from tests.support.fakes import FakeBackend
from tests.support.runs import SWITCH, answer, answers, calls_all, event_of, next_call, register, turns
from tests.support.workers import run_worker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

RUN = {"prompt": "x", "id": "r1", "stream": True, "agent": {"tools": ["*"]}}


@pytest_asyncio.fixture
async def site(valkey_url: str) -> AsyncIterator[Site]:
    """The gateway's application, and a worker whose model switches a lamp."""
    model = FakeBackend(turns(calls_all(("switch", '{"lamp": "hall"}'), text="Let me see."), answers("It is on.")))
    async with run_worker(valkey_url, {"local": model}), open_site(valkey_url) as opened:
        await register(opened.redis, switch=SWITCH)
        yield opened


async def confirmation(site: Site) -> dict[str, Any]:
    """The call that waits, as the page is told of it."""
    async with asyncio.timeout(10):
        while True:
            _, _, seen = await site.get("/v1/overview")
            if seen["confirmations"]:
                assert seen["running"][0]["calls_waiting"] == 1
                found: dict[str, Any] = seen["confirmations"][0]
                return found
            await asyncio.sleep(0.1)


async def test_person_agrees_over_http(site: Site) -> None:
    """What the page does: it sees the call, and says yes to what it has shown; a second yes is told whose stands."""
    assert (await site.post("/v1/requests", RUN))[0] == 202
    call = await confirmation(site)
    assert (call["id"], call["name"], json.loads(call["arguments"])) == ("r1", "switch", {"lamp": "hall"})
    path, yes = (
        f"/v1/requests/r1/confirmations/{call['call_id']}",
        {"confirm": True, "args_sha256": call["args_sha256"]},
    )
    assert (await site.post(path, yes))[0] == 202
    _, told = await next_call(site.redis, "switch")
    assert told["call_id"] == call["call_id"]
    assert (await event_of(site.redis, "r1", "confirmed"))["by"] == "ann"
    status, _, refused = await site.post(path, yes)
    assert (status, refused["error"]["code"]) == (409, "confirmed")
    assert "by ann" in refused["error"]["message"]
    async with asyncio.timeout(10):  # a look is seconds old at the most
        while (await site.get("/v1/overview"))[2]["confirmations"]:  # noqa: ASYNC110 - it is asked, and tells nothing by itself
            await asyncio.sleep(0.1)
    await answer(site.redis, "r1", told["call_id"], "ok")
    status, _, end = await site.get("/v1/requests/r1", Prefer="wait=10")
    assert (status, end["data"]["content"], end["data"]["turns"]) == (200, "It is on.", 2)


async def test_model_is_told_why_a_call_was_denied(site: Site) -> None:
    """And no tool is."""
    await site.post("/v1/requests", RUN)
    call = await confirmation(site)
    no = {"confirm": False, "reason": "asleep"}
    assert (await site.post(f"/v1/requests/r1/confirmations/{call['call_id']}", no))[0] == 202
    assert (await event_of(site.redis, "r1", "denied"))["reason"] == "asleep"
    assert (await site.get("/v1/requests/r1", Prefer="wait=10"))[2]["data"]["content"] == "It is on."
    assert not await site.redis.exists("llm:tools:switch")


async def test_door_that_tells_text_alone_tells_the_turns_one_behind_the_other(site: Site) -> None:
    """Of a run that is followed once more by its key; not streamed, its answer."""
    await site.post("/v1/requests", RUN)
    call = await confirmation(site)
    body = {"model": "house", "messages": [{"role": "user", "content": "x"}], "stream": True}

    async def streamed() -> str:
        async with site.http.post("/v1/chat/completions", json=body, headers={"Idempotency-Key": "r1"}) as reply:
            lines = (await reply.read()).decode().splitlines()
        chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"])

    telling = asyncio.create_task(streamed())
    await site.post(f"/v1/requests/r1/confirmations/{call['call_id']}", {"confirm": False})
    assert await telling == "Let me see.\n\nIt is on."
    assert await streamed() == "Let me see.\n\nIt is on."
    _, _, whole = await site.post("/v1/chat/completions", {**body, "stream": False}, Idempotency_Key="r1")
    assert whole["choices"][0]["message"]["content"] == "It is on."
