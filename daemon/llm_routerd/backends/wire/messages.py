"""What a line or an event of a stream holds, for the forms that are no plain JSON object."""

from __future__ import annotations

import json
from typing import Any, NoReturn

import orjson

from llm_routerd.backends import faults
from llm_routerd.backends.wire.framing import BOM


def message_of(payload: bytes | bytearray) -> Any:
    """The message in a payload; None for one that no protocol would call a message.

    That is nothing at all, a comment (`: PROCESSING`), and any JSON scalar (`null`, seen as a keep-alive while a
    model reasons).  What claims to be JSON and is not, is a fault.

    Halves of surrogate pairs, which some servers divide between two events, are kept as Python keeps them:
    `HalvesJoiner` puts them together.

    Raises:
        ValueError: it is no JSON.
    """
    try:
        message = orjson.loads(payload)
    except orjson.JSONDecodeError:
        payload = payload.strip().removeprefix(BOM).lstrip()
        if not payload or payload.startswith(b":"):
            return None
        message = _of_the_rest(payload)
    return message if isinstance(message, (dict, list)) else None


class HalvesJoiner:
    """Joins the halves of surrogate pairs in one text that comes in pieces; `waiting` is a half without its other."""

    __slots__ = ("waiting",)

    def __init__(self) -> None:
        self.waiting = ""

    def join(self, piece: str) -> str:
        """The piece, with a half from the last one before it, and without one that waits for the next.

        Raises:
            BackendError: a half stands alone.
        """
        if not self.waiting and piece.isascii():
            return piece
        piece, self.waiting = self.waiting + piece, ""
        if piece and "\ud800" <= piece[-1] <= "\udbff":
            piece, self.waiting = piece[:-1], piece[-1]
        return joined_halves(piece)

    def finish(self) -> None:
        """The text ends here.

        Raises:
            BackendError: with half a pair.
        """
        if self.waiting:
            raise _lone_half()


def joined_halves(text: str) -> str:
    """A text in which neighbouring halves are whole characters.

    Raises:
        BackendError: a half stands alone.
    """
    try:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
    except UnicodeDecodeError:
        raise _lone_half() from None


def _lone_half() -> Exception:
    return faults.malformed("half a surrogate pair in the stream")


def _of_the_rest(payload: bytes | bytearray) -> Any:
    try:
        return orjson.loads(payload)
    except orjson.JSONDecodeError:
        if b"\\ud" not in payload.lower():
            raise
        return _with_halves(payload)


def _with_halves(payload: bytes | bytearray) -> Any:
    """Parse JSON that orjson refuses for lone surrogates; it is as strict about everything else."""
    try:
        return json.loads(payload, parse_constant=_no_json)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _no_json(word: str) -> NoReturn:
    raise ValueError(word)
