"""OpenAI's `/chat/completions` and all that is compatible: server-sent events, ended by `[DONE]`."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

from llm_routerd.backends.answer_format import NOT_ITS_OWN
from llm_routerd.backends.openai.answer import OpenAIAnswer
from llm_routerd.backends.openai.request import chat_body
from llm_routerd.backends.openai.window import window_of
from llm_routerd.backends.optional_fields import Omissions
from llm_routerd.backends.prompt_cut import reject_cut
from llm_routerd.backends.server_kind import advice, how_many, lists_models, what_is_amiss
from llm_routerd.backends.wire.endpoint import Endpoint, converted
from llm_routerd.backends.wire.exchange import exchange
from llm_routerd.protocol.call import BackendError, Delta, Finish, ProbeReport, Window
from llm_routerd.protocol.codes import AttemptCode

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    import aiohttp

    from llm_routerd.backends.wire.transport import Transport
    from llm_routerd.config.tree import Deployment
    from llm_routerd.protocol.call import Call

_EXAMINATION_SECONDS = 5.0
_NO_SUCH_PATH = frozenset({403, 404, 405, 501})


class OpenAIBackend:
    """One model of one OpenAI-compatible server.

    An `api_base` without a path gets `/v1`; any other is taken to be the whole address before
    `/chat/completions`.
    """

    def __init__(self, deployment: Deployment, transport: Transport) -> None:
        self._deployment = deployment
        self._transport = transport
        self._endpoint = Endpoint(deployment, strip=("/chat/completions",))
        root = self._endpoint.url("")
        self._version = "/v1" if root.path in {"", "/"} else ""
        self._genuine = self._endpoint.is_genuine
        key = deployment.api_key
        self._chat_url = self._endpoint.url(f"{self._version}/chat/completions")
        self._headers = self._endpoint.headers({"Authorization": f"Bearer {key}"} if key else {})
        self._omissions = Omissions()

    def stream(self, call: Call) -> AsyncGenerator[Delta | Finish, None]:
        """See `Backend.stream`."""
        look_at = None if self._genuine else partial(reject_cut, call)
        return exchange(partial(self._ask, call), OpenAIAnswer(), look_at)

    async def _ask(self, call: Call) -> aiohttp.ClientResponse:
        return await self._omissions.ask(
            lambda omitted: converted(
                partial(chat_body, genuine=self._genuine, omitted=omitted), self._deployment, call
            ),
            partial(
                self._transport.post,
                self._chat_url,
                headers=self._endpoint.traced(self._headers, call.traceparent),
                connect_seconds=call.connect_seconds,
                sending=call.sending,
            ),
        )

    async def probe(self) -> ProbeReport:
        """See `Backend.probe`.  A server that does not list its models may know this one all the same."""
        try:
            listing = await self._transport.get_json(
                self._endpoint.url(f"{self._version}/models"),
                headers=self._headers,
                connect_seconds=self._deployment.connect_timeout,
            )
        except BackendError as error:
            if error.code is not AttemptCode.NOT_FOUND:
                is_silent = error.code is AttemptCode.CONNECT
                return ProbeReport(ok=False, detail=error.reason, is_silent=is_silent)
            found = await self._advice()
            ok, detail = not found, "answers, but not as OpenAI does" if found else "answers, but lists no models"
            detail += found
        else:
            ok, detail = await self._look_through(listing)
        if ok and not self._genuine:
            ok, more = await what_is_amiss(
                self._transport, self._chat_url, self._deployment.model_name,
                headers=self._headers, connect_seconds=self._deployment.connect_timeout,
            )  # fmt: skip
            detail = detail + more if ok else more
        if ok:
            detail += "" if self._genuine else NOT_ITS_OWN.format("OpenAI")
            detail += await self._refused_fields()
        return ProbeReport(ok=ok, detail=detail)

    async def _look_through(self, listing: Any) -> tuple[bool, str]:
        """Whether a list of models has this one, and what to tell of it."""
        name, known = self._deployment.model_name, lists_models(listing)
        if known is None:
            return False, f"answers, but not as OpenAI does{await self._advice()}"
        if name in known:
            return True, "answers and knows the model"
        if how_many(listing) == 1 and not self._genuine:  # llama.cpp serves its one model under any name
            return True, "answers, lists another model"
        return False, f"answers, but has no model {name}"

    async def _advice(self) -> str:
        return await advice(
            self._transport, self._chat_url, self._deployment.model_name,
            headers=self._headers, connect_seconds=self._deployment.connect_timeout,
        )  # fmt: skip

    async def _refused_fields(self) -> str:
        """Which of the optional fields the server refuses; asked with a body that no server can answer."""
        if self._genuine:
            return ""
        body = {"model": self._deployment.model_name, "messages": None, "stream": True}
        optional = {
            "stream_options": {"include_usage": True},
            "response_format": {"type": "json_object"},
            "reasoning_effort": "low",
            "parallel_tool_calls": True,
        }
        post = partial(
            self._transport.post,
            self._chat_url,
            headers=self._headers,
            connect_seconds=self._deployment.connect_timeout,
        )
        try:
            async with asyncio.timeout(_EXAMINATION_SECONDS):
                return await self._omissions.examine({**body, **optional}, post)
        except TimeoutError:
            return ""

    async def window(self) -> Window | None:
        """See `Backend.window`."""
        if self._genuine:
            return None
        return await window_of(self._look, await self._look(f"{self._version}/models"), self._deployment.model_name)

    async def _look(self, path: str) -> Any:
        """What stands at a path beside the protocol's, which may have one of its own before it; None: nothing."""
        url = self._endpoint.url(path) if path.endswith("/models") else self._chat_url.with_path(path)
        try:
            return await self._transport.get_json(
                url, headers=self._headers, connect_seconds=self._deployment.connect_timeout
            )
        except BackendError as error:
            if error.status is None or error.status not in _NO_SUCH_PATH:
                raise
            return None

    async def loaded_window(self) -> int:
        """See `Backend.loaded_window`."""
        return 0

    async def resident(self) -> None:
        """See `Backend.resident`: nobody tells."""

    async def warm(self, *, num_ctx: int | None = None) -> None:
        """See `Backend.warm`: there is nothing to ask for."""
