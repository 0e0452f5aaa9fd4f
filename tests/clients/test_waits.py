"""What a request waits for is passed over by other people's clients: each has the answer and nothing else."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from llm_routerd.protocol.events import FINAL_ID
from llm_routerd.protocol.examples import EVENTS
from tests.gateway.application import Site, open_site

if TYPE_CHECKING:
    from collections.abc import Callable

TEXT = "It is blue."


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream begins, and is kept open, within the time of a test."""
    monkeypatch.setattr("llm_routerd.gateway.http.answering.HEAD_SECONDS", 0.1)
    monkeypatch.setattr("llm_routerd.gateway.http.answering.PING_SECONDS", 0.2)


async def answer(site: Site) -> None:
    """The one request, which waits for a second and is answered; published, as what is asked over HTTP is."""
    while not (found := await site.redis.xrange("llm:requests")):  # noqa: ASYNC110 - it is on its way
        await asyncio.sleep(0.02)
    request_id = json.loads(found[0][1]["data"])["id"]

    async def write(event_id: str, kind: str, **data: Any) -> None:
        await site.write(request_id, event_id, kind, data)
        told = f'{{"id":"{event_id}","type":"{kind}","data":{json.dumps(data)}}}'
        await site.redis.publish(f"llm:events:{request_id}", told)

    for place in (3, 2, 1, 0):
        reason = f"{place} before you on attic"
        await write(f"0-{4 - place}", "queued", position=place, reason=reason, estimated_wait_ms=9000 * place)
        await asyncio.sleep(0.3)
    await write("1-0", "attempt", deployment="small", model="ollama/small")
    await write("1-1", "token", text=TEXT)
    said = {"content": TEXT, "raw_text": TEXT, "tool_calls": [], "attempt": 1, "finish_reason": "stop"}
    await write(FINAL_ID, "result", **{**EVENTS["result"][0], "id": request_id, **said})


async def test_openai(python_client: Callable[[str], Any], valkey_url: str) -> None:
    """Chat completions."""
    openai = python_client("openai")
    async with open_site(valkey_url) as site, asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        tasks.create_task(answer(site))
        async with openai.AsyncOpenAI(base_url=f"{site.url}/v1", api_key="none", max_retries=0) as client:
            stream = await client.chat.completions.create(
                model="small", messages=[{"role": "user", "content": "Why?"}], stream=True
            )
            said = [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]
    assert "".join(said) == TEXT


async def test_openai_responses(python_client: Callable[[str], Any], valkey_url: str) -> None:
    """Its other protocol."""
    openai = python_client("openai")
    async with open_site(valkey_url) as site, asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        tasks.create_task(answer(site))
        async with (
            openai.AsyncOpenAI(base_url=f"{site.url}/v1", api_key="none", max_retries=0) as client,
            client.responses.stream(model="small", input="Why?") as stream,
        ):
            found = await stream.get_final_response()
    assert found.output_text == TEXT


async def test_anthropic(python_client: Callable[[str], Any], valkey_url: str) -> None:
    """Messages, where a ping is an event."""
    anthropic = python_client("anthropic")
    async with open_site(valkey_url) as site, asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        tasks.create_task(answer(site))
        asked: Any = {"model": "small", "max_tokens": 100, "messages": [{"role": "user", "content": "Why?"}]}
        async with (
            anthropic.AsyncAnthropic(base_url=site.url, api_key="none", max_retries=0) as client,
            client.messages.stream(**asked) as stream,
        ):
            found = await stream.get_final_message()
    assert [block.text for block in found.content] == [TEXT]


async def test_that_is_told_in_these_streams(valkey_url: str) -> None:
    """Else the tests above would prove nothing."""
    body = {"model": "small", "messages": [{"role": "user", "content": "Why?"}], "max_tokens": 100, "stream": True}
    for path in ("/v1/chat/completions", "/v1/messages"):
        async with open_site(valkey_url) as site, asyncio.timeout(20), asyncio.TaskGroup() as tasks:
            await site.redis.delete("llm:requests")
            tasks.create_task(answer(site))
            async with site.http.post(path, json=body) as reply:
                lines = (await reply.text()).splitlines()
        assert ": 1 before you on attic, about 9 s" in lines, path


async def test_ollama(python_client: Callable[[str], Any], valkey_url: str) -> None:
    """Whose streams are told nothing of it."""
    ollama = python_client("ollama")
    async with open_site(valkey_url) as site, asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        tasks.create_task(answer(site))
        async with ollama.AsyncClient(host=site.url) as client:
            stream = await client.chat(model="small", messages=[{"role": "user", "content": "Why?"}], stream=True)
            said = [part.message.content or "" async for part in stream]
    assert "".join(said) == TEXT
