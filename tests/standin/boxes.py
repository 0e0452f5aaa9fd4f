"""How tests talk to a box.

async with at_box(Box(models={"m": Model(size=6 * GB, load_seconds=0.1)}, memory=8 * GB)) as at:
    answer = await at.chat("m", "Hello")                        # of /api/chat, whole
    assert at.call["cut"] is False                              # the log's newest line
    assert (await at.get("/_standin/state"))["loads"] == {"m": 1}
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp

from tests.standin.server import StandIn

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.standin.box import Box


@dataclass(frozen=True, slots=True)
class At:
    """A box, and a client of it."""

    server: StandIn
    session: aiohttp.ClientSession

    @property
    def call(self) -> dict[str, Any]:
        """The newest call's line of the log."""
        return self.server.calls[-1]

    @property
    def state(self) -> dict[str, Any]:
        """The truth."""
        return self.server.state()

    @property
    def resident(self) -> list[str]:
        """The models that are there, in truth."""
        return sorted(each["model"] for each in self.state["resident"])

    async def get(self, path: str) -> Any:
        """What a page holds."""
        async with self.session.get(self.server.url + path) as response:
            return await response.json()

    async def post(self, path: str, **body: Any) -> tuple[int, Any]:
        """A status, and what was answered."""
        async with self.session.post(self.server.url + path, json=body) as response:
            return response.status, await response.json()

    async def chat(self, model: str, said: str | list[dict[str, Any]] = "Hello", **more: Any) -> dict[str, Any]:
        """The whole answer of `/api/chat`.

        Raises:
            aiohttp.ClientResponseError: it was an error.
        """
        messages = [{"role": "user", "content": said}] if isinstance(said, str) else said
        body = {"model": model, "messages": messages, "stream": False, **more}
        async with self.session.post(f"{self.server.url}/api/chat", json=body, raise_for_status=True) as response:
            answer: dict[str, Any] = await response.json()
            return answer


@asynccontextmanager
async def at_box(box: Box) -> AsyncIterator[At]:
    """A box in this process."""
    async with StandIn(box=box) as server, aiohttp.ClientSession() as session:
        yield At(server, session)
