"""What a server seems to be that does not answer as its deployment's provider prefix says, for `check` to tell."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from llm_routerd.protocol.call import BackendError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from yarl import URL

    from llm_routerd.backends.wire.transport import Transport

_ENDS = ("/api/chat", "/v1/chat/completions", "/chat/completions", "/v1/messages")
_REFUSAL_SECONDS = 2.0
_NO_SUCH_PATH = frozenset({404, 405})
# What servers write as the owner of their models.
_OWNERS = {
    "library": "Ollama",
    "llamacpp": "llama.cpp",
    "vllm": "vLLM",
    "sglang": "SGLang",
    "organization_owner": "LM Studio",
    "koboldcpp": "KoboldCpp",
    "openai": "OpenAI, or a proxy of it",
}


async def advice(
    transport: Transport, root: URL, model: str, *, headers: Mapping[str, str], connect_seconds: float
) -> str:
    """What stands at an address, and how its model would be written; empty where nobody can tell.

    Asks for a version, as only Ollama tells it, and for the list of models, as most others do.
    """

    async def ask(path: str) -> Any:
        try:
            return await transport.get_json(root.with_path(path), headers=headers, connect_seconds=connect_seconds)
        except BackendError:
            return None

    version = await ask("/api/version")
    base = next((root.path.removesuffix(end) for end in _ENDS if root.path.endswith(end)), "")
    models, place = None, ""
    for place in dict.fromkeys(("/v1", f"{base}/v1", base or "/v1")):  # `openai/` reaches no bare root
        listing = await ask(f"{place}/models")
        models = listing.get("data") if isinstance(listing, dict) else None
        if isinstance(models, list):
            break
    owner = next((each.get("owned_by") for each in models or () if isinstance(each, dict)), None)
    kind = _OWNERS.get(owner) if isinstance(owner, str) else None
    if kind == "Ollama" or (isinstance(version, dict) and "version" in version and kind is None):
        return f'; it seems to be Ollama: write model = "ollama/{model}"'
    if isinstance(models, list):
        known = kind or "a server that speaks OpenAI's protocol"
        where = "" if place == "/v1" else f" and let api_base end in {place}"
        return f'; it seems to be {known}: write model = "openai/{model}"{where}'
    return ""


async def what_is_amiss(
    transport: Transport, endpoint: URL, model: str, *, headers: Mapping[str, str], connect_seconds: float
) -> tuple[bool, str]:
    """Whether calls find anything at an address, and what to tell of it; for servers that are no provider's own.

    Asks with a request that has no messages: it is refused, and costs nothing (where it is not, a token); only who
    knows no such path answers 404 or 405.  (With `"messages": null` llama.cpp's `/v1/messages` generates for ever.)
    An Ollama behind another prefix answers, and cuts prompts that are too long.
    """
    body = {"model": model, "max_tokens": 1}
    try:
        async with asyncio.timeout(_REFUSAL_SECONDS):
            response = await transport.post(endpoint, body, headers=headers, connect_seconds=connect_seconds)
        response.close()
    except TimeoutError:
        pass  # it knows the path
    except BackendError as error:
        if error.status in _NO_SUCH_PATH:
            found = await advice(transport, endpoint, model, headers=headers, connect_seconds=connect_seconds)
            return False, f"answers, but has no {endpoint.path}{found}"
    found = await advice(transport, endpoint, model, headers=headers, connect_seconds=connect_seconds)
    return True, f"{found}, for here it cuts prompts that are too long" if '"ollama/' in found else ""


def lists_models(listing: Any) -> set[str] | None:
    """The ids and aliases in a list of models as OpenAI and Anthropic have it; None: it is no such list."""
    models = listing.get("data") if isinstance(listing, dict) else None
    if not isinstance(models, list):
        return None
    names: set[str] = set()
    for model in models:
        if isinstance(model, dict):
            aliases = model.get("aliases")
            named = [model.get("id"), *(aliases if isinstance(aliases, list) else ())]
            names.update(name for name in named if isinstance(name, str))
    return names


def how_many(listing: Any) -> int:
    """How many models such a list has."""
    return sum(isinstance(model, dict) for model in listing["data"])
