"""Anthropic's `/v1/messages`: named server-sent events, ended by `message_stop`.

Called directly and not through litellm: there a stream that was cut looks like a whole one (its
`message_start` carries usage already), and the built-in default chain would need 190 MB for an import.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import orjson

from llm_routerd.backends import faults, finish_reasons
from llm_routerd.backends.answer_format import NOT_ITS_OWN
from llm_routerd.backends.anthropic_request import messages_request
from llm_routerd.backends.endpoint import Endpoint, converted
from llm_routerd.backends.exchange import exchange
from llm_routerd.backends.messages import message_of
from llm_routerd.backends.prompt_cut import reject_cut
from llm_routerd.backends.server_kind import advice, how_many, lists_models, what_is_amiss
from llm_routerd.backends.sse import EventAnswer
from llm_routerd.backends.toolcalls import ToolCallAssembler, json_of_arguments
from llm_routerd.backends.usage import count, mapping
from llm_routerd.protocol.call import BackendError, Delta, Finish, ProbeReport
from llm_routerd.protocol.codes import AttemptCode
from llm_routerd.protocol.outcome import Usage

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    import aiohttp

    from llm_routerd.backends.transport import Transport
    from llm_routerd.config.tree import Deployment
    from llm_routerd.protocol.call import Call

_ANTHROPIC_HOST = "api.anthropic.com"
_COUNTS = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")


class AnthropicBackend:
    """One model of Anthropic's API, or of a server that speaks it."""

    def __init__(self, deployment: Deployment, transport: Transport) -> None:
        self._deployment = deployment
        self._transport = transport
        self._endpoint = Endpoint(deployment, default_base=f"https://{_ANTHROPIC_HOST}", strip=("/messages", "/v1"))
        self._messages_url = self._endpoint.url("/v1/messages")
        self._genuine = self._messages_url.host == _ANTHROPIC_HOST
        key = deployment.api_key
        self._headers = self._endpoint.headers(
            {"anthropic-version": "2023-06-01", **({"x-api-key": key} if key else {})}
        )

    def stream(self, call: Call) -> AsyncGenerator[Delta | Finish, None]:
        """See `Backend.stream`."""
        answer = AnthropicAnswer()
        look_at = None if self._genuine else partial(reject_cut, self._deployment, call)
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

    async def warm(self) -> None:
        """See `Backend.warm`: there is nothing to load."""


class AnthropicAnswer(EventAnswer):
    """The answer so far.  Whole once a good stop reason and then `message_stop` have come.

    `by_tool`: the answer is the input of the tool that the model was made to call, and read as text.
    """

    def __init__(self) -> None:
        super().__init__()
        self.by_tool = False
        self._tool_calls = ToolCallAssembler()
        self._usage: dict[str, Any] = {}
        self._stop_reason: str | None = None

    def take(self, payloads: list[bytes]) -> Delta | Finish | None:  # noqa: C901 - one loop, no call per token
        """See `EventAnswer.take`.  Kinds of events that are not known are passed over, as the API asks."""
        text: list[str] = []
        reasoning: list[str] = []
        progress = False
        for payload in payloads:
            try:
                event = orjson.loads(payload)
            except orjson.JSONDecodeError:
                event = None
            if type(event) is not dict and (event := message_of(payload)) is None:
                continue
            kind = event.get("type")
            if kind == "content_block_delta":
                delta = event["delta"]
                if (piece := delta.get("text")) is not None:
                    text.append(piece)
                elif (piece := delta.get("thinking")) is not None:
                    reasoning.append(piece)
                elif (piece := delta.get("partial_json")) is not None:
                    self._add_input(event["index"], piece, text)
                    progress = True
            elif kind == "content_block_start":
                self._start_block(event["index"], event["content_block"], text)
            elif kind == "message_stop":
                return self._finish(self.delta(text, reasoning))
            elif kind == "error":
                raise faults.fault_of_error_object(event.get("error"))
            else:
                self._take_frame(kind, event)
        if text or reasoning or progress:
            return self.delta(text, reasoning)
        return None

    def take_document(self, document: dict[str, Any]) -> Finish:
        """See `EventAnswer.take_document`."""
        text: list[str] = []
        reasoning = [block["thinking"] for block in document["content"] if block.get("type") == "thinking"]
        for index, block in enumerate(document["content"]):
            self._start_block(index, block, text)
        reason = document["stop_reason"]
        if not finish_reasons.is_reason(reason):
            raise faults.truncated()
        self._stop_reason = reason
        self._usage = mapping(document.get("usage"))
        return self._finish(self.delta(text, reasoning))

    def at_end(self, last: Delta) -> Finish:  # noqa: ARG002 - only `message_stop` is an end
        """See `EventAnswer.at_end`: no `message_stop` has come."""
        raise faults.truncated()

    def _take_frame(self, kind: Any, event: dict[str, Any]) -> None:
        """The few events about the message as a whole.  Later counts of tokens replace earlier ones."""
        if kind == "message_start":
            self._count(event["message"].get("usage"))
        elif kind == "message_delta":
            reason = event["delta"].get("stop_reason")
            if finish_reasons.is_reason(reason):
                self._stop_reason = finish_reasons.last_word(self._stop_reason, reason)
            self._count(event.get("usage"))

    def _count(self, usage: Any) -> None:
        counts = mapping(usage)
        self._usage.update({name: counts[name] for name in _COUNTS if name in counts})

    def _start_block(self, index: int, block: dict[str, Any], text: list[str]) -> None:
        if block.get("type") == "text":
            if opening := block.get("text"):
                text.append(opening)
        elif block.get("type") == "tool_use":
            if not self.by_tool:
                head = {"name": block["name"]}
                self._tool_calls.add({"index": index, "id": block.get("id"), "function": head})
            if block.get("input"):  # most servers send it in pieces, after this
                self._add_input(index, json_of_arguments(block["input"]), text)

    def _add_input(self, index: int, piece: str, text: list[str]) -> None:
        if self.by_tool:
            text.append(piece)
        else:
            self._tool_calls.add({"index": index, "function": {"arguments": piece}})

    def _finish(self, last: Delta) -> Finish:
        if (reason := self._stop_reason) is None:  # the event that has it was lost, and with it whether this is all
            raise faults.truncated("the stream gives no finish reason")
        self.end_of_text()
        finish_reason = finish_reasons.meaning_of(reason)
        if self.by_tool and finish_reason == "tool_calls":
            finish_reason = "stop"
        return Finish(
            finish_reason=finish_reason,
            word=finish_reasons.printable(reason) if finish_reason == "truncated" else "",
            usage=_usage(self._usage) if self._usage else None,
            tool_calls=self._tool_calls.complete(),
            text=last.text,
            reasoning=last.reasoning,
            refusal="" if finish_reason == "refusal" else None,
        )


def _usage(usage: dict[str, Any]) -> Usage:
    """Anthropic counts what came from the cache, and what went into it, apart from `input_tokens`."""
    cached = count(usage.get("cache_read_input_tokens"))
    written = count(usage.get("cache_creation_input_tokens")) or 0
    return Usage(
        prompt_tokens=(count(usage.get("input_tokens")) or 0) + (cached or 0) + written,
        completion_tokens=count(usage.get("output_tokens")) or 0,
        cached_tokens=cached,
    )
