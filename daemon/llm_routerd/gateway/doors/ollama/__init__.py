"""Ollama's protocol: `/api/chat`, `/api/generate`, and what its clients look up.

`request` reads a body, `options` its options, `messages` what is said in it, `images` what is shown; `voice` tells an
answer, `listing` what there is.
"""

from __future__ import annotations

from typing import Final

from llm_routerd.gateway.door import Completion, Endpoint, Lookup
from llm_routerd.gateway.doors.ollama.listing import running, show, tags, version
from llm_routerd.gateway.doors.ollama.request import read_chat, read_generate
from llm_routerd.gateway.doors.ollama.voice import fault_body

_DOOR: Final = "ollama"

ENDPOINTS: tuple[Endpoint, ...] = (
    Completion(door=_DOOR, path="/api/chat", fault=fault_body, read=read_chat),
    Completion(door=_DOOR, path="/api/generate", fault=fault_body, read=read_generate),
    Lookup(door=_DOOR, path="/api/tags", fault=fault_body, look=tags),
    Lookup(door=_DOOR, path="/api/ps", fault=fault_body, look=running),
    Lookup(door=_DOOR, path="/api/version", fault=fault_body, look=version),
    Lookup(door=_DOOR, path="/api/show", fault=fault_body, method="POST", look=show),
)
