"""The doors: a room for each protocol that clients speak, and here the endpoints of all of them.

A door knows its protocol and nothing of HTTP's server, of Redis or of another door.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_routerd.gateway.doors import anthropic, before, native, ollama, openai

if TYPE_CHECKING:
    from llm_routerd.gateway.door import Endpoint

ENDPOINTS: tuple[Endpoint, ...] = (
    *openai.ENDPOINTS,
    *anthropic.ENDPOINTS,
    *ollama.ENDPOINTS,
    *before.ENDPOINTS,
    *native.ENDPOINTS,
)
