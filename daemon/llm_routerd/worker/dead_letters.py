"""Writing the dead letter of an entry that is given up: all of it, or the beginnings where it is too long."""

from __future__ import annotations

import base64
import hashlib
from typing import TYPE_CHECKING, Any

from llm_routerd.protocol.cut import KEPT_FIELDS, MOST_FIELDS, CutBytes, CutList, extent_of, head_of, parts_of, size_of
from llm_routerd.protocol.dead_letter import Base64, Cut, CutValue, DeadLetter, Submitted

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
    """The fields of an entry of `P:dead`, flat.

    Of a request of more than `most_bytes`, or that has too many fields, it has the beginnings of its first ones, with
    sizes and hashes of the whole.
    """
    fields = delivery.fields
    size, count = extent_of(fields)
    is_whole = size <= most_bytes and count <= MOST_FIELDS
    kept, cut = (_kept(fields), None) if is_whole and not isinstance(fields, CutList) else _cut(fields)
    letter = DeadLetter(
        entry=delivery.entry,
        lane=delivery.lane,
        id=event.request_id,
        reason=event.code,
        message=event.message,
        deliveries=str(delivery.deliveries),
        consumer=consumer,
        at_ms=str(round(at_ms)),
        data=Submitted(fields=kept, cut=cut, history=list(history)),
    )
    return letter.flat()


def _kept(fields: Sequence[bytes]) -> dict[str, str | Base64]:
    return {
        name.decode("utf-8", "backslashreplace"): _text_or_base64(value)
        for name, value in zip(fields[::2], fields[1::2], strict=False)
    }


def _cut(fields: Fields) -> tuple[dict[str, str | Base64], Cut]:
    """Beginnings of the first fields, and what they are the beginnings of."""
    size, count = extent_of(fields)
    flat = parts_of(fields)
    kept: list[bytes] = []
    cut: dict[str, CutValue] = {}
    for index in range(0, min(len(flat) - 1, 2 * KEPT_FIELDS), 2):
        name, value = head_of(flat[index])[:MOST_NAME_BYTES], flat[index + 1]
        kept += [name, head_of(value)[:MOST_VALUE_BYTES]]
        if size_of(value) > MOST_VALUE_BYTES:
            cut[name.decode("utf-8", "backslashreplace")] = CutValue(bytes=size_of(value), sha256=_digest(value))
    omitted = max(0, count - KEPT_FIELDS)
    return _kept(kept), Cut(bytes=size, values=cut, omitted_fields=omitted)


def _digest(part: Part) -> str:
    return part.sha256 if isinstance(part, CutBytes) else hashlib.sha256(part).hexdigest()


def _text_or_base64(value: bytes) -> str | Base64:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return Base64(base64.b64encode(value).decode())
