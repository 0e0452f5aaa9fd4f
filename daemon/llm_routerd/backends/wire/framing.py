"""From the bytes of a network read to whole lines and whole server-sent events, in bounded memory.

Both framers are fed with whatever a read brought, cut anywhere, also inside a UTF-8 sequence: they split at
ASCII bytes only and decode nothing.  What is incomplete waits for the next read, up to `MAX_PENDING_BYTES`.
"""

from __future__ import annotations

MAX_PENDING_BYTES = 1_048_576
BOM = b"\xef\xbb\xbf"


class OversizeError(Exception):
    """A line or an event is longer than `MAX_PENDING_BYTES`."""


class LineFramer:
    """Newline-delimited JSON: `feed` returns the lines that are complete, without their line ends."""

    __slots__ = ("_pending",)

    def __init__(self) -> None:
        self._pending = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that `data` completes; blank ones are among them.

        Raises:
            OversizeError: the line under way is too long.
        """
        head, newline, tail = data.rpartition(b"\n")
        if not newline:
            self._wait_for_more(data)
            return []
        if self._pending:
            head = bytes(self._pending) + head
            self._pending.clear()
        if tail:
            self._wait_for_more(tail)
        return head.split(b"\n")

    def rest(self) -> bytes:
        """What the stream ended with after its last newline."""
        return bytes(self._pending).strip()

    def _wait_for_more(self, data: bytes) -> None:
        self._pending += data
        if len(self._pending) > MAX_PENDING_BYTES:
            raise OversizeError


class EventFramer:
    """Server-sent events: `feed` returns the data of each event that is complete.

    As the HTML standard has it: lines end in LF, CR or CRLF; an event ends at a blank line; the `data` lines
    of an event are joined by LF; comments, other fields and events without data are passed over.
    """

    __slots__ = ("_after_cr", "_pending")

    def __init__(self) -> None:
        self._pending = bytearray()
        self._after_cr = False

    def feed(self, data: bytes) -> list[bytes]:
        """The data of the events that `data` completes.

        Raises:
            OversizeError: the event under way is too long.
        """
        if self._after_cr or b"\r" in data:
            data = self._with_lf_only(data)
        if self._pending:
            joined = self._pending.endswith(b"\n") and data.startswith(b"\n")
            self._pending += data
            if not joined and b"\n\n" not in data:  # nothing ends here: no copy of what waits already
                self._check_pending()
                return []
            data = bytes(self._pending)
            self._pending.clear()
        events, end, tail = data.rpartition(b"\n\n")
        if tail:
            self._pending += tail
            self._check_pending()
        if not end:
            return []
        if events.startswith(b"data: "):
            # What most reads bring, events of one line each, is taken apart at once.
            payloads = events[6:].split(b"\n\ndata: ")
            if events.count(b"\n") == 2 * len(payloads) - 2:
                return payloads
        return _payloads(events.split(b"\n\n"))

    def rest(self) -> list[bytes]:
        """The data of the event that the stream ended in; some servers forget its blank line."""
        return _payloads([bytes(self._pending)])

    def _check_pending(self) -> None:
        if len(self._pending) > MAX_PENDING_BYTES:
            raise OversizeError

    def _with_lf_only(self, data: bytes) -> bytes:
        """Line ends as LF.  The LF of a CRLF that two reads divide is dropped with the second."""
        if self._after_cr:
            data = data.removeprefix(b"\n")
        self._after_cr = data.endswith(b"\r")
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def _payloads(events: list[bytes]) -> list[bytes]:
    """The data of each event that has some.  The common event, one line of data, takes the short way."""
    payloads = []
    for event in events:
        if event.startswith(b"data: ") and b"\n" not in event:
            payloads.append(event[6:])
            continue
        lines = [
            line[5:].removeprefix(b" ") for line in event.removeprefix(BOM).split(b"\n") if line.startswith(b"data:")
        ]
        if lines:
            payloads.append(b"\n".join(lines))
    return payloads
