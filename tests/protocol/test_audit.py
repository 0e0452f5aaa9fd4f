"""The audit's entries: what stands in them, and as the scripts take them."""

from __future__ import annotations

import jsonschema_rs
import msgspec
import orjson

from llm_routerd.protocol.audit import MOST_BY, Audited, AuditEntry, audit_lines
from llm_routerd.protocol.codes import AttemptCode
from llm_routerd.protocol.outcome import AttemptRecord, Outcome, Usage
from llm_routerd.protocol.schema_files import load_schema
from llm_routerd.protocol.wire import encode
from tests.support.schemas import closed

OF = Audited(id="q", consumer="w", now_ms=1_700_000_010_000, now=50.0, tenant_id="ada", context="notes")
REJECTED = AttemptRecord(
    deployment="local",
    model="ollama/m",
    outcome=Outcome.INVALID,
    code=AttemptCode.INVALID_JSON,
    reason="$: a piece of the answer",
    latency_ms=1200,
    usage=Usage(prompt_tokens=3, completion_tokens=4),
    attempt=1,
    ended=48.5,
    prompt_sha256="ab" * 32,
)
PASSED = AttemptRecord(deployment="b", model="x/y", outcome=Outcome.REJECTED, code=AttemptCode.COOLDOWN)
UNPRICED = AttemptRecord(
    deployment="c", model="x/z", outcome=Outcome.SUCCESS, latency_ms=7, cost_usd=None, attempt=2, ended=50.0
)


def test_every_call_has_an_entry_and_no_deployment_that_was_passed_over() -> None:
    """Rejected ones too, each at the time when it was over."""
    first, second = OF.calls((REJECTED, PASSED, UNPRICED), turn=2)
    assert first == AuditEntry(
        kind="model",
        at_ms=1_700_000_008_500,
        id="q",
        outcome="invalid",
        tenant_id="ada",
        context="notes",
        attempt=1,
        turn=2,
        deployment="local",
        code="invalid_json",
        prompt_tokens=3,
        completion_tokens=4,
        cost_usd=0.0,
        latency_ms=1200,
        prompt_sha256="ab" * 32,
        consumer="w",
    )
    assert (second.at_ms, second.attempt, second.cost_usd, second.code) == (1_700_000_010_000, 2, None, None)


def test_entries_satisfy_their_schema_and_leave_out_what_is_not_known() -> None:
    """A call of each kind, as `audit --json` prints it."""
    judge = jsonschema_rs.Draft202012Validator(closed(load_schema("audit")), offline=True)
    for entry in (
        *OF.calls((REJECTED, UNPRICED)),
        OF.tool_call(tool="weather", call_id="call_1", turn=1, outcome="timeout"),
        OF.confirmation(tool="weather", call_id="call_1", turn=1, outcome="expired"),
        OF.confirmation(tool="weather", call_id="call_1", turn=1, outcome="confirmed", by="ada"),
    ):
        judge.validate(orjson.loads(encode(entry)))
        flat = entry.flat()
        assert None not in flat
        fields = {str(name): str(value) for name, value in zip(flat[::2], flat[1::2], strict=True)}
        assert msgspec.convert(fields, AuditEntry, strict=False) == entry  # texts, as a stream has them


def test_lines_tell_of_each_entry_how_many_parts_follow() -> None:
    """The form that the scripts' `write_audit` takes."""
    entries = [*OF.calls((REJECTED,)), OF.tool_call(tool="t", call_id="c", turn=1, outcome="result", latency_ms=9)]
    first, second = (entry.flat() for entry in entries)
    assert audit_lines(entries) == [len(first), *first, len(second), *second]
    assert audit_lines(()) == []


def test_who_agreed_is_cut_where_it_is_long_and_stays_one_value() -> None:
    """Whoever may write a person's word writes `by` himself."""
    entry = OF.confirmation(tool="t", call_id="c", turn=1, outcome="denied", by="x" * 100_000)
    assert entry.by == "x" * MOST_BY
    spoofing = OF.confirmation(tool="t", call_id="c", turn=1, outcome="denied", by="ada\noutcome\r\nconfirmed\n")
    assert spoofing.by == "ada outcome confirmed"
    assert OF.confirmation(tool="t", call_id="c", turn=1, outcome="denied", by=" \n").by is None
