"""Something that nobody foresaw goes wrong while one deployment is asked: that attempt is lost, and not the request."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_routerd.accounting.pricing import Pricing
from llm_routerd.jsonschema.compiled import AnswerSchema
from llm_routerd.judging import judge as judge_module
from llm_routerd.protocol.codes import ErrorCode
from llm_routerd.protocol.events import Failed, Result
from llm_routerd.routing.breaker import State
from llm_routerd.routing.chain_run import ChainRun
from llm_routerd.running import caller, faults
from llm_routerd.running.validation import ValidationProcess
from tests.running.asking import SCHEMA, Sink, codes, request, resources_of, run, with_local
from tests.support.fakes import USAGE, FakeBackend, says

if TYPE_CHECKING:
    from collections.abc import Callable

    from llm_routerd.protocol.request import Request
    from llm_routerd.running.resources import Resources

FAULTS = (KeyError, ValueError, RuntimeError, TimeoutError, RecursionError, OSError, AssertionError, ExceptionGroup)


def once(thing: Callable[..., Any], error: Exception, nth: int = 1) -> tuple[Callable[..., Any], list[int]]:
    """What raises at its n-th call and is the thing itself at all others; and where it notes that it has raised."""
    calls, raised = count(1), []

    def call(*arguments: Any, **named: Any) -> Any:
        if next(calls) == nth:
            raised.append(nth)
            raise error
        return thing(*arguments, **named)

    return call, raised


def fault(kind: type[Exception]) -> Exception:
    """One of that kind."""
    return ExceptionGroup("x", [ValueError("x")]) if kind is ExceptionGroup else kind("a secret of the prompt")


# What an attempt works with, and where each is taken hold of.
PLACES: dict[str, tuple[Any, str]] = {
    "the judge is made": (caller, "Judge"),
    "the attempt is made": (caller, "Attempt"),
    "the call is made": (caller, "Call"),
    "the stream begins": (FakeBackend, "stream"),
    "the text is judged": (judge_module.Judge, "feed"),
    "the end is judged": (judge_module.Judge, "finish"),
    "the schema's cost is looked at": (AnswerSchema, "most_steps"),
    "the schema is held to": (AnswerSchema, "validate"),
    "text is shown": (Sink, "emit"),
    "time to first token is kept": (ChainRun, "first_token"),
}


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(place=st.sampled_from(sorted(PLACES)), kind=st.sampled_from(FAULTS), nth=st.integers(1, 3), stream=st.booleans())
async def test_fault_in_a_collaborator_costs_one_attempt(place: str, kind: Any, nth: int, stream: bool) -> None:
    """The next deployment answers, the account has both, no deployment's name suffers."""
    holder, name = PLACES[place]
    resources, local, _ = resources_of(says('{"n":', " 1", "}"), cloud=says('{"n":', " 2", "}"))
    asked = request(schema=SCHEMA, stream="live" if stream else False)
    breaks, raised = once(getattr(holder, name), fault(kind), nth)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(holder, name, breaks)
        ending = await run(resources, asked)
    assert isinstance(ending.event, Result), ending.event
    assert codes(ending) == ["internal", None] if raised else [None]
    assert local.running == 0
    await resources.aclose()


@pytest.mark.parametrize("place", sorted(PLACES))
async def test_fault_is_one_attempt_internal_and_one_traceback(
    place: str, monkeypatch: pytest.MonkeyPatch, logged: list[dict[str, Any]]
) -> None:
    """It is in the account with its code, in the log once, and says nothing of the prompt."""
    holder, name = PLACES[place]
    resources, _, _ = resources_of(says('{"n":', " 1", "}"), cloud=says('{"n":', " 2", "}"))
    breaks, _ = once(getattr(holder, name), KeyError("a secret of the prompt"))
    monkeypatch.setattr(holder, name, breaks)
    sink = Sink()
    ending = await run(resources, request(schema=SCHEMA, stream="live"), sink)
    assert codes(ending) == ["internal", None]
    assert ("rejected", "internal") in sink.seen
    assert ending.spent.attempts[0].reason == "a fault in llm-routerd (KeyError); its log has more"
    assert [line["event"] for line in logged] == ["attempt_failed"]
    assert isinstance(logged[0]["exc_info"], KeyError)
    health = resources.health.states(0.0)["local"]
    assert (health.state, health.failures, health.in_flight) == (State.HEALTHY, 0, 0)
    await resources.aclose()


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The errors that running a request logs."""
    lines: list[dict[str, Any]] = []

    class Log:
        def error(self, event: str, **fields: Any) -> None:
            lines.append({"event": event, **fields})

    monkeypatch.setattr(faults, "log", Log())
    return lines


async def _answer_of(resources: Resources, asked: Request) -> list[str | None]:
    ending = await run(resources, asked)
    await resources.aclose()
    return codes(ending)


async def test_what_was_paid_before_the_fault_is_in_the_account(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model answered and was paid; that its answer could not be judged does not make it cheaper."""
    resources, _, _ = resources_of(says('{"n": 1}'), cloud=says('{"n": 2}'))
    monkeypatch.setattr(resources.pricing, "cost_usd", lambda deployment, usage: 0.25 if deployment.local else 1.0)
    breaks, _ = once(AnswerSchema.validate, KeyError("1"))
    monkeypatch.setattr(AnswerSchema, "validate", breaks)
    ending = await run(resources, request(schema=SCHEMA))
    assert [(record.usage, record.cost_usd) for record in ending.spent.attempts] == [(USAGE, 0.25), (USAGE, 1.0)]
    assert ending.spent.cost_usd == 1.25


async def test_validation_process_that_breaks_costs_its_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also a verdict that was asked for elsewhere."""
    breaks, _ = once(ValidationProcess.validate, RuntimeError("it has ended"))
    monkeypatch.setattr(ValidationProcess, "validate", breaks)
    monkeypatch.setattr("llm_routerd.running.attempt.LIGHT_STEPS", -1)
    resources, _, _ = resources_of(says('{"n": 1}'), cloud=says('{"n": 2}'))
    ending = await run(resources, request(schema=SCHEMA), seconds=20)
    assert codes(ending) == ["internal", None]
    await resources.aclose()


async def test_model_whose_loading_breaks_costs_its_turn() -> None:
    """Asking whether a model is loaded, and loading it, may break too; nothing was called then."""
    resources, local, _ = resources_of(says("hi"), config=with_local(backend="ollama"))

    async def breaks() -> None:
        raise KeyError("models")

    local.loaded, local.on_warm = False, breaks
    assert await _answer_of(resources, request()) == ["internal", None]
    assert local.calls == []


async def test_probe_of_our_own_that_breaks_is_one_without_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A `local_only` request ends as it would without the probe."""
    resources, _, _ = resources_of(says("hi"))

    async def breaks(**_named: Any) -> bool:
        raise KeyError("1")

    monkeypatch.setattr(resources.examinations["local"], "answers", breaks)
    monkeypatch.setattr(resources.health, "admit", lambda *_a: None)
    monkeypatch.setattr(resources.health, "examinable", lambda *_a: True)
    ending = await run(resources, request(local_only=True))
    assert isinstance(ending.event, Failed)
    assert ending.event.code is ErrorCode.LOCAL_EXHAUSTED


async def test_price_that_cannot_be_worked_out_costs_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller gets what was paid for."""

    def breaks(*_a: Any, **_b: Any) -> float:
        raise OverflowError("int too large to convert to float")

    monkeypatch.setattr(Pricing, "cost_usd", breaks)
    monkeypatch.setattr(Pricing, "saved_usd", breaks)
    resources, _, _ = resources_of(says("hi"))
    assert await _answer_of(resources, request()) == [None]


async def test_digit_named_property_is_told_and_the_chain_goes_on() -> None:
    """The local model is wrong under a name of digits: a rejected answer as any other."""
    schema = {"type": "object", "additionalProperties": {"pattern": "^[a-z]$"}}
    resources, _, _ = resources_of(says('{"1": "X"}'), cloud=says('{"1":"x"}'))
    ending = await run(resources, request(schema=schema))
    assert isinstance(ending.event, Result)
    assert ending.event.answer.content == {"1": "x"}
    assert [record.reason for record in ending.spent.attempts] == ['$.1: "X" does not match "^[a-z]$"', None]
