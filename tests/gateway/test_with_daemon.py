"""The doors that are not other people's, with a daemon that answers and a model that does what a message says."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest_asyncio

from llm_routerd.protocol.events import FINAL_ID
from tests.gateway.application import Site, open_site
from tests.standin.server import StandIn
from tests.support.daemons import running_daemon, write_config

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.servers import ValkeyProcess

# The first deployment's answer breaks off after it has begun to be shown, and the second's is whole.
CUT = "[[model=tiny tokens=30 delay_ms=15 cut_after=12]] [[model=big tokens=30 delay_ms=15]]"


@pytest_asyncio.fixture
async def site(valkey_server: ValkeyProcess, valkey_url: str, tmp_path: Path) -> AsyncIterator[Site]:
    """The gateway's application, and a daemon."""
    async with StandIn({"tiny": "", "big": ""}) as standin:
        config = write_config(tmp_path, valkey_url, standin.url)
        async with running_daemon(config), open_site(valkey_url) as opened:
            yield opened


async def events(site: Site, request_id: str, after: str = "0-0") -> list[tuple[str, str, str]]:
    """ID, type and data of the events after one, as bytes on the wire have them, to the end."""
    async with site.http.get(f"/v1/requests/{request_id}/events", headers={"Last-Event-ID": after}) as reply:
        text = (await reply.read()).decode()
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if not line.startswith(":") and ": " in line)
        if "id" in fields:
            found.append((fields["id"], fields["event"], fields["data"]))
    return found


async def test_each_event_comes_once_wherever_a_reader_begins(site: Site) -> None:
    """While the answer comes and after its end, of an answer whose first attempt is discarded."""
    body = {"prompt": CUT, "stream": "live", "metadata": {"n": 123456789012345678901234567890, "é": "\u2028"}}
    status, _, told = await site.post("/v1/requests", body)
    assert status == 202
    request_id, readers = told["id"], dict[str, asyncio.Task[list[tuple[str, str, str]]]]()
    async with site.http.get(f"/v1/requests/{request_id}/events") as reply:
        async for line in reply.content:
            if line.startswith(b"id: "):
                event_id = line[4:-1].decode()
                if event_id != FINAL_ID:
                    readers[event_id] = asyncio.create_task(events(site, request_id, event_id))
    every = await events(site, request_id)
    assert [event_id for event_id, _, _ in every] == [*readers, FINAL_ID]
    assert {"attempt", "token", "rejected", "result"} == {kind for _, kind, _ in every}
    for place, event_id in enumerate(readers):
        assert await readers[event_id] == every[place + 1 :]
        assert await events(site, request_id, event_id) == every[place + 1 :]
    stands = await site.redis.xrange(f"llm:events:{request_id}")
    assert [(event_id, kind, json.loads(data)) for event_id, kind, data in every] == [
        (event_id, fields["type"], json.loads(fields["data"])) for event_id, fields in stands
    ]
    result = json.loads(every[-1][2])
    texts = [json.loads(data)["text"] for event_id, kind, data in every if kind == "token" and event_id[0] == "2"]
    assert "".join(texts) == result["raw_text"]
    assert result["metadata"] == body["metadata"]


async def test_who_waits_has_the_answer_and_who_comes_again_the_same(site: Site) -> None:
    """By one key, from one call."""
    told = [
        await site.post("/v1/requests", {"prompt": '[[answer="Hi"]]'}, Idempotency_Key="k", Prefer="wait=30")
        for _ in range(2)
    ]
    assert told[0][0] == told[1][0] == 200
    assert told[0][2] == told[1][2]
    assert told[0][2]["data"]["content"] == "Hi"


async def test_model_of_before_answers_whole_and_in_lines(site: Site) -> None:
    """The fields that the system before had; what came in chunks is the answer."""
    status, _, told = await site.post("/complete", {"prompt": '[[answer="Hi there"]]', "max_tokens": 50})
    assert (status, told["content"], told["model_used"]) == (200, "Hi there", "ollama/tiny")
    assert told["usage"]["completion_tokens"] > 0
    assert [each["outcome"] for each in told["attempts"]] == ["success"]
    async with site.http.post("/complete/stream", json={"prompt": "[[tokens=40 delay_ms=2]]"}) as reply:
        assert (reply.status, reply.content_type) == (200, "application/x-ndjson")
        *chunks, done = [json.loads(line) async for line in reply.content]
    assert {each["type"] for each in chunks} == {"chunk"}
    assert done["type"] == "done"
    assert "".join(each["content"] for each in chunks) == done["content"]


async def test_when_all_fail_the_words_are_those_of_before(site: Site) -> None:
    """With 503, streamed or not."""
    for path in ("/complete", "/complete/stream"):
        status, headers, told = await site.post(path, {"prompt": "[[fail=503]]"})
        assert (status, told) == (503, {"error": "All providers unavailable"})
        assert headers["X-Request-ID"]
    told = (await site.post("/complete", {"prompt": "hi", "model": "nobody"}))[2]
    assert "nobody" not in json.dumps(told)
    assert list(told) == ["error"]


async def test_request_that_runs_is_ended_and_its_reader_told(site: Site) -> None:
    """The model is hung up on; a reader that had resumed sees the end."""
    request_id = (await site.post("/v1/requests", {"prompt": "[[tokens=2000 delay_ms=20]]", "stream": True}))[2]["id"]
    async with site.http.get(f"/v1/requests/{request_id}/events") as reply:
        await reply.content.readuntil(b"event: token")
        status, _, known = await site.get(f"/v1/requests/{request_id}")
        assert (status, known["status"], known["attempt"], known["deployment"]) == (202, "running", 1, "local")
        async with site.http.delete(f"/v1/requests/{request_id}") as ended:
            end: Any = await ended.json()
        assert end["type"] == "cancelled"
        assert b"event: cancelled" in await asyncio.wait_for(reply.content.read(), 10)
