"""The audit: what was called, what it took, and who agreed to it; never what was said."""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import msgspec
from msgspec import Struct
from msgspec.structs import astuple

from llm_routerd.protocol.wire import ID_PATTERN, said

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llm_routerd.protocol.outcome import AttemptRecord

MOST_BY: Final = 256  # characters
_encode: Final = msgspec.json.Encoder(order="deterministic").encode

Kind = Literal["model", "tool", "confirmation"]
ToolOutcome = Literal["result", "error", "timeout", "unknown_outcome", "withdrawn", "denied", "invalid"]
ConfirmationOutcome = Literal["confirmed", "denied", "expired"]


class AuditEntry(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One call to a model or to a tool, or one word of a person, in the stream `P:audit`: each property a field.

    As in every stream entry the values are texts, the numbers in decimal; what is not known is not there.
    Never a prompt, an answer, an argument or a key.
    """

    kind: Annotated[Kind, said("What it was.")]
    at_ms: Annotated[int, said("When it was over: Unix time in milliseconds, by the Redis server's clock.", minimum=0)]
    id: Annotated[str, said("The request's id.", pattern=ID_PATTERN)]
    outcome: Annotated[
        str,
        said(
            "Of a model: `success`, `rejected`, `invalid`; of a tool: `result`, `error`, `timeout`, `unknown_outcome`, "
            "`withdrawn`, `denied`, `invalid`; of a confirmation: `confirmed`, `denied`, `expired`.",
            minLength=1,
        ),
    ]
    tenant_id: Annotated[str | None, said("As the request gave it.")] = None
    context: Annotated[str | None, said("As the request gave it.")] = None
    attempt: Annotated[
        int | None, said("Of a model: the first part of the IDs of its events in the request's stream.", minimum=1)
    ] = None
    turn: Annotated[int | None, said("Of a run with tools: the turn.", minimum=1)] = None
    deployment: Annotated[str | None, said("Of a model: who was called.", minLength=1)] = None
    tool: Annotated[str | None, said("Of a tool, or of a confirmation: which tool.", minLength=1)] = None
    call_id: Annotated[str | None, said("Of a tool, or of a confirmation: which call.", minLength=1)] = None
    code: Annotated[str | None, said("Of a model that was rejected: why.", minLength=1)] = None
    prompt_tokens: Annotated[int | None, said("Of a model: of the request.", minimum=0)] = None
    completion_tokens: Annotated[int | None, said("Of a model: of the answer.", minimum=0)] = None
    cost_usd: Annotated[
        float | None, said("Of a model: 0 for a local one, not there where the price is not known.", minimum=0)
    ] = None
    latency_ms: Annotated[int | None, said("From the call to its end.", minimum=0)] = None
    prompt_sha256: Annotated[
        str | None,
        said(
            "Of a model: HMAC-SHA256 of the messages that it was sent, in hexadecimal, under `[audit] key`; the same "
            "messages have the same one.",
            pattern="^[0-9a-f]{64}$",
        ),
    ] = None
    by: Annotated[str | None, said("Of a confirmation: who said it, in their own words.", minLength=1)] = None
    consumer: Annotated[str | None, said("The worker that wrote this.", minLength=1)] = None

    def flat(self) -> list[object]:
        """The fields of its entry, names and values in turn."""
        flat: list[object] = []
        for field in zip(self.__struct_fields__, astuple(self), strict=True):
            if field[1] is not None:
                flat += field
        return flat


Messages = tuple[dict[str, Any], ...]


class PromptHash:
    """HMAC-SHA256 of messages, in hexadecimal: of the JSON array of them, without blanks, keys in alphabetical order.

    A megabyte of them takes a millisecond on the event loop, which is what parsing it takes.
    """

    def __init__(self, key: bytes) -> None:
        self._begun = hmac.new(key, digestmod="sha256")

    def __call__(self, messages: Messages) -> str:
        """Of what one call is sent."""
        found = self._begun.copy()
        found.update(_encode(messages))
        return found.hexdigest()


class Audited(Struct, frozen=True, kw_only=True):
    """What the entries of one request have in common.

    Attributes:
        id: the request's.
        tenant_id, context: as it gave them.
        consumer: this worker.
        now_ms: the server's Unix time in ms.
        now: the same moment by the clock that `AttemptRecord.ended` was told by, in seconds.
    """

    id: str
    consumer: str
    now_ms: int
    now: float
    tenant_id: str | None = None
    context: str | None = None

    def calls(self, records: Iterable[AttemptRecord], *, turn: int | None = None) -> list[AuditEntry]:
        """The calls among these attempts, of which some may have been none: a deployment that was passed over."""
        return [
            AuditEntry(
                kind="model",
                at_ms=max(0, self.now_ms - round((self.now - record.ended) * 1000)),
                id=self.id,
                outcome=record.outcome,
                tenant_id=self.tenant_id,
                context=self.context,
                attempt=record.attempt,
                turn=turn,
                deployment=record.deployment,
                code=record.code,
                prompt_tokens=None if record.usage is None else record.usage.prompt_tokens,
                completion_tokens=None if record.usage is None else record.usage.completion_tokens,
                cost_usd=record.cost_usd,
                latency_ms=record.latency_ms,
                prompt_sha256=record.prompt_sha256,
                consumer=self.consumer,
            )
            for record in records
            if record.attempt
        ]

    def tool_call(
        self,
        *,
        tool: str,
        call_id: str,
        turn: int,
        outcome: ToolOutcome,
        latency_ms: int | None = None,
    ) -> AuditEntry:
        """A call of a tool that has come to its end now."""
        return AuditEntry(
            kind="tool",
            at_ms=self.now_ms,
            id=self.id,
            outcome=outcome,
            tenant_id=self.tenant_id,
            context=self.context,
            turn=turn,
            tool=tool,
            call_id=call_id,
            latency_ms=latency_ms,
            consumer=self.consumer,
        )

    def confirmation(
        self, *, tool: str, call_id: str, turn: int, outcome: ConfirmationOutcome, by: str | None = None
    ) -> AuditEntry:
        """What a person said to a call, or that nobody said anything in time; `by` is as they called themselves."""
        return AuditEntry(
            kind="confirmation",
            at_ms=self.now_ms,
            id=self.id,
            outcome=outcome,
            tenant_id=self.tenant_id,
            context=self.context,
            turn=turn,
            tool=tool,
            call_id=call_id,
            by=" ".join((by or "")[:MOST_BY].split()) or None,
            consumer=self.consumer,
        )


def audit_lines(entries: Iterable[AuditEntry]) -> list[object]:
    """Entries as `write_audit` of the scripts' prelude takes them: of each how many parts follow, and its fields."""
    lines: list[object] = []
    for entry in entries:
        flat = entry.flat()
        lines.append(len(flat))
        lines += flat
    return lines
