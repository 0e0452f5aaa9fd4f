"""Verdicts on what has come whole: its reason to finish, its JSON, its Unicode.

Each gives the protocol's `Answer`, or the `Rejection` that says why there is none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from llm_routerd.judging.json_text import json_body
from llm_routerd.protocol.codes import AttemptCode
from llm_routerd.protocol.numbers import carries_numbers
from llm_routerd.protocol.outcome import Answer, Rejection, Usage

if TYPE_CHECKING:
    from llm_routerd.jsonschema.compiled import AnswerSchema
    from llm_routerd.protocol.call import Finish
    from llm_routerd.protocol.outcome import ToolCall

NOT_JSON: Any = object()
INVALID_UNICODE = Rejection(code=AttemptCode.UPSTREAM, reason="invalid Unicode", retryable=True)
_REFUSING_REASONS = frozenset({"refusal", "content_filter"})
_WHOLE = frozenset({"stop", "tool_calls"})


def judge_ending(finish: Finish) -> Rejection | None:
    """Why an answer that ends like this is none, whatever it says; None: it is whole."""
    if finish.refusal is not None or finish.finish_reason in _REFUSING_REASONS:
        return Rejection(code=AttemptCode.REFUSAL, reason="the backend reports a refusal")
    if finish.finish_reason in _WHOLE:
        return None
    match finish.finish_reason:
        case "length":
            return Rejection(code=AttemptCode.LENGTH, reason="cut off at the limit of tokens")
        case "context_window":
            return Rejection(code=AttemptCode.CONTEXT_WINDOW, reason="cut off where the model's context window ends")
        case "not_generated":
            return Rejection(code=AttemptCode.UPSTREAM, reason="the server saw nothing to answer in these messages")
        case _:
            reason = f"the server ended the answer with {finish.word or 'an unknown reason'}"
            return Rejection(code=AttemptCode.TRUNCATED, reason=reason, retryable=True)


def judge_json(text: str, schema: AnswerSchema | None, finish: Finish) -> Answer | Rejection:
    """Validate a text that the guard has accepted; without a schema, all but that."""
    body = json_body(text)
    content = parse(body)
    if content is NOT_JSON:
        return invalid_json("not JSON")
    if not carries_numbers(body):
        return invalid_json("a number with more digits than can be carried")
    return judge_content(content, text, schema, finish)


def judge_content(content: Any, text: str, schema: AnswerSchema | None, finish: Finish) -> Answer | Rejection:
    """Validate the JSON value that a text holds; without a schema, any will do."""
    problem = None if schema is None else schema.validate(content)
    if problem is not None:
        return Rejection(code=AttemptCode.SCHEMA_VIOLATION, reason=problem)
    return answer_of(content, text, finish)


def answer_of(content: Any, raw_text: str, finish: Finish, tool_calls: tuple[ToolCall, ...] = ()) -> Answer:
    """The answer that these make."""
    return Answer(
        content=content,
        raw_text=raw_text,
        finish_reason=finish.finish_reason,
        tool_calls=tool_calls,
        usage=finish.usage or Usage(),
    )


def parse(text: str) -> Any:
    """The value of a JSON text, `NOT_JSON` for any other."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return NOT_JSON


def invalid_json(reason: str) -> Rejection:
    """The verdict on an answer that is not the JSON that was asked for."""
    return Rejection(code=AttemptCode.INVALID_JSON, reason=reason)


def is_encodable(text: str) -> bool:
    """Tell whether a text can be written as UTF-8: it cannot where it holds lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
