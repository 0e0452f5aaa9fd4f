"""Ollama's own client in Python against the gateway."""

from __future__ import annotations

import json
from base64 import b64encode
from typing import TYPE_CHECKING, Any

import pytest

from tests.clients.site import BREAKS, HOSTILE_TEXT, REFUSED, slow_prompt

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.clients.site import Site

pytestmark = pytest.mark.asyncio(loop_scope="session")

PLACE = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "degrees": {"type": "integer"}},
    "required": ["city", "degrees"],
}
TOOL: Any = {"type": "function", "function": {"name": "weather", "description": "How warm it is.", "parameters": PLACE}}
ANSWER = f'[[answer="{HOSTILE_TEXT}"]]'


@pytest.fixture(scope="session")
def ollama(python_client: Callable[[str], Any]) -> Any:
    """The package."""
    return python_client("ollama")


@pytest.fixture
async def client(ollama: Any, site: Site) -> AsyncIterator[Any]:
    """A client."""
    async with ollama.AsyncClient(host=site.url) as found:
        yield found


def said(text: str, **more: Any) -> list[dict[str, Any]]:
    """A conversation of one message."""
    return [{"role": "user", "content": text, **more}]


async def pieces(stream: Any, into: list[Any] | None = None) -> list[Any]:
    """All that comes; `into` has it also where the stream breaks."""
    found: list[Any] = [] if into is None else into
    async for piece in stream:
        found += [piece]
    return found


async def test_chat(client: Any) -> None:
    """A whole answer, to the byte, with what it took."""
    found = await client.chat("default:latest", said(ANSWER))
    assert found.message.content == HOSTILE_TEXT
    assert (found.done, found.done_reason) == (True, "stop")
    assert min(found.prompt_eval_count, found.eval_count, found.total_duration) > 0


async def test_chat_streamed(client: Any) -> None:
    """The same text in pieces, and what it took at the end."""
    found = await pieces(await client.chat("default", said(ANSWER), stream=True))
    assert "".join(piece.message.content for piece in found) == HOSTILE_TEXT
    assert [piece.done for piece in found] == [False] * (len(found) - 1) + [True]
    assert found[-1].eval_count > 0


async def test_generate(client: Any) -> None:
    """A prompt, whole and in pieces."""
    assert (await client.generate("default", ANSWER, system="Be brief.")).response == HOSTILE_TEXT
    found = await pieces(await client.generate("default", ANSWER, stream=True))
    assert "".join(piece.response for piece in found) == HOSTILE_TEXT


async def test_thinking(client: Any) -> None:
    """It comes apart from the answer, and not where it is not wanted."""
    prompt = said('[[reasoning="Hm, well." answer=Yes.]]')
    found = await pieces(await client.chat("default", prompt, think=True, stream=True))
    assert "".join(piece.message.thinking or "" for piece in found) == "Hm, well."
    assert "".join(piece.message.content for piece in found) == "Yes."
    found = await pieces(await client.chat("default", prompt, think=False, stream=True))
    assert not any(piece.message.thinking for piece in found)


@pytest.mark.parametrize("streams", [False, True])
async def test_tools(client: Any, *, streams: bool) -> None:
    """The call comes whole, and its result goes back."""
    asked = said("[[call=weather]] How warm is it?")
    found = await client.chat("default", asked, tools=[TOOL], stream=streams)
    messages = [piece.message for piece in await pieces(found)] if streams else [found.message]
    (message,) = [message for message in messages if message.tool_calls]
    (call,) = message.tool_calls
    assert (call.function.name, call.function.arguments.keys()) == ("weather", {"city", "degrees"})
    result = {"role": "tool", "tool_name": "weather", "content": "21"}
    again = await client.chat("default", [*asked, message, result, *said("[[answer=Warm.]]")])
    assert again.message.content == "Warm."


@pytest.mark.parametrize("wanted", ["json", PLACE])
@pytest.mark.parametrize("kind", ["", "fence"])
async def test_format(client: Any, kind: str, wanted: Any) -> None:
    """The answer is JSON that satisfies it, and nothing but JSON, whatever a model writes around it."""
    prompt = f"[[json={kind}]] Where?" if kind else "Where?"
    found = await pieces(await client.chat("default", said(prompt), format=wanted, stream=True))
    told = json.loads("".join(piece.message.content for piece in found))
    assert isinstance(told, dict)
    assert wanted == "json" or told.keys() == {"city", "degrees"}


async def test_images(client: Any) -> None:
    """The client sends what lies in them, and they are known by that."""
    png = b64encode(b"\x89PNG\r\n\x1a\n" + bytes(40)).decode()
    assert (await client.chat("default", said("[[answer=Seen.]]", images=[png]))).message.content == "Seen."


async def test_an_answer_ends_at_its_limit(client: Any) -> None:
    """What came until then counts, and says so."""
    found = await client.generate("default", "[[tokens=50 length]]", options={"num_predict": 50, "num_ctx": 8192})
    assert found.done_reason == "length"
    assert found.response


async def test_loading_asks_no_model(client: Any, site: Site) -> None:
    """It is answered at once."""
    before = len(site.standin.calls)
    assert (await client.chat("default", [])).done_reason == "load"
    assert (await client.generate("default", keep_alive=0)).done_reason == "unload"
    assert len(site.standin.calls) == before


async def test_what_there_is(client: Any) -> None:
    """Chains, deployments and aliases."""
    names = {model.model for model in (await client.list()).models}
    assert {"default", "local", "second", "gpt-5"} <= names
    assert (await client.show("default")).details.families == ["ollama/tiny", "openai/big"]
    assert not (await client.ps()).models


async def test_unknown_model(ollama: Any, client: Any) -> None:
    """A 404, which programs look for, with the nearest name."""
    with pytest.raises(ollama.ResponseError, match="default") as caught:
        await client.chat("defautl", said("Hi"))
    assert caught.value.status_code == 404


async def test_refused_option(ollama: Any, client: Any) -> None:
    """A 400 that names it."""
    with pytest.raises(ollama.ResponseError, match=r"options\.mirostat") as caught:
        await client.chat("default", said("Hi"), options={"mirostat": 2})
    assert caught.value.status_code == 400


@pytest.mark.parametrize("streams", [False, True])
async def test_no_answer(ollama: Any, client: Any, *, streams: bool) -> None:
    """A 503 before anything was told, streamed or not."""

    async def ask() -> None:
        found = await client.chat("default", said(REFUSED), stream=streams)
        if streams:
            await pieces(found)

    with pytest.raises(ollama.ResponseError) as caught:
        await ask()
    assert caught.value.status_code == 503


async def test_a_stream_that_breaks(ollama: Any, client: Any) -> None:
    """An error in the stream is raised, and what was told before is there."""
    stream = await client.chat("default", said(BREAKS), stream=True)
    told: list[Any] = []
    with pytest.raises(ollama.ResponseError):
        await pieces(stream, told)
    assert any(piece.message.content for piece in told)


async def test_hanging_up_cancels(client: Any, site: Site) -> None:
    """The model is not left to talk to nobody."""
    prompt, mark = slow_prompt()
    stream = await client.chat("default", said(prompt), stream=True)
    async for piece in stream:
        if piece.message.content:
            break
    await stream.aclose()
    await site.until_hung_up(mark)
