"""What the demo shows, one function per part.  Each checks that what it says on the screen has happened."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any

from httpx import HTTPError as HttpError
from jsonschema import Draft202012Validator
from openai import APIConnectionError, AsyncOpenAI, DefaultAsyncHttpxClient
from openai.types.responses import ResponseCompletedEvent, ResponseCreatedEvent, ResponseTextDeltaEvent

from llm_routerd.protocol.events import FINAL_ID
from tests.demo.redis_cli import RedisCli
from tests.demo.stage import CALLER_MODEL, CARELESS_ANSWER, CARELESS_MODEL, NOTE, STANDIN_MODEL
from tests.standin.script import tokens_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from openai import AsyncStream
    from openai.types.responses import ResponseStreamEvent

    from llm_routerd.client import ClientEvent, RequestFields
    from tests.demo.screen import Screen
    from tests.demo.stage import Stage

_ANSWER_SECONDS = 45.0
_TOKENS_BEFORE_CANCEL = 8
_DELTAS_BEFORE_KILL = 3
_CHECKED_ID = "demo-checked"
_HTTP_PROMPT = "Why is the sea salty? Answer in two sentences."
_SCHEMA = {
    "type": "object",
    "properties": {"capital": {"type": "string"}, "population": {"type": "integer"}},
    "required": ["capital", "population"],
    "additionalProperties": False,
}


class NotShownError(Exception):
    """Something that the demo was about to claim has not happened."""


def _require(fact: bool, what: str) -> None:
    if not fact:
        raise NotShownError(what)


async def show_tokens(stage: Stage, screen: Screen) -> None:
    """A prompt, and its answer as it comes."""
    screen.heading("1. An answer, token by token")
    request: RequestFields = {
        "id": "demo-tokens",
        "prompt": "Why is the sky blue? Answer in two sentences.",
        "stream": "live",
    }
    events = await _watch(stage, screen, request)
    final = events[-1]
    _require(final.type == "result", f"an answer; it ended in {_how(final)}")
    texts = [event.data["text"] for event in events if event.type == "token"]
    _require("".join(texts) == final.data["raw_text"], "the tokens add up to the answer")
    _require(len(texts) > 1, "the answer in more than one token event")
    screen.good(f"{len(texts)} token events as the model wrote, then the one final event with the whole answer.")
    await screen.pause(1.5)


async def show_fallback(stage: Stage, screen: Screen) -> None:
    """A schema, an answer that breaks it, and the next deployment's."""
    screen.heading("2. A JSON Schema, and a deployment that does not keep to it")
    screen.say(
        "The chain `checked` asks the deployment `careless` first (always a stand-in, which breaks the schema on "
        "purpose), then `careful`. The schema wants capital: string, population: integer."
    )
    await screen.pause(1)
    request: RequestFields = {
        "id": _CHECKED_ID,
        "prompt": "What is the capital of Norway, and how many people live there?",
        "model": "checked",
        "schema": _SCHEMA,
        "stream": "live",
        "context": "demo",
    }
    events = await _watch(stage, screen, request)
    final = events[-1]
    _require(final.type == "result", f"an answer; it ended in {_how(final)}")
    _require(Draft202012Validator(_SCHEMA).is_valid(final.data["content"]), "an answer that keeps to the schema")
    turns = [(each["deployment"], each["code"]) for each in final.data["attempts"]]
    _require(turns == [("careless", "schema_violation"), ("careful", None)], f"the fallback; the turns were {turns}")
    _require([event.attempt for event in events if event.type == "rejected"] == [1], "attempt 1 told as discarded")
    call, words = await stage.ended_call(CARELESS_MODEL), tokens_of(CARELESS_ANSWER)
    written = call["tokens"]
    _require(call["how"] == "client_disconnected" and written < len(words), "the careless model stopped half-way")
    screen.good(
        f"Attempt 1 ended at its token {written} of {len(words)} ({words[written - 1].strip()}), a string where an "
        f"integer belongs: {len(words) - written} tokens were never written. Only attempt 2 is the answer."
    )
    await screen.pause(2)


async def show_cancellation(stage: Stage, screen: Screen) -> None:
    """A request that is no longer wanted."""
    screen.heading("3. A cancellation")
    request_id, prompt = "demo-cancelled", "Tell a story of a thousand words about the sea."
    screen.fact("prompt", prompt)
    await stage.client.submit(id=request_id, prompt=prompt, stream="live")
    view, tokens, asked_at = screen.view(), 0, 0.0
    types: list[str] = []
    async with asyncio.timeout(_ANSWER_SECONDS):
        async for event in stage.client.follow(request_id):
            types.append(event.type)
            tokens += event.type in {"token", "reasoning"}
            if tokens == _TOKENS_BEFORE_CANCEL and not asked_at:
                asked_at = time.time()
                await stage.client.cancel(request_id, "the reader has seen enough")
            view.show(event)
    _require(types[-1] == "cancelled", f"a cancellation; it ended in {types[-1]}")
    last_id, last = (await stage.entries(f"llm:events:{request_id}"))[-1]
    _require((last_id, last["type"]) == (FINAL_ID, "cancelled"), "the cancellation as the last event")
    metrics = await stage.metrics_of(request_id)
    accounted_ms = (time.time() - asked_at) * 1000
    _require(metrics["type"] == "cancelled", "the cancellation in the metrics")
    if stage.model.is_standin:
        call = await stage.ended_call(STANDIN_MODEL)
        _require(call["how"] == "client_disconnected", "the connection to the model closed")
        closed_ms = (call["end"] - asked_at) * 1000
        _require(closed_ms < 1000, "the connection closed within a second")
        screen.good(
            f"The model's connection was closed {closed_ms:.0f} ms after the cancellation: the model stopped at its "
            f"token {call['tokens']}, and does not go on for nobody."
        )
    else:
        _require(accounted_ms < 1000, "the request ended within a second")
        screen.good(
            f"The connection to Ollama was closed, and the request accounted for, {accounted_ms:.0f} ms after the "
            "cancellation."
        )
    await screen.pause(2)


async def show_killed_gateway(stage: Stage, screen: Screen) -> None:
    """An answer over HTTP that outlives what it came through."""
    screen.heading("4. OpenAI's client, and a gateway that is killed in mid-answer")
    screen.say(
        "The gateway speaks OpenAI's protocol. The package `openai` streams an answer from it, until SIGKILL ends the "
        "gateway; a new one goes on from the last event."
    )
    before = len(await stage.calls(STANDIN_MODEL))
    # Neither a proxy nor a key of whoever looks on has a part in this.
    async with AsyncOpenAI(
        base_url=f"http://127.0.0.1:{stage.gateway_port}/v1",
        api_key="none",
        max_retries=0,
        timeout=_ANSWER_SECONDS,
        http_client=DefaultAsyncHttpxClient(trust_env=False),
    ) as openai:
        screen.fact("prompt", _HTTP_PROMPT)
        screen.block(">>> client.responses.create(input=…, background=True, stream=True)")
        first = _Response()
        cut = await first.read(
            await openai.responses.create(model="default", input=_HTTP_PROMPT, background=True, stream=True),
            kill=stage.kill_gateway,
        )
        _require(cut, "the stream broken off")
        screen.fact("read", f"{first.text} …")
        killed, number = stage.gateway.pid, first.numbers[-1]
        await stage.start_gateway()
        screen.fact("gateway", f"process {killed} was killed and is gone; process {stage.gateway.pid} is new")
        screen.block(f">>> client.responses.retrieve(…, stream=True, starting_after={number})")
        rest = _Response()
        await rest.read(await openai.responses.retrieve(first.id, stream=True, starting_after=number))
        screen.fact("read", f"…{rest.text}")
    request_id = first.id.removeprefix("resp_")
    final = await stage.client.final(request_id)
    _require(final is not None and final.type == "result", "an answer")
    assert final is not None
    numbers = [*first.numbers, *rest.numbers]
    _require(numbers == list(range(len(numbers))), f"every event once; their numbers were {numbers}")
    _require(first.text + rest.text == final.data["raw_text"] == rest.completed, "the two parts as the whole answer")
    _require(bool(first.text and rest.text), "a part of the answer on either side of the cut")
    attempts = [fields for _, fields in await stage.entries(f"llm:events:{request_id}") if fields["type"] == "attempt"]
    calls = len(await stage.calls(STANDIN_MODEL)) - before
    _require(len(attempts) == 1 and (not stage.model.is_standin or calls == 1), "one call to the model")
    screen.good(
        f"{len(first.numbers)} events before the gateway was killed and {len(rest.numbers)} after: none twice, none "
        "missing, and the model was asked once. The daemon had gone on writing meanwhile."
    )
    await screen.pause(2)


class _Response:
    """What a client has read of a response over one connection.

    Attributes:
        numbers: the sequence numbers of its events.
        completed: the whole answer, as the last event tells it.
    """

    def __init__(self) -> None:
        self.id = self.text = self.completed = ""
        self.numbers: list[int] = []

    async def read(
        self, stream: AsyncStream[ResponseStreamEvent], *, kill: Callable[[], Awaitable[None]] | None = None
    ) -> bool:
        """Read to the end, or until the connection breaks off: then true; after some text something may be killed."""
        deltas = 0
        try:
            async for event in stream:
                self.numbers.append(event.sequence_number)
                match event:
                    case ResponseCreatedEvent(response=response):
                        self.id = response.id
                    case ResponseTextDeltaEvent(delta=delta):
                        self.text += delta
                        deltas += 1
                        if deltas == _DELTAS_BEFORE_KILL and kill is not None:
                            await kill()
                    case ResponseCompletedEvent(response=response):
                        self.completed = response.output_text
                    case _:
                        pass
        except (APIConnectionError, HttpError):
            return True
        return False


async def show_metrics(stage: Stage, screen: Screen) -> None:
    """What the daemon tells of each finished request."""
    screen.heading("5. The metrics event")
    screen.say(
        "One per finished request, on the channel and on the stream llm_router_metrics; never with a prompt, an answer "
        "or a key. That of part 2:"
    )
    metrics = await stage.metrics_of(_CHECKED_ID)
    screen.json(metrics)
    streamed = [json.loads(fields["data"]) for _, fields in await stage.entries("llm_router_metrics")]
    _require(metrics in streamed, "the same event on the stream")
    stops = [(stop["deployment"], stop["code"]) for stop in metrics["early_stops"]]
    _require(stops == [("careless", "schema_violation")], "the early stop")
    _require("Norway" not in json.dumps(metrics) and "Oslo" not in json.dumps(metrics), "metrics without any text")
    await screen.pause(2)


async def show_redis_cli(stage: Stage, screen: Screen) -> None:
    """The same by hand."""
    cli = RedisCli(stage.port)
    screen.heading("6. The same with redis-cli")
    program = "by redis-cli" if cli.program else "word for word over a plain connection, as redis-cli is not installed"
    screen.say(f"These were carried out just now ({program}); any Redis client in any language can do it.")
    shown = ""
    for comment, command, expected in _by_hand():
        screen.comment(comment)
        line = cli.line(command)
        screen.command(line)
        shown = await cli.run(line)
        screen.block(shown)
        _require(expected in shown, f"{expected!r} in the reply to {command.split(' ', 1)[0]}")
        await screen.pause(0.5)
    final = await stage.client.final("job-2")
    _require(final is not None and final.type == "cancelled", "the cancellation by hand")
    await stage.metrics_of("job-2")


def _by_hand() -> tuple[tuple[str, str, str], ...]:
    """What is done, the command, and a part of its reply."""
    final = FINAL_ID
    before_final = f"{int(final.partition('-')[0]) - 1}-0"
    return (
        ("a request", "XADD llm:requests '*' id job-1 prompt 'Say hello.' stream true", "-"),
        ("wait for its answer", f"XREAD BLOCK 30000 STREAMS llm:events:job-1 {before_final}", '"result"'),
        ("how it came: begin, tokens", "XRANGE llm:events:job-1 - + COUNT 2", '"attempt"'),
        ("another request", "XADD llm:requests '*' id job-2 prompt 'Count to a thousand.'", "-"),
        (
            "cancel it",
            f'XADD llm:events:job-2 {final} type cancelled data \'{{"id":"job-2","reason":"not needed"}}\'',
            final,
        ),
        ("the last metrics event", "XREVRANGE llm_router_metrics + - COUNT 1", "job-"),
    )


async def show_run(stage: Stage, screen: Screen) -> None:
    """A run with tools: one is called at once, the other waits for a person, and what drives it is killed meanwhile."""
    screen.heading("7. Tools, a person's yes, and a daemon that is killed in between")
    request_id, prompt = "demo-run", "Say hello, and note that the lamp is broken."
    async with stage.serving_tools() as line:
        screen.say("A tool is whatever reads one stream and writes another. Two are served by:")
        screen.command(line)
        screen.say("The model of the chain `tools` (always a stand-in) calls one after the other; `note` wants a yes.")
        screen.fact("prompt", prompt)
        await stage.client.submit(id=request_id, prompt=prompt, model="tools", agent={"tools": ["echo", "note"]})
        view, events = screen.view(), await _until(stage, request_id, lambda event: event.data.get("confirm") is True)
        for event in events:
            view.show(event)
        _require(not events[-1].is_final, f"a call that waits for a person; the run ended in {_how(events[-1])}")
        asked = events[-1].data
        _require(not stage.notes.exists(), "no act before a person has agreed")
        killed = stage.daemon.pid
        await stage.replace_daemon()
        screen.fact("daemon", f"process {killed} was killed and is gone, with its Valkey; {stage.daemon.pid} is new")
        screen.command(f"llm-routerd confirm {request_id} {asked['call_id']}")
        screen.block(await stage.llm_routerd("confirm", "--by", "you", request_id, asked["call_id"]))
        rest = await _until(stage, request_id, lambda event: event.is_final, after=events[-1].stream_id)
        for event in rest:
            view.show(event)
    final = rest[-1]
    _require(final.type == "result", f"an answer; it ended in {_how(final)}")
    answered = [event.data.get("result") for event in (*events, *rest) if event.type == "tool_result"]
    _require(answered == ["hello", "noted"], f"what the tools answered; that was {answered}")
    _require(final.data["raw_text"] == "The tools say: hello; noted.", "an answer that knows of both")
    _require(stage.notes.read_text() == f"{asked['call_id']} {NOTE}\n", "one note, once")
    turns = [call["turn"] for call in await stage.calls(CALLER_MODEL)]
    _require(turns == [1, 2, 3], f"each turn asked for once; they were {turns}")
    screen.good(
        "Three turns, each asked for once, and one note in the file. What had been asked and answered, and which call "
        "waited, the new daemon knew from the run's events alone."
    )
    await screen.pause(2)


async def _until(
    stage: Stage, request_id: str, is_last: Callable[[ClientEvent], bool], after: str = "0-0"
) -> list[ClientEvent]:
    """The events of a request up to one, or to its end."""
    events: list[ClientEvent] = []
    async with asyncio.timeout(_ANSWER_SECONDS):
        async for event in stage.client.follow(request_id, after):
            events.append(event)
            if is_last(event):
                break
    return events


async def _watch(stage: Stage, screen: Screen, request: RequestFields) -> list[ClientEvent]:
    """Submit a request, and show its events as `llm-routerd submit` does."""
    screen.fact("prompt", request["prompt"])
    await stage.client.submit(**request)
    view = screen.view()
    events: list[ClientEvent] = []
    async with asyncio.timeout(_ANSWER_SECONDS):
        async for event in stage.client.follow(request["id"]):
            view.show(event)
            events.append(event)
    return events


def _how(final: ClientEvent) -> str:
    attempts: list[dict[str, Any]] = final.data.get("attempts") or []
    return f"{final.type} {final.data.get('code', '')} {[each.get('reason') for each in attempts]}"


ACTS = (show_tokens, show_fallback, show_cancellation, show_killed_gateway, show_metrics, show_redis_cli, show_run)
