from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_routerd.backends.wire.framing import MAX_PENDING_BYTES, EventFramer, LineFramer, OversizeError

STREAM = 'data: {"a": "é🙂"}\n\n: a comment\n\nevent: x\ndata: one\ndata:two\nid: 7\n\nretry: 5\n\ndata: [DONE]\n\n'
EVENTS = ['{"a": "é🙂"}'.encode(), b"one\ntwo", b"[DONE]"]


def _cut(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({min(cut, len(data)) for cut in cuts})
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]


def test_line_longer_than_the_bound_is_an_error() -> None:
    """A line that never ends does not fill the memory."""
    framer = LineFramer()
    framer.feed(b"x" * MAX_PENDING_BYTES)
    with pytest.raises(OversizeError):
        framer.feed(b"x")


def test_event_longer_than_the_bound_is_an_error() -> None:
    """An event that never ends does not fill the memory, also when it has lines."""
    framer = EventFramer()
    line = b"data: " + b"x" * 93 + b"\n"
    for _ in range(MAX_PENDING_BYTES // len(line)):
        framer.feed(line)
    with pytest.raises(OversizeError):
        framer.feed(line)


def test_data_after_the_last_newline_waits() -> None:
    """An incomplete line is no line until its newline comes, and is what rests at the end."""
    framer = LineFramer()
    assert framer.feed(b'{"a":1}\n{"b"') == [b'{"a":1}']
    assert framer.rest() == b'{"b"'
    assert framer.feed(b":2}\n") == [b'{"b":2}']
    assert framer.rest() == b""


@given(st.lists(st.integers(0, 80)))
def test_lines_do_not_depend_on_the_reads(cuts: list[int]) -> None:
    """The same lines come however the bytes are cut, also inside a UTF-8 sequence."""
    data = '{"a":"é🙂"}\n\n{"b":1}\n{"c":"ü"}\n'.encode()
    framer = LineFramer()
    lines = [line for piece in _cut(data, cuts) for line in framer.feed(piece)]
    assert [line for line in lines if line] == ['{"a":"é🙂"}'.encode(), b'{"b":1}', '{"c":"ü"}'.encode()]


@given(st.lists(st.integers(0, 120)), st.sampled_from(["\n", "\r\n", "\r"]), st.sampled_from(["", "\ufeff"]))
def test_events_do_not_depend_on_the_reads_and_the_line_ends(cuts: list[int], newline: str, mark: str) -> None:
    """Comments, other fields and empty events are passed over, data lines joined, with any line end, cut anywhere."""
    data = (mark + STREAM.replace("\n", newline)).encode()
    framer = EventFramer()
    assert [event for piece in _cut(data, cuts) for event in framer.feed(piece)] == EVENTS


def test_event_without_its_blank_line_is_what_rests() -> None:
    """Some servers forget the last blank line; what they said counts."""
    framer = EventFramer()
    assert framer.feed(b"data: [DONE]\n") == []
    assert framer.rest() == [b"[DONE]"]
