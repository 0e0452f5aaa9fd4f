"""`Prefer: respond-async` at the doors of other protocols: taken, and where to come back to."""

from __future__ import annotations

import pytest

from tests.gateway.application import open_site

MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"model": "small", "messages": MESSAGES, "stream": True}),
        ("/v1/messages", {"model": "small", "messages": MESSAGES, "max_tokens": 5}),
        ("/api/chat", {"model": "small", "messages": MESSAGES}),
        ("/complete", {"model": "small", "prompt": "hi"}),
    ],
)
async def test_it_is_taken_and_goes_on(valkey_url: str, path: str, body: dict[str, object]) -> None:
    """With the native door's answer; its end is found there."""
    async with open_site(valkey_url) as site:
        status, headers, told = await site.post(path, body, Prefer="respond-async")
        assert (status, told["status"], headers["Preference-Applied"]) == (202, "queued", "respond-async")
        assert headers["Location"] == told["links"]["self"] == f"/v1/requests/{headers['X-Request-ID']}"
        assert await site.redis.xlen("llm:requests") == 1
        assert (await site.get(told["links"]["self"]))[0] == 202
        await site.begin(told["id"], "Hello")
        await site.end(told["id"])
        assert (await site.get(told["links"]["self"]))[2]["type"] == "cancelled"


async def test_an_unsound_one_is_refused_at_once(valkey_url: str) -> None:
    """As ever."""
    async with open_site(valkey_url) as site:
        status, _, _ = await site.post("/v1/chat/completions", {"model": "small"}, Prefer="respond-async")
        assert status == 400
        assert await site.redis.xlen("llm:requests") == 0
