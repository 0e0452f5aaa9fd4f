"""What follows from each code of the protocol, held to what followed before each was one row of a table."""

from __future__ import annotations

import pickle
import random
from typing import NamedTuple

import msgspec
import orjson
import pytest

from llm_routerd.protocol.codes import AttemptCode, ErrorCode, Fault
from llm_routerd.protocol.outcome import AttemptRecord, Outcome, Rejection
from llm_routerd.routing.breaker import CooldownPolicy

FAILURES = {Fault.DEPLOYMENT, Fault.PERHAPS_CALLER}


class Row(NamedTuple):
    """What a code meant in each of the places that listed codes.

    `fault`: of a rejection that may be retried, and of one that may not.  `trips_after`: of a breaker made for three
    failures.
    """

    outcome: str
    fault: tuple[Fault, Fault]
    may_pass: bool
    trips_after: int
    samples_ttft: bool
    bound: str | None
    was_asked: bool
    is_error: bool
    is_free_unread: bool


_DEPLOYMENT = (Fault.DEPLOYMENT, Fault.DEPLOYMENT)
_PERHAPS = (Fault.PERHAPS_CALLER, Fault.PERHAPS_CALLER)
_ANSWER = (Fault.ANSWER, Fault.ANSWER)
_OURS = (Fault.OURS, Fault.OURS)
_NOBODY = (Fault.NOBODY, Fault.NOBODY)

ROWS = {
    "timeout": Row("rejected", _PERHAPS, True, 3, True, "timeout", True, True, False),
    "first_token_timeout": Row("rejected", _PERHAPS, True, 3, True, "timeout", True, True, False),
    "idle_timeout": Row("rejected", _PERHAPS, True, 3, True, None, True, True, False),
    "connect": Row("rejected", _DEPLOYMENT, True, 2, False, "connect_timeout", True, True, True),
    "auth": Row("rejected", _DEPLOYMENT, False, 1, False, None, True, True, True),
    "rate_limited": Row("rejected", _DEPLOYMENT, True, 3, False, None, True, True, True),
    "busy": Row("rejected", _NOBODY, False, 3, False, None, False, False, False),
    "not_found": Row("rejected", _DEPLOYMENT, False, 1, False, None, True, True, True),
    "context_window": Row("rejected", _ANSWER, False, 3, False, None, True, True, True),
    "upstream": Row("rejected", (Fault.PERHAPS_CALLER, Fault.CALL), True, 3, False, None, True, True, True),
    "truncated": Row("rejected", _PERHAPS, True, 3, False, None, True, True, False),
    "length": Row("rejected", _ANSWER, False, 3, False, None, True, True, False),
    "refusal": Row("rejected", _ANSWER, False, 3, False, None, True, True, False),
    "invalid_json": Row("invalid", _ANSWER, False, 3, False, None, True, True, False),
    "schema_violation": Row("invalid", _ANSWER, False, 3, False, None, True, True, False),
    "no_tool_call": Row("rejected", _ANSWER, False, 3, False, None, True, True, False),
    "cooldown": Row("rejected", _NOBODY, False, 3, False, None, False, False, False),
    "internal": Row("rejected", _OURS, False, 3, False, None, True, True, True),
    "preempted": Row("rejected", _NOBODY, False, 3, False, None, True, False, False),
    "cancelled": Row("rejected", _NOBODY, False, 3, False, None, True, False, False),
}


def row_of(code: AttemptCode) -> Row:
    """The same, as the code has it now."""
    traits = code.traits
    passing, lasting = (Rejection(code=code, reason="", retryable=retryable) for retryable in (True, False))
    policy = CooldownPolicy(rng=random.Random(0), after=3, first_seconds=1, max_seconds=1)
    record = AttemptRecord(deployment="a", model="m", outcome=passing.outcome, code=code)
    return Row(
        outcome=passing.outcome.value,
        fault=(passing.fault, lasting.fault),
        may_pass=traits.may_pass,
        trips_after=policy.tolerance(code),
        samples_ttft=traits.samples_ttft,
        bound=traits.bound,
        was_asked=record.was_asked,
        is_error=traits.fault is not Fault.NOBODY,
        is_free_unread=traits.is_free_unread,
    )


@pytest.mark.parametrize("code", AttemptCode)
def test_all_that_follows_from_a_code(code: AttemptCode) -> None:
    """A code without a row here is new, and its row says what was meant by it."""
    assert row_of(code) == ROWS[code]


@pytest.mark.parametrize("code", AttemptCode)
def test_traits_agree_with_each_other(code: AttemptCode) -> None:
    """Only a failure may pass, trip a breaker or be cut by a deadline; only an answer can be invalid."""
    traits = code.traits
    if traits.fault not in FAILURES:
        assert (traits.may_pass, traits.trips_after, traits.bound, traits.samples_ttft) == (False, None, None, False)
    assert traits.fault is Fault.ANSWER or not traits.is_invalid
    assert traits.fault is Fault.NOBODY or traits.is_asked


def test_success_was_asked() -> None:
    """No code: an answer."""
    assert AttemptRecord(deployment="a", model="m", outcome=Outcome.SUCCESS).was_asked


@pytest.mark.parametrize("code", [*AttemptCode, *ErrorCode])
def test_code_is_its_text(code: AttemptCode | ErrorCode) -> None:
    """On the wire, in a log and in a dictionary; and it says in one line what it stands for."""
    assert code == code.value == str(code)
    assert orjson.loads(orjson.dumps(code)) == msgspec.json.decode(msgspec.json.encode(code)) == code.value
    assert type(code)(code.value) is msgspec.convert(code.value, type(code)) is code
    assert pickle.loads(pickle.dumps(code)) is code  # noqa: S301 - our own
    assert code.description
    assert "\n" not in code.description
