"""Imports litellm: in a thread, on first use, and so that it is quiet and keeps to itself.

What it does by itself would print, fetch a price table, or read a `.env` of the working directory.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import logging
import os
import warnings
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any

from llm_routerd.accounting.estimate import CHARS_PER_TOKEN
from llm_routerd.backends.litellm.mending import mend_litellm

if TYPE_CHECKING:
    from collections.abc import Collection


_ENVIRONMENT = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True",
    "LITELLM_LOG": "CRITICAL",
    "LITELLM_MODE": "PRODUCTION",  # else it runs load_dotenv(), and a stranger's .env is our environment
    "HF_HUB_OFFLINE": "1",
}
_NOWHERE = "http://127.0.0.1:0/v1"  # a port that nothing can listen on
_ALSO_IMPORTED = {
    "bedrock": ("boto3", "botocore.session", "botocore.auth", "botocore.credentials"),
    "sagemaker": ("boto3", "botocore.session", "botocore.auth", "botocore.credentials"),
    "vertex_ai": ("google.auth", "google.auth.transport.requests"),
}
_LOGGERS = ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy")


class LitellmModule:
    """The module litellm, imported on first use and only once, while the event loop goes on.

    Args:
        providers: whose parts of it will be needed.
    """

    def __init__(self, providers: Collection[str] = ()) -> None:
        self._providers = providers
        self._module: Any = None
        self._lock = asyncio.Lock()

    async def get(self) -> Any:
        """The module."""
        if self._module is None:
            async with self._lock:
                if self._module is None:
                    self._module = await asyncio.to_thread(_import_litellm, self._providers)
        return self._module


def _import_litellm(providers: Collection[str] = ()) -> Any:
    """Import it and all that its first call would import; for a thread, and so that the event loop goes on meanwhile.

    What stops other threads is not Python code, but what holds the interpreter's lock as a whole: above all the garbage
    collector, which walks through a million new objects again and again (up to 180 ms at once, measured).
    """
    was_collecting = gc.isenabled()
    gc.disable()
    try:
        litellm = _load_litellm()
        _rehearse(litellm, providers)
    finally:
        gc.freeze()  # they stay: nobody need look at them again
        if was_collecting:
            gc.enable()
    return litellm


def _rehearse(litellm: Any, providers: Collection[str]) -> None:
    """Have it import what it needs for a call."""
    _rehearse_calls(litellm)
    for provider in providers:
        with suppress(Exception):
            litellm.utils.ProviderConfigManager.get_provider_chat_config("none", litellm.LlmProviders(provider))
        for name in _ALSO_IMPORTED.get(provider, ()):
            with suppress(ImportError):
                importlib.import_module(name)


@cache  # what it has imported it keeps, whatever configuration is loaded later
def _rehearse_calls(litellm: Any) -> None:
    """Call it: once an answer of its own, once an address that is none."""
    call = {
        "model": "openai/none",
        "api_key": "none",
        "messages": [{"role": "user", "content": "Hello"}],
        "stream": True,
    }
    with suppress(Exception):
        for _ in litellm.completion(**call, mock_response="Hello"):
            pass
    with suppress(Exception):
        litellm.completion(**call, api_base=_NOWHERE, num_retries=0, max_retries=0)


def _load_litellm() -> Any:
    os.environ.update(_ENVIRONMENT)
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # A warning of its models would quote what they hold.
    warnings.filterwarnings("ignore", category=UserWarning, module=r"pydantic|litellm")
    _spare_tokenizer()
    litellm: Any = importlib.import_module("litellm")
    litellm.suppress_debug_info = True
    litellm.disable_hf_tokenizer_download = True
    litellm.drop_params = True  # a parameter that a provider does not know is left out, not an error
    mend_litellm(litellm)
    return litellm


def _spare_tokenizer() -> None:
    """Put an estimate where litellm would build its tokenizer.

    That holds all threads up for 40 to 60 ms, and takes 33 MB; what it counts for us is passed over in any case.
    """
    registry: Any = importlib.import_module("tiktoken.registry")
    for name in ("cl100k_base", "o200k_base"):
        registry.ENCODINGS.setdefault(name, RuleOfThumb())


class RuleOfThumb:
    """What litellm uses of a tokenizer, by the rule of `accounting.estimate`."""

    def encode(self, text: str, **_options: Any) -> range:
        """So many tokens as there may be."""
        return range(-(-len(text) // CHARS_PER_TOKEN))
