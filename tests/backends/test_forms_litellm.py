"""What servers really send, read through litellm: half answers, promised calls, halves of characters, large numbers."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import orjson
import pytest
import pytest_asyncio

from llm_routerd.backends.litellm.loading import LitellmModule
from llm_routerd.protocol.codes import AttemptCode as Code
from tests.backends.forms import DONE, Said, called, chunk, events, judge_of, pieces_of
from tests.backends.recordings import ReplayServer
from tests.backends.test_forms import NOT_WHOLE, WHOLE
from tests.backends.test_optional_fields import EVERYTHING, Picky, if_sent, unknown_parameter
from tests.support.calling import ask, backend_for

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.backends.forms import Verdict

# Its pydantic models warn of themselves, which pytest would make errors of in the middle of litellm; and its clients
# live as long as the event loop that they were made on.
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.asyncio(loop_scope="module"),
]

# Four ways through litellm: the SDK of OpenAI, its own reader of OpenAI's stream, of Anthropic's, of Gemini's.
PROVIDERS = {"openai": "/v1", "mistral": "/v1", "anthropic": "", "gemini": "/v1beta"}
OPENAI_LIKE = ("openai", "mistral")
WEATHER = '{"city":"Paris"}'


@pytest_asyncio.fixture(scope="module", loop_scope="module", autouse=True)
async def _its_clients_are_closed() -> AsyncIterator[None]:
    """They are kept for the life of the process."""
    yield
    litellm = await LitellmModule().get()
    await litellm.close_litellm_async_clients()


def _pieces(provider: str, said: Said) -> list[bytes]:
    if provider in OPENAI_LIKE:
        return pieces_of("openai", said)
    if provider == "anthropic":  # litellm wants all of Anthropic's events, and usage in them
        return [
            piece.replace(
                b'"delta":{"stop_reason"', b'"usage":{"input_tokens":3,"output_tokens":2},"delta":{"stop_reason"'
            )
            for piece in pieces_of("anthropic", said)
        ]
    parts: list[dict[str, Any]] = [{"text": text, "thought": True} for text in said.reasoning]
    parts += [{"text": text} for text in said.text]
    parts += [{"functionCall": {"name": name, "args": orjson.loads(given)}} for name, given in said.calls]
    candidates = [{"content": {"role": "model", "parts": [part]}, "index": 0} for part in parts]
    last = {"index": 0} if said.reason is None else {"index": 0, "finishReason": said.reason}
    counted = {"promptTokenCount": 3, "candidatesTokenCount": 2, "totalTokenCount": 5}
    return [events({"candidates": [each], "usageMetadata": counted}) for each in (*candidates, last)]


async def _of(provider: str, body: bytes, *, tools: tuple[str, ...] = (), schema: Any = None) -> Verdict:
    """The verdict on a body that comes from this provider."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
    model = "gemini/gemini-2.0-flash" if provider == "gemini" else f"{provider}/stand-in"
    offered = tuple({"type": "function", "function": {"name": n, "parameters": {"type": "object"}}} for n in tools)
    async with ReplayServer(head + body) as server:
        base = server.url + PROVIDERS[provider]
        async with backend_for(provider, base, model=model, backend="litellm") as backend:
            return await called(backend, ask(tools=offered), judge_of(tools=tools, schema=schema))


async def _verdict(provider: str, said: Said, **terms: Any) -> Verdict:
    return await _of(provider, b"".join(_pieces(provider, said)), **terms)


def _expected(reason: str) -> set[Code]:
    return {NOT_WHOLE[reason], Code.UPSTREAM} if reason == "error" else {NOT_WHOLE[reason]}  # some readers raise for it


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("reason", WHOLE)
async def test_good_reason_to_finish_is_a_whole_answer(reason: str, provider: str) -> None:
    """In any case, from any server."""
    verdict = await _verdict(provider, Said(text=("Fo", "ur."), reason=reason))
    assert verdict.answer is not None, verdict
    assert (verdict.answer.raw_text, verdict.answer.finish_reason) == ("Four.", "stop")


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("reason", NOT_WHOLE)
async def test_any_other_reason_to_finish_is_no_whole_answer(reason: str, provider: str) -> None:
    """Also one that nobody has heard of: litellm makes "stop" of most of them, and whole calls of tools of Gemini's."""
    assert (await _verdict(provider, Said(text=("Fo", "ur."), reason=reason))).code in _expected(reason)
    calling = Said(calls=(("weather", WEATHER),), reason=reason)
    assert (await _verdict(provider, calling, tools=("weather",))).code in _expected(reason)


@pytest.mark.parametrize("provider", OPENAI_LIKE)
@pytest.mark.parametrize("reason", ["stop", "network_error", "length", "RECITATION"])
async def test_reason_that_comes_with_the_last_text_counts(reason: str, provider: str) -> None:
    """Not every server sends it in an event of its own."""
    verdict = await _of(provider, events(chunk(content="Fo"), chunk(reason, content="ur.")) + DONE)
    if reason == "stop":
        assert verdict.answer is not None, verdict
        assert verdict.answer.raw_text == "Four."
    else:
        assert verdict.code is NOT_WHOLE[reason]


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("word", ["null", "None", "", None])
async def test_word_for_null_is_no_reason(word: str | None, provider: str) -> None:
    """A stream that ends after it was cut, whatever litellm makes up; also where `[DONE]` comes."""
    said = Said(text=("Fo", "ur."), reason=word)
    assert (await _verdict(provider, said)).code is Code.TRUNCATED
    calling = Said(calls=(("weather", WEATHER),), reason=word)
    assert (await _verdict(provider, calling, tools=("weather",))).code is Code.TRUNCATED


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_stream_that_is_cut_is_cut_after_any_event(provider: str) -> None:
    """The reason to finish is in the last of Gemini's, and before the last one or two of the others'."""
    pieces = _pieces(provider, Said(text=("Fo", "ur"), reason="stop"))
    reasons = [number for number, piece in enumerate(pieces) if b'"stop"' in piece]
    for end in range(reasons[0] + 1):
        assert (await _of(provider, b"".join(pieces[:end]))).code is Code.TRUNCATED


@pytest.mark.parametrize("provider", OPENAI_LIKE)
@pytest.mark.parametrize("word", ["null", "None", "", None])
async def test_word_for_null_in_every_chunk_ends_nothing(provider: str, word: str | None) -> None:
    """KoboldCpp says "null" in each: the reason that comes later counts, and one that follows it takes nothing back."""
    begun = events(chunk(word, role="assistant", content=""), chunk(word, content="Fo"), chunk(word, content="ur."))
    assert (await _of(provider, begun + DONE)).code is Code.TRUNCATED
    for end in (events(chunk("stop")), events(chunk("stop", content=""), chunk(word))):
        verdict = await _of(provider, begun + end + DONE)
        assert verdict.answer is not None, verdict
        assert verdict.answer.raw_text == "Four."


@pytest.mark.parametrize("tools", [(), ("weather",)])
@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("reason", ["tool_calls", "tool_use", "function_call"])
async def test_promised_calls_that_do_not_come_are_no_answer(
    reason: str, provider: str, tools: tuple[str, ...]
) -> None:
    """Whether text came or not, whether tools were offered or not."""
    for text in (("I shall ", "look."), ()):
        assert (await _verdict(provider, Said(text=text, reason=reason), tools=tools)).code is Code.UPSTREAM


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_calls_are_read(provider: str) -> None:
    """With text before them, and though the server says that it has just stopped."""
    reason = {"anthropic": "tool_use", "gemini": "STOP"}.get(provider, "tool_calls")
    for said in (reason, "stop"):
        verdict = await _verdict(
            provider, Said(text=("Well. ",), calls=(("weather", WEATHER),), reason=said), tools=("weather",)
        )
        assert verdict.answer is not None, verdict
        (call,) = verdict.answer.tool_calls
        assert (call.name, orjson.loads(call.arguments)) == ("weather", {"city": "Paris"})
        assert (verdict.answer.raw_text.strip(), verdict.answer.finish_reason) == ("Well.", "tool_calls")


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("provider", OPENAI_LIKE)
async def test_of_another_choice_only_calls_are_read(provider: str, together: bool) -> None:
    """The two texts would be mixed by litellm, and it would drop the calls of what is not the first of its event."""
    call = {"index": 0, "id": "c0", "type": "function", "function": {"name": "weather", "arguments": WEATHER}}
    mine, other = chunk(content="I shall look."), chunk(index=1, content="Other.", tool_calls=[call])
    both = {"choices": mine["choices"] + other["choices"]}
    body = events(*([both] if together else [mine, other]), chunk("stop"), chunk("tool_calls", index=1)) + DONE
    verdict = await _of(provider, body, tools=("weather",))
    assert verdict.answer is not None, verdict
    assert verdict.answer.raw_text == "I shall look."
    assert [(each.name, each.arguments) for each in verdict.answer.tool_calls] == [("weather", WEATHER)]


@pytest.mark.parametrize("provider", OPENAI_LIKE)
async def test_end_of_another_choice_does_not_make_a_half_one_whole(provider: str) -> None:
    """The first answer was cut off at its length, or has no end, the second one has."""
    other = events(chunk(index=1, content="Four."), chunk("stop", index=1)) + DONE
    assert (await _of(provider, events(chunk(content="Fo"), chunk("length")) + other)).code is Code.LENGTH
    assert (await _of(provider, events(chunk(content="Fo")) + other)).code is Code.TRUNCATED


@pytest.mark.parametrize("text", ["[DONE]", "data: [DONE]", "Tasks: [DONE] one", "[DONE", "\n\ndata: {}\n\n"])
@pytest.mark.parametrize("provider", PROVIDERS)
async def test_text_that_looks_like_a_protocols_end_is_text(provider: str, text: str) -> None:
    """No piece of an answer is lost, and none ends it."""
    verdict = await _verdict(provider, Said(text=("Fo", text, "ur.")))
    assert verdict.answer is not None, verdict
    assert verdict.answer.raw_text == f"Fo{text}ur."


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_character_divided_between_two_events_is_joined(provider: str) -> None:
    """Escaped surrogate halves, in text and in thinking; one that stands alone is a fault."""
    for said, where in (
        (Said(text=("HALF1", "HALF2 yes")), "text"),
        (Said(text=("yes",), reasoning=("HALF1", "HALF2")), "reasoning"),
    ):
        body = b"".join(_pieces(provider, said))
        verdict = await _of(provider, body.replace(b"HALF1", b"a\\ud83d").replace(b"HALF2", b"\\uDE00"))
        assert verdict.answer is not None, verdict
        assert (verdict.answer.raw_text if where == "text" else verdict.reasoning).startswith("a😀")
        for wrong in (b"", b"x"):
            cut = body.replace(b"HALF1", b"a\\ud83d").replace(b"HALF2", wrong)
            assert (await _of(provider, cut)).code is Code.UPSTREAM


@pytest.mark.parametrize("provider", ["openai", "mistral", "anthropic"])
async def test_character_divided_in_arguments_is_joined(provider: str) -> None:
    """They are text in pieces; half a character alone is a fault."""
    body = b"".join(_pieces(provider, Said(calls=(("f", '{"n":"AB"}'),), reason="tool_use")))
    half = body.replace(b"AB", b"\\ud83d")
    assert (await _of(provider, half, tools=("f",))).code in {Code.UPSTREAM, Code.INVALID_JSON}
    whole = body.replace(b"AB", b"\\ud83d\\ude00")
    verdict = await _of(provider, whole, tools=("f",))
    assert verdict.answer is not None, verdict
    assert orjson.loads(verdict.answer.tool_calls[0].arguments) == {"n": "😀"}


NUMBERS = ("18446744073709551616", "-9223372036854775809", "9007199254740993.0", "1" * 400, "1" * 5000)


@pytest.mark.parametrize("literal", NUMBERS, ids=lambda literal: literal[:24])
@pytest.mark.parametrize("provider", PROVIDERS)
async def test_number_that_cannot_be_carried_is_not_told_as_another(provider: str, literal: str) -> None:
    """In an answer to a schema it is rejected, in arguments also, or it comes out to the digit; text is text."""
    said = Said(text=('{"n":', literal, "}"))
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}}
    assert (await _verdict(provider, said, schema=schema)).code is Code.INVALID_JSON
    plain = await _verdict(provider, said)
    assert plain.answer is not None
    assert plain.answer.raw_text == f'{{"n":{literal}}}'
    body = b"".join(_pieces(provider, Said(calls=(("f", '{"n":12345}'),), reason="tool_use")))
    verdict = await _of(provider, body.replace(b"12345", literal.encode()), tools=("f",))
    if verdict.answer is not None:
        assert verdict.answer.tool_calls[0].arguments.replace(" ", "") == f'{{"n":{literal}}}'
    else:
        assert verdict.code in {Code.UPSTREAM, Code.INVALID_JSON}


@pytest.mark.parametrize("provider", OPENAI_LIKE)
async def test_arguments_that_come_as_an_object_hold_no_other_numbers(provider: str) -> None:
    """Some servers do not send them as text."""
    call = b'{"index":0,"id":"c","type":"function","function":{"name":"f","arguments":{"n":%d}}}' % 2**64
    body = b'data: {"choices":[{"index":0,"delta":{"tool_calls":[%s]}}]}\n\n' % call
    verdict = await _of(provider, body + events(chunk("tool_calls")) + DONE, tools=("f",))
    assert verdict.code is Code.UPSTREAM


@pytest.mark.parametrize("pause", [b"null", b"", b": PROCESSING", b"7", b'"ping"', b"true"])
@pytest.mark.parametrize("provider", PROVIDERS)
async def test_what_no_protocol_calls_a_message_is_nothing(provider: str, pause: bytes) -> None:
    """Keep-alives of servers that reason, at any place of the stream; and lines that hold no data."""
    pieces = _pieces(provider, Said(text=("Fo", "ur.")))
    frame = b": a comment\n\ndata: " + pause + b"\n\n"
    body = [frame, *(part for piece in pieces[:-1] for part in (piece, frame)), pieces[-1]]
    verdict = await _of(provider, b"".join(body))
    assert verdict.answer is not None, verdict
    assert verdict.answer.raw_text == "Four."


@pytest.mark.parametrize("broken", [b"{]", b"[", b'"ping', b"PING", b'{"choices":[', b'{"candidates":['])
@pytest.mark.parametrize("provider", PROVIDERS)
async def test_what_claims_to_be_json_and_is_not_is_a_fault(provider: str, broken: bytes) -> None:
    """A piece of the answer may have been in it."""
    first, *rest = _pieces(provider, Said(text=("Fo", "ur.")))
    body = first + b"data: " + broken + b"\n\n" + b"".join(rest)
    assert (await _of(provider, body)).code in {Code.UPSTREAM, Code.TRUNCATED}


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_tokens_that_litellm_has_counted_are_said_to_be_estimated(provider: str) -> None:
    """It counts them where the provider does not."""
    body = b"".join(_pieces(provider, Said(text=("Fo", "ur."))))
    told = provider not in OPENAI_LIKE
    for counted in (told, True):
        if counted and not told:
            usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
            body = body.replace(DONE, events({"choices": [], "usage": usage}) + DONE)
        verdict = await _of(provider, body)
        assert verdict.answer is not None, verdict
        usage_told = verdict.answer.usage
        if counted:
            assert (usage_told.prompt_tokens, usage_told.completion_tokens) == (3, 2)
        assert usage_told.estimated == (not counted and usage_told.total_tokens > 0)


async def test_configurations_may_be_loaded_for_ever() -> None:
    """Each has its own handle of litellm, which is repaired once: a repair of a repair would in the end recurse."""
    await LitellmModule().get()
    handler = importlib.import_module("litellm.litellm_core_utils.streaming_handler").CustomStreamWrapper
    gemini = importlib.import_module("litellm.llms.vertex_ai.gemini.vertex_and_google_ai_studio_gemini")
    repaired = (handler.handle_openai_chat_completion_chunk, gemini.ModelResponseIterator._apply_stream_candidates)
    await LitellmModule().get()
    again = (handler.handle_openai_chat_completion_chunk, gemini.ModelResponseIterator._apply_stream_candidates)
    assert again == repaired
    verdict = await _verdict("gemini", Said(text=("Four.",), reason="STOP"))
    assert verdict.answer is not None, verdict


@pytest.mark.parametrize("field", ["stream_options", "response_format", "parallel_tool_calls"])
async def test_field_that_the_server_refuses_is_left_out(field: str) -> None:
    """As for the backends that need no litellm: asked again without it, and remembered."""
    # Beside tools litellm is given no `response_format` in the first place.
    everything = EVERYTHING["openai"] | ({"tools": ()} if field == "response_format" else {})
    async with Picky("openai", if_sent(field, unknown_parameter)) as server:
        base = f"{server.url}/v1"
        async with backend_for("openai", base, model="openai/stand-in", backend="litellm") as backend:
            for _ in range(2):
                verdict = await called(backend, ask(**everything), judge_of(tools=("f",)))
                assert verdict.answer is not None, verdict
    assert [field in body for body in server.bodies] == [True, False, False]
    if field == "response_format":
        assert "JSON Schema" in str(server.bodies[1]["messages"])
