"""Under which id an entry is answered that is no request: whoever waits there is not to wait for ever."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from collections.abc import Sequence

_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
# So much of the JSON of a request is searched for its id where it cannot be parsed, or would take too long to be.
_SEARCHED_BYTES = 8192
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*+"|[{}\[\]:,]', re.DOTALL)


def valid_id(value: Any) -> str | None:
    """The value, if it can be the id of a request."""
    return value if isinstance(value, str) and _ID.fullmatch(value) else None


def reply_address(flat: Sequence[bytes], *, may_parse: bool) -> tuple[str | None, Any]:
    """The id and the metadata of an entry that is no request, as far as they can be read.

    Args:
        flat: its fields, names and values in turn.
        may_parse: its JSON is not too long for that; else only the id is looked for.
    """
    found = {flat[index]: flat[index + 1] for index in range(0, len(flat) - 1, 2) if flat[index] in _NAMES}
    data = found.get(b"data")
    request_id = found[b"id"].decode("utf-8", "replace") if b"id" in found else None
    metadata = _parsed(found.get(b"metadata")) if may_parse else None
    if data is not None:
        document = _parsed(data) if may_parse else None
        if isinstance(document, dict):
            request_id = document.get("id", request_id)
            metadata = document.get("metadata", metadata)
        else:
            request_id = _searched_id(data[:_SEARCHED_BYTES]) or request_id
    return valid_id(request_id), metadata if isinstance(metadata, dict) else None


_NAMES = frozenset({b"id", b"data", b"metadata"})


def _parsed(value: bytes | None) -> Any:
    try:
        return None if value is None else orjson.loads(value)
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
                if is_value and key == b'"id"':
                    return valid_id(string[1:-1].decode("utf-8", "replace"))
                key = string
    return None
