"""Ollama's `/api/chat`: newline-delimited JSON, one object per token, ended by `"done": true`."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from llm_routerd.backends import faults
from llm_routerd.backends.ollama.answer import OllamaAnswer
from llm_routerd.backends.ollama.request import chat_body
from llm_routerd.backends.ollama.window import LEAST, allocated_to, resident_in, window_told, windows_of
from llm_routerd.backends.optional_fields import Omissions, left_out, without
from llm_routerd.backends.prompt_cut import (
    cut,
    cuts_in_halves,
    how_cut,
    looks_cut,
    may_exceed,
    takes_truncate,
    was_whole,
    without_first,
)
from llm_routerd.backends.server_kind import advice
from llm_routerd.backends.usage import count, mapping
from llm_routerd.backends.wire.endpoint import Endpoint, converted
from llm_routerd.backends.wire.exchange import exchange
from llm_routerd.backends.wire.transport import next_chunk
from llm_routerd.protocol.call import BackendError, Delta, Finish, ProbeReport, Window
from llm_routerd.protocol.codes import AttemptCode
from llm_routerd.routing.window import num_ctx_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    import aiohttp

    from llm_routerd.backends.wire.transport import Transport
    from llm_routerd.config.tree import Deployment
    from llm_routerd.protocol.call import Call


class OllamaBackend:
    """One model of one Ollama server."""

    def __init__(self, deployment: Deployment, transport: Transport) -> None:
        self._deployment = deployment
        self._transport = transport
        self._endpoint = Endpoint(deployment, strip=("/api", "/v1"))
        self._chat_url = self._endpoint.url("/api/chat")
        key = deployment.api_key
        self._headers = self._endpoint.headers({"Authorization": f"Bearer {key}"} if key else {})
        self._omissions = Omissions()
        self._takes_truncate: bool | None = None  # not known yet
        self._is_ollama = False  # known to be
        self._cuts_in_halves = True  # as far as is known

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
        params = call.params
        if params.get("truncate"):
            return
        counted = 0 if finish.usage is None else finish.usage.prompt_tokens
        is_far_below = looks_cut(call.messages, counted)
        if not is_far_below and not may_exceed(call, LEAST):
            return
        try:
            is_asked_in_vain = await self._passes_over_truncate(call)
        except BackendError:
            if is_far_below:
                raise
            return
        if is_asked_in_vain and (is_far_below or await self._may_be_cut(call, counted)):
            raise cut()

    async def _may_be_cut(self, call: Call, counted: int) -> bool:
        told = await self.window()
        windows = windows_of(call.params, told)
        if not self._is_ollama:  # what cuts like one tells its window like one
            windows = tuple(window for window in windows if window == told.loaded)
        found = how_cut(call, counted, windows, in_halves=self._cuts_in_halves)
        return found == "cut" or (found == "messages" and not await self._was_whole(call, counted))

    async def _was_whole(self, call: Call, counted: int) -> bool:
        """Whether the prompt was read with its first message: it is sent again without, for no answer."""
        rest = without_first(call)
        if rest is None:
            return False
        body = chat_body(self._deployment, replace(rest, params={**rest.params, "max_tokens": 1}))
        try:
            answer = await self._omissions.ask(
                partial(without, {**body, "stream": False}),
                partial(
                    self._transport.post_json,
                    self._chat_url,
                    headers=self._headers,
                    connect_seconds=call.connect_seconds,
                    answer_seconds=self._deployment.timeout,  # it reads a prompt
                ),
            )
        except BackendError:
            return False
        return was_whole(counted, rest, count(mapping(answer).get("prompt_eval_count")) or 0)

    async def _passes_over_truncate(self, call: Call) -> bool:
        """Whether the server cuts although it is asked not to, or may; it is asked for its version, once."""
        if self._takes_truncate is None:
            try:
                answer = await self._question("/api/version", call.connect_seconds)
                version = answer.get("version") if isinstance(answer, dict) else None
                self._takes_truncate, self._is_ollama = takes_truncate(version), isinstance(version, str)
                self._cuts_in_halves = cuts_in_halves(version)
            except BackendError as error:
                if error.code is not AttemptCode.NOT_FOUND:
                    raise
                self._takes_truncate = False  # it speaks Ollama's protocol, and is none
        return not self._takes_truncate

    async def window(self) -> Window:
        """See `Backend.window`.  It raises nothing: what is not told is not known."""
        name = self._deployment.model_name
        shown = loaded = None
        with suppress(BackendError):
            shown = await self._shown()
        with suppress(BackendError):
            loaded = await self._question("/api/ps", self._deployment.connect_timeout)
        return window_told(shown, loaded, {name, _with_tag(name)})

    async def loaded_window(self) -> int | None:
        """See `Backend.loaded_window`.  Older versions do not tell."""
        name = self._deployment.model_name
        loaded = await self._question("/api/ps", self._deployment.connect_timeout)
        return allocated_to(loaded, {name, _with_tag(name)})

    async def probe(self) -> ProbeReport:
        """See `Backend.probe`.  Asks `/api/tags` and `/api/ps`, which a busy server answers too."""
        name = self._deployment.model_name
        try:
            known = await self._model_names("/api/tags")
            if _with_tag(name) not in known:
                return ProbeReport(
                    ok=False, detail=f"answers, but has no model {name}: `ollama pull {name}`", loaded=False
                )
            loaded = _with_tag(name) in await self._model_names("/api/ps")
            omitted = await self._omitted()
        except BackendError as error:
            if error.code in {AttemptCode.NOT_FOUND, AttemptCode.UPSTREAM} and (found := await self._advice()):
                return ProbeReport(ok=False, detail=f"is not Ollama{found}")
            return ProbeReport(ok=False, detail=error.reason, is_silent=error.code is AttemptCode.CONNECT)
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

    async def resident(self) -> dict[str, int]:
        """See `Backend.resident`."""
        return resident_in(await self._question("/api/ps", self._deployment.connect_timeout))

    async def warm(self, *, num_ctx: int | None = None) -> None:
        """See `Backend.warm`.  A generation without a prompt loads the model and does nothing else.

        Without a window it would load a model anew that another worker has had loaded with a larger one.
        """
        body: dict[str, Any] = {"model": self._deployment.model_name, "stream": False}
        if self._deployment.keep_alive is not None:
            body["keep_alive"] = self._deployment.keep_alive
        window = num_ctx or num_ctx_of(self._deployment.params)
        if window is None:
            with suppress(BackendError):
                window = await self.loaded_window() or None
        if window is not None:
            body["options"] = {"num_ctx": window}
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


def _with_tag(name: str) -> str:
    """Ollama's own rule: a name without a tag means `latest`.  A registry's port is no tag."""
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"
