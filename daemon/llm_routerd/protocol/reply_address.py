"""Under which id an entry is answered that is no request: whoever waits there is not to wait for ever."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import orjson

from llm_routerd.protocol.cut import HEAD_BYTES, head_of, parts_of
from llm_routerd.protocol.wire import ID_PATTERN

if TYPE_CHECKING:
    from llm_routerd.protocol.cut import Fields, Part

_ID = re.compile(ID_PATTERN)
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*+"|[{}\[\]:,]', re.DOTALL)


def valid_id(value: Any) -> str | None:
    """The value, if it can be the id of a request."""
    return value if isinstance(value, str) and _ID.fullmatch(value) else None


def reply_address(fields: Fields, *, may_parse: bool) -> tuple[str | None, Any]:
    """The id and the metadata of an entry that is no request, as far as they can be read.

    Args:
        fields: its fields, names and values in turn.
        may_parse: its JSON is not too long for that; else only the id is looked for, in the beginning of its JSON.
    """
    flat = parts_of(fields)
    found = {flat[index]: flat[index + 1] for index in range(0, len(flat) - 1, 2) if flat[index] in _NAMES}
    data = found.get(b"data")
    request_id = head_of(found[b"id"]).decode("utf-8", "replace") if b"id" in found else None
    metadata = _parsed(found.get(b"metadata")) if may_parse else None
    if data is not None:
        document = _parsed(data) if may_parse else None
        if isinstance(document, dict):
            request_id = document.get("id", request_id)
            metadata = document.get("metadata", metadata)
        else:
            request_id = _searched_id(head_of(data)[:HEAD_BYTES]) or request_id
    return valid_id(request_id), metadata if isinstance(metadata, dict) else None


_NAMES = frozenset({b"id", b"data", b"metadata"})


def _parsed(value: Part | None) -> Any:
    try:
        return orjson.loads(value) if isinstance(value, bytes) else None
    except orjson.JSONDecodeError:
        return None


def _unescaped(string: bytes) -> Any:
    """What a JSON string says; anything else says nothing."""
    try:
        return orjson.loads(string)
    except orjson.JSONDecodeError:
        return None


def _searched_id(text: bytes) -> str | None:
    """The string at the key `id` of the outermost object, if it stands in this beginning of a JSON text."""
    depth, key, is_value = 0, b"", False
    for token in _TOKEN.finditer(text):
        match token[0]:
            case b"{" | b"[":
                depth, is_value = depth + 1, False
            case b"}" | b"]":
                depth -= 1
            case b":":
                is_value = True
            case b",":
                is_value = False
            case string if depth == 1:
                if is_value and _unescaped(key) == "id":
                    return valid_id(_unescaped(string))
                key = string
    return None
