"""Long replies are skimmed: within the bounds as hiredis reads them, beyond them as beginning, size and hash."""

from __future__ import annotations

import hashlib
from itertools import pairwise
from typing import Any

import hiredis
import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.exceptions import InvalidResponse

from llm_routerd.protocol.cut import HEAD_BYTES, KEPT_FIELDS, CutBytes, CutList
from llm_routerd.queue.connection.skimmer import Bounds, Skimmer

WIDE = Bounds(most_bytes=1_000_000)


class ReplyError(Exception):
    """An error reply, equal to one of the same words."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ReplyError) and self.args == other.args

    __hash__ = Exception.__hash__


def string(text: bytes | None) -> bytes:
    """A bulk string on the wire."""
    return b"$-1\r\n" if text is None else b"$%d\r\n%b\r\n" % (len(text), text)


def array(*items: bytes) -> bytes:
    """An array on the wire, of what is on the wire."""
    return b"*%d\r\n%b" % (len(items), b"".join(items))


_line = st.binary(max_size=20).map(lambda text: text.replace(b"\r", b" ").replace(b"\n", b" "))
_leaf = st.one_of(
    st.binary(max_size=40).map(string),
    st.sampled_from([string(None), b"*-1\r\n", string(b"x\r\n$1\r\n"), string(b"y" * 300)]),
    st.integers(-(2**63), 2**63 - 1).map(lambda number: b":%d\r\n" % number),
    _line.map(lambda text: b"+%b\r\n" % text),
    _line.map(lambda text: b"-ERR %b\r\n" % text),
)
_reply = st.recursive(_leaf, lambda inner: st.lists(inner, max_size=5).map(lambda items: array(*items)), max_leaves=20)


def cut_up(data: bytes, places: list[int]) -> list[bytes]:
    """The data in pieces."""
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[one:other] for one, other in pairwise(edges)]


def skim(pieces: list[bytes], bounds: Bounds = WIDE) -> tuple[Any, bytes]:
    """The reply that the pieces hold, and what follows it."""
    skimmer = Skimmer(bounds, ReplyError)
    for at, piece in enumerate(pieces):
        rest = skimmer.feed(piece)
        if rest is not None:
            return skimmer.value, rest + b"".join(pieces[at + 1 :])
    raise AssertionError("the reply goes on")


def by_hiredis(data: bytes) -> Any:
    """The oracle."""
    reader = hiredis.Reader(replyError=ReplyError)
    reader.feed(data)
    return reader.gets()


@given(_reply, st.lists(st.integers(0, 2000), max_size=12), st.binary(max_size=10))
def test_what_is_within_the_bounds_is_read_as_by_hiredis(reply: bytes, places: list[int], after: bytes) -> None:
    """However the socket cuts it; and what follows is left alone."""
    assert skim(cut_up(reply + after, places)) == (by_hiredis(reply), after)


@given(
    st.lists(st.integers(0, 3 * HEAD_BYTES), min_size=1, max_size=6),
    st.lists(st.integers(0, 200_000), max_size=12),
    st.integers(3, 20_000),
)
def test_an_array_is_whole_or_cut(sizes: list[int], places: list[int], most_bytes: int) -> None:
    """Its long strings are told by beginning, size and hash, the short ones whole; what stands around it is intact."""
    texts = [bytes([65 + at]) * size for at, size in enumerate(sizes)]
    reply = array(array(string(b"1-0"), array(*map(string, texts))), string(b"end"))
    value, rest = skim(cut_up(reply + b"+NEXT\r\n", places), Bounds(most_bytes=most_bytes))
    assert rest == b"+NEXT\r\n"
    ((entry, fields), end) = value
    assert (entry, end) == (b"1-0", b"end")
    if sum(sizes) <= most_bytes:
        assert fields == texts
        return
    assert isinstance(fields, CutList)
    assert (fields.count, fields.size) == (len(texts), sum(sizes))
    assert list(fields.kept) == [
        text
        if len(text) <= HEAD_BYTES
        else CutBytes(head=text[:HEAD_BYTES], size=len(text), sha256=hashlib.sha256(text).hexdigest())
        for text in texts
    ]


@pytest.mark.parametrize("step", [1, 7, 100_000])
@pytest.mark.parametrize("most_parts", [10, 100_000])
@pytest.mark.parametrize("most_bytes", [10, 1000, 1_000_000])
def test_of_many_fields_the_first_are_kept_and_the_id(step: int, most_parts: int, most_bytes: int) -> None:
    """Wherever the id stands; one that is given time and again does not grow what is kept."""
    fields = [part for number in range(500) for part in (b"f%d" % number, b"v")]
    fields += [b"id", b"r1"] * 20 + [b"x", b"id"]  # a value is no name
    reply = array(*map(string, fields))
    pieces = [reply[at : at + step] for at in range(0, len(reply), step)]
    value, rest = skim(pieces, Bounds(most_bytes=most_bytes, most_parts=most_parts))
    assert rest == b""
    if most_parts > 10 and most_bytes > 5000:
        assert value == fields
        return
    assert (value.count, value.size) == (len(fields), sum(map(len, fields)))
    assert list(value.kept[: 2 * KEPT_FIELDS]) == fields[: 2 * KEPT_FIELDS]
    assert list(value.kept[2 * KEPT_FIELDS :]) == [b"id", b"r1"] * 8


def test_an_array_that_is_cut_late_lets_go_of_what_it_kept() -> None:
    """And keeps what it is answered under."""
    early = [part for number in range(100) for part in (b"f%d" % number, b"x" * 10_000)] + [b"id", b"r1"]
    reply = array(*map(string, [*early, b"prompt", b"y" * 100_000]))
    value, _ = skim([reply], Bounds(most_bytes=1_050_000))
    assert sum(len(part.head if isinstance(part, CutBytes) else part) for part in value.kept) < 700_000
    assert value.kept[1] == CutBytes(
        head=b"x" * HEAD_BYTES, size=10_000, sha256=hashlib.sha256(b"x" * 10_000).hexdigest()
    )
    assert list(value.kept[-2:]) == [b"id", b"r1"]
    assert value.size == sum(map(len, early)) + 100_006


def test_a_string_of_its_own_is_cut_too() -> None:
    """No array stands around it."""
    text = b"x" * 20_000
    value, rest = skim(cut_up(string(text), [3, 9000, 15_000]), Bounds(most_bytes=10_000))
    assert (value, rest) == (
        CutBytes(head=text[:HEAD_BYTES], size=20_000, sha256=hashlib.sha256(text).hexdigest()),
        b"",
    )


@pytest.mark.parametrize("data", [b"%1\r\n", b":1x\r\n", b"\r\n", b"$x\r\n", b"+" + b"x" * 70_000])
def test_what_is_no_reply_is_refused(data: bytes) -> None:
    """As by hiredis; a line without end is not gathered."""
    with pytest.raises(InvalidResponse):
        Skimmer(WIDE, ReplyError).feed(data)
