"""Clients in Node against the gateway: OpenAI's, Anthropic's and Ollama's own, and Vercel's AI SDK."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.clients.site import BREAKS, HOSTILE_TEXT, REFUSED, slow_prompt

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.clients.site import Site

    Node = Callable[..., Awaitable[Any]]

pytestmark = pytest.mark.asyncio(loop_scope="session")

ANSWER = f'[[answer="{HOSTILE_TEXT}"]]'
# With what each finds as the word for that no model has answered.
CODES = {
    "openai.js": "chain_exhausted",
    "ai_sdk.js": "chain_exhausted",
    "anthropic.js": "overloaded_error",
    "ollama.js": None,
}
SCRIPTS = list(CODES)


@pytest.mark.parametrize(
    ("script", "case"),
    [(script, case) for script in SCRIPTS for case in ("plain", "streamed")]
    + [("openai.js", "response"), ("openai.js", "response_streamed")],
)
async def test_text(node: Node, site: Site, script: str, case: str) -> None:
    """It comes to the byte, with its usage."""
    found = await node(script, site.url, case, ANSWER)
    assert found["text"] == HOSTILE_TEXT
    assert found["tokens"] > 0


@pytest.mark.parametrize("script", SCRIPTS)
async def test_tools(node: Node, site: Site, script: str) -> None:
    """The call comes whole."""
    ((name, arguments),) = await node(script, site.url, "tools", "[[call=weather]] How warm is it?")
    assert name == "weather"
    assert arguments.keys() == {"city", "degrees"}


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("prompt", ["Where?", "[[json=fence]] Where?"])
async def test_schema(node: Node, site: Site, script: str, prompt: str) -> None:
    """The client finds in the answer what it has asked for."""
    assert (await node(script, site.url, "schema", prompt)).keys() == {"city", "degrees"}


@pytest.mark.parametrize("script", SCRIPTS)
async def test_error(node: Node, site: Site, script: str) -> None:
    """Status and code are where the client looks for them."""
    found = await node(script, site.url, "error", REFUSED)
    assert (found["status"], found["code"]) == (503, CODES[script])
    assert found.get("named", True)


@pytest.mark.parametrize("script", SCRIPTS)
async def test_stream_that_breaks(node: Node, site: Site, script: str) -> None:
    """The client knows that the answer is not whole."""
    assert await node(script, site.url, "broken", BREAKS) == {"raised": True}


@pytest.mark.parametrize("script", SCRIPTS)
async def test_hanging_up_cancels(node: Node, site: Site, script: str) -> None:
    """The model is not left to talk to nobody."""
    prompt, mark = slow_prompt()
    assert await node(script, site.url, "cancel", prompt) == {"left": True}
    await site.until_hung_up(mark)


@pytest.mark.parametrize("script", ["ai_sdk.js", "anthropic.js", "ollama.js"])
async def test_thinking(node: Node, site: Site, script: str) -> None:
    """It comes apart from the answer; the AI SDK understands what OpenAI's imitators tell of it."""
    found = await node(script, site.url, "reasoning", '[[reasoning="Hm, well." answer=Yes.]]')
    assert found == {"text": "Yes.", "reasoning": "Hm, well."}
