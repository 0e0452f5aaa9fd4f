"""Answers in the wire forms of the protocols, made from what they say, and how tests have them judged."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson
from msgspec.structs import replace

from llm_routerd.jsonschema.compiled import AnswerSchema, compile_schema
from llm_routerd.judging.judge import Accepted, Judge
from llm_routerd.judging.refusal import RefusalDetector
from llm_routerd.protocol.call import BackendError, Finish
from llm_routerd.protocol.outcome import Answer, Rejection
from llm_routerd.protocol.request import StreamMode

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llm_routerd.backends.wire.exchange import Answer as WireAnswer
    from llm_routerd.protocol.backend import Backend
    from llm_routerd.protocol.call import Call
    from llm_routerd.protocol.codes import AttemptCode

DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What a model said, in no protocol: pieces of text, pieces of thinking, calls of tools, a reason to finish."""

    text: tuple[str, ...] = ()
    reasoning: tuple[str, ...] = ()
    calls: tuple[tuple[str, str], ...] = ()  # name, arguments as JSON
    reason: str | None = "stop"


def events(*each: Any) -> bytes:
    """Server-sent events; bytes among them stand as they are."""
    return b"".join(one if isinstance(one, bytes) else b"data: " + orjson.dumps(one) + b"\n\n" for one in each)


def lines(*each: Any) -> bytes:
    """Newline-delimited JSON; bytes among them stand as they are."""
    return b"".join(one if isinstance(one, bytes) else orjson.dumps(one) + b"\n" for one in each)


def chunk(finish_reason: Any = None, index: int = 0, **delta: Any) -> dict[str, Any]:
    """An event of OpenAI's."""
    return {"choices": [{"index": index, "delta": delta, "finish_reason": finish_reason}]}


def stream_of(protocol: str, said: Said) -> bytes:
    """A good stream of the protocol."""
    return b"".join(pieces_of(protocol, said))


def pieces_of(protocol: str, said: Said) -> list[bytes]:
    """The same, an event a piece."""
    match protocol:
        case "openai":
            return _openai(said)
        case "anthropic":
            return _anthropic(said)
        case _:
            return _ollama(said)


def document_of(protocol: str, said: Said) -> bytes:
    """The same from a server that does not stream."""
    text, reasoning = "".join(said.text), "".join(said.reasoning)
    match protocol:
        case "openai":
            calls = [_openai_call(*call, number) for number, call in enumerate(said.calls)]
            message = {"content": text, "reasoning_content": reasoning, "tool_calls": calls}
            return orjson.dumps({"choices": [{"index": 0, "message": message, "finish_reason": said.reason}]})
        case "anthropic":
            content: list[dict[str, Any]] = [{"type": "thinking", "thinking": reasoning}] if reasoning else []
            content += [{"type": "text", "text": text}] if text else []
            content += [
                {"type": "tool_use", "id": f"c{number}", "name": name, "input": orjson.loads(arguments)}
                for number, (name, arguments) in enumerate(said.calls)
            ]
            return orjson.dumps({"type": "message", "content": content, "stop_reason": said.reason})
        case _:
            calls = [{"function": {"name": name, "arguments": orjson.loads(given)}} for name, given in said.calls]
            message = {"content": text, "thinking": reasoning, "tool_calls": calls}
            return orjson.dumps({"message": message, "done": True, "done_reason": said.reason})


def _openai_call(name: str, arguments: str, number: int) -> dict[str, Any]:
    return {"index": number, "id": f"c{number}", "function": {"name": name, "arguments": arguments}}


def _openai(said: Said) -> list[bytes]:
    return [
        events(chunk(role="assistant", content="")),
        *(events(chunk(reasoning_content=piece)) for piece in said.reasoning),
        *(events(chunk(content=piece)) for piece in said.text),
        *(events(chunk(tool_calls=[_openai_call(*call, number)])) for number, call in enumerate(said.calls)),
        events(chunk(said.reason)),
        DONE,
    ]


def _anthropic(said: Said) -> list[bytes]:
    pieces = [events({"type": "message_start", "message": {}})]
    for kind, texts in (("thinking", said.reasoning), ("text", said.text)):
        pieces += [
            events({"type": "content_block_delta", "index": 0, "delta": {"type": f"{kind}_delta", kind: text}})
            for text in texts
        ]
    for number, (name, arguments) in enumerate(said.calls, start=1):
        block = {"type": "tool_use", "id": f"c{number - 1}", "name": name, "input": {}}
        delta = {"type": "input_json_delta", "partial_json": arguments}
        pieces += [
            events({"type": "content_block_start", "index": number, "content_block": block}),
            events({"type": "content_block_delta", "index": number, "delta": delta}),
        ]
    pieces.append(events({"type": "message_delta", "delta": {"stop_reason": said.reason}}))
    return [*pieces, events({"type": "message_stop"})]


def _ollama(said: Said) -> list[bytes]:
    calls = [{"function": {"name": name, "arguments": orjson.loads(arguments)}} for name, arguments in said.calls]
    return [
        *(lines({"message": {"thinking": piece}, "done": False}) for piece in said.reasoning),
        *(lines({"message": {"content": piece}, "done": False}) for piece in said.text),
        *(lines({"message": {"content": "", "tool_calls": [call]}, "done": False}) for call in calls),
        lines({"message": {"content": ""}, "done": True, "done_reason": said.reason}),
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What became of an answer: `code` is None for one that stands."""

    code: AttemptCode | None = None
    reason: str = ""
    answer: Answer | None = None
    reasoning: str = ""


def judge_of(*, schema: Any = None, tools: Iterable[str] = ()) -> Judge:
    """A judge that shows all text."""
    names = frozenset(tools)
    compiled = None if schema is None else compile_schema(schema)
    assert compiled is None or isinstance(compiled, AnswerSchema)
    return Judge(
        schema=compiled,
        refusals=RefusalDetector("anchored"),
        mode=StreamMode.LIVE,
        has_tools=bool(names),
        tool_names=names or None,
    )


def read(answer: WireAnswer, reads: Iterable[bytes], judge: Judge) -> Verdict:
    """The verdict on an answer whose body comes in these reads."""
    reasoning = ""
    try:
        for data in reads:
            item = answer.feed(data)
            if item is None:
                continue
            if isinstance(item, Finish):
                return _verdict(judge, item, reasoning)
            reasoning += item.reasoning
            released = judge.feed(item.text) if item.text else None
            if isinstance(released, Rejection):
                return Verdict(code=released.code, reason=released.reason)
            reasoning += released.reasoning if released is not None else ""
        return _verdict(judge, answer.end(), reasoning)
    except BackendError as error:
        return Verdict(code=error.code, reason=error.reason)


async def called(backend: Backend, call: Call, judge: Judge) -> Verdict:
    """The verdict on what a backend's server answers."""
    reasoning = ""
    try:
        async with aclosing(backend.stream(call)) as stream:
            async for item in stream:
                if isinstance(item, Finish):
                    return _verdict(judge, item, reasoning)
                reasoning += item.reasoning
                released = judge.feed(item.text) if item.text else None
                if isinstance(released, Rejection):
                    return Verdict(code=released.code, reason=released.reason)
                reasoning += released.reasoning if released is not None else ""
    except BackendError as error:
        return Verdict(code=error.code, reason=error.reason)
    raise AssertionError("a stream ended without finish or error")


def _verdict(judge: Judge, finish: Finish, reasoning: str) -> Verdict:
    verdict = judge.finish(replace(finish))
    if isinstance(verdict, Accepted):
        return Verdict(answer=verdict.answer, reasoning=reasoning + verdict.tail.reasoning)
    return Verdict(code=verdict.code, reason=verdict.reason)
