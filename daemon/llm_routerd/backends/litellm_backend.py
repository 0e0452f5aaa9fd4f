"""Every provider that has no backend of its own, through litellm: the one module that imports it.

litellm costs seconds and some 190 MB to import, so it is loaded on first use, in a thread.  It is kept quiet
and offline: what it does by itself would print, fetch a price table, or read a `.env` of the working
directory.

A stream that ends without its terminal event is a finish like any other to litellm 1.102.4: it says "stop",
and makes up the usage.  What tells are two attributes of its stream, set by the provider's own finish reason
only; the version is pinned, and without the attributes nothing would count as whole.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import logging
import os
import warnings
from contextlib import suppress
from copy import deepcopy
from functools import partial
from typing import TYPE_CHECKING, Any

from llm_routerd.accounting.estimate import CHARS_PER_TOKEN
from llm_routerd.backends import faults
from llm_routerd.backends.answer_format import NOT_ITS_OWN, with_instruction
from llm_routerd.backends.endpoint import converted, effective_params
from llm_routerd.backends.finish_reasons import is_reason, meaning_of, printable
from llm_routerd.backends.litellm_faults import fault_of
from llm_routerd.backends.litellm_first_byte import begins_as_json
from llm_routerd.backends.litellm_keys import missing_key
from llm_routerd.backends.litellm_mending import mend_litellm
from llm_routerd.backends.messages import HalvesJoiner
from llm_routerd.backends.openai import OpenAIAnswer
from llm_routerd.backends.optional_fields import Omissions, without
from llm_routerd.backends.prompt_cut import reject_cut
from llm_routerd.backends.toolcalls import ToolCallAssembler, ToolCallError
from llm_routerd.backends.usage import count
from llm_routerd.protocol.call import BackendError, Delta, Finish, ProbeReport
from llm_routerd.protocol.outcome import Usage

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Collection, Iterable

    from llm_routerd.config.tree import Deployment
    from llm_routerd.protocol.call import Call

_ENVIRONMENT = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True",
    "LITELLM_LOG": "CRITICAL",
    "LITELLM_MODE": "PRODUCTION",  # else it runs load_dotenv(), and a stranger's .env is our environment
    "HF_HUB_OFFLINE": "1",
}
_NOWHERE = "http://127.0.0.1:0/v1"  # a port that nothing can listen on
_ALSO_IMPORTED = {
    "bedrock": ("boto3", "botocore.session", "botocore.auth", "botocore.credentials"),
    "sagemaker": ("boto3", "botocore.session", "botocore.auth", "botocore.credentials"),
    "vertex_ai": ("google.auth", "google.auth.transport.requests"),
}
_OLLAMAS = frozenset({"ollama", "ollama_chat"})  # without their own backend; see `ollama_request.chat_body`
_JSON_LINES = _OLLAMAS | {"cohere", "cohere_chat"}
_LOGGERS = ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy")
# The caller bounds the time of an answer by cancelling; this is for what nobody cancels.
_GAP_SECONDS = 600.0
_CLOSE_SECONDS = 2.0
# Which of the two is set depends on the provider.
_FINISHED = ("received_finish_reason", "intermittent_finish_reason")


class LitellmModule:
    """The module litellm, imported on first use and only once, while the event loop goes on.

    Args:
        providers: whose parts of it will be needed.
    """

    def __init__(self, providers: Collection[str] = ()) -> None:
        self._providers = providers
        self._module: Any = None
        self._lock = asyncio.Lock()

    async def get(self) -> Any:
        """The module."""
        if self._module is None:
            async with self._lock:
                if self._module is None:
                    self._module = await asyncio.to_thread(_import_litellm, self._providers)
        return self._module


def _import_litellm(providers: Collection[str] = ()) -> Any:
    """Import it and all that its first call would import; for a thread, and so that the event loop goes on meanwhile.

    What stops other threads is not Python code, but what holds the interpreter's lock as a whole: above all the garbage
    collector, which walks through a million new objects again and again (up to 180 ms at once, measured).
    """
    was_collecting = gc.isenabled()
    gc.disable()
    try:
        litellm = _load_litellm()
        _rehearse(litellm, providers)
    finally:
        gc.freeze()  # they stay: nobody need look at them again
        if was_collecting:
            gc.enable()
    return litellm


def _rehearse(litellm: Any, providers: Collection[str]) -> None:
    """Call it, so that it imports what it needs for a call: once an answer of its own, once an address that is none."""
    call = {
        "model": "openai/none",
        "api_key": "none",
        "messages": [{"role": "user", "content": "Hello"}],
        "stream": True,
    }
    with suppress(Exception):
        for _ in litellm.completion(**call, mock_response="Hello"):
            pass
    with suppress(Exception):
        litellm.completion(**call, api_base=_NOWHERE, num_retries=0, max_retries=0)
    for provider in providers:
        with suppress(Exception):
            litellm.utils.ProviderConfigManager.get_provider_chat_config("none", litellm.LlmProviders(provider))
        for name in _ALSO_IMPORTED.get(provider, ()):
            with suppress(ImportError):
                importlib.import_module(name)


def _knows(litellm: Any, deployment: Deployment) -> bool:
    """Whether it knows whom to ask."""
    try:
        litellm.get_llm_provider(model=deployment.model, api_base=deployment.api_base)
    except Exception as error:  # noqa: BLE001 - whatever else it is, a call will tell
        return not isinstance(error, litellm.BadRequestError)
    return True


def _load_litellm() -> Any:
    os.environ.update(_ENVIRONMENT)
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # Its models warn of themselves when they are first used.
    warnings.filterwarnings("ignore", category=UserWarning, module=r"pydantic|litellm")
    _spare_tokenizer()
    litellm: Any = importlib.import_module("litellm")
    litellm.suppress_debug_info = True
    litellm.disable_hf_tokenizer_download = True
    litellm.telemetry = False
    litellm.drop_params = True  # a parameter that a provider does not know is left out, not an error
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    mend_litellm(litellm)
    return litellm


def _spare_tokenizer() -> None:
    """Put an estimate where litellm would build its tokenizer.

    That holds all threads up for 40 to 60 ms, and takes 33 MB; what it counts for us is passed over in any case.
    """
    registry: Any = importlib.import_module("tiktoken.registry")
    for name in ("cl100k_base", "o200k_base"):
        registry.ENCODINGS.setdefault(name, RuleOfThumb())


class RuleOfThumb:
    """What litellm uses of a tokenizer, by the rule of `core.estimate`."""

    def encode(self, text: str, **_options: Any) -> range:
        """So many tokens as there may be."""
        return range(-(-len(text) // CHARS_PER_TOKEN))


class LitellmBackend:
    """One model of one provider."""

    def __init__(self, deployment: Deployment, module: LitellmModule) -> None:
        self._deployment = deployment
        self._module = module
        self._timeout: Any = None
        self._omissions = Omissions()

    async def stream(self, call: Call) -> AsyncGenerator[Delta | Finish, None]:
        """See `Backend.stream`."""
        litellm = await self._module.get()

        async def post(arguments: dict[str, Any]) -> Any:
            try:
                return await litellm.acompletion(**arguments, timeout=self._timeouts())
            except Exception as error:  # noqa: BLE001 - litellm raises its own, the SDKs' and bare ones
                raise fault_of(error, begun=False) from None

        stream = await self._omissions.ask(
            lambda omitted: converted(partial(_arguments, omitted=omitted), self._deployment, call), post
        )
        try:
            answer = _Answer()
            if (response := await _sent_as_json(stream, self._deployment.provider)) is not None:
                async for item in _read_directly(response):
                    if isinstance(item, Finish):
                        await self._look_for_a_cut(call, item)
                    yield item
                return
            async for chunk in stream:
                if (delta := answer.take(chunk)) is not None:
                    yield delta
            whole = any(is_reason(getattr(stream, name, None)) for name in _FINISHED)
            finish = answer.finish(whole=whole, usage=_usage(stream.chunks))
            await self._look_for_a_cut(call, finish)
            yield finish
        except BackendError:
            raise
        except Exception as error:  # noqa: BLE001 - as above
            raise fault_of(error, begun=True) from None
        finally:
            with suppress(Exception):
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await stream.aclose()

    async def _look_for_a_cut(self, call: Call, finish: Finish) -> None:
        if self._deployment.api_base is not None:
            await reject_cut(self._deployment, call, finish)

    def _timeouts(self) -> Any:
        """One object for all calls: for each other value litellm builds new clients."""
        if self._timeout is None:
            httpx: Any = importlib.import_module("httpx")  # litellm has loaded it
            self._timeout = httpx.Timeout(_GAP_SECONDS, connect=self._deployment.connect_timeout)
        return self._timeout

    async def probe(self) -> ProbeReport:
        """See `Backend.probe`.  litellm has no question that costs no tokens, so none is asked."""
        also = "" if self._deployment.api_base is None else NOT_ITS_OWN.format("the provider")
        return ProbeReport(ok=True, detail=f"called through litellm, not asked: that would cost tokens{also}")

    async def fault(self) -> str | None:
        """Why no call can ever succeed; None: nothing is known against it."""
        litellm = await self._module.get()
        is_known = await asyncio.to_thread(_knows, litellm, self._deployment)  # imports for its first answer
        if not is_known:
            return f"litellm knows no provider `{self._deployment.provider}`"
        return await asyncio.to_thread(missing_key, litellm, self._deployment)

    async def warm(self) -> None:
        """See `Backend.warm`: there is nothing to load but litellm itself."""
        await self._module.get()


async def _sent_as_json(stream: Any, provider: str) -> Any:
    """The response behind litellm's stream where it is one JSON document; else None.

    Some servers answer with one whatever they are asked, and whatever they call it, and litellm finds no event in it.
    Those that litellm keeps a response of all speak OpenAI's protocol, but for those whose streams are lines of JSON.
    What was read of it is read again.
    """
    inner = getattr(stream, "completion_stream", None)
    response = getattr(inner, "response", None) or getattr(inner, "http_response", None)
    if response is None or provider in _JSON_LINES:
        return None
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    return response if kind == "application/json" or await begins_as_json(response) else None


async def _read_directly(response: Any) -> AsyncGenerator[Delta | Finish, None]:
    """What an unread response brings, a document or events, as the backend for OpenAI's protocol reads it."""
    answer = OpenAIAnswer()
    async for chunk in response.aiter_bytes():
        if (item := answer.feed(chunk)) is not None:
            yield item
        if isinstance(item, Finish):
            return
    yield answer.end()


class _Answer:
    """The answer so far."""

    def __init__(self) -> None:
        self._tool_calls = ToolCallAssembler()
        self._finish_reason = "stop"
        self._text_halves = HalvesJoiner()
        self._reasoning_halves = HalvesJoiner()

    def take(self, chunk: Any) -> Delta | None:
        """What a chunk brings; None if nothing.

        Raises:
            BackendError: the chunk is malformed.
        """
        if not chunk.choices:
            return None
        choice = chunk.choices[0]
        if is_reason(choice.finish_reason):
            self._finish_reason = choice.finish_reason
        text = choice.delta.content or ""
        reasoning = getattr(choice.delta, "reasoning_content", None) or ""
        calls = choice.delta.tool_calls or ()
        for call in calls:
            self._add_call(call)
        if not (text or reasoning or calls):
            return None
        return Delta(self._text_halves.join(text), self._reasoning_halves.join(reasoning))

    def finish(self, *, whole: bool, usage: Usage | None) -> Finish:
        """The end; `whole` is whether the provider said that it had finished, `usage` what it has counted.

        Raises:
            BackendError: it did not, so the stream was cut.
        """
        if not whole:
            raise faults.truncated()
        try:
            tool_calls = self._tool_calls.complete()
        except ToolCallError as error:
            raise faults.malformed(str(error)) from None
        self._text_halves.finish()
        self._reasoning_halves.finish()
        finish_reason = meaning_of(self._finish_reason)
        return Finish(
            finish_reason="tool_calls" if finish_reason == "stop" and tool_calls else finish_reason,
            word=printable(self._finish_reason),
            usage=usage,
            tool_calls=tool_calls,
            refusal="" if finish_reason == "refusal" else None,
        )

    def _add_call(self, call: Any) -> None:
        function = {"name": call.function.name, "arguments": call.function.arguments}
        try:
            self._tool_calls.add({"index": call.index, "id": call.id, "function": function})
        except ToolCallError as error:
            raise faults.malformed(str(error)) from None


def _arguments(deployment: Deployment, call: Call, *, omitted: Collection[str] = ()) -> dict[str, Any]:
    """What `litellm.acompletion` is called with, but for fields that the server refuses.

    Copies, for litellm changes what it is given, and others need it too.
    """
    params = {name: value for name, value in effective_params(deployment, call).items() if value is not None}
    arguments: dict[str, Any] = {
        **params,
        "model": deployment.model,
        "messages": deepcopy(list(call.messages)),
        "stream": True,
        "stream_options": {"include_usage": True},
        "num_retries": 0,
        "max_retries": 0,  # the OpenAI SDK otherwise makes three requests
    }
    if deployment.api_base is not None:
        arguments["api_base"] = deployment.api_base
    if deployment.api_key is not None:
        arguments["api_key"] = deployment.api_key
    if deployment.provider in _OLLAMAS:
        arguments["extra_body"] = {name: bool(arguments.pop(name, False)) for name in ("truncate", "shift")}
    if call.tools:
        arguments["tools"] = deepcopy(list(call.tools))
        if call.tool_choice is not None:
            arguments["tool_choice"] = call.tool_choice
    if isinstance(call.schema, dict) and "response_format" not in omitted:
        wrapped = {"name": "answer", "schema": deepcopy(call.schema), "strict": False}
        arguments["response_format"] = {"type": "json_schema", "json_schema": wrapped}
    if call.schema is not None and (isinstance(call.schema, bool) or deployment.api_base is not None):
        arguments["messages"] = with_instruction(arguments["messages"], call.schema)
    if call.traceparent is not None:
        arguments["extra_headers"] = {"traceparent": call.traceparent}
    return without(arguments, omitted)


def _usage(chunks: Iterable[Any]) -> Usage | None:
    """What the provider has counted, in its own chunks; 0 of what it has not, and None if nothing.

    The chunk that litellm adds at the end is not among them: there it puts numbers of its own for any that are missing
    or 0, and does not say so.
    """
    told = [usage for chunk in chunks if (usage := getattr(chunk, "usage", None)) is not None]

    def last(*path: str) -> int | None:
        values = [count(_attribute(usage, path)) for usage in told]
        return next((value for value in reversed(values) if value), None)

    if not told:
        return None
    return Usage(
        prompt_tokens=last("prompt_tokens") or 0,
        completion_tokens=last("completion_tokens") or 0,
        cached_tokens=last("prompt_tokens_details", "cached_tokens"),
        reasoning_tokens=last("completion_tokens_details", "reasoning_tokens"),
    )


def _attribute(thing: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        thing = thing.get(name) if isinstance(thing, dict) else getattr(thing, name, None)
    return thing
