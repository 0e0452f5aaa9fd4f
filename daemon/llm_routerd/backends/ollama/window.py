"""How many tokens an Ollama reads of a prompt, as far as it tells."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from llm_routerd.backends.usage import count, mapping

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

DEFAULT_WINDOWS = (2048, 4096)
"""What those versions take by themselves, an older one and a newer."""

_NUM_CTX = re.compile(r"^num_ctx\s+(\d{1,9})\s*$", re.MULTILINE)


def windows_of(params: Mapping[str, Any], shown: Any, loaded: Any, names: Collection[str]) -> tuple[int, ...]:
    """The windows that a model may have.

    Args:
        params: what the call was sent with; its `num_ctx` goes before all else.
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
    asked = count(params.get("num_ctx")) or count(mapping(params.get("options")).get("num_ctx"))
    asked = asked or _allocated(loaded, names) or (int(set_by_model[1]) if set_by_model else None)
    windows = (asked,) if asked else DEFAULT_WINDOWS
    return tuple({min(window, trained or window) for window in windows})


def least_window(params: Mapping[str, Any]) -> int:
    """The smallest that a model may have, as far as that is known without asking; cheap, for it is of every answer."""
    if "num_ctx" in params or "options" in params:
        return min(windows_of(params, None, None, ()))
    return min(DEFAULT_WINDOWS)


def _allocated(loaded: Any, names: Collection[str]) -> int | None:
    models = mapping(loaded).get("models")
    for model in models if isinstance(models, list) else ():
        if mapping(model).get("name") in names:
            return count(mapping(model).get("context_length")) or None
    return None
