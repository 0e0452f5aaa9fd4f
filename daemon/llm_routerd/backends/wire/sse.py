"""What the answers of the two protocols with server-sent events have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import orjson

from llm_routerd.backends import faults
from llm_routerd.backends.wire.framing import BOM, EventFramer
from llm_routerd.backends.wire.messages import HalvesJoiner, message_of
from llm_routerd.protocol.call import Delta, Finish

_MAX_DOCUMENT_BYTES = 8_388_608


class EventAnswer(ABC):
    """An answer as events, or as one JSON document from a server that does not stream (see `Answer`)."""

    def __init__(self) -> None:
        self._framer = EventFramer()
        self._document: bytearray | None = None
        self._begun = False
        self._text_halves = HalvesJoiner()
        self._reasoning_halves = HalvesJoiner()

    def feed(self, chunk: bytes) -> Delta | Finish | None:
        """See `Answer.feed`."""
        if not self._begun:
            self._begin(chunk)
        if self._document is not None:
            self._document += chunk
            if len(self._document) > _MAX_DOCUMENT_BYTES:
                raise faults.malformed("the answer is too long")
            return None
        try:
            return self.take(self._framer.feed(chunk))
        except faults.SHAPE_ERRORS as error:
            raise faults.fault_of_shape(error) from None

    def end(self) -> Finish:
        """See `Answer.end`."""
        try:
            if self._document is not None:
                return self._end_of_document(message_of(self._document))
            last = self.take(self._framer.rest())
            return last if isinstance(last, Finish) else self.at_end(last or Delta())
        except orjson.JSONDecodeError:
            raise faults.truncated() from None
        except faults.SHAPE_ERRORS as error:
            raise faults.fault_of_shape(error) from None

    def delta(self, text: list[str], reasoning: list[str]) -> Delta:
        """What one read brought, without half a character at its end."""
        said = "".join(text)
        if self._text_halves.waiting or not said.isascii():
            said = self._text_halves.join(said)
        return Delta(said, self._reasoning_halves.join("".join(reasoning))) if reasoning else Delta(said)

    def end_of_text(self) -> None:
        """No more text will come; `BackendError` if it ends with half a character."""
        self._text_halves.finish()
        self._reasoning_halves.finish()

    @abstractmethod
    def take(self, payloads: list[bytes]) -> Delta | Finish | None:
        """What these events bring; may raise `SHAPE_ERRORS`, as may the other two."""

    @abstractmethod
    def take_document(self, document: dict[str, Any]) -> Finish:
        """A whole answer."""

    @abstractmethod
    def at_end(self, last: Delta) -> Finish:
        """The answer when its stream has ended, `last` being its last piece; `BackendError` if it was cut."""

    def _begin(self, chunk: bytes) -> None:
        """Tell events from a document by the first byte: the declared content type cannot be relied upon."""
        opening = chunk.removeprefix(BOM).lstrip()[:1]
        if opening:
            self._begun = True
        if opening in {b"{", b"["}:
            self._document = bytearray()
        elif opening == b"<":
            raise faults.malformed("markup where a stream belongs")

    def _end_of_document(self, document: Any) -> Finish:
        if isinstance(document, dict) and document.get("error"):
            raise faults.fault_of_error_object(document["error"])
        return self.take_document(document)
