"""The native door by curl, as a shell has it: ask, follow, be cut off, go on, look at the end."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from typing import TYPE_CHECKING

import pytest

from tests.clients.site import HOSTILE_TEXT, REFUSED, slow_prompt

if TYPE_CHECKING:
    from tests.clients.site import Site

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here"),
]


async def curl(*arguments: str) -> str:
    """What it prints."""
    process = await asyncio.create_subprocess_exec(
        "curl", "--silent", "--max-time", "20", *arguments, stdout=asyncio.subprocess.PIPE
    )
    told, _ = await process.communicate()
    return told.decode()


async def ask(site: Site, prompt: str, *arguments: str) -> dict[str, str]:
    """POST of a prompt: what is told of it."""
    body = json.dumps({"prompt": prompt, "stream": "live"})
    told: dict[str, str] = json.loads(await curl(f"{site.url}/v1/requests", "--data", body, *arguments))
    return told


def ids(events: str) -> list[str]:
    """The IDs of the events that are whole."""
    return [found[1] for event in events.split("\n\n")[:-1] if (found := re.search(r"^id: (\S+)", event, re.MULTILINE))]


async def test_cut_off_and_taken_up_again(site: Site) -> None:
    """Every event once, and the text to the byte."""
    told = await ask(site, f"[[delay_ms=30 answer='{HOSTILE_TEXT} {'and more ' * 30}end']]")
    url = f"{site.url}/v1/requests/{told['id']}"
    before = ids(await curl("--no-buffer", "--max-time", "0.6", f"{url}/events"))
    assert before
    after = await curl("--no-buffer", f"{url}/events", "-H", f"Last-Event-ID: {before[-1]}")
    assert before + ids(after) == [event.stream_id async for event in site.queue.follow(told["id"])]
    end = json.loads(await curl(url))
    assert end["type"] == "result"
    assert end["data"]["content"].startswith(HOSTILE_TEXT)


async def test_waited_for_and_asked_once(site: Site) -> None:
    """The end at once, the same for the same key."""
    same = ("-H", "Idempotency-Key: by-curl", "-H", "Prefer: wait=10")
    first, second = await ask(site, "[[answer=One]]", *same), await ask(site, "[[answer=Two]]", *same)
    assert first == second
    assert json.dumps(first).count("One")


async def test_stopped(site: Site) -> None:
    """By DELETE, and by nothing else: a connection that drops does not."""
    prompt, mark = slow_prompt()
    told = await ask(site, prompt)
    url = f"{site.url}/v1/requests/{told['id']}"
    await curl("--max-time", "0.5", f"{url}/events")
    assert json.loads(await curl(url))["status"] == "running"
    assert json.loads(await curl("-X", "DELETE", url))["type"] == "cancelled"
    await site.until_hung_up(mark)


async def test_failed(site: Site) -> None:
    """The request was taken, and its end is an error."""
    told = await ask(site, REFUSED, "-H", "Prefer: wait=10")
    assert (told["type"], json.dumps(told).count("chain_exhausted")) == ("error", 1)
    status = await curl("-o", "/dev/null", "-w", "%{http_code}", f"{site.url}/v1/requests", "--data", '{"prmpt": "x"}')
    assert status == "400"
