"""The router as a library: what the daemon does with a request, in-process and without Redis.

async with Router() as router:
    result = await router.route(prompt="Why is the sky blue?")
    print(result.answer.content, result.deployment, result.cost_usd)

`Router.run` lets the model call functions of this process, turn after turn, until there is an answer.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
import uuid
from collections import deque
from contextlib import asynccontextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Self, Unpack, cast

from llm_routerd.config.load import load_config
from llm_routerd.errors import RouterdError
from llm_routerd.protocol.codes import ErrorCode
from llm_routerd.protocol.events import Event, Failed, Result
from llm_routerd.protocol.request import Params, Request, RequestError, RequestFields, RunFields, as_json
from llm_routerd.routing.chains import resolve, unknown_model
from llm_routerd.routing.health import Health
from llm_routerd.running.ending import Answered, Unanswered, Withdrawn
from llm_routerd.running.run import Run
from llm_routerd.wiring import make_parser, make_resources

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Coroutine, Iterable, Sequence

    from llm_routerd.config.tree import Chain, Config
    from llm_routerd.local_run import Confirm, LocalRun
    from llm_routerd.local_tools import AnyTool, LocalTools
    from llm_routerd.protocol.events import AttemptEvent, AttemptStarted, Queued, RunEvent
    from llm_routerd.running.resources import Resources

_PROPERTIES = tuple(RequestFields.__annotations__)
_OF_A_RUN = ("tools", "confirm", "max_turns", *RunFields.__annotations__)
STREAM_BUFFER = 256  # events that a slow reader may lag behind before the model is made to wait


class NoAnswerError(RouterdError):
    """`route` or `run` got no answer; `failure` is the final error event, with its code, message and attempts."""

    def __init__(self, failure: Failed) -> None:
        super().__init__(f"{failure.code}: {failure.message}")
        self.failure = failure


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prepared:
    """A request that may run: whom to ask and by when (loop time)."""

    request: Request
    chain: Chain
    deadline: float | None


class Router:
    """Routes requests through the chains of a configuration; an async context manager.

    Args:
        config: the configuration; None: what `config_path` or the defaults say.
        config_path: a TOML file, as for the daemon.
    """

    def __init__(self, config: Config | None = None, *, config_path: str | None = None) -> None:
        self.config = config if config is not None else load_config(config_path, os.environ)
        self._rng = random.Random()
        self._resources: Resources | None = None
        self._parser = make_parser(self.config)

    async def __aenter__(self) -> Self:
        health = Health(rng=self._rng)
        self._resources = resources = make_resources(self.config, health=health, rng=self._rng)
        await asyncio.to_thread(resources.pricing.load)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._resources is not None:
            await self._resources.aclose()
            self._resources = None

    async def route(self, **request: Unpack[RequestFields]) -> Result:
        """Answer one request; the arguments are its properties, as in the protocol.

        Cancelling it closes the connection to the model.

        Raises:
            NoAnswerError: the request is malformed, or nothing in its chain gave an acceptable answer.
            TypeError: a property that no request has; so does `stream`.
        """
        _check_names(request, _PROPERTIES)
        prepared = self._prepare({**request, "stream": False})
        return _answer_of(prepared if isinstance(prepared, Failed) else await self._route(prepared, _Silent()))

    @asynccontextmanager
    async def stream(self, **request: Unpack[RequestFields]) -> AsyncGenerator[AsyncIterable[Event], None]:
        """Answer one request and yield its events, the last one a `Result` or a `Failed`.

            async with router.stream(prompt="…") as events:
                async for event in events: ...

        Leaving the block early closes the connection to the model.
        """
        _check_names(request, _PROPERTIES)
        prepared = self._prepare({"stream": True, **request})
        events = _Events()
        shown = cast("AsyncIterable[Event]", events)  # such a request has no others
        if isinstance(prepared, Failed):
            events.put(prepared)
            yield shown
            return
        async with _fed(events, prepared.request.id, self._route(prepared, events)):
            yield shown

    async def run(
        self,
        *,
        tools: Sequence[AnyTool],
        confirm: Confirm | None = None,
        max_turns: int | None = None,
        **request: Unpack[RunFields],
    ) -> Result:
        """Answer one request with the help of tools: model, tools, model, until there is an answer.

        Cancelling it cancels the tools, and closes the connection to the model.

        Args:
            tools: typed functions, async or not; with more to say of one `tool(function, confirm=True, …)`, which
                makes what else stands here: a name, a registration as in schemas/tool, and a handler, which gets the
                arguments and the call, and returns text, or what becomes JSON.  What a tool raises costs nothing: the
                model is told that it failed, and of a `ToolError` its text.
            confirm: a function, async or not, that is asked before each call of a tool that demands it; one that is
                not async runs in a thread, for one call after the other.  True: the call is made, False: it is not, a
                text: it is not, and the model is told why, a dict: it is made with these arguments.
            max_turns: calls to a model, the last without tools; None: as the configuration has it, 5 by default.
            **request: its properties, as in the protocol.

        Raises:
            NoAnswerError: the request is malformed, nothing in its chain gave an acceptable answer, or the time for
                it or for a confirmation is over.
            ValueError: a tool is none, demands confirmation and there is no `confirm`, or does not take the arguments
                that `confirm` gave.
            TypeError: a function cannot be a tool, `confirm` gave what is no word, or a property that no request has.
            ModuleNotFoundError: a function is to be a tool, and pydantic is not installed (the extra `tools`).
        """
        run = await self._local_run({**request, "stream": False}, tools, confirm, max_turns, _Silent())
        return _answer_of(run if isinstance(run, Failed) else await run.until_done())

    @asynccontextmanager
    async def stream_run(
        self,
        *,
        tools: Sequence[AnyTool],
        confirm: Confirm | None = None,
        max_turns: int | None = None,
        **request: Unpack[RunFields],
    ) -> AsyncGenerator[AsyncIterable[Event | RunEvent], None]:
        """As `run`, and yield its events as they stand in a stream, the last one a `Result` or a `Failed`.

        The text of a turn is final with its `TurnEnded`.  Leaving the block early cancels the run.
        """
        events = _Events()
        run = await self._local_run({"stream": True, **request}, tools, confirm, max_turns, events)
        if isinstance(run, Failed):
            events.put(run)
            yield events
            return
        async with _fed(events, run.request_id, run.until_done(), raises=True):
            yield events

    async def _local_run(
        self,
        request: dict[str, Any],
        tools: Sequence[AnyTool],
        confirm: Confirm | None,
        max_turns: int | None,
        sink: _Silent,
    ) -> LocalRun | Failed:
        _check_names(request, _OF_A_RUN)
        local_run, served = await asyncio.to_thread(_with_tools, tools)
        agent = {"tools": list(served.registered), **({} if max_turns is None else {"max_turns": max_turns})}
        prepared = self._prepare({**request, "agent": agent}, is_run=True)
        if isinstance(prepared, Failed):
            return prepared
        return local_run(
            self._in_use(),
            prepared.request,
            prepared.chain,
            sink,
            deadline=prepared.deadline,
            tools=served,
            confirm=confirm,
        )

    async def _route(self, prepared: _Prepared, sink: _Silent) -> Result | Failed:
        run = Run(self._in_use(), prepared.request, prepared.chain, sink, deadline=prepared.deadline)
        ending = await run.until_done()
        match ending:
            case Answered() | Unanswered():
                return ending.event
            case Withdrawn():
                raise RuntimeError("a sink that accepts every attempt cannot withdraw one")

    def _in_use(self) -> Resources:
        if self._resources is None:
            raise RuntimeError("use the Router as an async context manager: `async with Router() as router`")
        return self._resources

    def _prepare(self, document: dict[str, Any], *, is_run: bool = False) -> _Prepared | Failed:
        given = {name: value for name, value in document.items() if value is not None}
        parsed = self._parser.parse(str(uuid.uuid4()), [b"data", as_json(given)])
        if isinstance(parsed, RequestError):
            return Failed.of(parsed)
        if parsed.agent is not None and not is_run:
            message = "$.agent: names tools that a daemon knows; `Router.run` takes those of this process"
            return Failed(request_id=parsed.id, code=ErrorCode.INVALID_REQUEST, message=message)
        chain = resolve(self.config, parsed.model)
        if chain is None:
            message = unknown_model(self.config, parsed.model)
            return Failed(request_id=parsed.id, code=ErrorCode.UNKNOWN_MODEL, message=message, metadata=parsed.metadata)
        left = parsed.seconds_left(time.time() * 1000)
        deadline = None if left is None else asyncio.get_running_loop().time() + left
        return _Prepared(request=parsed, chain=chain, deadline=deadline)


def _with_tools(tools: Sequence[AnyTool]) -> tuple[type[LocalRun], LocalTools]:
    """What runs, and its tools; not for the event loop, which the first imports would hold up for 0.3 s.

    Few need them, and they bring a client of Redis, and pydantic.
    """
    from llm_routerd.local_run import LocalRun  # noqa: PLC0415 - see above
    from llm_routerd.local_tools import LocalTools  # noqa: PLC0415 - see above

    return LocalRun, LocalTools(tools)


def _check_names(given: Iterable[str], known: Sequence[str]) -> None:
    """Of arguments, as Python does.

    Raises:
        TypeError: one is not known.
    """
    for name in given:
        if name in known:
            continue
        near = f"params={{{name!r}: …}}" if name in Params.__annotations__ else None
        near = near or next(iter(get_close_matches(name, known, 1)), None)
        raise TypeError(f"unexpected argument `{name}`" + (f"; did you mean `{near}`?" if near else ""))


def _answer_of(final: Result | Failed) -> Result:
    if isinstance(final, Failed):
        raise NoAnswerError(final)
    return final


@asynccontextmanager
async def _fed(
    events: _Events, request_id: str, ending: Coroutine[None, None, Result | Failed], *, raises: bool = False
) -> AsyncGenerator[None, None]:
    """While the block lasts, what ends a request goes on, and puts its end; `raises`: its errors at the block's end."""

    async def feed() -> None:
        try:
            events.put(await ending)
        except Exception as error:  # the reader must not wait for ever for what a bug has ended
            message = f"{type(error).__name__} in llm-routerd"
            events.put(Failed(request_id=request_id, code=ErrorCode.INTERNAL, message=message))
            raise

    task = asyncio.create_task(feed(), name=f"stream-{request_id}")
    try:
        yield
        if raises and task.done():
            task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class _Silent:
    """A sink that shows nothing."""

    def __init__(self) -> None:
        self._attempts = 0

    @property
    def has_room(self) -> bool:
        """There always is."""
        return True

    async def begin(self, event: AttemptStarted) -> int:
        """Every attempt may be made."""
        del event
        self._attempts += 1
        return self._attempts

    def emit(self, event: AttemptEvent | RunEvent) -> None:
        """Nothing is shown."""

    def queued(self, event: Queued) -> bool:
        """Nothing is shown."""
        del event
        return True

    async def room(self) -> None:
        """There always is."""


class _Events(_Silent):
    """A sink that a reader iterates over, up to the final event."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: deque[Event | RunEvent] = deque()
        self._put = asyncio.Event()
        self._taken = asyncio.Event()

    def put(self, event: Event | RunEvent) -> None:
        """One more event."""
        self.waiting.append(event)
        self._put.set()

    async def __aiter__(self) -> AsyncIterator[Event | RunEvent]:
        while True:
            while not self.waiting:
                self._put.clear()
                await self._put.wait()
            event = self.waiting.popleft()
            self._taken.set()
            yield event
            if isinstance(event, (Result, Failed)):
                return

    async def begin(self, event: AttemptStarted) -> int:
        """Every attempt may be made."""
        self.put(event)
        return await super().begin(event)

    def emit(self, event: AttemptEvent | RunEvent) -> None:
        """Show it."""
        self.put(event)

    def queued(self, event: Queued) -> bool:
        """Show it, unless there is enough to read."""
        if has_room := self.has_room:
            self.put(event)
        return has_room

    @property
    def has_room(self) -> bool:
        """Whether the reader keeps up."""
        return len(self.waiting) < STREAM_BUFFER

    async def room(self) -> None:
        """Wait until it does."""
        while not self.has_room:
            self._taken.clear()
            await self._taken.wait()
