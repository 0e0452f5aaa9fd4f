"""JSON that is one line to every reader."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from llm_routerd.gateway.line import json_line


@given(st.text() | st.text(alphabet="\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029a"))
def test_it_is_one_line_and_the_same_text(text: str) -> None:
    """Whatever Python takes for the end of a line is in it as an escape."""
    data = json_line([text]).decode()
    assert data.splitlines() == [data]
    assert json.loads(data) == [text]
