"""Serves tools: takes their calls from streams in Redis, and answers each in the inbox of its request.

    worker = ToolWorker()  # where REDIS_URL says, or redis://127.0.0.1:6379/0

    @worker.tool(idempotent=True)
    def temperature(city: str) -> float:
        "The temperature in a city, in degrees Celsius."
        return {"Oslo": 4.5}[city]

    worker.serve()  # until SIGTERM or SIGINT; or `await worker.run()` in a program that has an event loop

The rules of the wire stand in `llm_routerd.client.tool_serving`, for whoever writes a tool worker in another language.
"""

from __future__ import annotations

import asyncio
import math
import os
import re
import secrets
import signal
import socket
import sys
from typing import TYPE_CHECKING, Any, TypeVar, overload
from urllib.parse import urlsplit

import msgspec

from llm_routerd.client.shards import Shards
from llm_routerd.client.tool import Tool, ToolError
from llm_routerd.client.tool_serving import Serving
from llm_routerd.client.tool_signature import Signature, Threads
from llm_routerd.errors import BrokerError
from llm_routerd.jsonschema.compiled import AnswerSchema, SchemaCache, SchemaProblem
from llm_routerd.protocol.keys import Layout
from llm_routerd.protocol.schema_files import load_schema
from llm_routerd.protocol.tool import TOOL_NAME_PATTERN, ToolFields, ToolRequest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

F = TypeVar("F", bound="Callable[..., Any]")

_URL = "redis://127.0.0.1:6379/0"
_LOOK_SECONDS = 0.05  # between looks whether what is to stand in Redis does
_NAME = re.compile(TOOL_NAME_PATTERN)


class ToolWorker:
    """Serves tools; any number of workers share the calls.

    Args:
        redis: URL; None: what REDIS_URL in the environment says, or else `redis://127.0.0.1:6379/0`.
        prefix: of the queue's keys.
        shards: how many the queue is spread over, as the daemon's configuration has it; all are served.
        concurrency: calls at once.
        consumer: what the name of its consumer begins with; None: the host's name.
        lease_seconds: how long after its last sign of life its calls are others'.
        drain_seconds: how long it goes on after `stop` with what it has begun.
        on_trouble: told in a line of what an operator should know, and the exception where a tool raised one (whose
            text may hold secrets; the line does not have it); None: the line goes to stderr.

    Raises:
        BrokerError: the URL is unsound.
    """

    def __init__(
        self,
        redis: str | None = None,
        *,
        prefix: str = "llm",
        shards: int = 1,
        concurrency: int = 8,
        consumer: str | None = None,
        lease_seconds: float = 15.0,
        drain_seconds: float = 25.0,
        on_trouble: Callable[[str, Exception | None], None] | None = None,
    ) -> None:
        if concurrency < 1:
            raise ValueError(f"concurrency must be at least 1, not {concurrency}")
        self.consumer = f"{consumer or socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self.tools: dict[str, Tool] = {}
        self.lease_seconds = lease_seconds
        self.drain_seconds = drain_seconds
        self.places = asyncio.Semaphore(concurrency)
        self._concurrency = concurrency
        self.stopping = asyncio.Event()
        self.tell = on_trouble or _to_stderr
        self._threads = Threads(concurrency)
        self._schemas = SchemaCache()
        self._url = redis or os.environ.get("REDIS_URL") or _URL
        self._shards = Shards(self._url, Layout(prefix, shards), (), patience_seconds=math.inf)
        self._serving = tuple(Serving(self, shard) for shard in self._shards.all)

    @property
    def free(self) -> int:
        """How many places are free."""
        return self._concurrency - sum(len(serving.begun) for serving in self._serving)

    @overload
    def tool(self, function: F, /) -> F: ...
    @overload
    def tool(
        self,
        function: None = None,
        /,
        *,
        name: str | None = None,
        description: str | None = None,
        confirm: bool = False,
        idempotent: bool = False,
        timeout_seconds: float = 30.0,
    ) -> Callable[[F], F]: ...
    def tool(
        self,
        function: F | None = None,
        /,
        *,
        name: str | None = None,
        description: str | None = None,
        confirm: bool = False,
        idempotent: bool = False,
        timeout_seconds: float = 30.0,
    ) -> F | Callable[[F], F]:
        """Serve a function, async or not, which stays as it is: a decorator, with arguments or without.

        Args:
            function: its types say what arguments there are, its docstring what it is for.  A parameter of the type
                `ToolRequest` gets the call itself.
            name: None: the function's.
            description: None: the docstring.
            confirm: a person has to agree to each call.
            idempotent: two calls do what one does.
            timeout_seconds: how long a call may take.

        Raises:
            TypeError, ValueError: it cannot be a tool, or there is one of this name; the message says what to do.
            ModuleNotFoundError: pydantic is not installed.
        """

        def register(function: F) -> F:
            signature = Signature(function, name)
            self.add(
                signature.name,
                lambda arguments, call: signature.call(arguments, call, self._threads),
                signature.registration(
                    description=description, confirm=confirm, idempotent=idempotent, timeout_seconds=timeout_seconds
                ),
            )
            return function

        return register if function is None else register(function)

    def add(
        self,
        name: str,
        handler: Callable[[dict[str, Any], ToolRequest], Awaitable[Any]],
        registration: ToolFields,
        *,
        replace: bool = False,
    ) -> None:
        """Serve a tool, from now on; also while the worker runs.

        Args:
            name: as models and operators will name it.
            handler: gets the arguments, which satisfy the tool's `parameters`, and the call.  A text or bytes that it
                returns are the result as they are, and anything else becomes JSON.
            registration: as in schemas/tool.
            replace: where there is one of this name, take its place, and that of its registration; calls that were
                taken before are still answered by it.

        Raises:
            ValueError: it is no sound registration, or there is one of this name; the message says what is wrong.
        """
        if name in self.tools and not replace:
            raise ValueError(f"two tools have the name {name!r}: give one of them another, or add it with replace=True")
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name of a tool: 1 to 64 of A-Z a-z 0-9 _ . -, none of . - the first")
        if problem := self._schema(load_schema("tool")).validate(registration):
            raise ValueError(f"{name}: the registration is not valid: {problem}")
        self.tools[name] = Tool(
            name,
            handler,
            msgspec.json.encode(registration),
            registration.get("idempotent", False),
            self._schema(registration.get("parameters", {"type": "object"})),
        )

    def _schema(self, raw: Mapping[str, Any]) -> AnswerSchema:
        schema = self._schemas.get(raw)
        if isinstance(schema, SchemaProblem):
            raise ValueError(f"the schema of the parameters cannot be used: {schema.message}")  # noqa: TRY004
        return schema

    async def remove(self, name: str) -> None:
        """Serve a tool no longer, and return when its registration is taken back, unless it is another's.

        Another worker that serves it makes its own.
        """
        self.tools.pop(name, None)
        while any(each.has(name) for each in self._serving):
            if name in self.tools or self.stopping.is_set():
                return
            await asyncio.sleep(_LOOK_SECONDS)

    async def run(self) -> None:
        """Register the tools, and serve them until `stop`; once.  Redis may go away meanwhile, and be emptied.

        Raises:
            NotAllowedError, UnsuitableServerError: Redis can never be used as it is.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                for serving in self._serving:
                    tasks.create_task(serving.run(), name="serve-tools")
        except* BrokerError as errors:
            raise errors.exceptions[0] from None
        finally:
            await self._shards.aclose()

    def stop(self) -> None:
        """Let `run` come to its end: what has begun is finished, or given up after `drain_seconds`."""
        self.stopping.set()

    def serve(self) -> None:
        """`run`, in an event loop of its own, until SIGTERM or SIGINT; `on_trouble` is told when it has begun."""

        async def serve() -> None:
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, self.stop)
            telling = asyncio.create_task(self._tell_what_is_served(), name="tell-what-is-served")
            try:
                await self.run()
            finally:
                telling.cancel()

        asyncio.run(serve())

    async def _tell_what_is_served(self) -> None:
        """Once all of it is registered."""
        while not all(each.has(name) for each in self._serving for name in self.tools):  # noqa: ASYNC110 - Redis tells of no such event
            await asyncio.sleep(_LOOK_SECONDS)
        parts = urlsplit(self._url)
        where = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"  # no password, nor the options
        self.tell(f"serving {', '.join(self.tools) or 'nothing, for no tool was added,'} at {where}", None)


def _to_stderr(line: str, _error: Exception | None) -> None:
    sys.stderr.write(f"llm-routerd tool worker: {line}\n")
    sys.stderr.flush()


__all__ = ["ToolError", "ToolRequest", "ToolWorker"]
