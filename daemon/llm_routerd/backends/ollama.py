"""Ollama's `/api/chat`: newline-delimited JSON, one object per token, ended by `"done": true`."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import orjson

from llm_routerd.backends import faults, finish_reasons
from llm_routerd.backends.endpoint import Endpoint, converted, effective_params
from llm_routerd.backends.exchange import exchange
from llm_routerd.backends.framing import BOM, LineFramer
from llm_routerd.backends.messages import HalvesJoiner, message_of
from llm_routerd.backends.ollama_request import chat_body
from llm_routerd.backends.ollama_window import least_window, windows_of
from llm_routerd.backends.optional_fields import Omissions, left_out, without
from llm_routerd.backends.prompt_cut import cut, looks_cut, may_be_cut, may_exceed, takes_truncate
from llm_routerd.backends.server_kind import advice
from llm_routerd.backends.toolcalls import ToolCallAssembler
from llm_routerd.backends.transport import next_chunk
from llm_routerd.backends.usage import count
from llm_routerd.protocol.call import BackendError, Delta, Finish, ProbeReport
from llm_routerd.protocol.codes import AttemptCode
from llm_routerd.protocol.outcome import Usage

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    import aiohttp

    from llm_routerd.backends.transport import Transport
    from llm_routerd.config.tree import Deployment
    from llm_routerd.protocol.call import Call

_DEFAULT_BASE = "http://127.0.0.1:11434"


class OllamaBackend:
    """One model of one Ollama server."""

    def __init__(self, deployment: Deployment, transport: Transport) -> None:
        self._deployment = deployment
        self._transport = transport
        self._endpoint = Endpoint(deployment, default_base=_DEFAULT_BASE, strip=("/api", "/v1"))
        self._chat_url = self._endpoint.url("/api/chat")
        key = deployment.api_key
        self._headers = self._endpoint.headers({"Authorization": f"Bearer {key}"} if key else {})
        self._omissions = Omissions()
        self._takes_truncate: bool | None = None  # not known yet
        self._is_ollama = False  # known to be

    def stream(self, call: Call) -> AsyncGenerator[Delta | Finish, None]:
        """See `Backend.stream`."""
        return exchange(partial(self._ask, call), OllamaAnswer(), partial(self._look_for_a_cut, call))

    async def _ask(self, call: Call) -> aiohttp.ClientResponse:
        body = converted(chat_body, self._deployment, call)
        return await self._omissions.ask(
            partial(without, body),
            partial(
                self._transport.post,
                self._chat_url,
                headers=self._endpoint.traced(self._headers, call.traceparent),
                connect_seconds=call.connect_seconds,
                sending=call.sending,
            ),
        )

    async def _look_for_a_cut(self, call: Call, finish: Finish) -> None:
        """Object to an answer to half a prompt.

        Raises:
            BackendError: the prompt was cut, by a server that cannot be asked not to.
        """
        params = effective_params(self._deployment, call)
        if params.get("truncate"):
            return
        counted = 0 if finish.usage is None else finish.usage.prompt_tokens
        is_far_below = looks_cut(call.messages, counted)
        if not is_far_below and not may_exceed(call, least_window(params)):
            return
        try:
            is_asked_in_vain = await self._passes_over_truncate(call)
        except BackendError:
            if is_far_below:
                raise
            return
        if is_asked_in_vain and (
            is_far_below or (self._is_ollama and may_be_cut(call, counted, await self._windows(call, params)))
        ):
            raise cut()

    async def _passes_over_truncate(self, call: Call) -> bool:
        """Whether the server cuts although it is asked not to, or may; it is asked for its version, once."""
        if self._takes_truncate is None:
            try:
                answer = await self._question("/api/version", call.connect_seconds)
                version = answer.get("version") if isinstance(answer, dict) else None
                self._takes_truncate, self._is_ollama = takes_truncate(version), isinstance(version, str)
            except BackendError as error:
                if error.code is not AttemptCode.NOT_FOUND:
                    raise
                self._takes_truncate = False  # it speaks Ollama's protocol, and is none
        return not self._takes_truncate

    async def _windows(self, call: Call, params: dict[str, Any]) -> tuple[int, ...]:
        name = self._deployment.model_name
        shown = loaded = None
        with suppress(BackendError):
            shown = await self._shown()
        with suppress(BackendError):
            loaded = await self._question("/api/ps", call.connect_seconds)
        return windows_of(params, shown, loaded, {name, _with_tag(name)})

    async def probe(self) -> ProbeReport:
        """See `Backend.probe`.  Asks `/api/tags` and `/api/ps`, which a busy server answers too."""
        name = self._deployment.model_name
        try:
            known = await self._model_names("/api/tags")
            if _with_tag(name) not in known:
                return ProbeReport(ok=False, detail=f"answers, but has no model {name}", loaded=False)
            loaded = _with_tag(name) in await self._model_names("/api/ps")
            omitted = await self._omitted()
        except BackendError as error:
            if error.code in {AttemptCode.NOT_FOUND, AttemptCode.UPSTREAM} and (found := await self._advice()):
                return ProbeReport(ok=False, detail=f"is not Ollama{found}")
            return ProbeReport(ok=False, detail=error.reason)
        return ProbeReport(
            ok=True,
            detail=("model in memory" if loaded else "model not in memory") + omitted,
            loaded=loaded,
        )

    async def _omitted(self) -> str:
        """The end of a line for a person, where the deployment asks a model to think that cannot."""
        if not {"think", "reasoning_effort"} & self._deployment.params.keys():
            return ""
        try:
            shown = await self._shown()
        except BackendError:
            return ""
        capabilities = shown.get("capabilities") if isinstance(shown, dict) else None
        can_think = not isinstance(capabilities, list) or "thinking" in capabilities
        return "" if can_think else left_out("think")

    async def warm(self) -> None:
        """See `Backend.warm`.  A generation without a prompt loads the model and does nothing else."""
        body: dict[str, Any] = {"model": self._deployment.model_name, "stream": False}
        if self._deployment.keep_alive is not None:
            body["keep_alive"] = self._deployment.keep_alive
        response = await self._transport.post(
            self._endpoint.url("/api/generate"),
            body,
            headers=self._headers,
            connect_seconds=self._deployment.connect_timeout,
        )
        try:
            while await next_chunk(response):
                pass
        finally:
            response.close()

    async def _advice(self) -> str:
        found = await advice(
            self._transport, self._chat_url, self._deployment.model_name,
            headers=self._headers, connect_seconds=self._deployment.connect_timeout,
        )  # fmt: skip
        return "" if "ollama/" in found else found

    async def _shown(self) -> Any:
        """What `/api/show` tells of the model."""
        return await self._transport.post_json(
            self._endpoint.url("/api/show"),
            {"model": self._deployment.model_name},
            headers=self._headers,
            connect_seconds=self._deployment.connect_timeout,
        )

    async def _question(self, path: str, connect_seconds: float) -> Any:
        url = self._endpoint.url(path)
        return await self._transport.get_json(url, headers=self._headers, connect_seconds=connect_seconds)

    async def _model_names(self, path: str) -> set[str]:
        listing = await self._question(path, self._deployment.connect_timeout)
        models = listing.get("models") if isinstance(listing, dict) else None
        if not isinstance(models, list) or "data" in listing:  # llama.cpp answers to these paths, in a form of its own
            raise faults.malformed("answers, but not as Ollama does")
        return {_with_tag(model["name"]) for model in models if isinstance(model, dict) and "name" in model}


class OllamaAnswer:
    """The answer so far (see `exchange.Answer`)."""

    __slots__ = ("_count", "_framer", "_reasoning_halves", "_text_halves", "_tool_calls")

    def __init__(self) -> None:
        self._framer = LineFramer()
        self._tool_calls = ToolCallAssembler()
        self._count = 0
        self._text_halves = HalvesJoiner()
        self._reasoning_halves = HalvesJoiner()

    def feed(self, chunk: bytes) -> Delta | Finish | None:
        """See `Answer.feed`."""
        return self._take(self._framer.feed(chunk))

    def end(self) -> Finish:
        """See `Answer.end`: a server that does not stream sends one object, and no newline after it."""
        rest = self._framer.rest().removeprefix(BOM)
        if rest and not rest.startswith(b"{"):
            raise faults.malformed("no JSON where JSON belongs")
        try:
            message_of(rest)
        except ValueError:
            raise faults.truncated() from None
        last = self._take([rest])
        if not isinstance(last, Finish):
            raise faults.truncated()
        return last

    def _take(self, lines: list[bytes]) -> Delta | Finish | None:  # noqa: C901 - one loop, no call per token
        """What the lines of one read bring; None if nothing."""
        text: list[str] = []
        reasoning: list[str] = []
        called = False
        try:
            for line in lines:
                try:
                    event = orjson.loads(line)
                except orjson.JSONDecodeError:
                    event = None
                if type(event) is not dict and (event := message_of(line)) is None:
                    continue
                if (message := event.get("message")) is not None:
                    if content := message.get("content"):
                        text.append(content)
                    if thinking := message.get("thinking"):
                        reasoning.append(thinking)
                    if calls := message.get("tool_calls"):
                        called = True
                        self._add_tool_calls(calls)
                if event.get("error") or ("error" in event and not event.get("done")):
                    raise faults.fault_of_error_object(event["error"])
                if event.get("done"):
                    return self._finish(event, self._delta(text, reasoning))
            if text or reasoning or called:
                return self._delta(text, reasoning)
        except faults.SHAPE_ERRORS as error:
            raise faults.fault_of_shape(error) from None
        return None

    def _add_tool_calls(self, calls: list[dict[str, Any]]) -> None:
        """Ollama's calls come whole, and in older versions without an id; their own indexes repeat."""
        for call in calls:
            self._tool_calls.add({**call, "index": self._count})
            self._count += 1

    def _delta(self, text: list[str], reasoning: list[str]) -> Delta:
        said = "".join(text)
        if self._text_halves.waiting or not said.isascii():
            said = self._text_halves.join(said)
        return Delta(said, self._reasoning_halves.join("".join(reasoning))) if reasoning else Delta(said)

    def _finish(self, event: dict[str, Any], last: Delta) -> Finish:
        self._text_halves.finish()
        self._reasoning_halves.finish()
        said = event.get("done_reason")
        reason = str(said) if finish_reasons.is_reason(said) else "stop"  # `done` says enough, as in older versions
        finish_reason = finish_reasons.meaning_of(reason)
        if finish_reason == "stop" and self._tool_calls:
            finish_reason = "tool_calls"
        usage = None
        if "eval_count" in event or "prompt_eval_count" in event:
            usage = Usage(
                prompt_tokens=count(event.get("prompt_eval_count")) or 0,
                completion_tokens=count(event.get("eval_count")) or 0,
            )
        return Finish(
            finish_reason=finish_reason,
            word=finish_reasons.printable(reason) if finish_reason == "truncated" else "",
            usage=usage,
            tool_calls=self._tool_calls.complete(),
            text=last.text,
            reasoning=last.reasoning,
        )


def _with_tag(name: str) -> str:
    """Ollama's own rule: a name without a tag means `latest`.  A registry's port is no tag."""
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"
