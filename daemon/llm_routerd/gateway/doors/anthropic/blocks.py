"""Parts of what is said, from Anthropic's form to OpenAI's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from llm_routerd.gateway.fault import refused, unsupported
from llm_routerd.gateway.properties import Properties, a_list, a_text, an_object, path

if TYPE_CHECKING:
    from collections.abc import Callable

TEXT: Final = Properties(heeded=frozenset({"type", "text"}), idle=frozenset({"cache_control", "citations"}))
IMAGE: Final = Properties(
    heeded=frozenset({"type", "source"}),
    idle=frozenset({"cache_control"}),
    refused={"transformations": ({}, {"oversized_image": "downsize"})},
)
DOCUMENT: Final = Properties(
    heeded=frozenset({"type", "source", "title", "context"}),
    idle=frozenset({"cache_control"}),
    refused={"citations": ({}, {"enabled": False})},
)
SEARCH_RESULT: Final = Properties(
    heeded=frozenset({"type", "content", "source", "title"}),
    idle=frozenset({"cache_control"}),
    refused={"citations": ({}, {"enabled": False})},
)
SOURCE: Final = Properties(heeded=frozenset({"type", "media_type", "data"}))
CONTENT: Final = Properties(heeded=frozenset({"type", "content"}))
_LONGEST_TITLE: Final = 200
_BETWEEN: Final = "\n"

Part = dict[str, Any]


def text_part(text: str) -> Part:
    """A part of text."""
    return {"type": "text", "text": text}


def joined(parts: list[Part]) -> str | list[Part]:
    """Content: what is text alone as a string, which every server takes; blocks are lines of it."""
    if all(part["type"] == "text" for part in parts):
        return _BETWEEN.join(part["text"] for part in parts)
    return parts


def kind_of(block: Any, where: str) -> str:
    """Its `type`.  Raises `RefusedError`: it has none."""
    return a_text(an_object(block, where).get("type"), path(where, "type"))


def parts_of(content: Any, where: str) -> list[Part]:
    """What text, images and documents hold.

    Raises:
        RefusedError: there is something else.
    """
    if isinstance(content, str):
        return [text_part(content)] if content else []
    found: list[Part] = []
    for number, block in enumerate(a_list(content, where)):
        found += part_of(block, path(where, number))
    return found


def part_of(block: Any, where: str) -> list[Part]:
    """What one block holds.  Raises `RefusedError`, as above."""
    reader = _READERS.get(kind_of(block, where))
    if reader is None:
        raise unsupported(path(where, "type"))
    return reader(block, where)


def text_of(content: Any, where: str) -> str:
    """What is text alone.  Raises `RefusedError`: it is not."""
    if isinstance(content, str):
        return content
    texts = [_text(block, path(where, number)) for number, block in enumerate(a_list(content, where))]
    return _BETWEEN.join(part["text"] for each in texts for part in each)


def _text(block: Any, where: str) -> list[Part]:
    if kind_of(block, where) != "text":
        raise unsupported(path(where, "type"))
    text = a_text(TEXT.of(block, where).get("text"), path(where, "text"))
    return [text_part(text)] if text else []


def _image(block: Any, where: str) -> list[Part]:
    source = IMAGE.of(block, where).get("source")
    where = path(where, "source")
    if kind_of(source, where) != "base64":
        raise _elsewhere(where)
    return [{"type": "image_url", "image_url": {"url": _data_url(source, where)}}]


def _document(block: Any, where: str) -> list[Part]:
    given = DOCUMENT.of(block, where)
    source, title = given.get("source"), a_text(given.get("title", ""), path(where, "title"))
    context = a_text(given.get("context", ""), path(where, "context"))
    where = path(where, "source")
    about = [text_part(context)] if context else []
    match kind_of(source, where):
        case "base64":
            name = "".join(char if char.isprintable() else " " for char in title)[:_LONGEST_TITLE]
            file = {"file_data": _data_url(source, where), **({"filename": name} if name else {})}
            return [*about, {"type": "file", "file": file}]
        case "text":
            about = [text_part(title), *about] if title else about
            text = a_text(SOURCE.of(source, where).get("data"), path(where, "data"))
            return [*about, text_part(text)]
        case "content":
            about = [text_part(title), *about] if title else about
            return [*about, *parts_of(CONTENT.of(source, where).get("content"), path(where, "content"))]
        case _:
            raise _elsewhere(where)


def _search_result(block: Any, where: str) -> list[Part]:
    given = SEARCH_RESULT.of(block, where)
    head = [text_part(a_text(given.get(name), path(where, name))) for name in ("title", "source")]
    return [*head, text_part(text_of(given.get("content"), path(where, "content")))]


def _data_url(source: Any, where: str) -> str:
    given = SOURCE.of(source, where)
    media_type, data = (a_text(given.get(name), path(where, name)) for name in ("media_type", "data"))
    return f"data:{media_type};base64,{data}"


def _elsewhere(where: str) -> Exception:
    told = "only what lies in the request itself, in base64 or as text, is taken: nothing is fetched"
    return refused(path(where, "type"), told, code="unsupported")


_READERS: Final[dict[str, Callable[[Any, str], list[Part]]]] = {
    "text": _text,
    "image": _image,
    "document": _document,
    "search_result": _search_result,
}
