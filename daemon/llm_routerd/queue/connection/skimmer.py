"""Reads one long reply of the server piece by piece, and keeps no more of it than is wanted.

RESP2 without input or output, as h11 is for HTTP: `feed` takes what the socket has brought, and says when the reply is
whole.  What is within the bounds comes out as hiredis gives it; of the rest there is a `CutBytes` or a `CutList`.

Rules:
- A string is within the bounds if it and all other strings of its own array are, together and by number.  An array
  that leaves them is cut, and its long strings with it: an entry is kept whole or not at all.
- Arrays of arrays have no bounds of their own: a command says how many entries it wants.
"""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from redis.exceptions import InvalidResponse

from llm_routerd.protocol.cut import HEAD_BYTES, KEPT_FIELDS, MOST_FIELDS, CutBytes, CutList, Part

if TYPE_CHECKING:
    from collections.abc import Callable

_MOST_SKIM_FROM = 4_194_304
_SKIM_FROM = 4  # times what may be kept
_LONGEST_LINE = 65_536
_CRLF = b"\r\n"
_KEPT_PARTS = 2 * KEPT_FIELDS
# Under these names it says where its answer is looked for.
_ADDRESSES = frozenset({b"id", b"data"})
_LONGEST_ADDRESS = max(map(len, _ADDRESSES))
_MOST_ADDRESSES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How much of a reply is kept.

    Attributes:
        most_bytes: of one string, and of all strings of one array.
        most_parts: strings of one array.
    """

    most_bytes: int
    most_parts: int = 2 * MOST_FIELDS

    @property
    def skim_from_bytes(self) -> int:
        """A reply that is shorter is not looked at: it costs what it costs anywhere, and that is little."""
        return min(_MOST_SKIM_FROM, _SKIM_FROM * self.most_bytes)


WHOLE = Bounds(most_bytes=sys.maxsize, most_parts=sys.maxsize)


class _String:
    """A string that is on its way: kept whole, cut, or passed over."""

    __slots__ = ("_digest", "_is_kept", "_pieces", "_room", "_size", "left")

    def __init__(self, size: int, *, is_kept: bool, most: int) -> None:
        self._size = size
        self._is_kept = is_kept
        self._room = min(size, most) if is_kept else 0
        self._digest = hashlib.sha256() if is_kept and size > most else None
        self._pieces: list[bytes] = []
        self.left = size + len(_CRLF)

    def fill(self, data: bytes, at: int) -> int:
        """Take from `data` what is the string's; where that ends."""
        text = memoryview(data)[at : at + max(0, self.left - len(_CRLF))]
        if self._digest is not None:
            self._digest.update(text)
        if self._room and text:
            piece = bytes(text[: self._room])
            self._room -= len(piece)
            self._pieces.append(piece)
        taken = min(self.left, len(data) - at)
        self.left -= taken
        return at + taken

    def value(self) -> Part | None:
        """What was kept of it."""
        if not self._is_kept:
            return None
        text = b"".join(self._pieces)
        return text if self._digest is None else CutBytes(head=text, size=self._size, sha256=self._digest.hexdigest())


class _Array:
    """An array that is on its way."""

    __slots__ = ("_addresses", "_bounds", "_count", "_is_cut", "_is_wanted", "_items", "_size", "_strings", "left")

    def __init__(self, count: int, bounds: Bounds) -> None:
        self._count = self.left = count
        self._bounds = bounds
        self._items: list[Any] = []
        self._strings = self._size = self._addresses = 0
        self._is_cut = False
        self._is_wanted = False  # the next one is the value of a name that is looked for

    def expect(self, size: int) -> tuple[bool, int]:
        """A string of `size` bytes is next: whether it is looked at, and how much of it is kept."""
        self._strings += 1
        self._size += size
        bounds = self._bounds
        if not self._is_cut and (self._size > bounds.most_bytes or self._strings > bounds.most_parts):
            self._cut()
        if not self._is_cut:
            return True, bounds.most_bytes
        at = self._count - self.left
        may_be_address = at % 2 == 0 and size <= _LONGEST_ADDRESS and self._addresses < _MOST_ADDRESSES
        return at < _KEPT_PARTS or self._is_wanted or may_be_address, HEAD_BYTES

    def add(self, item: Any) -> None:
        """The next element is whole."""
        at = self._count - self.left
        self.left -= 1
        if not self._is_cut or at < _KEPT_PARTS or self._is_wanted:
            self._items.append(item)
            self._is_wanted = False
        elif at % 2 == 0 and self._is_sought(item):
            self._items.append(item)
            self._addresses += 1
            self._is_wanted = True

    def _cut(self) -> None:
        self._is_cut = True
        items = self._items
        del self._items
        self._items = [_head(item) for item in items[:_KEPT_PARTS]]
        last = len(items) - 1
        for at in range(_KEPT_PARTS, len(items), 2):
            if self._is_sought(items[at]):
                self._addresses += 1
                self._items += [_head(item) for item in items[at : at + 2]]
                self._is_wanted = at == last

    def _is_sought(self, item: Any) -> bool:
        return self._addresses < _MOST_ADDRESSES and type(item) is bytes and item in _ADDRESSES

    def value(self) -> list[Any] | CutList:
        """All of it, or what was kept."""
        if not self._is_cut:
            return self._items
        return CutList(kept=self._items, count=self._count, size=self._size)


class Skimmer:
    """Reads one reply.

    Args:
        bounds: of what is kept.
        make_error: the exception of an error reply's text; it is the value, as with hiredis.
    """

    def __init__(self, bounds: Bounds, make_error: Callable[[str], Exception]) -> None:
        self._bounds = bounds
        self._make_error = make_error
        self._rest = b""  # of a line that is not whole
        self._string: _String | None = None
        self._arrays: list[_Array] = []
        self._is_whole = False
        self.value: Any = None  # the reply, once it is whole

    def feed(self, data: bytes) -> bytes | None:
        """Take what has come; None: the reply goes on.  Else what follows it.

        Raises:
            InvalidResponse: it is no RESP2.
        """
        if self._rest:
            data, self._rest = self._rest + data, b""
        at = 0
        while not self._is_whole:
            if self._string is not None:
                at = self._string.fill(data, at)
                if self._string.left:
                    return None
                text, self._string = self._string.value(), None
                self._put(text)
                continue
            end = data.find(_CRLF, at)
            if end < 0:
                self._rest = data[at:]
                if len(self._rest) > _LONGEST_LINE:
                    raise InvalidResponse("a line without end")
                return None
            at = self._take(data, at, end)
        return data[at:]

    def _take(self, data: bytes, at: int, end: int) -> int:
        """Take the line at `at`, and the string behind it if all of that is here; where that ends."""
        kind, text = data[at : at + 1], data[at + 1 : end]
        after = end + len(_CRLF)
        match kind:
            case b"$":
                return self._take_string(_number(text), data, after)
            case b":":
                self._put(_number(text))
            case b"*":
                count = _number(text)
                if count > 0:
                    self._arrays.append(_Array(count, self._bounds))
                else:
                    self._put([] if count == 0 else None)
            case b"+":
                self._put(text)
            case b"-":
                self._put(self._make_error(text.decode("utf-8", "replace")))
            case _:
                raise InvalidResponse("no reply begins like this")
        return after

    def _take_string(self, size: int, data: bytes, at: int) -> int:
        if size < 0:
            self._put(None)
            return at
        is_kept, most = self._arrays[-1].expect(size) if self._arrays else (True, self._bounds.most_bytes)
        end = at + size + len(_CRLF)
        if size <= most and end <= len(data):
            self._put(data[at : at + size])
            return end
        # Of what is longer than may be kept there is a beginning, however much would have been kept.
        self._string = _String(size, is_kept=is_kept, most=most if size <= most else HEAD_BYTES)
        return at

    def _put(self, value: Any) -> None:
        """An element is whole: and with it, perhaps, the arrays around it."""
        while self._arrays:
            array = self._arrays[-1]
            array.add(value)
            if array.left:
                return
            value = self._arrays.pop().value()
        self.value, self._is_whole = value, True


def _head(item: Any) -> Any:
    if type(item) is not bytes or len(item) <= HEAD_BYTES:
        return item
    return CutBytes(head=item[:HEAD_BYTES], size=len(item), sha256=hashlib.sha256(item).hexdigest())


def _number(text: bytes) -> int:
    try:
        return int(text)
    except ValueError:
        raise InvalidResponse("expected a number") from None
