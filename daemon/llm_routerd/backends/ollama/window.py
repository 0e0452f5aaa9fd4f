"""How many tokens an Ollama reads of a prompt, as far as it tells."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from llm_routerd.backends.usage import count, mapping
from llm_routerd.protocol.call import Window
from llm_routerd.routing.window import num_ctx_of

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

DEFAULT_WINDOWS = (2048, 4096)
"""What those versions take by themselves, an older one and a newer."""
LEAST = min(DEFAULT_WINDOWS)

_NUM_CTX = re.compile(r"^num_ctx\s+(\d{1,9})\s*$", re.MULTILINE)


def window_told(shown: Any, loaded: Any, names: Collection[str]) -> Window:
    """What the server tells of a model.

    Args:
        shown: the answer of `/api/show` for the model, or None.
        loaded: the answer of `/api/ps`, or None: newer versions say there what they have allocated.
        names: the model's names.
    """
    trained = next(
        (found for name, value in mapping(mapping(shown).get("model_info")).items()
         if name.endswith(".context_length") and (found := count(value))),
        None,
    )  # fmt: skip
    told = mapping(shown).get("parameters")
    set_by_model = _NUM_CTX.search(told) if isinstance(told, str) else None
    allocated = allocated_to(loaded, names) or None
    now = allocated or (int(set_by_model[1]) if set_by_model else None)
    return Window(most=trained, now=now, is_asked_for=True, loaded=allocated)


def windows_of(params: Mapping[str, Any], told: Window) -> tuple[int, ...]:
    """The windows that a call may have been read with, that was sent with `params`.

    Args:
        params: of the call; its `num_ctx` goes before what the model would have, unless the server passes over it.
        told: after the call; a smaller window that the model is loaded with may be the one that it was read with.
    """
    asked = num_ctx_of(params) or told.now
    windows = {asked} if asked else {*DEFAULT_WINDOWS}
    if told.loaded and asked and told.loaded < asked:
        windows.add(told.loaded)
    return tuple({min(window, told.most or window) for window in windows})


def allocated_to(loaded: Any, names: Collection[str]) -> int | None:
    """What a model is loaded with, of an answer of `/api/ps`; 0: it does not tell; None: it is not loaded."""
    models = mapping(loaded).get("models")
    for model in models if isinstance(models, list) else ():
        if mapping(model).get("name") in names:
            return count(mapping(model).get("context_length")) or 0
    return None


def resident_in(loaded: Any) -> dict[str, int]:
    """Bytes by the name of each model in memory, of an answer of `/api/ps`; 0 where it does not tell."""
    models = mapping(loaded).get("models")
    named = [mapping(model) for model in (models if isinstance(models, list) else ())]
    return {model["name"]: count(model.get("size")) or 0 for model in named if isinstance(model.get("name"), str)}
