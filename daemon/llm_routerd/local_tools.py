"""Functions of this process as the tools of a run, and what is answered to a call of one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import orjson

from llm_routerd.agents.registration import Tool, read_tool
from llm_routerd.agents.words import Answer
from llm_routerd.client.tool import Tool as Served
from llm_routerd.client.tool_signature import Signature, Threads
from llm_routerd.jsonschema.compiled import SchemaCache
from llm_routerd.logs import get_logger
from llm_routerd.protocol.tool import ToolFields, ToolRequest

log = get_logger()

Handler = Callable[[dict[str, Any], ToolRequest], Awaitable[Any]]
LocalTool = tuple[str, ToolFields, Handler]
AnyTool = Callable[..., Any] | LocalTool


def tool(
    function: Callable[..., Any],
    *,
    name: str | None = None,
    description: str | None = None,
    confirm: bool = False,
    timeout_seconds: float = 30.0,
) -> LocalTool:
    """A function, async or not, as a tool of `Router.run`: its name, its registration and its handler.

    Args:
        function: its types say what arguments there are, its docstring what it is for; one that is not async runs in
            a thread.  A parameter of the type `ToolRequest` gets the call itself.
        name: None: the function's.
        description: None: the docstring.
        confirm: each call is asked about first.
        timeout_seconds: how long a call may take.

    Raises:
        TypeError, ValueError: it cannot be a tool; the message says what to do.
        ModuleNotFoundError: pydantic is not installed (the extra `tools`).
    """
    signature = Signature(function, name)

    async def handler(arguments: dict[str, Any], call: ToolRequest) -> Any:
        return await signature.call(arguments, call, Threads(1))  # its own, so that one that hangs delays no other

    registration = signature.registration(description=description, confirm=confirm, timeout_seconds=timeout_seconds)
    return signature.name, registration, handler


class LocalTools:
    """The tools of one run.

    Attributes:
        registered: by name, as the machine knows them.

    Raises:
        ValueError: one is no sound tool, or two have one name; the message says what is wrong.
    """

    def __init__(self, tools: Sequence[AnyTool]) -> None:
        self.registered: dict[str, Tool] = {}
        self._served: dict[str, Served] = {}
        schemas = SchemaCache()
        for each in tools:
            name, registration, handler = each if isinstance(each, tuple) else tool(each)
            written = orjson.dumps(registration)
            read = read_tool(name, written, schemas)
            if not isinstance(read, Tool):
                raise ValueError(f"the tool {name!r}: {read.why}")  # noqa: TRY004 - of a value
            if name in self.registered:
                raise ValueError(f"two tools have the name {name!r}")
            self.registered[name] = read
            self._served[name] = Served(name, handler, written, read.idempotent, read.parameters)

    async def answer(self, call: ToolRequest, seconds: float) -> Answer:
        """Act; `seconds`: how long that may take."""
        kind, value = await self._served[call.name].answer(call, seconds, _tell)
        data = value.encode(errors="replace") if isinstance(value, str) else value
        return Answer(call.call_id.encode(), data, len(data), kind == "error")


def _tell(line: str, error: Exception | None) -> None:
    """Of a tool's own fault its author is told where it lies; the exception's text may be anything."""
    del error
    log.warning("tool_failed", problem=line)
