"""A Python function as a tool: what its signature says of its arguments, and how it is called.

The signature is read by pydantic (the extra `tools`), when the first function is registered and not before.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
import typing
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from llm_routerd.client.tool import ToolError
from llm_routerd.protocol.tool import ToolRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_UNNAMED = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class Signature:
    """How a function wants to be called.

    Attributes:
        parameters: JSON Schema of its arguments; a parameter of the type `ToolRequest` is none of them.
        description: what its docstring says; "" where it has none.

    Raises:
        TypeError: a parameter has no type, or no name that it could be given by.
        ModuleNotFoundError: pydantic is not installed.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        pydantic = _pydantic()
        self._function = function
        self._is_async = inspect.iscoroutinefunction(function)
        self.description = inspect.getdoc(function) or ""
        hints = typing.get_type_hints(function, include_extras=True)
        self._calls: list[str] = []
        self._fields: dict[str, str] = {}  # of the model, whose own names no argument is to hide
        fields: dict[str, Any] = {}
        for name, parameter in inspect.signature(function).parameters.items():
            if parameter.kind in _UNNAMED or name not in hints:
                raise TypeError(f"{function.__name__}: the parameter {name!r} needs a type and a name to be given by")
            if hints[name] is ToolRequest:
                self._calls.append(name)
                continue
            default = ... if parameter.default is parameter.empty else parameter.default
            self._fields[f"argument_{len(fields)}"] = name
            fields[f"argument_{len(fields)}"] = (hints[name], pydantic.Field(default, alias=name))
        config = pydantic.ConfigDict(extra="forbid")
        self._model = pydantic.create_model("Arguments", __config__=config, **fields)
        self._refused = pydantic.ValidationError
        self.parameters: dict[str, Any] = _untitled(self._model.model_json_schema())
        self.parameters["type"] = "object"

    async def call(self, arguments: Mapping[str, Any], call: ToolRequest, threads: Threads) -> Any:
        """Call the function; one that is not async in a thread.

        Raises:
            ToolError: the arguments are not what its types say.
            Exception: what it raises.
        """
        try:
            model = self._model.model_validate(dict(arguments))
        except self._refused as error:
            told = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
            raise ToolError(f"the arguments are not valid: {told}") from None
        given = {name: getattr(model, field) for field, name in self._fields.items()} | dict.fromkeys(self._calls, call)
        if self._is_async:
            return await self._function(**given)
        return await threads.run(lambda: self._function(**given))


class Threads:
    """Runs what is not async, so many at once; a thread that hangs keeps its place, and no process from its end."""

    def __init__(self, most: int) -> None:
        self._places = asyncio.Semaphore(most)

    async def run(self, function: Callable[[], Any]) -> Any:
        """What it returns, or raises.  Cancelled, it goes on all the same."""
        await self._places.acquire()
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[tuple[Any, BaseException | None]] = loop.create_future()

        def tell(result: Any, error: BaseException | None) -> None:
            self._places.release()
            if not ended.done():
                ended.set_result((result, error))

        def work() -> None:
            result, error = None, None
            try:
                result = function()
            except BaseException as raised:  # noqa: BLE001 - it is raised again where it is waited for
                error = raised
            with suppress(RuntimeError):  # the event loop has ended meanwhile
                loop.call_soon_threadsafe(tell, result, error)

        threading.Thread(target=contextvars.copy_context().run, args=(work,), name="tool", daemon=True).start()
        result, error = await ended
        if error is not None:
            raise error
        return result


def _pydantic() -> Any:
    try:
        import pydantic  # noqa: PLC0415 - who registers by `add` needs none
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "tools from functions need pydantic: pip install 'llm-routerd[tools]', or use `add`", name="pydantic"
        ) from None
    return pydantic


def _untitled(schema: dict[str, Any]) -> dict[str, Any]:
    """The same without the titles that pydantic makes of names, which every call would pay for in tokens."""
    cleaned = {name: value for name, value in schema.items() if name != "title"}
    for group in ("properties", "$defs"):
        if group in cleaned:
            cleaned[group] = {name: _untitled(each) for name, each in cleaned[group].items()}
    return cleaned
