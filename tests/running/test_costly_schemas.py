"""A schema that is costly to judge by is asked of another process, and of nothing but the answer's JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from llm_routerd.protocol.call import Delta, Finish
from llm_routerd.protocol.events import Result
from llm_routerd.protocol.outcome import ToolCall
from llm_routerd.running.validation import ValidationProcess
from tests.running.asking import TOOL, codes, request, resources_of, run
from tests.support.fakes import USAGE, says

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from llm_routerd.jsonschema.compiled import AnswerSchema
    from llm_routerd.protocol.call import Call
    from tests.support.fakes import FakeBackend

COSTLY = {"type": "array", "items": {"anyOf": [{"const": number} for number in range(300)]}}
ANSWER = "[" + ",".join(["299"] * 5_000) + "]"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the other process was asked of; its verdict is that of the schema."""
    contents: list[Any] = []

    async def validate(self: ValidationProcess, schema: AnswerSchema, content: Any) -> str | None:
        contents.append(content)
        return schema.validate(content)

    monkeypatch.setattr(ValidationProcess, "validate", validate)
    return contents


async def test_calls_written_into_the_text_are_not_held_to_it(asked: list[Any]) -> None:
    """However costly the schema is: calls of tools are an answer."""
    text = f'<tool_call>{{"name": "weather", "arguments": {{"city": "{"x" * 20_000}"}}}}</tool_call>'
    resources, _, _ = resources_of(says(text))
    ending = await run(resources, request(schema=COSTLY, tools=[TOOL]))
    assert codes(ending) == [None]
    assert isinstance(ending.event, Result)
    assert [call.name for call in ending.event.answer.tool_calls] == ["weather"]
    assert asked == []


async def test_calls_that_nobody_asked_for_do_not_bring_it_onto_the_loop(asked: list[Any]) -> None:
    """Only the text counts then, and it is as costly as without them."""

    async def script(_backend: FakeBackend, _call: Call) -> AsyncGenerator[Delta | Finish, None]:
        yield Delta(ANSWER)
        call = ToolCall.of(id="c1", name="weather", arguments="{}")
        yield Finish(finish_reason="tool_calls", usage=USAGE, tool_calls=(call,))

    resources, _, _ = resources_of(script)
    assert codes(await run(resources, request(schema=COSTLY))) == [None]
    assert asked == [[299] * 5_000]
