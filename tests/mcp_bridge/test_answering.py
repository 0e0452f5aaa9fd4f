"""What a model is told of a tool's result."""

from __future__ import annotations

from typing import Any

import pytest
from mcp_types import (
    AudioContent,
    BlobResourceContents,
    CallToolResult,
    CreateMessageRequest,
    CreateMessageRequestParams,
    ElicitRequest,
    ElicitRequestFormParams,
    EmbeddedResource,
    ImageContent,
    InputRequiredResult,
    ResourceLink,
    TextContent,
    TextResourceContents,
)

from llm_routerd.mcp_bridge.answering import error_of, question_in, result_of

MOST = 1000


def result(*content: Any, **rest: Any) -> CallToolResult:
    """A result with that content."""
    return CallToolResult(content=list(content), **rest)


@pytest.mark.parametrize(
    ("value", "told"),
    [({"total": 3}, b'{"total":3}'), ([1, None], b"[1,null]"), ("text", b'"text"'), (False, b"false")],
)
def test_structured_content_goes_as_json(value: Any, told: bytes) -> None:
    """And the text that says the same goes not."""
    assert result_of(result(TextContent(text="x"), structured_content=value), MOST) == told


def test_pictures_within_structured_content_are_named_too() -> None:
    """The filesystem server repeats its content there; a value of another meaning stays."""
    blocks = [{"type": "image", "data": "QUJDRA==", "mimeType": "image/png"}, {"uri": "file:///b", "blob": "QUJD"}]
    assert result_of(result(structured_content={"content": blocks, "data": "QUJDRA=="}), MOST) == (
        b'{"content":[{"type":"image","data":"[4 bytes: not shown]","mimeType":"image/png"},'
        b'{"uri":"file:///b","blob":"[3 bytes: not shown]"}],"data":"QUJDRA=="}'
    )


def test_texts_are_joined() -> None:
    """In their order."""
    assert result_of(result(TextContent(text="one"), TextContent(text="two")), MOST) == "one\ntwo"
    assert result_of(result(), MOST) == ""


@pytest.mark.parametrize(
    ("block", "told"),
    [
        (ImageContent(data="QUJDRA==", mime_type="image/png"), "[image, image/png, 4 bytes: not shown]"),
        (AudioContent(data="QUJD", mime_type="audio/wav"), "[audio, audio/wav, 3 bytes: not shown]"),
        (ResourceLink(name="log", uri="file:///log"), "[resource log: file:///log]"),
        (
            EmbeddedResource(resource=TextResourceContents(uri="file:///a", text="its text")),
            "[resource file:///a]\nits text",
        ),
        (
            EmbeddedResource(resource=BlobResourceContents(uri="file:///b", blob="QUJD", mime_type="a/b\n")),
            "[resource file:///b, a/b?, 3 bytes: not shown]",
        ),
        (
            EmbeddedResource(resource=BlobResourceContents(uri="file:///b", blob="QUJD")),
            "[resource file:///b, of unknown type, 3 bytes: not shown]",
        ),
    ],
)
def test_what_is_no_text_is_named_and_not_sent(block: Any, told: str) -> None:
    """A model cannot read base64, and pays for each letter of it."""
    found = result_of(result(TextContent(text="before"), block), MOST)
    assert found == f"before\n{told}"


def test_what_is_too_long_is_cut_one_letter_late() -> None:
    """So that the daemon sees that there was more, and marks the cut."""
    assert result_of(result(*[TextContent(text="x" * 600)] * 9), MOST) == "x" * 600 + "\n" + "x" * 400
    structured = result_of(result(structured_content=["x" * 5000]), MOST)
    assert (len(structured), structured[:3]) == (MOST + 1, b'["x')
    assert len(error_of(result(TextContent(text="x" * 5000)), MOST)) == MOST + 1


def test_an_error_says_why() -> None:
    """Or that nothing is said of it."""
    assert error_of(result(TextContent(text="no such city"), is_error=True), MOST) == "no such city"
    assert error_of(result(is_error=True), MOST) == "the tool failed, and does not say why"


def test_a_question_to_a_person_is_told_to_the_model() -> None:
    """The person has agreed to the call, and not to what the server asks next."""
    asked = ElicitRequest(params=ElicitRequestFormParams(message="Really\x1b?", requested_schema={"type": "object"}))
    told = question_in(InputRequiredResult(input_requests={"a": asked}))
    assert told.startswith(
        "not carried out: the tool wants an answer first, which nobody can give it here; it asks: Really"
    )
    assert told.isprintable()


def test_other_questions_are_not_told() -> None:
    """Of a wish for a model (sampling), and of a state alone, nothing is passed on."""
    wish = CreateMessageRequest(params=CreateMessageRequestParams(messages=[], max_tokens=1))
    for required in (InputRequiredResult(input_requests={"a": wish}), InputRequiredResult(request_state="secret")):
        told = question_in(required)
        assert told.startswith("not carried out: the tool wants an answer first, which nobody can give it here. Where")
        assert "secret" not in told
