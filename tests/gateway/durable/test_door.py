"""The read side of Durable Streams over HTTP, with events that the test writes."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from llm_routerd.gateway.doors.durable.offsets import END, offset_of
from llm_routerd.gateway.http import durable
from llm_routerd.protocol.events import FINAL_ID
from tests.gateway.application import Site, open_site

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

START = offset_of("0-0")
PATH = "/v1/requests/a/stream"


@pytest_asyncio.fixture
async def site(valkey_url: str) -> AsyncIterator[Site]:
    """The doors at a real server."""
    async with open_site(valkey_url) as opened:
        yield opened


def ids(told: list[dict[str, Any]]) -> list[str]:
    """The IDs of events."""
    return [each["id"] for each in told]


async def sse(site: Site, query: str, seconds: float = 5) -> list[tuple[str, Any]]:
    """The server-sent events of a live read, to its end; comments left out."""
    async with site.http.get(f"{PATH}?{query}&live=sse") as reply:
        assert reply.status == 200, await reply.text()
        assert reply.headers["Content-Type"] == "text/event-stream"
        text = (await asyncio.wait_for(reply.read(), seconds)).decode()
    found = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        if not block.startswith(":"):
            event, data = block.split("\n")
            found.append((event.removeprefix("event: "), json.loads(data.removeprefix("data:"))))
    return found


async def test_queued_request_is_an_empty_open_stream(site: Site) -> None:
    """What nobody knows is none."""
    assert (await site.get(PATH))[0] == 404
    async with site.http.head(PATH) as reply:
        assert reply.status == 404
    await site.queue("a")
    status, headers, told = await site.get(PATH)
    assert (status, told, headers["Content-Type"]) == (200, [], "application/json")
    assert (headers["Stream-Next-Offset"], headers["Stream-Up-To-Date"]) == (START, "true")
    assert "Stream-Closed" not in headers


async def test_reading_page_by_page_brings_each_event_once(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the last page is up to date, and closed where the stream is."""
    monkeypatch.setattr(durable, "MOST_EVENTS", 7)
    await site.begin("a", *"x" * 20)
    await site.end("a")
    offset, found, pages = "-1", list[str](), 0
    while True:
        _, headers, told = await site.get(f"{PATH}?offset={offset}")
        assert headers["Stream-Next-Offset"] > (START if offset == "-1" else offset)
        offset, pages = headers["Stream-Next-Offset"], pages + 1
        found += ids(told)
        assert ("Stream-Up-To-Date" in headers) == ("Stream-Closed" in headers) == (offset == END)
        if "Stream-Closed" in headers:
            break
    assert (found, pages) == (["1-0", *[f"1-{place}" for place in range(1, 21)], FINAL_ID], 4)
    status, headers, told = await site.get(f"{PATH}?offset={offset}")
    assert (status, told, headers["Stream-Closed"], headers["Stream-Next-Offset"]) == (200, [], "true", END)


async def test_head_tells_the_end_and_now_begins_there(site: Site) -> None:
    """Neither is to be cached, and `now` has no tag."""
    await site.begin("a", "x")
    async with site.http.head(PATH) as reply:
        assert (reply.status, reply.headers["Stream-Next-Offset"]) == (200, offset_of("1-1"))
        assert (reply.headers["Cache-Control"], "Stream-Closed" in reply.headers) == ("no-store", False)
        assert await reply.read() == b""
    _, headers, told = await site.get(f"{PATH}?offset=now")
    assert (told, headers["Stream-Next-Offset"], "ETag" in headers) == ([], offset_of("1-1"), False)
    await site.end("a")
    async with site.http.head(PATH) as reply:
        assert (reply.headers["Stream-Next-Offset"], reply.headers["Stream-Closed"]) == (END, "true")
    _, headers, told = await site.get(f"{PATH}?offset=now")
    assert (told, headers["Stream-Closed"]) == ([], "true")


async def test_tag_stands_for_what_was_read_until_there_is_more(site: Site) -> None:
    """Also for the end, which may not be hidden."""
    await site.begin("a", "x")
    _, headers, _ = await site.get(PATH)
    tag = headers["ETag"]
    assert (await site.get(PATH, If_None_Match=f'"other", {tag}'))[0] == 304
    assert (await site.get(PATH, If_None_Match=f"W/{tag}"))[0] == 304
    tail = headers["Stream-Next-Offset"]
    _, headers, _ = await site.get(f"{PATH}?offset={tail}")
    await site.end("a")
    assert (await site.get(PATH, If_None_Match=tag))[0] == 200
    assert (await site.get(f"{PATH}?offset={tail}", If_None_Match=headers["ETag"]))[0] == 200


@pytest.mark.parametrize(
    "query",
    ["offset=", "offset=0", "offset=1-0", "offset=a,b", "offset=-1&offset=-1", "live=sse", "live=long-poll",
     "live=x&offset=-1", f"offset={END}", "offset=9999999999999999_00000000000000000000"],
)  # fmt: skip
async def test_what_is_no_place_is_refused(site: Site, query: str) -> None:
    """Also one beyond the end of a stream that has none yet."""
    await site.begin("a", "x")
    status, headers, told = await site.get(f"{PATH}?{query}")
    assert (status, told["error"]["code"]) == (400, "invalid_request")
    assert headers["X-Content-Type-Options"] == "nosniff"


async def test_long_poll_answers_at_once_or_when_there_is_something(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And with 204 when nothing has come in time; at the end without waiting."""
    await site.begin("a", "x")
    status, headers, told = await site.get(f"{PATH}?offset=-1&live=long-poll")
    assert (status, ids(told)) == (200, ["1-0", "1-1"])
    tail, cursor = headers["Stream-Next-Offset"], headers["Stream-Cursor"]
    waiting = [
        asyncio.create_task(site.get(f"{PATH}?offset={offset}&live=long-poll&cursor={cursor}"))
        for offset in (tail, "now")
    ]
    await asyncio.sleep(0.3)
    await site.write("a", "1-2", "token", {"text": "y"})
    for each in waiting:
        status, headers, told = await asyncio.wait_for(each, 5)
        assert (status, ids(told), headers["Stream-Next-Offset"]) == (200, ["1-2"], offset_of("1-2"))
        assert int(headers["Stream-Cursor"]) > int(cursor)
    monkeypatch.setattr(durable, "LONG_POLL_SECONDS", 0.2)
    status, headers, told = await site.get(f"{PATH}?offset=now&live=long-poll")
    assert (status, told, headers["Stream-Up-To-Date"]) == (204, None, "true")
    monkeypatch.setattr(durable, "LONG_POLL_SECONDS", 60)
    await site.end("a")
    for offset in ("now", END):
        status, headers, _ = await asyncio.wait_for(site.get(f"{PATH}?offset={offset}&live=long-poll"), 5)
        assert (status, headers["Stream-Closed"], "Stream-Cursor" in headers) == (204, "true", False)


async def test_live_stream_tells_what_was_what_comes_and_the_end(site: Site) -> None:
    """Each `data` with a `control`, of which the last closes; each event once."""
    await site.begin("a", "x")
    following = asyncio.create_task(sse(site, "offset=-1"))
    await asyncio.sleep(0.3)
    await site.begin("a", "y", attempt=2)
    await asyncio.sleep(0.3)
    await site.end("a")
    found = await asyncio.wait_for(following, 5)
    assert [kind for kind, _ in found] == ["data", "control"] * (len(found) // 2)
    assert ids([each for kind, told in found if kind == "data" for each in told]) == [
        "1-0", "1-1", "2-0", "2-1", FINAL_ID,
    ]  # fmt: skip
    first, *_, last = [told for kind, told in found if kind == "control"]
    assert (first["streamNextOffset"], first["upToDate"]) == (offset_of("1-1"), True)
    assert int(first["streamCursor"]) > 0
    assert last == {"streamNextOffset": END, "upToDate": True, "streamClosed": True}


async def test_live_stream_from_each_offset_brings_the_rest_once(site: Site) -> None:
    """Of a stream that is closed: `control` alone, where nothing is left."""
    await site.begin("a", *"x" * 5)
    await site.end("a")
    every = ["1-0", *[f"1-{place}" for place in range(1, 6)], FINAL_ID]
    for place, event_id in enumerate(every):
        found = await sse(site, f"offset={offset_of(event_id)}")
        assert ids([each for kind, told in found if kind == "data" for each in told]) == every[place + 1 :]
    assert await sse(site, "offset=now") == await sse(site, f"offset={END}")
    assert await sse(site, "offset=now") == [
        ("control", {"streamNextOffset": END, "upToDate": True, "streamClosed": True})
    ]


async def test_live_stream_ends_after_its_time_and_goes_on_where_it_was(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that caches between can join those who follow the same; a silence is filled."""
    monkeypatch.setattr(durable, "SSE_SECONDS", 1.0)
    monkeypatch.setattr(durable, "KEEP_ALIVE_SECONDS", 0.2)
    await site.begin("a", "x")
    ((_, first), (_, control)) = await sse(site, "offset=-1")
    assert ids(first) == ["1-0", "1-1"]
    await site.write("a", "1-2", "token", {"text": "y"})
    ((_, second), _) = await sse(site, f"offset={control['streamNextOffset']}")
    assert ids(second) == ["1-2"]
