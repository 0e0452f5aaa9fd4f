"""Whoever waits for an answer to what is no request finds it under the id that could be read."""

from __future__ import annotations

import pytest

from llm_routerd.protocol.reply_address import reply_address


@pytest.mark.parametrize(
    ("data", "request_id"),
    [
        (b'{"id":"r1","prompt":"x', "r1"),
        (b'{"prompt":{"id":"no"},"id":"r1","messages":[', "r1"),
        (b'{"\\u0069d":"r1","prompt":"x', "r1"),
        (b'{"id":"r\\u0031","prompt":"x', "r1"),
        (b'{"id":"r 1","prompt":"x', None),
        (b'{"id":"r\\ud800","prompt":"x', None),
        (b'{"id":7,"prompt":"x', None),
        (b'{"i\\d":"r1","prompt":"x', None),
    ],
)
def test_id_is_found_in_the_beginning_of_json_that_cannot_be_parsed(data: bytes, request_id: str | None) -> None:
    """However it is written, with escapes too; what is no id of the protocol is none."""
    assert reply_address([b"data", data], may_parse=False) == (request_id, None)
