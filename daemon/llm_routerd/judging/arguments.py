"""Stand-in until the real one comes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from llm_routerd.judging.verdicts import parse

if TYPE_CHECKING:
    from collections.abc import Mapping
    from collections.abc import Set as AbstractSet

    from llm_routerd.jsonschema.compiled import AnswerSchema
    from llm_routerd.protocol.outcome import ToolCall


class CallRules(Struct, frozen=True, kw_only=True):
    parameters: Mapping[str, AnswerSchema]
    corrected: AbstractSet[str]


def fault_of_call(call: ToolCall, parameters: Mapping[str, AnswerSchema]) -> str | None:
    schema = parameters.get(call.name)
    if schema is None:
        return "there is no tool of this name"
    found = parse(call.arguments if call.arguments.strip() else "{}")
    if not isinstance(found, dict):
        return "the arguments are not a JSON object"
    return schema.validate(found)
