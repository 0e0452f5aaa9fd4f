"""A dead letter: an entry that was no request, or that killed its workers, kept until an operator acts."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Struct

from llm_routerd.protocol.codes import ErrorCode
from llm_routerd.protocol.keys import Lane
from llm_routerd.protocol.wire import ID_PATTERN, STREAM_ID_PATTERN, encode, said


class Base64(Struct, frozen=True):
    """A value that is not UTF-8."""

    base64: Annotated[str, said("The bytes.")]


class CutValue(Struct, frozen=True, kw_only=True):
    """A value of which only the beginning was kept."""

    bytes: Annotated[int, said("Of the whole value.", minimum=1)]
    sha256: Annotated[str, said("Of the whole value, in hexadecimal.", pattern="^[0-9a-f]{64}$")]


class Cut(Struct, frozen=True, kw_only=True):
    """What a request that was not kept whole was."""

    bytes: Annotated[int, said("Of all names and values.", minimum=0)]
    values: Annotated[dict[str, CutValue], said("Those that were cut, by name.")]
    omitted_fields: Annotated[int, said("How many fields more there were.", minimum=0)]


class Submitted(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was submitted, and what is known of it."""

    fields: Annotated[
        dict[str, Annotated[str | Base64, said("A value as text; in base64 where it is not UTF-8.")]],
        said("The original fields of the entry; none where it was trimmed from its requests stream."),
    ]
    cut: Annotated[
        Cut | None,
        said(
            "Of a request that was too long to be kept, or had too many fields: `fields` has the first 4096 bytes of "
            "each of its first 64 fields, and this what the whole was. It cannot be queued again from here."
        ),
    ] = None
    history: Annotated[
        list[dict[str, Any]],
        said(
            "Of one that was delivered too often, or trimmed while its worker had it: its `attempt` and `rejected` "
            "events.",
            items={
                "type": "object",
                "properties": {
                    "event": {"description": "The event's ID.", "type": "string", "pattern": STREAM_ID_PATTERN}
                },
                "required": ["event"],
            },
        ),
    ]


class DeadLetter(Struct, frozen=True, kw_only=True):
    """An entry of the stream `P:dead`, each property a field.

    As in every stream entry the values are texts; that of `data` is JSON, and described here as what it holds.
    """

    entry: Annotated[str, said("The request's ID in its requests stream.", pattern=STREAM_ID_PATTERN)]
    lane: Annotated[Lane, said("The requests stream that it came from.")]
    id: Annotated[str, said("The id that its final event has.", pattern=ID_PATTERN)]
    reason: Annotated[ErrorCode, said("The code of its final `error`.")]
    message: Annotated[str, said("For a person: what was wrong.")]
    deliveries: Annotated[str, said("How often Redis had handed it to a worker.", pattern="^[0-9]+$")]
    consumer: Annotated[str, said("The worker that gave it up.")]
    at_ms: Annotated[str, said("When: Unix time in milliseconds.", pattern="^[0-9]+$")]
    data: Annotated[Submitted, said("What was submitted, and what is known of it.")]

    def flat(self) -> list[bytes | str]:
        """The fields of its entry, names and values in turn."""
        flat: list[bytes | str] = []
        for name in self.__struct_fields__:
            value = getattr(self, name)
            flat += (name, encode(value) if isinstance(value, Submitted) else str(value))
        return flat
