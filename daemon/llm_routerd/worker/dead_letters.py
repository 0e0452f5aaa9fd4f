"""A dead letter: an entry that was no request, or that killed its workers, kept until an operator acts."""

from __future__ import annotations

import base64
import hashlib
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_routerd.core.events import Failed
    from llm_routerd.queue.broker import Delivery


MOST_FIELDS = 64  # of a request that is too long to be kept whole
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

    Of a request of more than `most_bytes` it has the beginnings of its fields, with sizes and hashes of the whole.
    """
    size = sum(map(len, delivery.fields))
    told = {"fields": _kept(delivery.fields)} if size <= most_bytes else _cut(delivery.fields, size)
    letter = {
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


def _cut(fields: Sequence[bytes], size: int) -> dict[str, Any]:
    """Beginnings of the first fields; `cut` says what they are the beginnings of."""
    kept, cut = [], {}
    for index in range(0, min(len(fields) - 1, 2 * MOST_FIELDS), 2):
        name, value = fields[index][:MOST_NAME_BYTES], fields[index + 1]
        kept += [name, value[:MOST_VALUE_BYTES]]
        if len(value) > MOST_VALUE_BYTES:
            digest = hashlib.sha256(value).hexdigest()
            cut[name.decode("utf-8", "backslashreplace")] = {"bytes": len(value), "sha256": digest}
    omitted = max(0, len(fields) // 2 - MOST_FIELDS)
    return {"fields": _kept(kept), "cut": {"bytes": size, "values": cut, "omitted_fields": omitted}}


def _text_or_base64(value: bytes) -> str | dict[str, str]:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value).decode()}
