"""OpenAI's own client in Python against the gateway, in both of its protocols."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.clients.site import BREAKS, HOSTILE_TEXT, REFUSED, slow_prompt
from tests.support.eventually import eventually

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
WEATHER = {"name": "weather", "description": "How warm it is.", "parameters": PLACE, "strict": True}
TOOL: Any = {"type": "function", "function": WEATHER}


@pytest.fixture(scope="session")
def openai(python_client: Callable[[str], Any]) -> Any:
    """The package."""
    return python_client("openai")


@pytest.fixture
async def client(openai: Any, site: Site) -> AsyncIterator[Any]:
    """A client that asks once."""
    async with openai.AsyncOpenAI(base_url=f"{site.url}/v1", api_key="none", max_retries=0) as found:
        yield found


def said(text: str) -> list[Any]:
    """A conversation of one message."""
    return [{"role": "user", "content": text}]


async def collect(stream: Any, into: list[Any]) -> None:
    """All that comes, also where the stream breaks."""
    async for chunk in stream:
        into += [chunk]


def answer_with(text: str) -> str:
    """A prompt that the model answers with this text."""
    return f'[[answer="{text}"]]'


# ---------------------------------------------------------------------- chat completions


async def test_chat(client: Any) -> None:
    """A whole answer, to the byte, with its usage."""
    found = await client.chat.completions.create(model="default", messages=said(answer_with(HOSTILE_TEXT)))
    assert found.choices[0].message.content == HOSTILE_TEXT
    assert found.choices[0].finish_reason == "stop"
    assert found.usage.completion_tokens > 0
    assert found.id == f"chatcmpl-{found._request_id}"


async def test_chat_streamed(client: Any) -> None:
    """The same text in pieces, and the usage at the end."""
    stream = await client.chat.completions.create(
        model="gpt-5",
        messages=said(answer_with(HOSTILE_TEXT)),
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == HOSTILE_TEXT
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage.completion_tokens > 0
    assert {chunk.model for chunk in chunks} == {"gpt-5"}


async def test_chat_thinks_aloud(client: Any) -> None:
    """What the model thinks comes apart from its answer."""
    stream = await client.chat.completions.create(
        model="default", messages=said('[[reasoning="Hm, well." answer=Yes.]]'), stream=True
    )
    deltas = [chunk.choices[0].delta async for chunk in stream]
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == "Hm, well."
    assert "".join(delta.content or "" for delta in deltas) == "Yes."


@pytest.mark.parametrize("streams", [False, True])
async def test_chat_calls_a_tool(client: Any, *, streams: bool) -> None:
    """The call comes whole, and its result goes back."""
    asked: dict[str, Any] = {"model": "default", "tools": [TOOL], "messages": said("[[call=weather]] How warm is it?")}
    if streams:
        async with client.chat.completions.stream(**asked) as stream:
            choice = (await stream.get_final_completion()).choices[0]
    else:
        choice = (await client.chat.completions.create(**asked)).choices[0]
    assert choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments).keys() == {"city", "degrees"}
    history = [
        *asked["messages"],
        choice.message.model_dump(exclude={"tool_calls": {"__all__": {"function": {"parsed_arguments"}}}}),
        {"role": "tool", "tool_call_id": call.id, "content": "21"},
        *said("[[answer=Warm.]]"),
    ]
    again = await client.chat.completions.create(model="default", messages=history)
    assert again.choices[0].message.content == "Warm."


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("kind", ["", "fence", "think"])
async def test_chat_with_schema(client: Any, kind: str, *, streams: bool) -> None:
    """The answer is JSON that satisfies it, and nothing but JSON, whatever a model writes around it."""
    asked: dict[str, Any] = {
        "model": "default",
        "messages": said(f"[[json={kind}]] Where?" if kind else "Where?"),
        "response_format": {"type": "json_schema", "json_schema": {"name": "place", "strict": True, "schema": PLACE}},
    }
    if streams:
        stream = await client.chat.completions.create(**asked, stream=True)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    else:
        text = (await client.chat.completions.create(**asked)).choices[0].message.content
    assert json.loads(text).keys() == {"city", "degrees"}


async def test_chat_ends_at_its_limit(client: Any) -> None:
    """What came until then counts, and says so."""
    found = await client.chat.completions.create(
        model="default", messages=said("[[tokens=50 length]]"), max_completion_tokens=50
    )
    assert found.choices[0].finish_reason == "length"


async def test_unknown_model(openai: Any, client: Any) -> None:
    """A 404 with the code that programs look for."""
    with pytest.raises(openai.NotFoundError, match="default") as caught:
        await client.chat.completions.create(model="defautl", messages=said("Hi"))
    assert caught.value.code == "model_not_found"


async def test_refused_property(openai: Any, client: Any) -> None:
    """A 400 that names it."""
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(model="default", messages=said("Hi"), n=2)
    assert caught.value.param == "n"


@pytest.mark.parametrize("streams", [False, True])
async def test_no_answer(openai: Any, client: Any, *, streams: bool) -> None:
    """A 503 before anything was told, streamed or not, with the request's id."""
    with pytest.raises(openai.InternalServerError) as caught:
        await client.chat.completions.create(model="default", messages=said(REFUSED), stream=streams)
    assert caught.value.status_code == 503
    assert caught.value.code == "chain_exhausted"
    assert caught.value.body["request_id"] == caught.value.request_id


async def test_stream_that_breaks(openai: Any, client: Any) -> None:
    """An error in the stream is raised, and what was told before is there."""
    stream = await client.chat.completions.create(model="default", messages=said(BREAKS), stream=True)
    told: list[Any] = []
    with pytest.raises(openai.APIError):
        await collect(stream, told)
    assert any(chunk.choices[0].delta.content for chunk in told)


async def test_hanging_up_cancels(client: Any, site: Site) -> None:
    """The model is not left to talk to nobody."""
    prompt, mark = slow_prompt()
    stream = await client.chat.completions.create(model="default", messages=said(prompt), stream=True)
    async for chunk in stream:
        if chunk.choices[0].delta.content:
            break
    await stream.close()
    await site.until_hung_up(mark)


async def test_cancelled_elsewhere_is_not_asked_again(openai: Any, site: Site) -> None:
    """The client would repeat what it takes for a conflict; it is told not to."""
    prompt, mark = slow_prompt()
    asked: list[Any] = []

    async def note(request: Any) -> None:
        asked.append(request)

    http = openai.DefaultAsyncHttpxClient(event_hooks={"request": [note]})
    async with openai.AsyncOpenAI(base_url=f"{site.url}/v1", api_key="none", max_retries=2, http_client=http) as client:
        named = {"Idempotency-Key": mark}
        chat = client.chat.completions.create(model="default", messages=said(prompt), extra_headers=named)
        waiting = asyncio.create_task(chat)
        await eventually(lambda: any(call["id"] == mark for call in site.standin.calls))
        await site.queue.cancel(mark)
        with pytest.raises(openai.ConflictError) as caught:
            await waiting
    assert caught.value.code == "cancelled"
    assert len(asked) == 1


async def test_models(client: Any) -> None:
    """Chains, deployments and aliases, all and one by one."""
    names = {model.id async for model in client.models.list()}
    assert {"default", "local", "second", "gpt-5"} <= names
    assert (await client.models.retrieve("gpt-5")).id == "gpt-5"


# ---------------------------------------------------------------------- responses


async def test_response(client: Any) -> None:
    """A whole answer, to the byte, with its usage."""
    found = await client.responses.create(model="default", input=answer_with(HOSTILE_TEXT), instructions="Be brief.")
    assert found.output_text == HOSTILE_TEXT
    assert (found.status, found.model, found.instructions) == ("completed", "default", "Be brief.")
    assert found.usage.output_tokens > 0


async def test_response_streamed(client: Any) -> None:
    """The events build up what the last one tells."""
    async with client.responses.stream(model="default", input=f'[[reasoning=Hm. answer="{HOSTILE_TEXT}"]]') as stream:
        events = [event async for event in stream]
        found = await stream.get_final_response()
    assert found.output_text == HOSTILE_TEXT
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == HOSTILE_TEXT
    assert "".join(event.delta for event in events if event.type == "response.reasoning_text.delta") == "Hm."
    assert [event.sequence_number for event in events] == list(range(len(events)))


@pytest.mark.parametrize("streams", [False, True])
async def test_response_calls_a_tool(client: Any, *, streams: bool) -> None:
    """The call comes whole, and it goes back with its result."""
    asked: dict[str, Any] = {"model": "default", "tools": [{"type": "function", **WEATHER}]}
    prompt = said("[[call=weather]] How warm is it?")
    if streams:
        async with client.responses.stream(**asked, input=prompt) as stream:
            found = await stream.get_final_response()
    else:
        found = await client.responses.create(**asked, input=prompt)
    (call,) = (item for item in found.output if item.type == "function_call")
    assert json.loads(call.arguments).keys() == {"city", "degrees"}
    history = [
        *prompt,
        {"type": "function_call", "call_id": call.call_id, "name": call.name, "arguments": call.arguments},
        {"type": "function_call_output", "call_id": call.call_id, "output": "21"},
        *said("[[answer=Warm.]]"),
    ]
    assert (await client.responses.create(model="default", input=history)).output_text == "Warm."


async def test_response_with_schema(client: Any) -> None:
    """The answer is JSON that satisfies it."""
    wanted = {"format": {"type": "json_schema", "name": "place", "strict": True, "schema": PLACE}}
    found = await client.responses.create(model="default", input="Where?", text=wanted)
    assert json.loads(found.output_text).keys() == {"city", "degrees"}


async def test_response_that_fails_has_a_status(openai: Any, client: Any) -> None:
    """Before anything was told it is an error of HTTP."""
    with pytest.raises(openai.InternalServerError) as caught:
        await client.responses.create(model="default", input=REFUSED, stream=True)
    assert caught.value.status_code == 503


async def test_hanging_up_on_a_response_cancels(client: Any, site: Site) -> None:
    """As with a chat completion."""
    prompt, mark = slow_prompt()
    stream = await client.responses.create(model="default", input=prompt, stream=True)
    async for event in stream:
        if event.type == "response.output_text.delta":
            break
    await stream.close()
    await site.until_hung_up(mark)


# ---------------------------------------------------------------------- responses in the background


async def until_over(client: Any, response_id: str) -> Any:
    """The response, once it has ended."""
    async with asyncio.timeout(20):
        while True:
            found = await client.responses.retrieve(response_id)
            if found.status not in {"queued", "in_progress"}:
                return found
            await asyncio.sleep(0.02)


async def test_background(client: Any) -> None:
    """Who asks is told at once how to come back, and finds the answer there."""
    asked = await client.responses.create(
        model="gpt-5", input=answer_with(HOSTILE_TEXT), background=True, metadata={"row": "1"}
    )
    assert (asked.status, asked.background, asked.output) == ("queued", True, [])
    found = await until_over(client, asked.id)
    assert (found.id, found.status, found.output_text) == (asked.id, "completed", HOSTILE_TEXT)
    assert (found.model, found.metadata, found.background) == ("gpt-5", {"row": "1"}, True)


async def test_background_stream_goes_on_where_it_broke(client: Any, site: Site) -> None:
    """Hanging up does no harm; who comes back gets what was missed, under the same numbers, during it and after."""
    prompt = "[[reasoning=Hm. tokens=60 delay_ms=20]]"
    events: list[Any] = []
    stream = await client.responses.create(model="local", input=prompt, background=True, stream=True)
    async for event in stream:
        events.append(event)
        if event.type == "response.output_text.delta":
            break
    await stream.close()
    response_id = events[0].response.id
    for after in (events[-1].sequence_number, 0, -1):
        named = {"starting_after": after} if after >= 0 else {}
        again = [event async for event in await client.responses.retrieve(response_id, stream=True, **named)]
        assert [each.sequence_number for each in again] == list(range(after + 1, after + 1 + len(again)))
        assert again[-1].type == "response.completed"
        if after == events[-1].sequence_number:
            events += again
        assert [each.type for each in again] == [each.type for each in events[after + 1 :]]
    text = "".join(each.delta for each in events if each.type == "response.output_text.delta")
    assert text == events[-1].response.output_text == (await client.responses.retrieve(response_id)).output_text


async def test_stream_of_a_failed_response(client: Any) -> None:
    """It is told, as an event."""
    asked = await client.responses.create(model="default", input=REFUSED, background=True)
    found = await until_over(client, asked.id)
    assert (found.status, found.error.code) == ("failed", "server_error")
    events = [event async for event in await client.responses.retrieve(asked.id, stream=True)]
    assert [event.type for event in events] == ["response.created", "response.in_progress", "response.failed"]


@pytest.mark.parametrize("verb", ["cancel", "delete"])
async def test_background_is_stopped(client: Any, site: Site, verb: str) -> None:
    """The model is not left to talk, and the response says what became of it; once more does no harm."""
    prompt, mark = slow_prompt()
    asked = await client.responses.create(model="default", input=prompt, background=True, stream=True)
    async for event in asked:
        if event.type == "response.output_text.delta":
            break
    response_id = f"resp_{asked.response.headers['x-request-id']}"
    for _ in range(2):
        await getattr(client.responses, verb)(response_id)
        assert (await client.responses.retrieve(response_id)).status == "cancelled"
    await site.until_hung_up(mark)
    assert [event.type async for event in asked][-1] == "response.failed"


async def test_unknown_response(openai: Any, client: Any) -> None:
    """A 404, whatever is wanted of it."""
    for verb in (client.responses.retrieve, client.responses.cancel, client.responses.delete):
        with pytest.raises(openai.NotFoundError):
            await verb("resp_nobody")
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve("chatcmpl-1")
