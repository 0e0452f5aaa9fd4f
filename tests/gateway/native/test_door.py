"""The native door over HTTP, with events that the test writes."""

from __future__ import annotations

import asyncio
import json
import re
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from llm_routerd.gateway.admission import Caller
from llm_routerd.gateway.http import native
from llm_routerd.protocol.events import FINAL_ID
from llm_routerd.protocol.examples import EVENTS
from tests.gateway.application import Site, open_site
from tests.support.eventually import eventually
from tests.support.proxy import open_proxy
from tests.support.servers import running_valkey

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import aiohttp

CALL = {"call_id": "c1", "name": "lights.off", "arguments": {}, "turn": 1, "args_sha256": "aa", "confirm": True}


@pytest_asyncio.fixture
async def site(valkey_url: str) -> AsyncIterator[Site]:
    """The doors at a real server."""
    async with open_site(valkey_url) as opened:
        yield opened


async def frames(reply: aiohttp.ClientResponse) -> list[dict[str, str]]:
    """The server-sent events in a body, to its end; comments left out."""
    text = (await reply.read()).decode()
    assert text.endswith("\n\n")
    return [fields for block in text[:-2].split("\n\n") if (fields := _fields(block))]


def _fields(block: str) -> dict[str, str]:
    lines = [line.partition(": ") for line in block.split("\n") if not line.startswith(":")]
    assert len({name for name, _, _ in lines}) == len(lines)
    return {name: text for name, _, text in lines}


async def ids(site: Site, path: str, **headers: str) -> list[str]:
    """The IDs of the events that come."""
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    async with site.http.get(path, headers=named) as reply:
        assert reply.status == 200, await reply.text()
        return [frame["id"] for frame in await frames(reply) if "id" in frame]


# ------------------------------------------------------------------ submitting


async def test_request_is_queued_and_its_place_told(site: Site) -> None:
    """With where to go on; what stands in the lane is what was sent."""
    status, headers, told = await site.post("/v1/requests", {"prompt": "hi", "model": "house", "tenant_id": "home"})
    path = f"/v1/requests/{told['id']}"
    assert (status, headers["Location"], headers["X-Request-ID"]) == (202, path, told["id"])
    assert told["status"] == "queued"
    assert told["links"] == {"self": path, "events": f"{path}/events", "stream": f"{path}/stream"}
    ((_, entry),) = await site.redis.xrange("llm:requests")
    written = json.loads(entry["data"])
    assert (written["id"], written["prompt"], written["model"]) == (told["id"], "hi", "small")
    assert written["tenant_id"] == "home"


async def test_a_run_with_tools_passes_through_and_what_is_none_is_refused(site: Site) -> None:
    """With the path of what is wrong; no other door knows of `agent`."""
    agent = {"tools": ["weather", "lights.*"], "max_turns": 4, "confirm": ["lights.*"]}
    status, _, told = await site.post("/v1/requests", {"prompt": "hi", "agent": agent})
    ((_, entry),) = await site.redis.xrange("llm:requests")
    assert (status, json.loads(entry["data"])["agent"]) == (202, agent)
    for wrong, path in (
        ({}, "$.agent: expected a property `tools`"),
        ({"tools": []}, "$.agent.tools"),
        (agent | {"max_turns": 21}, "$.agent.max_turns"),
    ):
        status, _, told = await site.post("/v1/requests", {"prompt": "hi", "agent": wrong})
        assert (status, told["error"]["code"]) == (400, "invalid_request")
        assert path in told["error"]["message"]
    body = {"model": "house", "messages": [{"role": "user", "content": "hi"}], "agent": agent}
    status, _, told = await site.post("/v1/chat/completions", body)
    assert (status, told["error"]["param"]) == (400, "agent")
    assert await site.redis.xlen("llm:requests") == 1


async def test_events_of_a_run_are_told_as_they_stand(site: Site) -> None:
    """By their own names, in their order."""
    await site.begin("a")
    kinds = ("tool_call", "turn", "confirmed", "tool_result", "denied")
    for place, kind in enumerate(kinds, 1):
        await site.write("a", f"1-{place}", kind, EVENTS[kind][0])
    await site.end("a")
    async with site.http.get("/v1/requests/a/events") as reply:
        told = await frames(reply)
    shown = [(frame["event"], json.loads(frame["data"])) for frame in told if "event" in frame][1:-1]
    assert shown == [(kind, EVENTS[kind][0]) for kind in kinds]


async def test_id_is_the_bodys_or_the_headers_and_the_lane_the_urls(site: Site) -> None:
    """An id that has its end already is not asked again."""
    assert (await site.post("/v1/requests?lane=high", {"prompt": "hi", "id": "a"}))[2]["id"] == "a"
    assert (await site.post("/v1/requests", {"prompt": "hi"}, Idempotency_Key="b"))[2]["id"] == "b"
    assert await site.redis.xlen("llm:requests:high") == 1
    await site.end("b")
    status, _, told = await site.post("/v1/requests", {"prompt": "hi"}, Idempotency_Key="b", Prefer="wait=5")
    assert (status, told["type"]) == (200, "cancelled")
    assert await site.redis.xlen("llm:requests") == 1


async def test_tenants_requests_have_his_name(valkey_url: str) -> None:
    """And are his, whatever the body says; others' he does not reach."""
    async with open_site(valkey_url, Caller(name="ann", tenant="home")) as site:
        _, _, told = await site.post("/v1/requests", {"prompt": "hi", "id": "a", "tenant_id": "work"})
        assert told["id"] == "home:a"
        assert (await site.get(told["links"]["self"]))[0] == 202
        ((_, entry),) = await site.redis.xrange("llm:requests")
        assert json.loads(entry["data"])["tenant_id"] == "home"
        await site.begin("work:a")
        for path in ("", "/events", "/stream"):
            assert (await site.get(f"/v1/requests/work:a{path}"))[0] == 403
        async with site.http.delete("/v1/requests/work:a") as reply:
            assert reply.status == 403
        assert (await site.post("/v1/requests/work:a/confirmations/c", {"confirm": False}))[0] == 403


async def test_nobody_has_his_requests_accounted_to_a_tenant(valkey_url: str) -> None:
    """Where some have keys and others need none."""
    async with open_site(valkey_url, Caller(others=frozenset({"home"}))) as site:
        status, _, told = await site.post("/v1/requests", {"prompt": "hi", "tenant_id": "home"})
        assert (status, told["error"]["code"]) == (403, "forbidden")
        assert not await site.redis.exists("llm:requests")
        assert (await site.post("/v1/requests", {"prompt": "hi", "tenant_id": "away"}))[0] == 202


@pytest.mark.parametrize(
    ("path", "body", "headers", "status", "param"),
    [
        ("", {}, {}, 400, ""),
        ("", {"promt": "hi"}, {}, 400, ""),
        ("", {"prompt": "hi", "id": "a b"}, {}, 400, "Idempotency-Key"),
        ("", {"prompt": "hi", "id": "a"}, {"Idempotency-Key": "b"}, 400, "id"),
        ("", {"prompt": "hi", "model": "hous"}, {}, 404, "model"),
        ("?lane=urgent", {"prompt": "hi"}, {}, 400, "lane"),
    ],
)
async def test_what_is_no_request_is_refused_before_it_is_queued(
    site: Site, path: str, body: Any, headers: dict[str, str], status: int, param: str
) -> None:
    """By what is wrong with it."""
    async with site.http.post(f"/v1/requests{path}", json=body, headers=headers) as reply:
        told = await reply.json()
        assert (reply.status, told["error"]["param"] or "") == (status, param)
    assert await site.redis.dbsize() == 0


async def test_who_waits_gets_the_end_when_it_comes(site: Site) -> None:
    """And who has waited long enough is told where to come back."""
    status, _, told = await site.post("/v1/requests", {"prompt": "hi", "id": "a"}, Prefer="wait=1")
    assert (status, told["status"]) == (202, "queued")
    waiting = asyncio.create_task(site.get("/v1/requests/a", Prefer="wait=60"))
    await asyncio.sleep(0.2)
    await site.begin("a", "text")
    await site.end("a")
    status, _, told = await asyncio.wait_for(waiting, 10)
    assert (status, told["id"], told["type"]) == (200, FINAL_ID, "cancelled")


# ------------------------------------------------------------------ what is known


async def test_what_is_known_of_a_request_at_each_stage(site: Site) -> None:
    """Nothing, queued, the attempt that is at it, the end."""
    status, _, told = await site.get("/v1/requests/a")
    assert (status, told["error"]["code"], told["request_id"]) == (404, "not_found", "a")
    await site.queue("a")
    assert (await site.get("/v1/requests/a"))[2]["status"] == "queued"
    await site.begin("a", "x")
    await site.begin("a", "y", "z", attempt=2)
    status, _, told = await site.get("/v1/requests/a")
    assert (status, told["status"], told["attempt"], told["deployment"]) == (202, "running", 2, "small")
    await site.end("a")
    status, headers, told = await site.get("/v1/requests/a")
    assert (status, told["id"], told["type"], told["data"]["id"]) == (200, FINAL_ID, "cancelled", "a")
    assert headers["X-Request-ID"] == "a"


async def test_id_that_can_be_none_is_not_looked_for(site: Site) -> None:
    """Nor told again."""
    for path in ("/v1/requests/a%20b", "/v1/requests/" + "x" * 129, "/v1/requests/a%0d%0ab"):
        status, _, told = await site.get(path)
        assert (status, told["request_id"]) == (404, None)


async def test_method_that_a_path_does_not_take_is_told_which_it_takes(site: Site) -> None:
    """And a path that is none, in the shape of this door."""
    async with site.http.put("/v1/requests/a") as reply:
        told = await reply.json()
        assert (reply.status, reply.headers["Allow"], told["error"]["code"]) == (
            405, "DELETE, GET, HEAD", "method_not_allowed",
        )  # fmt: skip
    status, _, told = await site.get("/v1/requests/a/b")
    assert (status, told["error"]["code"], told["request_id"]) == (404, "not_found", None)


# ------------------------------------------------------------------ events


async def test_events_come_with_their_ids_types_and_data(site: Site) -> None:
    """And end after the final one, with the word how soon to come again."""
    await site.begin("a", "one", "two")
    await site.end("a")
    async with site.http.get("/v1/requests/a/events") as reply:
        assert reply.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        assert reply.headers["Cache-Control"] == "no-store"
        first, *told = await frames(reply)
    assert re.fullmatch(r"\d+", first["retry"])
    assert [(each["id"], each["event"]) for each in told] == [
        ("1-0", "attempt"), ("1-1", "token"), ("1-2", "token"), (FINAL_ID, "cancelled"),
    ]  # fmt: skip
    assert [json.loads(each["data"])["text"] for each in told[1:3]] == ["one", "two"]


async def test_resuming_after_each_event_brings_every_other_once(site: Site) -> None:
    """By the header, by the URL, and by both, of which the header counts; more than a page of them."""
    await site.begin("a", *"x" * 230)
    await site.begin("a", *"y" * 3, attempt=2)
    await site.end("a")
    every = await ids(site, "/v1/requests/a/events")
    assert len(every) == len(set(every)) == 236
    for place in (*range(0, 230, 23), *range(230, 235)):
        assert await ids(site, "/v1/requests/a/events", Last_Event_ID=every[place]) == every[place + 1 :]
        assert await ids(site, f"/v1/requests/a/events?after={every[place]}") == every[place + 1 :]
    assert await ids(site, "/v1/requests/a/events?after=1-3", Last_Event_ID="2-2") == ["2-3", FINAL_ID]


async def test_after_the_end_there_is_nothing_to_come_back_for(site: Site) -> None:
    """204, on which a browser asks no more."""
    await site.begin("a")
    path = f"/v1/requests/a/events?after={FINAL_ID}"
    assert (await site.get(path))[0] == 400
    await site.end("a")
    assert (await site.get(path))[0] == 204
    assert (await site.get("/v1/requests/a/events", Last_Event_ID=FINAL_ID))[0] == 204


async def test_position_that_is_none_is_refused(site: Site) -> None:
    """And events of what nobody knows are not waited for."""
    assert (await site.get("/v1/requests/a/events"))[0] == 404
    await site.begin("a")
    assert (await site.get("/v1/requests/a/events?after=$"))[0] == 400
    assert (await site.get("/v1/requests/a/events", Last_Event_ID="x"))[0] == 400


async def test_events_come_as_they_are_written(site: Site) -> None:
    """Of a request that is still queued when it is first asked for."""
    await site.queue("a")
    async with site.http.get("/v1/requests/a/events") as reply:
        assert await reply.content.readuntil(b"\n\n") == b"retry: 1000\n\n"
        await site.begin("a", "one")
        assert b"id: 1-0\n" in await asyncio.wait_for(reply.content.readuntil(b"\n\n"), 5)
        assert b"id: 1-1\n" in await asyncio.wait_for(reply.content.readuntil(b"\n\n"), 5)
        await site.end("a")
        assert f"id: {FINAL_ID}\n".encode() in await asyncio.wait_for(reply.content.readuntil(b"\n\n"), 5)
        assert await asyncio.wait_for(reply.content.read(), 5) == b""


async def test_connection_that_is_silent_is_kept_and_ends_when_the_events_expire(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A comment says nothing; who comes back to what has expired is told that nobody knows it."""
    monkeypatch.setattr(native, "KEEP_ALIVE_SECONDS", 0.2)
    await site.begin("a")
    async with site.http.get("/v1/requests/a/events") as reply:
        await reply.content.readuntil(b"id: 1-0\n")
        await asyncio.wait_for(reply.content.readuntil(b"\n\n:\n\n"), 5)
        await site.redis.delete("llm:events:a")
        assert set(await asyncio.wait_for(reply.content.read(), 5)) <= set(b":\n")
    assert (await site.get("/v1/requests/a/events", Last_Event_ID="1-0"))[0] == 404


async def test_dropped_connection_ends_nothing(site: Site) -> None:
    """Of who follows, of who waits, of who has just asked."""
    await site.begin("a", "one")
    async with site.http.get("/v1/requests/a/events") as reply:
        await reply.content.readuntil(b"id: 1-1\n")
    for waits in (
        site.get("/v1/requests/a", Prefer="wait=60"),
        site.post("/v1/requests", {"prompt": "hi", "id": "b"}, Prefer="wait=60"),
    ):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(waits, 0.3)
    await asyncio.sleep(0.5)
    assert (await site.get("/v1/requests/a"))[2]["status"] == "running"
    assert (await site.get("/v1/requests/b"))[2]["status"] == "queued"
    assert not await site.redis.exists("llm:events:b")


@pytest.mark.parametrize("hangs_up_after_seconds", [0.4, 0.75])
async def test_who_hangs_up_while_he_submits_can_come_back(hangs_up_after_seconds: float) -> None:
    """Before it is added, and while nobody knows whether it was: he finds no end that nobody asked for."""
    with running_valkey(tcp=True) as server:
        async with open_proxy(server.port) as proxy, open_site(proxy.url) as site:
            await eventually(lambda: not site.exchange.plexer.trouble)
            await site.get("/health")  # so that there is a connection
            proxy.delay_seconds = 0.3
            asked = site.post("/v1/requests", {"prompt": "hi"}, Idempotency_Key="k")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asked, hangs_up_after_seconds)
            await asyncio.sleep(0.5)
            proxy.delay_seconds = 0.0
            assert (await site.post("/v1/requests", {"prompt": "hi"}, Idempotency_Key="k"))[0] == 202
            await asyncio.sleep(0.5)
            status, _, told = await site.get("/v1/requests/k")
            assert (status, told["status"]) == (202, "queued")


async def test_when_redis_goes_the_stream_ends_and_can_be_taken_up() -> None:
    """No second answer in a stream that has begun; a question meanwhile is told to come again."""
    with running_valkey(tcp=True) as server:
        async with open_site(server.url) as site:
            await site.begin("a", "one")
            async with site.http.get("/v1/requests/a/events") as reply:
                await reply.content.readuntil(b"id: 1-1\n")
                server.kill()
                status, _, told = await site.get("/v1/requests/a")
                assert (status, told["error"]["code"]) == (503, "unavailable")
                assert (await site.get("/health"))[0] == 503


# ------------------------------------------------------------------ ending


async def test_delete_ends_what_there_is_once(site: Site) -> None:
    """And tells what stands, also when that is another end; of what nobody knows nothing is written."""
    async with site.http.delete("/v1/requests/a") as reply:
        assert reply.status == 404
    assert await site.redis.dbsize() == 0
    await site.queue("a")
    told = []
    for _ in range(2):
        async with site.http.delete("/v1/requests/a") as reply:
            assert reply.status == 200
            told.append(await reply.json())
    assert told[0] == told[1]
    assert (told[0]["type"], told[0]["data"]["id"]) == ("cancelled", "a")
    await site.write("b", FINAL_ID, "error", {"id": "b", "code": "internal", "message": "m", "attempts": []})
    async with site.http.delete("/v1/requests/b") as reply:
        assert (await reply.json())["type"] == "error"


async def test_delete_ends_a_stream_that_was_resumed(site: Site) -> None:
    """Whoever follows it sees the end."""
    await site.begin("a", "one")
    async with site.http.get("/v1/requests/a/events?after=1-1") as reply:
        await reply.content.readuntil(b"\n\n")
        async with site.http.delete("/v1/requests/a"):
            pass
        assert b"event: cancelled\n" in await asyncio.wait_for(reply.content.read(), 5)


# ------------------------------------------------------------------ a person's word


async def test_word_to_a_call_goes_into_the_consent_stream(site: Site) -> None:
    """With who said it, and not for ever."""
    await site.begin("a", *"x" * 600)
    await site.write("a", "1-999", "tool_call", CALL)
    body = {"confirm": True, "args_sha256": "aa", "always": True}
    status, _, told = await site.post("/v1/requests/a/confirmations/c1", body)
    assert (status, told["call_id"]) == (202, "c1")
    ((_, entry),) = await site.redis.xrange("llm:consent:a")
    assert entry == {"confirm": "c1", "args_sha256": "aa", "by": "ann", "always": "1"}
    assert 0 < await site.redis.ttl("llm:consent:a") <= 3600


async def test_word_that_does_not_count_is_not_written(site: Site) -> None:
    """With a status for each reason; the time is the server's."""
    path, yes = "/v1/requests/a/confirmations/c1", {"confirm": True, "args_sha256": "aa"}
    assert (await site.post(path, yes))[0] == 404
    await site.begin("a")
    assert (await site.post(path, yes))[0] == 404
    await site.write("a", "1-1", "tool_call", CALL | {"confirm": False})
    assert (await site.post(path, yes))[0] == 409
    seconds, _ = await site.redis.time()
    await site.write("a", "1-2", "tool_call", CALL | {"expires_at_ms": seconds * 1000 - 1})
    assert (await site.post(path, yes))[0] == 410
    await site.write("a", "1-3", "tool_call", CALL | {"expires_at_ms": seconds * 1000 + 60_000})
    assert (await site.post(path, yes | {"args_sha256": "bb"}))[0] == 412
    await site.write("a", "1-4", "denied", {"call_id": "c1", "by": "bob"})
    status, _, told = await site.post(path, yes)
    assert (status, told["error"]["code"], "by bob" in told["error"]["message"]) == (409, "denied", True)
    assert (await site.post(path, {"confirm": True}))[0] == 400
    await site.end("a")
    assert (await site.post(path, yes))[0] == 409
    assert not await site.redis.exists("llm:consent:a")


async def test_health_says_whether_redis_answers(site: Site) -> None:
    """And nothing that is anybody's."""
    status, _, told = await site.get("/health")
    assert (status, told) == (200, {"status": "ok", "redis": "ok", "has_workers": False})


async def test_what_a_request_waits_for_is_known_while_it_waits_and_not_after(site: Site) -> None:
    """The newest event says so; one that others wrote, and that is none, is no wait."""
    first, second = EVENTS["queued"]
    await site.queue("a")
    await site.write("a", "0-1", "queued", second)
    await site.write("a", "0-2", "queued", first)
    status, _, told = await site.get("/v1/requests/a")
    assert (status, told["status"], told["queued"]) == (202, "queued", first)
    assert "attempt" not in told
    await site.begin("a")
    _, _, told = await site.get("/v1/requests/a")
    assert (told["status"], told["attempt"], told["deployment"], told.get("queued")) == ("running", 1, "small", None)
    await site.write("a", "1-5", "rejected", EVENTS["rejected"][0])
    await site.write("a", "1-6", "queued", second)
    _, _, told = await site.get("/v1/requests/a")
    assert (told["status"], told["attempt"], told["queued"]) == ("queued", 1, second)
    await site.write("a", "1-7", "queued", "no JSON")
    _, _, told = await site.get("/v1/requests/a")
    assert (told["status"], told.get("queued")) == ("running", None)
    await site.end("a")
    status, _, told = await site.get("/v1/requests/a")
    assert (status, told["type"]) == (200, "cancelled")


async def test_wait_is_an_event_like_all_others_to_who_follows_and_resumes(site: Site) -> None:
    """Its ID goes before that of the first attempt; whoever has seen it is not told again."""
    await site.write("a", "0-1", "queued", EVENTS["queued"][0])
    await site.begin("a")
    await site.end("a")
    async with site.http.get("/v1/requests/a/events") as reply:
        (wait, *_) = [frame for frame in await frames(reply) if "id" in frame]
    assert (wait["id"], wait["event"], json.loads(wait["data"])) == ("0-1", "queued", EVENTS["queued"][0])
    assert await ids(site, "/v1/requests/a/events", Last_Event_ID="0-1") == ["1-0", FINAL_ID]
    status, headers, events = await site.get("/v1/requests/a/stream?offset=-1")
    assert (status, [each["type"] for each in events]) == (200, ["queued", "attempt", "cancelled"])
    assert headers["Stream-Closed"] == "true"
