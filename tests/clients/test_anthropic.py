"""Anthropic's own client in Python against the gateway."""

from __future__ import annotations

import json
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
    "additionalProperties": False,
}
TOOL: Any = {"name": "weather", "description": "How warm it is.", "input_schema": PLACE}


@pytest.fixture(scope="session")
def anthropic(python_client: Callable[[str], Any]) -> Any:
    """The package."""
    return python_client("anthropic")


@pytest.fixture
async def client(anthropic: Any, site: Site) -> AsyncIterator[Any]:
    """A client that asks once."""
    async with anthropic.AsyncAnthropic(base_url=site.url, api_key="none", max_retries=0) as found:
        yield found


def asked(text: str, **more: Any) -> dict[str, Any]:
    """A conversation of one message."""
    return {"model": "default", "max_tokens": 1000, "messages": [{"role": "user", "content": text}], **more}


async def message_of(client: Any, body: dict[str, Any], *, streams: bool) -> Any:
    """The message, whole or put together by the client from its events."""
    if not streams:
        return await client.messages.create(**body)
    async with client.messages.stream(**body) as stream:
        return await stream.get_final_message()


async def listen(opening: Any, into: list[str]) -> None:
    """All text that comes, also where the stream breaks."""
    async with opening as stream:
        async for text in stream.text_stream:
            into += [text]


@pytest.mark.parametrize("streams", [False, True])
async def test_text(client: Any, *, streams: bool) -> None:
    """A whole answer, to the byte, with its usage."""
    found = await message_of(client, asked(f'[[answer="{HOSTILE_TEXT}"]]', system="Be brief."), streams=streams)
    (block,) = found.content
    assert block.text == HOSTILE_TEXT
    assert (found.stop_reason, found.model, found.role) == ("end_turn", "default", "assistant")
    assert min(found.usage.input_tokens, found.usage.output_tokens) > 0


async def test_the_id_of_a_message_is_that_of_its_request(client: Any) -> None:
    """Where the client looks for it."""
    found = await client.messages.create(**asked("Hi"))
    assert found.id == f"msg_{found._request_id}"


async def test_thinking(client: Any) -> None:
    """A block of its own before the answer, where it is asked for."""
    prompt = '[[reasoning="Hm, well." answer=Yes.]]'
    found = await message_of(client, asked(prompt, thinking={"type": "adaptive"}), streams=True)
    assert [block.type for block in found.content] == ["thinking", "text"]
    assert (found.content[0].thinking, found.content[1].text) == ("Hm, well.", "Yes.")
    again = await message_of(
        client,
        {
            **asked(""),
            "messages": [
                *asked("Hi")["messages"],
                {"role": "assistant", "content": found.content},
                *asked(prompt)["messages"],
            ],
        },
        streams=True,
    )
    assert [block.type for block in again.content] == ["text"]


@pytest.mark.parametrize("streams", [False, True])
async def test_tools(client: Any, *, streams: bool) -> None:
    """The call comes whole, and it goes back with its result."""
    body = asked("[[call=weather]] How warm is it?", tools=[TOOL])
    found = await message_of(client, body, streams=streams)
    assert found.stop_reason == "tool_use"
    (call,) = [block for block in found.content if block.type == "tool_use"]
    assert (call.name, call.input.keys()) == ("weather", {"city", "degrees"})
    history = [
        *body["messages"],
        {"role": "assistant", "content": found.content},
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": call.id, "content": "21"},
                {"type": "text", "text": "[[answer=Warm.]]"},
            ],
        },
    ]
    again = await message_of(client, {**body, "messages": history}, streams=streams)
    assert again.content[0].text == "Warm."


async def test_a_tool_that_must_be_called(client: Any) -> None:
    """The answer is its call."""
    choice = {"type": "tool", "name": "weather", "disable_parallel_tool_use": True}
    found = await client.messages.create(**asked("[[call]]", tools=[TOOL], tool_choice=choice))
    assert (found.content[-1].type, found.stop_reason) == ("tool_use", "tool_use")


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("kind", ["", "fence", "think"])
async def test_schema(client: Any, kind: str, *, streams: bool) -> None:
    """The answer is JSON that satisfies it, and nothing but JSON, whatever a model writes around it."""
    wanted = {"format": {"type": "json_schema", "schema": PLACE}}
    body = asked(f"[[json={kind}]] Where?" if kind else "Where?", output_config=wanted)
    found = await message_of(client, body, streams=streams)
    assert json.loads(found.content[0].text).keys() == {"city", "degrees"}


async def test_a_type_of_the_clients(client: Any) -> None:
    """It makes a schema of it, and reads the answer."""
    pydantic = pytest.importorskip("pydantic")
    place = pydantic.create_model("Place", city=(str, ...), degrees=(int, ...))
    found = await client.messages.parse(**asked("Where?"), output_format=place)
    assert isinstance(found.parsed_output.degrees, int)


@pytest.mark.parametrize("streams", [False, True])
async def test_an_answer_ends_at_its_limit(client: Any, *, streams: bool) -> None:
    """What came until then counts, and says so."""
    found = await message_of(client, asked("[[tokens=50 length]]", max_tokens=50), streams=streams)
    assert found.stop_reason == "max_tokens"
    assert found.content[0].text


async def test_counting(client: Any) -> None:
    """An estimate, which says so."""
    body = {name: value for name, value in asked("x" * 400).items() if name != "max_tokens"}
    found = await client.messages.with_raw_response.count_tokens(**body)
    assert found.headers["x-llm-routerd-estimate"] == "true"
    assert (await found.parse()).input_tokens == 100


async def test_what_a_coding_agent_sends(client: Any, site: Site) -> None:
    """The beta half of the client, with what can change no answer here; the model sees the rest in its order."""
    found = await client.beta.messages.create(
        betas=["context-management-2025-06-27", "effort-2025-11-24", "mid-conversation-system-2026-04-07"],
        model="default",
        max_tokens=1000,
        system=[{"type": "text", "text": "You are an agent.", "cache_control": {"type": "ephemeral"}}],
        thinking={"type": "adaptive"},
        context_management={"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        output_config={"effort": "high"},
        metadata={"user_id": "somebody"},
        tools=[{**TOOL, "name": "Later", "defer_loading": True}],
        messages=[
            *asked("[[answer=Done.]]")["messages"],
            {"role": "system", "content": "Be brief."},
        ],
    )
    assert found.content[0].text == "Done."


async def test_unknown_model(anthropic: Any, client: Any) -> None:
    """A 404 of the type that programs look for, with the nearest name."""
    with pytest.raises(anthropic.NotFoundError, match="default") as caught:
        await client.messages.create(**{**asked("Hi"), "model": "defautl"})
    assert caught.value.type == "not_found_error"


async def test_refused_property(anthropic: Any, client: Any) -> None:
    """A 400 that names it."""
    search = {"type": "web_search_20250305", "name": "web_search"}
    with pytest.raises(anthropic.BadRequestError, match="web_search_20250305"):
        await client.messages.create(**asked("Hi", tools=[search]))


@pytest.mark.parametrize("streams", [False, True])
async def test_no_answer(anthropic: Any, client: Any, *, streams: bool) -> None:
    """A 503 before anything was told, streamed or not, with the request's id."""
    with pytest.raises(anthropic.APIStatusError) as caught:
        await message_of(client, asked(REFUSED), streams=streams)
    assert (caught.value.status_code, caught.value.type) == (503, "overloaded_error")
    assert caught.value.body["request_id"] == caught.value.request_id


async def test_a_stream_that_breaks(anthropic: Any, client: Any) -> None:
    """An error in the stream is raised, and what was told before is there."""
    told: list[str] = []
    unlimited = asked(BREAKS, extra_body={"max_tokens": None})  # or an answer that is cut would be one
    with pytest.raises(anthropic.APIStatusError):
        await listen(client.messages.stream(**unlimited), told)
    assert told


async def test_hanging_up_cancels(client: Any, site: Site) -> None:
    """The model is not left to talk to nobody."""
    prompt, mark = slow_prompt()
    async with client.messages.stream(**asked(prompt)) as stream:
        async for _ in stream.text_stream:
            break
    await site.until_hung_up(mark)


async def test_models(client: Any) -> None:
    """Chains, deployments and aliases, in the shape that this client reads too."""
    names = {model.id async for model in client.models.list()}
    assert {"default", "local", "second", "gpt-5"} <= names
