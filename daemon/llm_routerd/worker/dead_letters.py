"""A dead letter: an entry that was no request, or that killed its workers, kept until an operator acts."""

from __future__ import annotations

import base64
import hashlib
from typing import TYPE_CHECKING, Any

import orjson

from llm_routerd.protocol.cut import KEPT_FIELDS, MOST_FIELDS, CutBytes, CutList, extent_of, head_of, parts_of, size_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_routerd.protocol.cut import Fields, Part
    from llm_routerd.protocol.events import Failed
    from llm_routerd.queue.deliveries import Delivery

# Of a request that is too long to be kept whole.
MOST_NAME_BYTES = 256
MOST_VALUE_BYTES = 4096


def dead_letter(
    delivery: Delivery,
    event: Failed,
    *,
    consumer: str,
    at_ms: float,
    history: Sequence[Any] = (),
    most_bytes: int,
) -> list[bytes | str]:
    """The fields of an entry of `P:dead`, flat; see `schemas/dead-letter.schema.json`.

    Of a request of more than `most_bytes`, or that has too many fields, it has the beginnings of its first ones, with
    sizes and hashes of the whole.
    """
    fields = delivery.fields
    size, count = extent_of(fields)
    is_whole = size <= most_bytes and count <= MOST_FIELDS
    told = _cut(fields) if isinstance(fields, CutList) or not is_whole else {"fields": _kept(fields)}
    letter: dict[str, bytes | str] = {
        "entry": delivery.entry,
        "lane": delivery.lane,
        "id": event.id,
        "reason": event.code.value,
        "message": event.message,
        "deliveries": str(delivery.deliveries),
        "consumer": consumer,
        "at_ms": str(round(at_ms)),
        "data": orjson.dumps(told | {"history": list(history)}),
    }
    return [part for pair in letter.items() for part in pair]


def _kept(fields: Sequence[bytes]) -> dict[str, Any]:
    return {
        name.decode("utf-8", "backslashreplace"): _text_or_base64(value)
        for name, value in zip(fields[::2], fields[1::2], strict=False)
    }


def _cut(fields: Fields) -> dict[str, Any]:
    """Beginnings of the first fields; `cut` says what they are the beginnings of."""
    size, count = extent_of(fields)
    flat = parts_of(fields)
    kept, cut = [], {}
    for index in range(0, min(len(flat) - 1, 2 * KEPT_FIELDS), 2):
        name, value = head_of(flat[index])[:MOST_NAME_BYTES], flat[index + 1]
        kept += [name, head_of(value)[:MOST_VALUE_BYTES]]
        if size_of(value) > MOST_VALUE_BYTES:
            cut[name.decode("utf-8", "backslashreplace")] = {"bytes": size_of(value), "sha256": _digest(value)}
    omitted = max(0, count - KEPT_FIELDS)
    return {"fields": _kept(kept), "cut": {"bytes": size, "values": cut, "omitted_fields": omitted}}


def _digest(part: Part) -> str:
    return part.sha256 if isinstance(part, CutBytes) else hashlib.sha256(part).hexdigest()


def _text_or_base64(value: bytes) -> str | dict[str, str]:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value).decode()}
