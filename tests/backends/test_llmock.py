"""Against llmock, which grades its client: with a caller that does what each `BackendError` says."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import orjson
import pytest

from llm_routerd.protocol.call import BackendError
from llm_routerd.protocol.codes import AttemptCode as Code
from tests.support.calling import Told, ask, backend_for, tell

if TYPE_CHECKING:
    from llmock.pytest_plugin import LLMock

    from llm_routerd.protocol.backend import Backend
    from llm_routerd.protocol.call import Call

MODELS = {"openai": "openai/gpt-4o-mini", "anthropic": "anthropic/claude-sonnet-4-5"}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}

providers = pytest.mark.parametrize("provider", MODELS)


async def _ask_until_answered(backend: Backend, call: Call, codes: list[Code]) -> Told:
    """Ask again where the error says that it is worth it, after the time that it asks for."""
    for pause in (0.1, 0.3, 0.9):
        try:
            return await tell(backend, call)
        except BackendError as error:
            codes.append(error.code)
            if not error.retryable:
                raise
            await asyncio.sleep(max(pause, error.retry_after_seconds or 0))
    return await tell(backend, call)


@providers
async def test_rate_limit_is_waited_out(llmock: LLMock, provider: str) -> None:
    """A 429 says how long, and the next call after that is answered."""
    llmock.rate_limit(times=1, retry_after=0.3).reply("Fine.")
    codes: list[Code] = []
    async with backend_for(provider, llmock.base_url(provider), model=MODELS[provider]) as backend:
        told = await _ask_until_answered(backend, ask(), codes)
    assert (told.text, codes) == ("Fine.", [Code.RATE_LIMITED])
    llmock.assert_resilient(strict=True)


@providers
@pytest.mark.parametrize("fault", ["truncate", "disconnect", "corrupt"])
async def test_broken_stream_is_no_answer(llmock: LLMock, provider: str, fault: str) -> None:
    """Cut cleanly, cut hard or corrupted: it is noticed, and the next call is answered."""
    getattr(llmock, fault)(after_chunks=2)
    codes: list[Code] = []
    async with backend_for(provider, llmock.base_url(provider), model=MODELS[provider]) as backend:
        told = await _ask_until_answered(backend, ask(), codes)
    assert told.text
    assert codes == [Code.UPSTREAM if fault == "corrupt" else Code.TRUNCATED]
    # llmock may have sent all of a corrupt stream before it sees us leave, and then takes it for accepted.
    llmock.assert_resilient(strict=fault != "corrupt")


@providers
async def test_prompt_that_is_too_long_is_not_sent_again(llmock: LLMock, provider: str) -> None:
    """It has its own code, and no second request."""
    llmock.context_overflow()
    codes: list[Code] = []
    async with backend_for(provider, llmock.base_url(provider), model=MODELS[provider]) as backend:
        with pytest.raises(BackendError):
            await _ask_until_answered(backend, ask(), codes)
    assert codes == [Code.CONTEXT_WINDOW]
    llmock.assert_resilient()


@providers
async def test_tool_call_is_assembled(llmock: LLMock, provider: str) -> None:
    """Name and arguments come through in OpenAI's form, and so does the usage."""
    llmock.call_tool("weather", {"city": "Kraków"})
    async with backend_for(provider, llmock.base_url(provider), model=MODELS[provider]) as backend:
        told = await tell(backend, ask("What is the weather?", tools=(TOOL,)))
    (call,) = told.finish.tool_calls
    assert (call.name, call.arguments.replace(" ", "")) in {
        ("weather", '{"city":"Kraków"}'),
        ("weather", '{"city":"Krak\\u00f3w"}'),
    }
    assert call.id
    assert told.finish.finish_reason == "tool_calls"
    assert told.finish.usage is not None
    assert told.finish.usage.completion_tokens > 0


async def test_answer_to_a_schema_is_json(llmock: LLMock) -> None:
    """OpenAI's form of a schema is understood; of Anthropic's, llmock knows only the former one."""
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    async with backend_for("openai", llmock.base_url("openai"), model=MODELS["openai"]) as backend:
        told = await tell(backend, ask(schema=schema))
    assert isinstance(orjson.loads(told.text)["n"], int)
