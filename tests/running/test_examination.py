"""A probe of our own, before a request that may ask nobody else is sent away."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from llm_routerd.protocol.codes import AttemptCode
from llm_routerd.protocol.events import Failed, Result
from tests.running.asking import request, resources_of, run, with_local
from tests.support.eventually import eventually
from tests.support.fakes import fails, hangs, says, waits_for

if TYPE_CHECKING:
    from llm_routerd.running.ending import Answered, Unanswered
    from llm_routerd.running.resources import Resources

BROKEN = fails(AttemptCode.UPSTREAM, retryable=True)
OURS = "Hello"


async def ask(
    resources: Resources, prompt: str, *, seconds: float | None = None, **properties: Any
) -> Answered | Unanswered:
    """One request of the only tenant's."""
    asked = request(prompt=prompt, tenant_id="kitchen", **properties)
    return await run(resources, asked, seconds=seconds)


async def cooled(*then: Any, **changes: Any) -> Any:
    """Resources whose local deployment has failed its tenant three times, and then plays these scripts."""
    resources, local, cloud = resources_of(BROKEN, BROKEN, BROKEN, *then, config=with_local(**changes))
    for number in range(3):
        await ask(resources, f"broken {number}")
    assert len(local.calls) == 3
    return resources, local, cloud


async def test_deployment_that_answers_a_probe_answers_the_request() -> None:
    """The probe asks for one token, and holds nothing of the request's."""
    resources, local, cloud = await cooled(says("x"), says("the answer"), params={"temperature": 0.5})
    ending = await ask(resources, "secret", local_only=True)
    assert isinstance(ending.event, Result)
    assert ending.event.answer.raw_text == "the answer"
    probe = local.calls[3]
    assert (probe.messages, probe.params) == (
        ({"role": "user", "content": OURS},),
        {"temperature": 0.5, "max_tokens": 1},
    )
    assert len(cloud.calls) == 3
    assert [record.code for record in ending.spent.attempts] == [AttemptCode.COOLDOWN, None]


@pytest.mark.parametrize(
    ("script", "answers"),
    [
        (fails(AttemptCode.CONNECT, retryable=True), False),
        (BROKEN, False),
        (fails(AttemptCode.AUTH), False),
        (hangs(), False),
        (fails(AttemptCode.UPSTREAM), True),  # it will not have such a call: it is there
        (says(finish_reason="length"), True),
        (hangs("x"), True),
    ],
    ids=["connect", "upstream", "auth", "hangs", "bad request", "length", "first token"],
)
async def test_what_a_probe_tells(script: Any, *, answers: bool) -> None:
    """It is over with the first token, and after the deployment's own timeout."""
    resources, local, _ = await cooled(script, says("the answer"), timeout=0.2)
    ending = await ask(resources, "secret", local_only=True)
    assert isinstance(ending.event, Result) is answers
    if not answers:
        assert isinstance(ending.event, Failed)
        assert ending.event.code.value == "local_exhausted"
        again = await ask(resources, "secret", local_only=True)
        assert isinstance(again.event, Failed)
        assert len(local.calls) == 4  # one probe in each cooldown
    assert (local.running, local.closed) == (0, len(local.calls))


async def test_requests_that_want_to_know_at_once_share_a_probe() -> None:
    """A hundred callers are no hundred probes; one that gives up does not take it from the others."""
    gate = asyncio.Event()
    resources, local, _ = await cooled(waits_for(gate), says("the answer"))
    tasks = [asyncio.create_task(ask(resources, f"n{number}", local_only=True)) for number in range(8)]
    await eventually(lambda: local.running == 1)
    tasks[0].cancel()
    await asyncio.gather(tasks[0], return_exceptions=True)
    gate.set()
    endings = await asyncio.gather(*tasks[1:])
    assert all(isinstance(ending.event, Result) for ending in endings)
    assert sum(call.messages[0]["content"] == OURS for call in local.calls) == 1


async def test_probe_ends_with_the_requests_deadline() -> None:
    """For the request; and it takes a place among the deployment's calls, which it gives back."""
    resources, local, _ = await cooled(hangs(), says("the answer"), concurrency=1, timeout=0.5)
    ending = await ask(resources, "secret", local_only=True, seconds=0.1)
    assert isinstance(ending.event, Failed)
    assert ending.event.code.value == "deadline_exceeded"
    await eventually(lambda: local.running == 0)
    assert await resources.slots["local"].acquire(0.1)


async def test_executor_that_closes_ends_its_probes() -> None:
    """No call stays behind."""
    resources, local, _ = await cooled(hangs(), timeout=30.0)
    task = asyncio.create_task(ask(resources, "secret", local_only=True))
    await eventually(lambda: local.running == 1)
    task.cancel()
    await resources.aclose()
    assert (local.running, local.closed) == (0, 4)


async def test_cloud_deployments_are_never_probed() -> None:
    """It would cost money that nobody has spent."""
    resources, _, _ = resources_of(config=with_local())
    assert set(resources.config.deployments) == {"local", "cloud"}
    assert set(resources.examinations) == {"local"}


async def test_request_without_time_takes_no_probe_from_others() -> None:
    """Its deadline passes before the probe's answer: that says nothing of the deployment."""
    gate = asyncio.Event()
    resources, _, _ = await cooled(waits_for(gate), says("the answer"), says("the answer"))
    ending = await ask(resources, "hasty", local_only=True, seconds=0.05)
    assert isinstance(ending.event, Failed)
    gate.set()
    await asyncio.sleep(0.05)
    other = await ask(resources, "patient", local_only=True, seconds=10.0)
    assert isinstance(other.event, Result)


async def test_unforeseen_exception_of_a_probe_ends_no_request() -> None:
    """It costs the probe."""

    def breaks(*_: Any) -> Any:
        raise RuntimeError("a bug of ours")

    resources, local, _ = await cooled()
    local.stream = breaks
    ending = await ask(resources, "secret", local_only=True, seconds=5.0)
    assert isinstance(ending.event, Failed)
    assert ending.event.code.value == "local_exhausted"


async def test_deployment_that_is_busy_is_not_taken_for_dead() -> None:
    """No place came free for the probe: that tells nothing, and the next request may ask again."""
    resources, local, _ = await cooled(says("x"), says("the answer"), concurrency=1, timeout=0.1)
    assert await resources.slots["local"].acquire(0.1)
    ending = await ask(resources, "secret", local_only=True)
    assert isinstance(ending.event, Failed)
    resources.slots["local"].release()
    assert isinstance((await ask(resources, "secret", local_only=True)).event, Result)
    assert len(local.calls) == 5
