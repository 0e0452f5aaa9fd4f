"""What the native door reads beside a request's own properties."""

from __future__ import annotations

import pytest

from llm_routerd.gateway.doors.native import asking
from llm_routerd.gateway.fault import RefusedError
from llm_routerd.protocol.events import FINAL_ID


def test_id_comes_from_the_body_or_the_header() -> None:
    """Both may say the same."""
    assert asking.request_of({"prompt": "hi"}, "") == ({"prompt": "hi"}, None)
    assert asking.request_of({"prompt": "hi", "id": "a"}, "") == ({"prompt": "hi"}, "a")
    assert asking.request_of({"prompt": "hi"}, "a") == ({"prompt": "hi"}, "a")
    assert asking.request_of({"prompt": "hi", "id": "a"}, "a") == ({"prompt": "hi"}, "a")
    for body, key, param in (({"id": "a"}, "b", "id"), ({"id": 5}, "", "id"), ({"publish": {}}, "", "publish")):
        with pytest.raises(RefusedError) as caught:
            asking.request_of(body, key)
        assert caught.value.fault.param == param


@pytest.mark.parametrize(
    ("prefer", "seconds"),
    [
        ("", 0), ("wait=30", 30), ("respond-async, wait=5", 5), ("respond-async;wait=5", 5), ('Wait = "7"', 7),
        ("wait=99999", asking.MOST_WAIT_SECONDS), ("wait=-1", 0), ("wait=1.5", 0), ("await=5", 0), ("wait", 0),
    ],
)  # fmt: skip
def test_prefer_says_how_long_to_wait(prefer: str, seconds: int) -> None:
    """What is no such preference is none: RFC 7240 has a server pass over what it does not know."""
    assert asking.wait_seconds(prefer) == seconds


def test_position_is_the_headers_before_the_urls() -> None:
    """A browser that reconnects asks for the same URL, and tells in the header how far it has come."""
    assert asking.position("", "") == "0-0"
    assert asking.position("", "1-5") == "1-5"
    assert asking.position("2-9", "1-5") == "2-9"
    for last, after in (("x", ""), ("1-5", "x"), ("", "$"), ("", "1"), ("1-5\n", ""), ("١-٥", "")):  # noqa: RUF001
        with pytest.raises(RefusedError):
            asking.position(last, after)


def test_nothing_comes_after_the_final_event() -> None:
    """Nor after what is beyond it."""
    assert not asking.is_over("0-0")
    assert not asking.is_over("9007199254740990-9")
    assert asking.is_over(FINAL_ID)
    assert asking.is_over("9007199254740992-0")


def test_lane_is_one_of_three() -> None:
    """The normal one without a word."""
    assert [asking.lane_of(text) for text in ("", "normal", "high", "low")] == ["normal", "normal", "high", "low"]
    with pytest.raises(RefusedError, match="lane"):
        asking.lane_of("urgent")
