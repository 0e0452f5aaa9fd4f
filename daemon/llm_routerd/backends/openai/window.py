"""How many tokens of prompt and answer a server takes that speaks OpenAI's protocol, as each kind of it tells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llm_routerd.backends.usage import count, mapping
from llm_routerd.protocol.call import Window

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

# In the list of models: vLLM and SGLang, LM Studio and many others, Groq.
_IN_LISTING = ("max_model_len", "context_length", "context_window")


async def window_of(ask: Callable[[str], Awaitable[Any]], listing: Any, name: str) -> Window | None:
    """What a server takes of this model; None: it does not tell.

    Args:
        ask: gets a path of the server as JSON; None where there is no such path.
        listing: its list of models.
        name: the model's.
    """
    models = [mapping(each) for each in mapping(listing).get("data") or () if isinstance(each, dict)]
    entry = next((each for each in models if each.get("id") == name), models[0] if len(models) == 1 else {})
    most = next((found for key in _IN_LISTING if (found := count(entry.get(key)))), None)
    if most is None and "n_ctx_train" in mapping(entry.get("meta")):  # llama.cpp: each of its slots has as much
        settings = mapping(mapping(await ask("/props")).get("default_generation_settings"))
        most = count(settings.get("n_ctx")) or count(mapping(entry["meta"]).get("n_ctx"))
    if most is None and entry.get("owned_by") == "organization_owner":
        told = mapping(await ask(f"/api/v0/models/{name}"))  # LM Studio
        most = count(told.get("loaded_context_length")) or count(told.get("max_context_length"))
    return Window(most=most) if most else None
