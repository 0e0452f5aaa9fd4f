"""OpenAI's door: chat completions, responses, models.

`chat_request` and `responses_request` read a body, `features` what both have in common; `chat_answer` and
`responses_answer` tell the answer; `fault` is the shape of an error, `models` the list.
"""

from __future__ import annotations

from functools import partial

from llm_routerd.gateway.door import Completion, Endpoint, Lookup
from llm_routerd.gateway.doors.openai import chat_request, models, responses_request
from llm_routerd.gateway.doors.openai.fault import fault_body

_completion = partial(Completion, door="openai", fault=fault_body)
_lookup = partial(Lookup, door="openai", fault=fault_body)

ENDPOINTS: tuple[Endpoint, ...] = (
    _completion(path="/v1/chat/completions", read=chat_request.read),
    _completion(path="/v1/responses", read=responses_request.read),
    _lookup(path="/v1/models", look=models.look),
    _lookup(path="/v1/models/{model:.+}", look=models.look_at),
)
