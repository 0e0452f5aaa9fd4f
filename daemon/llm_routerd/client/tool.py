"""A tool as a worker has it: its handler, what is answered to a call, and the call as it stands in Redis."""

from __future__ import annotations

import asyncio
import traceback
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import msgspec

from llm_routerd.protocol.tool import ToolRequest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from llm_routerd.jsonschema.compiled import AnswerSchema


_read_call = msgspec.json.Decoder(ToolRequest).decode
_MOST_BYTES = 4_194_312  # a letter or two more than any daemon keeps, which so sees that there was more


class ToolError(Exception):
    """Raised by a tool: the model is told its text."""


@dataclass(frozen=True, slots=True, eq=False)
class Tool:
    """A tool and what serves it.

    Attributes:
        handler: gets the arguments and the call.
        registration: JSON.
        parameters: what the arguments have to be.
    """

    name: str
    handler: Callable[[dict[str, Any], ToolRequest], Awaitable[Any]]
    registration: bytes
    is_idempotent: bool
    parameters: AnswerSchema

    async def answer(
        self, call: ToolRequest, seconds: float, tell: Callable[[str, Exception | None], None]
    ) -> tuple[str, bytes]:
        """Act, and say what to answer: the field, and its value, which is UTF-8 unless the handler gave other bytes.

        Args:
            call: its arguments are judged here, whoever has judged them before.
            seconds: how long it may take; then the handler is cancelled.
            tell: is told of what is the tool's fault; of what was said it is told nothing.
        """
        if problem := self.parameters.validate(call.arguments):
            return "error", _bounded(f"the arguments are not valid: {problem}")
        try:
            async with asyncio.timeout(seconds) as limit:
                result = await self.handler(call.arguments, call)
        except ToolError as error:
            return "error", _bounded(str(error))
        except Exception as error:  # noqa: BLE001 - the border of what is not ours
            if isinstance(error, TimeoutError) and limit.expired():
                return "error", b"the tool has not ended in time, and may have acted"
            tell(f"{self.name}: {call.call_id[:64]!a} failed: {type(error).__name__} {_place(error)}", error)
            return "error", b"the tool failed"
        try:
            return "result", _bounded(result if isinstance(result, (str, bytes)) else _to_json(result))
        except (TypeError, ValueError, RecursionError) as error:
            tell(f"{self.name}: {call.call_id[:64]!a} has a result that is no JSON", error)
            return "error", b"the tool has acted, and its result is no JSON"


@dataclass(frozen=True, slots=True)
class Entry:
    """One call as it stands in its tool's stream."""

    tool: Tool
    entry_id: bytes
    data: bytes

    @classmethod
    def read(cls, tool: Tool, entries: Iterable[Any]) -> list[Entry]:
        """Those in a reply, of which some may have been deleted."""
        return [cls(tool, each[0], each[1].get(b"call", b"")) for each in entries if each and each[1] is not None]

    def call(self) -> ToolRequest | None:
        """What it holds; None: that is no call."""
        try:
            return _read_call(self.data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None


def _bounded(text: str | bytes) -> bytes:
    if isinstance(text, bytes):
        return text[:_MOST_BYTES]
    data = text.encode("utf-8", "replace")
    return data if len(data) <= _MOST_BYTES else data[:_MOST_BYTES].decode("utf-8", "ignore").encode()


def _to_json(result: Any) -> bytes:
    return msgspec.json.encode(result, enc_hook=_plain)


def _plain(value: Any) -> Any:
    """What msgspec does not know may be a model of pydantic."""
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    raise TypeError(f"{type(value).__name__} is no JSON")


def _place(error: Exception) -> str:
    """Where it was raised; what it says may be anything."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"({PurePath(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
