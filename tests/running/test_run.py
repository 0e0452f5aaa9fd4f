"""One request's way through its chain, on fake models and without Redis."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from llm_routerd.judging.judge import MAX_ANSWER_CHARS
from llm_routerd.protocol.call import Delta, Finish
from llm_routerd.protocol.codes import AttemptCode, ErrorCode
from llm_routerd.protocol.events import Failed, Result
from llm_routerd.protocol.outcome import ToolCall
from llm_routerd.running.ending import Withdrawn
from tests.running.asking import SCHEMA, TOOL, Sink, codes, make_run, request, resources_of, run, with_local
from tests.support.eventually import eventually
from tests.support.fakes import USAGE, FakeBackend, babbles, fails, hangs, says, waits_for
from tests.support.workers import CLOUD, LOCAL, make_config, make_test_resources

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from llm_routerd.protocol.call import Call


@pytest.mark.parametrize(
    ("script", "stream", "changes", "code"),
    [
        (hangs(), False, {"timeout": 0.1}, "timeout"),
        (hangs(), True, {"timeout": 0.1}, "first_token_timeout"),
        (hangs("a"), False, {"idle_timeout": 0.1}, "idle_timeout"),
        (hangs("a"), True, {"idle_timeout": 0.1}, "idle_timeout"),
        (babbles(pause=0.01), False, {"timeout": 0.2}, "timeout"),
        (babbles(pause=0.01), True, {"stream_timeout": 0.2}, "timeout"),
    ],
    ids=["total", "first token", "gap", "gap of a stream", "endless", "endless stream"],
)
async def test_each_bound_has_its_code_and_the_chain_goes_on(
    script: Any, stream: bool, changes: dict[str, float], code: str
) -> None:
    """First token, gap and total are bounded apart; the model's connection closes; the next one answers."""
    resources, local, _ = resources_of(script, config=with_local(**changes))
    ending = await run(resources, request(stream=stream))
    assert codes(ending) == [code, None]
    assert (local.running, local.closed) == (0, 1)


async def test_place_that_does_not_come_free_in_time_is_no_call_and_no_failure() -> None:
    """`queue_timeout`: the request goes on to the next deployment, and the local one keeps its good name."""
    gate = asyncio.Event()
    config = with_local(concurrency=1, queue_timeout=0.1)
    resources, local, _ = resources_of(waits_for(gate), config=config)
    first = asyncio.create_task(run(resources, request()))
    await eventually(lambda: local.running == 1)
    sink = Sink()
    second = await run(resources, request(), sink)
    assert codes(second) == ["busy", None]
    assert "queue_timeout" in (second.spent.attempts[0].reason or "")
    assert [kind for kind, _ in sink.seen] == ["attempt"]
    gate.set()
    assert codes(await first) == [None]
    assert len(local.calls) == 1


async def test_waiting_for_a_place_does_not_eat_the_models_own_time() -> None:
    """The clock of the attempt starts with the call."""
    config = with_local(concurrency=1, queue_timeout=2.0, timeout=0.4)
    resources, _, _ = resources_of(says("a", "b", delay=0.12), config=config)
    endings = await asyncio.gather(*(run(resources, request()) for _ in range(3)))
    assert [codes(ending) for ending in endings] == [[None]] * 3


async def test_cold_model_is_loaded_before_the_clock_starts() -> None:
    """`cold_start = "wait"`: the load has its own bound, and is shared by all who wait."""
    config = with_local(backend="ollama", timeout=0.2)
    resources, local, _ = resources_of(says("hi"), config=config)
    local.loaded, loads = False, []

    async def load() -> None:
        loads.append(1)
        await asyncio.sleep(0.4)

    local.on_warm = load
    endings = await asyncio.gather(*(run(resources, request()) for _ in range(3)))
    assert [codes(ending) for ending in endings] == [[None]] * 3
    assert len(loads) == 1


async def test_cold_model_is_skipped_and_loaded_meanwhile_where_so_configured() -> None:
    """`cold_start = "skip"`: this request goes on, the next one finds the model warm."""
    config = with_local(backend="ollama", cold_start="skip")
    resources, local, cloud = resources_of(says("hi"), config=config)
    local.loaded = False
    first = await run(resources, request())
    assert codes(first) == ["cooldown", None]
    assert len(cloud.calls) == 1
    await eventually(lambda: local.loaded is True)
    assert codes(await run(resources, request())) == [None]


async def test_model_that_cannot_be_loaded_is_passed_over_in_bounded_time() -> None:
    """`load_timeout` bounds the wait."""
    config = with_local(backend="ollama", load_timeout=0.1)
    resources, local, _ = resources_of(says("hi"), config=config)
    local.loaded = False
    local.on_warm = asyncio.Event().wait  # type: ignore[assignment]  # its result does not matter
    ending = await run(resources, request())
    assert codes(ending) == ["timeout", None]
    assert local.calls == []


async def test_deadline_ends_the_request_and_says_so() -> None:
    """Whatever is under way, the request's own deadline is final."""
    resources, local, cloud = resources_of(hangs(), cloud=hangs())
    ending = await run(resources, request(), seconds=0.2)
    assert isinstance(ending.event, Failed)
    assert ending.event.code is ErrorCode.DEADLINE_EXCEEDED
    assert (local.running, cloud.running, len(cloud.calls)) == (0, 0, 0)


async def test_prose_where_json_is_due_ends_the_attempt_at_the_first_word() -> None:
    """The model is not listened to any longer than it takes to know."""
    resources, local, cloud = resources_of(babbles("Sure! Here is "), cloud=says('{"n": 1}'))
    sink = Sink()
    ending = await run(resources, request(schema=SCHEMA, stream=True), sink)
    assert codes(ending) == ["invalid_json", None]
    assert ending.spent.attempts[0].early
    assert local.running == 0
    assert ("token", "Sure! Here is ") not in sink.seen
    assert cloud.calls[0].schema == SCHEMA


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('["a"', "schema_violation"),
        ('{"n": "x', "schema_violation"),
        ('{"m"', "schema_violation"),
        ('{"n": 1,}', "invalid_json"),
    ],
)
async def test_answer_that_cannot_become_valid_is_ended_at_that_token(text: str, code: str) -> None:
    """Wrong top-level type, mistyped or forbidden property, syntax error: at once, not at the end."""

    async def never_ends(_backend: FakeBackend, _call: Call) -> AsyncGenerator[Delta | Finish, None]:
        yield Delta(text)
        await asyncio.Event().wait()

    resources, local, _ = resources_of(never_ends, cloud=says('{"n": 1}'))
    ending = await run(resources, request(schema=SCHEMA))
    assert codes(ending) == [code, None]
    assert local.running == 0


async def test_live_tokens_are_followed_by_a_rejection_and_the_next_attempts_text() -> None:
    """Whoever showed the first attempt's tokens is told to drop them."""
    resources, _, _ = resources_of(fails(AttemptCode.TRUNCATED, after=("half an ",)))
    sink = Sink()
    await run(resources, request(stream="live"), sink)
    assert sink.seen == [
        ("attempt", "local"),
        ("token", "half an "),
        ("rejected", "truncated"),
        ("attempt", "cloud"),
        ("token", "from the cloud"),
    ]


async def test_probe_holds_the_opening_no_longer_than_its_time() -> None:
    """A slow opening is shown after 400 ms, judged or not."""

    async def slow(_backend: FakeBackend, _call: Call) -> AsyncGenerator[Delta | Finish, None]:
        yield Delta("I")
        await asyncio.sleep(0.8)
        yield Finish(finish_reason="stop", usage=USAGE, text=" see.")

    resources, _, _ = resources_of(slow)
    sink = Sink()
    task = asyncio.create_task(run(resources, request(stream=True), sink))
    began = asyncio.get_running_loop().time()
    await eventually(lambda: ("token", "I") in sink.seen)
    assert 0.3 < asyncio.get_running_loop().time() - began < 0.75
    ending = await task
    assert isinstance(ending.event, Result)
    assert ending.event.answer.content == "I see."


async def test_refusal_is_passed_over_unless_the_request_says_not_to_look() -> None:
    """A refusal is no answer; who wants it all the same switches the detection off."""
    refusal = "I'm sorry, but I can't help with that."
    resources, _, _ = resources_of(says(refusal))
    assert codes(await run(resources, request())) == ["refusal", None]
    ending = await run(resources, request(params={"detect_refusal": False}))
    assert isinstance(ending.event, Result)
    assert ending.event.answer.content == refusal


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"params": {"accept_length": True, "max_tokens": 3}}, [None]),
        ({"params": {"max_tokens": 3}}, ["length", None]),
        ({"params": {"accept_length": True}}, ["length", None]),
    ],
)
async def test_text_that_ends_at_its_own_limit_is_an_answer_where_the_request_says_so(
    asked: dict[str, Any], told: list[str | None]
) -> None:
    """`accept_length`, with a limit of its own."""
    resources, _, _ = resources_of(says("One, two,", finish_reason="length"))
    ending = await run(resources, request(**asked))
    assert codes(ending) == told
    assert isinstance(ending.event, Result)
    assert ending.event.finish_reason == ("length" if told == [None] else "stop")


async def test_retry_comes_back_to_the_same_deployment() -> None:
    """`retries`: once more after a failure that may pass."""
    resources, local, cloud = resources_of(
        fails(AttemptCode.UPSTREAM, retryable=True), says("second try"), config=make_config(retries=1)
    )
    assert codes(await run(resources, request())) == ["upstream", None]
    assert (len(local.calls), len(cloud.calls)) == (2, 0)


async def test_repair_sends_the_validation_error_back() -> None:
    """`repair`: the same deployment sees its answer and what is wrong with it."""
    resources, local, _ = resources_of(says('{"n": "x"}'), says('{"n": 7}'), config=make_config(repair=1))
    ending = await run(resources, request(schema=SCHEMA))
    assert isinstance(ending.event, Result)
    assert ending.event.answer.content == {"n": 7}
    repair = local.calls[1].messages
    assert [message["role"] for message in repair] == ["user", "assistant", "user"]
    assert "$.n" in repair[2]["content"]
    assert local.calls[1].schema == SCHEMA


async def test_repair_quotes_the_deployments_own_answer() -> None:
    """Also where another deployment was asked between the call that broke off and its retry."""

    def script(name: str) -> tuple[Any, ...]:
        return says(f'{{"n": "of {name}"}}'), fails(AttemptCode.UPSTREAM, retryable=True), says('{"n": 7}')

    models = {name: FakeBackend(*script(name)) for name in ("local", "cloud")}
    config = make_config(strategy="latency", repair=1, retries=1)
    resources = make_test_resources(config, models)
    ending = await run(resources, request(schema=SCHEMA))
    await resources.aclose()
    assert codes(ending) == ["schema_violation", "upstream", "schema_violation", "upstream", None]
    for name, model in models.items():
        assert all(call.messages[1]["content"] == f'{{"n": "of {name}"}}' for call in model.calls[1:]), name


async def test_tools_reach_the_backend_and_calls_come_back_in_openai_form() -> None:
    """A call of an offered tool is an answer; one of another tool is not."""

    def calls(name: str) -> Any:
        async def script(_backend: FakeBackend, _call: Call) -> AsyncGenerator[Delta | Finish, None]:
            call = ToolCall.of(id="c1", name=name, arguments='{"city":"Oslo"}')
            yield Finish(finish_reason="tool_calls", usage=USAGE, tool_calls=(call,))

        return script

    resources, local, _ = resources_of(calls("rm"), cloud=calls("weather"))
    ending = await run(resources, request(tools=[TOOL], tool_choice="auto"))
    assert codes(ending) == ["invalid_json", None]
    assert (local.calls[0].tools, local.calls[0].tool_choice) == ((TOOL,), "auto")
    assert ending.event.data["tool_calls"] == [
        {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Oslo"}'}}
    ]


async def test_deployment_known_not_to_support_tools_is_passed_over() -> None:
    """`supports_tools = false` costs no call."""
    resources, local, _ = resources_of(says("x"), config=with_local(supports_tools=False))
    assert codes(await run(resources, request(tools=[TOOL]))) == [None]
    assert local.calls == []


async def test_reasoning_is_shown_apart_and_never_part_of_the_answer() -> None:
    """`<think>` in the text and reasoning of the backend alike."""

    async def thinks(_backend: FakeBackend, _call: Call) -> AsyncGenerator[Delta | Finish, None]:
        yield Delta(reasoning="hm ")
        yield Delta("<think>let me")
        yield Delta(" see</think>Yes")
        yield Finish(finish_reason="stop", usage=USAGE, text=".")

    resources, _, _ = resources_of(thinks)
    sink = Sink()
    ending = await run(resources, request(stream="live"), sink)
    assert isinstance(ending.event, Result)
    assert ending.event.answer.raw_text == "Yes."
    assert "".join(text for kind, text in sink.seen if kind == "reasoning") == "hm let me see"
    assert "".join(text for kind, text in sink.seen if kind == "token") == "Yes."


async def test_params_of_the_deployment_are_sent_and_a_requests_own_win() -> None:
    """The configuration's `params` and `max_tokens` are defaults."""
    config = with_local(params={"temperature": 0.1, "top_p": 0.5}, max_tokens=99)
    resources, local, _ = resources_of(says("x"), config=config)
    await run(resources, request(params={"temperature": 0.9}))
    assert local.calls[0].params == {"temperature": 0.9, "top_p": 0.5, "max_tokens": 99}


async def test_sink_without_room_holds_the_model_and_not_its_clock() -> None:
    """Redis being slow pushes back on the reader of the model, and is not the model's fault."""
    resources, local, _ = resources_of(says("a", "b", "c"), config=with_local(idle_timeout=0.1, stream_timeout=0.2))
    sink = Sink()
    sink.open.clear()
    task = asyncio.create_task(run(resources, request(stream="live"), sink))
    await asyncio.sleep(0.5)
    assert [text for kind, text in sink.seen if kind == "token"] == ["a"]
    sink.open.set()
    assert codes(await task) == [None]
    assert len(local.calls) == 1


async def test_request_that_is_no_longer_ours_makes_no_call() -> None:
    """The sink says no: nothing is spent, and nobody is blamed."""
    resources, local, _ = resources_of(says("x"))
    sink = Sink()
    sink.is_ours = False
    assert isinstance(await make_run(resources, request(), sink).until_done(), Withdrawn)
    assert local.calls == []


async def test_cancelled_request_closes_the_model_and_frees_its_place() -> None:
    """Nobody generates for nobody."""
    resources, local, _ = resources_of(hangs("x"), says("next"), config=with_local(concurrency=1))
    task = asyncio.create_task(run(resources, request()))
    await eventually(lambda: local.running == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert local.running == 0
    assert codes(await run(resources, request())) == [None]


async def test_cost_counts_rejected_attempts_and_savings_only_local_answers() -> None:
    """The account is honest: what was thrown away was paid for too."""
    config = make_config()
    priced = replace(CLOUD, input_usd_per_mtok=1_000_000.0, output_usd_per_mtok=2_000_000.0)
    config = replace(config, deployments={"local": LOCAL, "cloud": priced})
    resources, _, _ = resources_of(says("fine"), says("I cannot help with that."), config=config)
    saved = await run(resources, request())
    assert (saved.spent.cost_usd, saved.spent.saved_usd) == (0.0, 10 * 1.0 + 5 * 2.0)
    paid = await run(resources, request())
    assert (paid.spent.cost_usd, paid.spent.saved_usd) == (20.0, 0.0)


async def test_costly_validation_does_not_hold_up_the_event_loop() -> None:
    """A large answer under a costly schema is judged in another process; other requests do not wait for it."""
    schema = {"type": "array", "items": {"anyOf": [{"const": number} for number in range(300)]}}
    text = "[" + ",".join(["299"] * 60_000) + "]"
    resources, _, _ = resources_of(says(text))
    lags: list[float] = []

    async def watch() -> None:
        loop = asyncio.get_running_loop()
        while True:
            before = loop.time()
            await asyncio.sleep(0.005)
            lags.append(loop.time() - before - 0.005)

    watching = asyncio.create_task(watch())
    ending = await run(resources, request(schema=schema))
    bad = await run(resources, request(schema={**schema, "maxItems": 10}))
    watching.cancel()
    await resources.aclose()
    assert isinstance(ending.event, Result)
    assert len(ending.event.answer.content) == 60_000
    assert codes(bad)[0] == "schema_violation"
    assert max(lags) < 0.5


@pytest.mark.parametrize("at_once", [False, True], ids=["piece by piece", "with the end"])
async def test_thinking_without_end_is_ended_as_text_is(at_once: bool) -> None:
    """What a backend has told apart from the text is bounded too, and no subscriber is sent more than that."""
    piece = "hm, " * 16_384

    async def thinks(_backend: FakeBackend, _call: Call) -> AsyncGenerator[Delta | Finish, None]:
        for _ in range(0 if at_once else 200):  # 12.5 MB
            yield Delta("", piece)
        yield Finish(finish_reason="stop", text="42", reasoning=piece * 200 if at_once else "")

    resources, local, _ = resources_of(thinks)
    sink = Sink()
    ending = await run(resources, request(stream="live"), sink)
    assert codes(ending) == ["length", None]
    assert ending.spent.attempts[0].reason == "an endless stream"
    assert sum(len(text) for kind, text in sink.seen if kind == "reasoning") <= MAX_ANSWER_CHARS
    assert local.running == 0


NAMED = {"type": "function", "function": {"name": "weather"}}
OTHER_TOOL = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object"}}}


def calls(*names: str, text: str = "", finish_reason: str = "tool_calls") -> Any:
    """A model that calls these tools."""
    made = tuple(ToolCall.of(id=f"c{number}", name=name, arguments="{}") for number, name in enumerate(names))

    async def script(_backend: FakeBackend, _call: Call) -> AsyncGenerator[Delta | Finish, None]:
        if text:
            yield Delta(text)
        yield Finish(finish_reason=finish_reason, usage=USAGE, tool_calls=made)

    return script


@pytest.mark.parametrize("stream", [False, "probe", "live"])
@pytest.mark.parametrize(
    ("choice", "script", "code"),
    [
        ("required", says("It is warm."), "no_tool_call"),
        ("required", says('{"n": 1}'), "no_tool_call"),
        ("required", says("I'm sorry, but I can't help with that."), "refusal"),
        ("required", says("half", finish_reason="length"), "length"),
        ("required", says(""), "upstream"),
        (NAMED, says("It is warm."), "no_tool_call"),
        (NAMED, calls("clock"), "no_tool_call"),
        (NAMED, calls("weather", "clock"), "no_tool_call"),
        (NAMED, calls("nonsense"), "invalid_json"),
        ("required", calls("clock"), None),
        ("required", calls("clock", text="Let me look."), None),
        ("required", calls("clock", finish_reason="stop"), None),
        ("required", says('{"name": "clock", "arguments": {}}'), None),
        (NAMED, calls("weather", "weather"), None),
        (NAMED, calls("weather", finish_reason="stop"), None),
        ("auto", says("It is warm."), None),
        ("none", says("It is warm."), None),
    ],
)
async def test_answer_without_the_call_that_was_demanded_is_none(
    choice: Any, script: Any, code: str | None, stream: Any
) -> None:
    """`tool_choice` that demands a call is not answered by text, or by a call of another tool."""
    resources, _, _ = resources_of(script, cloud=calls("weather"))
    ending = await run(resources, request(tools=[TOOL, OTHER_TOOL], tool_choice=choice, stream=stream))
    assert codes(ending) == ([None] if code is None else [code, None])
    assert isinstance(ending.event, Result)


@pytest.mark.parametrize("text", ["", "I look."])
async def test_repair_of_a_call_asks_for_no_json(text: str) -> None:
    """What was wrong was the call; an answer without text is not repeated, for servers refuse an empty message."""
    scripts = (calls("wether", text=text), calls("weather"))
    resources, local, _ = resources_of(*scripts, config=make_config(repair=1))
    ending = await run(resources, request(tools=[TOOL], schema=SCHEMA))
    assert codes(ending) == ["invalid_json", None]
    *spoken, demand = local.calls[1].messages[1:]
    assert [message["content"] for message in spoken] == ([text] if text else [])
    assert "a tool that was not offered" in demand["content"]
    assert "JSON" not in demand["content"]


@pytest.mark.parametrize("text", ['{"n": 1}', '{"n": "x"}', "prose"])
async def test_json_that_was_asked_for_beside_a_call_is_no_call(text: str) -> None:
    """A schema says what text must be, and not that text will do; no repair is asked for either."""
    config = make_config(repair=1)
    resources, local, _ = resources_of(says(text), cloud=calls("weather"), config=config)
    ending = await run(resources, request(tools=[TOOL], tool_choice="required", schema=SCHEMA))
    assert codes(ending) == ["no_tool_call", None]
    assert len(local.calls) == 1


async def test_calls_that_were_forbidden_are_not_the_answer() -> None:
    """`tool_choice` "none": a model that calls all the same has only its text to be judged by."""
    resources, _, _ = resources_of(calls("weather", text="It is warm."))
    ending = await run(resources, request(tools=[TOOL], tool_choice="none"))
    assert isinstance(ending.event, Result)
    assert (ending.event.answer.content, ending.event.answer.tool_calls) == ("It is warm.", ())
    assert ending.event.answer.finish_reason == "stop"
    resources, _, _ = resources_of(calls("weather"))
    assert codes(await run(resources, request(tools=[TOOL], tool_choice="none"))) == ["upstream", None]
