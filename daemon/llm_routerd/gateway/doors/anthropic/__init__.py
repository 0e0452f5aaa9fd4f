"""Anthropic's protocol: `/v1/messages`, and `/v1/messages/count_tokens`.

`request` reads a body, `turns` what is said in it, `blocks` the parts of that, `tools` what may be called; `voice`
tells an answer.
"""

from __future__ import annotations

from llm_routerd.gateway.door import Completion, Endpoint, Lookup
from llm_routerd.gateway.doors.anthropic.request import count, read
from llm_routerd.gateway.doors.anthropic.voice import fault_body

_ID_HEADER = "request-id"

ENDPOINTS: tuple[Endpoint, ...] = (
    Completion(door="anthropic", path="/v1/messages", fault=fault_body, id_header=_ID_HEADER, read=read),
    Lookup(
        door="anthropic",
        path="/v1/messages/count_tokens",
        fault=fault_body,
        id_header=_ID_HEADER,
        method="POST",
        look=count,
    ),
)
