"""One model behind Anthropic's `/v1/messages`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from llm_routerd.backends.answer_format import NOT_ITS_OWN
from llm_routerd.backends.anthropic.answer import AnthropicAnswer
from llm_routerd.backends.anthropic.request import messages_request
from llm_routerd.backends.prompt_cut import reject_cut
from llm_routerd.backends.server_kind import advice, how_many, lists_models, what_is_amiss
from llm_routerd.backends.wire.endpoint import Endpoint, converted
from llm_routerd.backends.wire.exchange import exchange
from llm_routerd.protocol.call import BackendError, Delta, Finish, ProbeReport
from llm_routerd.protocol.codes import AttemptCode

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    import aiohttp

    from llm_routerd.backends.wire.transport import Transport
    from llm_routerd.config.tree import Deployment
    from llm_routerd.protocol.call import Call


class AnthropicBackend:
    """One model of Anthropic's API, or of a server that speaks it."""

    def __init__(self, deployment: Deployment, transport: Transport) -> None:
        self._deployment = deployment
        self._transport = transport
        self._endpoint = Endpoint(deployment, strip=("/messages", "/v1"))
        self._messages_url = self._endpoint.url("/v1/messages")
        self._genuine = self._endpoint.is_genuine
        key = deployment.api_key
        self._headers = self._endpoint.headers(
            {"anthropic-version": "2023-06-01", **({"x-api-key": key} if key else {})}
        )

    def stream(self, call: Call) -> AsyncGenerator[Delta | Finish, None]:
        """See `Backend.stream`."""
        answer = AnthropicAnswer()
        look_at = None if self._genuine else partial(reject_cut, call)
        return exchange(partial(self._ask, call, answer), answer, look_at)

    async def _ask(self, call: Call, answer: AnthropicAnswer) -> aiohttp.ClientResponse:
        request = converted(partial(messages_request, genuine=self._genuine), self._deployment, call)
        answer.by_tool = request.answers_by_tool
        return await self._transport.post(
            self._messages_url,
            request.body,
            headers=self._endpoint.traced(self._headers, call.traceparent),
            connect_seconds=call.connect_seconds,
            sending=call.sending,
        )

    async def probe(self) -> ProbeReport:
        """See `Backend.probe`."""
        report = await self._probe_of_model()
        if not report.ok or self._genuine:
            return report
        ok, more = await what_is_amiss(
            self._transport, self._messages_url, self._deployment.model_name,
            headers=self._headers, connect_seconds=self._deployment.connect_timeout,
        )  # fmt: skip
        return ProbeReport(ok=ok, detail=report.detail + more if ok else more)

    async def _probe_of_model(self) -> ProbeReport:
        """What the server says of the model.

        Only Anthropic itself answers for each model; others may list them, or have one.
        """
        also = "" if self._genuine else NOT_ITS_OWN.format("Anthropic")
        try:
            await self._get(f"/v1/models/{self._deployment.model_name}")
        except BackendError as error:
            if error.code is not AttemptCode.NOT_FOUND:
                return ProbeReport(ok=False, detail=error.reason)
            return await self._probe_by_list(also)
        return ProbeReport(ok=True, detail=f"answers and knows the model{also}")

    async def _probe_by_list(self, also: str) -> ProbeReport:
        """What the server's list says of a model that it does not answer for."""
        name = self._deployment.model_name
        try:
            listing = await self._get("/v1/models")
        except BackendError as error:
            if error.code is AttemptCode.NOT_FOUND and not self._genuine:
                return await self._without_a_list(also)
            return ProbeReport(ok=False, detail=error.reason)
        known = lists_models(listing)
        if known is None:
            return ProbeReport(ok=False, detail=f"answers, but not as Anthropic does{await self._advice()}")
        if name in known:
            return ProbeReport(ok=True, detail=f"answers and lists the model{also}")
        if how_many(listing) == 1 and not self._genuine:
            return ProbeReport(ok=True, detail=f"answers, lists another model{also}")
        return ProbeReport(ok=False, detail=f"answers, but has no model {name}")

    async def _without_a_list(self, also: str) -> ProbeReport:
        advice = await self._advice()
        if advice:
            return ProbeReport(ok=False, detail=f"answers, but not as Anthropic does{advice}")
        return ProbeReport(ok=True, detail=f"answers, but lists no models{also}")

    async def _get(self, path: str) -> Any:
        return await self._transport.get_json(
            self._endpoint.url(path), headers=self._headers, connect_seconds=self._deployment.connect_timeout
        )

    async def _advice(self) -> str:
        return await advice(
            self._transport, self._messages_url, self._deployment.model_name,
            headers=self._headers, connect_seconds=self._deployment.connect_timeout,
        )  # fmt: skip

    async def window(self) -> None:
        """See `Backend.window`: the protocol does not tell, and its owner refuses what is too much."""

    async def loaded_window(self) -> int:
        """See `Backend.loaded_window`."""
        return 0

    async def resident(self) -> None:
        """See `Backend.resident`: nobody tells."""

    async def warm(self, *, num_ctx: int | None = None) -> None:
        """See `Backend.warm`: there is nothing to load."""
