"""Offsets and pages of the Durable Streams protocol."""

from __future__ import annotations

from itertools import pairwise

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_routerd.gateway.doors.durable.offsets import END, given_offset, offset_of, stream_id_of
from llm_routerd.gateway.doors.durable.page import Page, next_cursor
from llm_routerd.gateway.fault import RefusedError
from llm_routerd.protocol.events import FINAL_ID, FINAL_PART
from llm_routerd.protocol.reading import read_event

IDS = st.tuples(st.integers(0, FINAL_PART - 1), st.integers(0, 2**64 - 1))
TOKEN = read_event("1-1", "token", b'{"text":"a"}')
LAST = read_event(FINAL_ID, "cancelled", b'{"id":"x","reason":""}')
START = offset_of("0-0")


@given(st.lists(IDS, min_size=2))
def test_offsets_sort_as_the_events_do(ids: list[tuple[int, int]]) -> None:
    """As text; and they lead back to the event that they follow."""
    offsets = [offset_of(f"{first}-{second}") for first, second in sorted(ids)]
    assert all(one <= other for one, other in pairwise(offsets))
    assert [stream_id_of(each) for each in offsets] == [f"{first}-{second}" for first, second in sorted(ids)]
    assert all(START <= each < END and not set(each) & set(",&=?/") for each in offsets)


@pytest.mark.parametrize(
    "offset", ["", "0", "now", "1-0", START + "\n", START.replace("0", "a"), "0,1", "-2", "\u0660" * 16]
)
def test_what_is_no_offset_is_refused(offset: str) -> None:
    """`now` is read before: it is no place but a question."""
    with pytest.raises(RefusedError) as caught:
        stream_id_of(offset)
    assert caught.value.fault.param == "offset"


def test_query_gives_one_offset_and_a_live_read_has_to() -> None:
    """Absent is the beginning."""
    assert given_offset([], is_live=False) == "-1"
    assert given_offset(["now"], is_live=True) == "now"
    for given_ones, is_live in (([], True), (["-1", "now"], False)):
        with pytest.raises(RefusedError):
            given_offset(given_ones, is_live=is_live)


def test_page_that_is_not_the_last() -> None:
    """More stands there: it says where to go on and nothing else."""
    page = Page(start=START, events=[TOKEN], is_up_to_date=False)
    assert page.headers("7") == {"Stream-Next-Offset": offset_of("1-1"), "Stream-Cursor": "7"}
    assert orjson.loads(page.body) == [{"id": "1-1", "type": "token", "data": {"text": "a"}}]


def test_page_with_the_final_event_closes_the_stream() -> None:
    """With no cursor, since there is no next read."""
    page = Page(start=START, events=[TOKEN, LAST])
    assert page.headers("7") == {
        "Stream-Next-Offset": END, "Stream-Up-To-Date": "true", "Stream-Closed": "true",
    }  # fmt: skip
    data, control, nothing = page.sse("7").split(b"\n\n")
    assert [each["type"] for each in orjson.loads(data.removeprefix(b"event: data\ndata:"))] == ["token", "cancelled"]
    assert orjson.loads(control.removeprefix(b"event: control\ndata:")) == {
        "streamNextOffset": END, "upToDate": True, "streamClosed": True,
    }  # fmt: skip
    assert nothing == b""


def test_page_after_the_end_is_empty_and_closed() -> None:
    """Which is how a client that has read all learns that there is no more."""
    page = Page(start=END)
    assert (page.body, page.is_closed, page.next_offset) == (b"[]", True, END)
    assert page.sse("7").startswith(b"event: control\n")


def test_etag_changes_with_what_it_is_of() -> None:
    """More events, the end, another place, another request."""
    tags = {
        Page(start=START).etag("a"), Page(start=START, events=[TOKEN]).etag("a"),
        Page(start=START, events=[TOKEN, LAST]).etag("a"), Page(start=END).etag("a"), Page(start=START).etag("b"),
    }  # fmt: skip
    assert len(tags) == 5


@given(st.integers(0, 2**40), st.integers(1, 3600), st.floats(1_728_432_000, 4e9))
def test_cursor_is_always_greater_than_the_one_before(last: int, jitter: int, now: float) -> None:
    """So that no cache between answers two reads alike."""
    assert int(next_cursor(str(last), now, lambda _least, _most: jitter)) > last


def test_cursor_counts_intervals_of_twenty_seconds() -> None:
    """From the protocol's epoch; what is no number is passed over."""
    for given_one in ("", "x", "-1", "\u0661", "9" * 50):
        assert next_cursor(given_one, 1_728_432_000 + 45, lambda _least, _most: 1) == "2"
