"""A dead letter: an entry that was no request, or that killed its workers, kept until an operator acts."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_routerd.core.events import Failed
    from llm_routerd.queue.broker import Delivery


def dead_letter(
    delivery: Delivery, event: Failed, *, consumer: str, at_ms: float, history: Sequence[Any] = ()
) -> list[bytes | str]:
    """The fields of an entry of `P:dead`, flat; see `schemas/dead-letter.schema.json`."""
    fields = {}
    for name, value in zip(delivery.fields[::2], delivery.fields[1::2], strict=False):
        fields[name.decode("utf-8", "backslashreplace")] = _text_or_base64(value)
    letter = {
        "entry": delivery.entry,
        "lane": delivery.lane,
        "id": event.id,
        "reason": event.code.value,
        "message": event.message,
        "deliveries": str(delivery.deliveries),
        "consumer": consumer,
        "at_ms": str(round(at_ms)),
        "data": orjson.dumps({"fields": fields, "history": list(history)}),
    }
    return [part for pair in letter.items() for part in pair]


def _text_or_base64(value: bytes) -> str | dict[str, str]:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value).decode()}
