"""Chat completions over HTTP, with events that the test writes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from llm_routerd.protocol.events import FINAL_ID
from llm_routerd.protocol.examples import EVENTS
from tests.gateway.application import Site, open_site
from tests.gateway.openai.asking import events

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

BODY: dict[str, Any] = {"model": "house", "messages": [{"role": "user", "content": "hi"}]}
KEYED = {"Idempotency-Key": "r1"}


@pytest_asyncio.fixture
async def site(valkey_url: str) -> AsyncIterator[Site]:
    """The gateway at a real server."""
    async with open_site(valkey_url) as opened:
        yield opened


async def end(site: Site, text: str, **named: Any) -> None:
    """The answer to `r1`, which is the request whose key is that."""
    data = {**EVENTS["result"][0], "id": "r1", "content": text, "raw_text": text, "tool_calls": [], "metadata": None}
    await site.write("r1", FINAL_ID, "result", {**data, **named})


@pytest.mark.parametrize("streams", [False, True])
async def test_json_goes_out_without_its_fence(site: Site, streams: bool) -> None:
    """Who asks for JSON reads nothing else."""
    await site.begin("r1")
    await end(site, '```json\n{"a": "é"}\n```', content={"a": "é"})
    body = {**BODY, "response_format": {"type": "json_object"}, "stream": streams}
    async with site.http.post("/v1/chat/completions", json=body, headers=KEYED) as reply:
        text = await reply.text()
    if streams:
        told = "".join(data["choices"][0]["delta"].get("content", "") for _, data in events(text)[:-1])
    else:
        told = json.loads(text)["choices"][0]["message"]["content"]
    assert told == '{"a":"é"}'


async def test_stream_begins_with_its_role_and_ends(site: Site) -> None:
    """Whatever comes at once; the model has the name that was asked for."""
    await site.begin("r1", "Hel", "lo")
    await end(site, "Hello")
    async with site.http.post("/v1/chat/completions", json={**BODY, "stream": True}, headers=KEYED) as reply:
        assert reply.content_type == "text/event-stream"
        *chunks, (_, done) = events(await reply.text())
    deltas = [chunk["choices"][0]["delta"] for _, chunk in chunks]
    assert deltas[0]["role"] == "assistant"
    assert [delta.get("content") for delta in deltas[1:]] == ["Hel", "lo", None]
    assert {chunk["model"] for _, chunk in chunks} == {"house"}
    assert done == "[DONE]"


async def test_cancelled_is_not_to_be_repeated(site: Site) -> None:
    """OpenAI's clients would, after a 409; and they find the request's id."""
    await site.end("r1")
    status, headers, found = await site.post("/v1/chat/completions", BODY, Idempotency_Key="r1")
    assert (status, headers["X-Should-Retry"], headers["X-Request-ID"]) == (409, "false", "r1")
    assert (found["error"]["code"], found["error"]["request_id"]) == ("cancelled", "r1")


async def test_what_kills_workers_is_not_to_be_repeated(site: Site) -> None:
    """A 500 would be, twice."""
    await site.write("r1", FINAL_ID, "error", {"id": "r1", "code": "poisoned", "message": "m", "attempts": []})
    status, headers, found = await site.post("/v1/chat/completions", BODY, Idempotency_Key="r1")
    assert (status, headers["X-Should-Retry"], found["error"]["code"]) == (500, "false", "poisoned")


async def test_unsound_request_is_refused_before_it_is_submitted(site: Site) -> None:
    """What the door does not look at, the protocol's schema does."""
    status, _, found = await site.post("/v1/chat/completions", {**BODY, "temperature": 7})
    assert (status, found["error"]["type"]) == (400, "invalid_request_error")
    assert "temperature" in found["error"]["message"]
    assert await site.redis.xlen("llm:requests") == 0
