"""Libraries in Python that speak OpenAI's protocol, against the gateway: LangChain's `ChatOpenAI`, and litellm."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.clients.site import BREAKS, HOSTILE_TEXT, REFUSED, slow_prompt
from tests.clients.test_openai import PLACE, TOOL, answer_with, said

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.clients.site import Site

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.filterwarnings("ignore"),  # theirs
]


class LangChain:
    """`ChatOpenAI`, each of whose pieces adds to the one before."""

    def __init__(self, package: Any, url: str) -> None:
        self._chat = package.ChatOpenAI(model="default", base_url=f"{url}/v1", api_key="none", max_retries=0)

    async def text(self, prompt: str) -> tuple[str, int]:
        """Of a whole answer, and its tokens."""
        found = await self._chat.ainvoke(prompt)
        return found.content, found.usage_metadata["output_tokens"]

    async def pieces(self, prompt: str) -> Any:
        """Of a stream, as they come."""
        async for piece in self._chat.astream(prompt):
            if piece.content:
                yield piece.content

    async def call(self, prompt: str) -> tuple[str, Any]:
        """The name and the arguments of the one call in an answer."""
        (call,) = (await self._chat.bind_tools([TOOL]).ainvoke(prompt)).tool_calls
        return call["name"], call["args"]

    async def place(self, prompt: str) -> Any:
        """What satisfies the schema."""
        wanted = {"title": "place", "description": "A place.", **PLACE}
        return await self._chat.with_structured_output(wanted, method="json_schema").ainvoke(prompt)


class LiteLLM:
    """litellm as a client of what is compatible with OpenAI."""

    def __init__(self, package: Any, url: str) -> None:
        self._package = package
        self._asked = {"model": "openai/default", "base_url": f"{url}/v1", "api_key": "none", "max_retries": 0}

    async def _ask(self, prompt: str, **named: Any) -> Any:
        return await self._package.acompletion(messages=said(prompt), **self._asked, **named)

    async def text(self, prompt: str) -> tuple[str, int]:
        """As LangChain's."""
        found = await self._ask(prompt)
        return found.choices[0].message.content, found.usage.completion_tokens

    async def pieces(self, prompt: str) -> Any:
        """As LangChain's."""
        stream = await self._ask(prompt, stream=True)
        try:
            async for chunk in stream:
                if chunk.choices[0].delta.content:
                    yield chunk.choices[0].delta.content
        finally:
            await stream.aclose()

    async def call(self, prompt: str) -> tuple[str, Any]:
        """As LangChain's."""
        (call,) = (await self._ask(prompt, tools=[TOOL])).choices[0].message.tool_calls
        return call.function.name, json.loads(call.function.arguments)

    async def place(self, prompt: str) -> Any:
        """As LangChain's."""
        wanted = {"type": "json_schema", "json_schema": {"name": "place", "strict": True, "schema": PLACE}}
        return json.loads((await self._ask(prompt, response_format=wanted)).choices[0].message.content)


@pytest.fixture(params=[("langchain_openai", LangChain), ("litellm", LiteLLM)], ids=["langchain", "litellm"])
def library(
    request: pytest.FixtureRequest, python_client: Callable[[str], Any], site: Site, monkeypatch: pytest.MonkeyPatch
) -> Any:
    """Each in turn."""
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # it would fetch one
    name, kind = request.param
    return kind(python_client(name), site.url)


async def test_text(library: Any) -> None:
    """It comes to the byte, with its usage."""
    text, tokens = await library.text(answer_with(HOSTILE_TEXT))
    assert text == HOSTILE_TEXT
    assert tokens > 0


async def test_streamed(library: Any) -> None:
    """The same text in pieces."""
    assert "".join([piece async for piece in library.pieces(answer_with(HOSTILE_TEXT))]) == HOSTILE_TEXT


async def test_tools(library: Any) -> None:
    """The call comes whole."""
    name, arguments = await library.call("[[call=weather]] How warm is it?")
    assert name == "weather"
    assert arguments.keys() == {"city", "degrees"}


@pytest.mark.parametrize("prompt", ["Where?", "[[json=fence]] Where?"])
async def test_schema(library: Any, prompt: str) -> None:
    """The client finds in the answer what it has asked for."""
    assert (await library.place(prompt)).keys() == {"city", "degrees"}


async def test_error(library: Any) -> None:
    """The status is where the client looks for it."""
    with pytest.raises(Exception, match=r"refusal") as caught:
        await library.text(REFUSED)
    assert getattr(caught.value, "status_code", None) == 503


async def test_stream_that_breaks(library: Any) -> None:
    """The client knows that the answer is not whole."""
    with pytest.raises(Exception, match=r".") as caught:
        _ = [piece async for piece in library.pieces(BREAKS)]
    assert "Error" in type(caught.value).__name__


async def test_hanging_up_cancels(library: Any, site: Site) -> None:
    """The model is not left to talk to nobody."""
    prompt, mark = slow_prompt()
    pieces = library.pieces(prompt)
    assert await anext(pieces)
    await pieces.aclose()
    await site.until_hung_up(mark)
