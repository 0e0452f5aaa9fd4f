"""Responses over HTTP, with events that the test writes: looked up, told again, stopped."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from llm_routerd.gateway.admission import Caller
from llm_routerd.protocol.events import FINAL_ID
from llm_routerd.protocol.examples import EVENTS
from tests.gateway.application import Site, open_site
from tests.gateway.openai.asking import events

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

BODY = {"model": "small", "input": "hi"}
CARRIED = {"openai": {"model": "house", "metadata": {"row": "1"}, "background": True}}


@pytest_asyncio.fixture
async def site(valkey_url: str) -> AsyncIterator[Site]:
    """The gateway at a real server."""
    async with open_site(valkey_url) as opened:
        yield opened


async def begin(site: Site, *texts: str, attempt: int = 1) -> None:
    """An attempt at `r1`, as a daemon has written it, and its text."""
    data = {"deployment": "small", "model": "ollama/small", "delivery": 1, "consumer": "w1"}
    first = {"entry": "1700000000123-0", "lane": "normal"} if attempt == 1 else {}
    await site.write("r1", f"{attempt}-0", "attempt", {**data, **first})
    for place, text in enumerate(texts, 1):
        await site.write("r1", f"{attempt}-{place}", "token", {"text": text})


async def end(site: Site, text: str, **named: Any) -> None:
    """The answer to `r1`."""
    data = {**EVENTS["result"][0], "id": "r1", "content": text, "raw_text": text, "tool_calls": [], "metadata": CARRIED}
    await site.write("r1", FINAL_ID, "result", {**data, **named})


async def told(site: Site, path: str) -> list[Any]:
    """The data of a stream's events, to its end."""
    async with site.http.get(path) as reply:
        assert reply.status == 200, await reply.text()
        return [data for _, data in events((await reply.read()).decode())]


async def test_queued_begun_and_completed(site: Site) -> None:
    """What is known of the body comes with the end."""
    await site.queue("r1")
    assert (await site.get("/v1/responses/resp_r1"))[2]["status"] == "queued"
    await begin(site, "Hel")
    assert (await site.get("/v1/responses/resp_r1"))[2]["status"] == "in_progress"
    await end(site, "Hello")
    status, headers, found = await site.get("/v1/responses/resp_r1")
    assert (status, headers["X-Request-ID"], found["status"]) == (200, "r1", "completed")
    assert (found["id"], found["created_at"], found["model"]) == ("resp_r1", 1_700_000_000, "house")
    assert (found["metadata"], found["background"]) == ({"row": "1"}, True)
    assert found["output"][0]["content"][0]["text"] == "Hello"


async def test_failed_is_found_and_told(site: Site) -> None:
    """Looking it up is no failure."""
    await begin(site)
    data = {"id": "r1", "code": "chain_exhausted", "message": "none", "attempts": [], "metadata": CARRIED}
    await site.write("r1", FINAL_ID, "error", data)
    found = (await site.get("/v1/responses/resp_r1"))[2]
    assert (found["status"], found["model"]) == ("failed", "house")
    assert found["error"] == {"code": "server_error", "message": "none"}
    last = (await told(site, "/v1/responses/resp_r1?stream=true"))[-1]
    assert (last["type"], last["response"]) == ("response.failed", found)


async def test_json_is_found_without_its_fence(site: Site) -> None:
    """As it was told when it was asked for."""
    await begin(site)
    await end(site, '```json\n{"a": 1}\n```', content={"a": 1})
    assert (await site.get("/v1/responses/resp_r1"))[2]["output"][0]["content"][0]["text"] == '{"a":1}'


async def test_told_again_with_the_same_numbers(site: Site) -> None:
    """Each time the same, and only what comes after the one that is known; what was discarded is never told."""
    await begin(site, "Hello")
    await begin(site, "Hel", "lo ", "you", attempt=2)
    await end(site, "Hello you", attempt=2)
    whole = await told(site, "/v1/responses/resp_r1?stream=true")
    assert [each["sequence_number"] for each in whole] == list(range(len(whole)))
    assert "".join(each["delta"] for each in whole if "delta" in each) == "Hello you"
    for after in range(len(whole)):
        path = f"/v1/responses/resp_r1?stream=true&starting_after={after}"
        assert await told(site, path) == whole[after + 1 :]


@pytest.mark.parametrize("background", [False, True])
async def test_stream_is_told_in_order_from_the_first(site: Site, background: bool) -> None:
    """Of a response that is streamed at once the numbers are the same ones."""
    await begin(site, "Hel", "lo")
    await end(site, "Hello")
    body = {**BODY, "stream": True, "background": background}
    async with site.http.post("/v1/responses", json=body, headers={"Idempotency-Key": "r1"}) as reply:
        first = [data for _, data in events((await reply.read()).decode())]
    again = await told(site, "/v1/responses/resp_r1?stream=true")
    numbered = [(each["type"], each["sequence_number"]) for each in first]
    assert numbered == [(each["type"], each["sequence_number"]) for each in again]
    assert [number for _, number in numbered] == list(range(len(numbered)))


async def test_stream_ends_where_its_events_have_expired(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing will ever come."""
    monkeypatch.setattr("llm_routerd.gateway.http.answering.PING_SECONDS", 0.2)
    await begin(site, "Hel")
    async with site.http.get("/v1/responses/resp_r1?stream=true") as reply:
        await reply.content.readline()
        await site.redis.delete("llm:events:r1")
        kinds = [kind for kind, _ in events((await reply.read()).decode())]
    assert kinds[-1] in {"error", "response.failed"}


async def test_background_is_submitted_with_tokens(site: Site) -> None:
    """Somebody may want to see them later; with a schema there are none."""
    status, headers, told_at_once = await site.post("/v1/responses", {**BODY, "background": True})
    assert (status, told_at_once["status"]) == (200, "queued")
    assert told_at_once["id"] == f"resp_{headers['X-Request-ID']}"
    await site.post("/v1/responses", {**BODY, "background": True, "text": {"format": {"type": "json_object"}}})
    entries = [json.loads(fields["data"]) for _, fields in await site.redis.xrange("llm:requests")]
    assert [entry["stream"] for entry in entries] == [True, False]


@pytest.mark.parametrize("verb", ["cancel", "delete"])
async def test_stopped(site: Site, verb: str) -> None:
    """What runs is; what has ended stays what it is."""

    async def stop() -> Any:
        path = "/v1/responses/resp_r1"
        asked = site.http.post(f"{path}/cancel") if verb == "cancel" else site.http.delete(path)
        async with asked as reply:
            assert reply.status == 200
            return await reply.json()

    await begin(site, "Hel")
    found = await stop()
    assert found["id"] == "resp_r1"
    assert found.get("status", "cancelled") == "cancelled"
    assert found.get("deleted", False) is False
    assert [kind for _, kind, _ in await _events_of(site)][-1] == "cancelled"
    assert await stop() == found
    assert (await site.get("/v1/responses/resp_r1"))[2]["status"] == "cancelled"


async def _events_of(site: Site) -> list[tuple[str, str, Any]]:
    return [(place, fields["type"], fields["data"]) for place, fields in await site.redis.xrange("llm:events:r1")]


@pytest.mark.parametrize("name", ["resp_nobody", "nobody", "resp_", "resp_%20", "resp_" + "x" * 200])
async def test_unknown(site: Site, name: str) -> None:
    """A 404 in OpenAI's shape."""
    status, _, found = await site.get(f"/v1/responses/{name}")
    assert (status, found["error"]["type"]) == (404, "invalid_request_error")


@pytest.mark.parametrize("after", ["-1", "x", "1.5", "9" * 40, "¹"])
async def test_number_that_is_none(site: Site, after: str) -> None:
    """It is refused by name."""
    await begin(site)
    status, _, found = await site.get(f"/v1/responses/resp_r1?stream=true&starting_after={after}")
    assert (status, found["error"]["param"]) == (400, "starting_after")


async def test_another_tenants(valkey_url: str) -> None:
    """Nobody reaches it but who has that tenant's key, or an operator's."""
    async with open_site(valkey_url, Caller(name="bob", tenant="bob")) as site:
        await site.queue("ann:1")
        await site.queue("bob:1")
        assert (await site.get("/v1/responses/resp_ann:1"))[0] == 403
        assert (await site.get("/v1/responses/resp_bob:1"))[0] == 200
