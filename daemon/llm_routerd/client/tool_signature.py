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
from llm_routerd.protocol.tool import ToolFields, ToolRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_LAMBDA = "<lambda>"


class Signature:
    """How a function wants to be called.

    Args:
        function: async or not.
        name: None: the function's.

    Attributes:
        name: the tool's.
        parameters: JSON Schema of its arguments; a parameter of the type `ToolRequest` is none of them.

    Raises:
        TypeError: it has no name, its types cannot be read, or a parameter has no type, or no name that it could be
            given by.
        ModuleNotFoundError: pydantic is not installed.
    """

    def __init__(self, function: Callable[..., Any], name: str | None = None) -> None:
        pydantic = _pydantic()
        self._function = function
        self.name = _name(function) if name is None else name
        hints = _types(function, self.name)
        self._calls: list[str] = []
        self._fields: dict[str, str] = {}  # of the model, whose own names no argument is to hide
        fields: dict[str, Any] = {}
        for argument, parameter in inspect.signature(function).parameters.items():
            if problem := _problem_of(parameter, is_typed=argument in hints):
                raise TypeError(f"{self.name}: {problem}")
            if hints[argument] is ToolRequest:
                self._calls.append(argument)
                continue
            default = ... if parameter.default is parameter.empty else parameter.default
            self._fields[f"argument_{len(fields)}"] = argument
            fields[f"argument_{len(fields)}"] = (hints[argument], pydantic.Field(default, alias=argument))
        config = pydantic.ConfigDict(extra="forbid")
        self._model = pydantic.create_model("Arguments", __config__=config, **fields)
        self._refused = pydantic.ValidationError
        self.parameters: dict[str, Any] = _untitled(self._model.model_json_schema())
        self.parameters["type"] = "object"

    def registration(
        self, *, description: str | None, confirm: bool, timeout_seconds: float, idempotent: bool = False
    ) -> ToolFields:
        """How it is registered; `description`: None: its docstring.

        Raises:
            ValueError: nothing says what it is for.
        """
        said = (inspect.getdoc(self._function) or "") if description is None else description
        if not said:
            raise ValueError(f"{self.name}: needs a docstring, or description=…, which tells the model what it is for")
        return {
            "description": said,
            "parameters": self.parameters,
            "confirm": confirm,
            "idempotent": idempotent,
            "timeout_ms": int(timeout_seconds * 1000),
        }

    async def call(self, arguments: Mapping[str, Any], call: ToolRequest, threads: Threads) -> Any:
        """Call the function.

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
        return await threads.call(self._function, **given)


class Threads:
    """Runs what is not async, so many at once; a thread that hangs keeps its place, and no process from its end."""

    def __init__(self, most: int) -> None:
        self._places = asyncio.Semaphore(most)

    async def call(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """What it returns, or raises: an async one on the event loop, any other in a thread.

        One in a thread goes on though it is cancelled.  What it returns is awaited where it can be: a function that
        wraps an async one is none itself.
        """
        if inspect.iscoroutinefunction(function):
            return await function(*args, **kwargs)
        result = await self._in_thread(lambda: function(*args, **kwargs))
        return await result if inspect.isawaitable(result) else result

    async def _in_thread(self, function: Callable[[], Any]) -> Any:
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


def _name(function: Callable[..., Any]) -> str:
    name = getattr(function, "__name__", _LAMBDA)
    if name == _LAMBDA:
        raise TypeError("a lambda, or what else has no name, is a tool only with name=…: or write a function by `def`")
    return str(name)


def _types(function: Callable[..., Any], name: str) -> dict[str, Any]:
    if getattr(function, "__name__", None) == _LAMBDA and inspect.signature(function).parameters:
        raise TypeError(f"{name}: a lambda's parameters have no types: write a function by `def`")
    try:
        return typing.get_type_hints(function, include_extras=True)
    except NameError as error:
        raise TypeError(f"{name}: its types cannot be read where the function stands: {error}") from None
    except TypeError:  # a partial, or an object that can be called
        raise TypeError(f"{name}: is no function that has types: write one by `def`") from None


def _problem_of(parameter: inspect.Parameter, *, is_typed: bool) -> str | None:
    """Why no model can give it."""
    name = parameter.name
    match parameter.kind:
        case inspect.Parameter.VAR_POSITIONAL:
            return f"arguments are given by name, and `*{name}` takes what has none: write `{name}: list[…]`"
        case inspect.Parameter.VAR_KEYWORD:
            return f"arguments have names that are known before, unlike `**{name}`: write `{name}: dict[str, …]`"
        case inspect.Parameter.POSITIONAL_ONLY:
            return f"arguments are given by name, and {name!r} cannot be: leave out the `/`"
    return None if is_typed else f"the parameter {name!r} needs a type, as in `{name}: str`"


def _untitled(schema: dict[str, Any]) -> dict[str, Any]:
    """The same without the titles that pydantic makes of names, which every call would pay for in tokens."""
    cleaned = {name: value for name, value in schema.items() if name != "title"}
    for group in ("properties", "$defs"):
        if group in cleaned:
            cleaned[group] = {name: _untitled(each) for name, each in cleaned[group].items()}
    return cleaned
