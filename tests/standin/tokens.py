"""Tokens as a real model's: cl100k_base, a byte-pair encoding that litellm ships as a file, so that no network is needed.

It is no part of tiktoken's registry here: what litellm itself takes for a tokenizer, in this process, stays as it is.
Building it takes 0.15 s and reads a file, so whoever has an event loop does it in a thread; it is built once.
"""

from __future__ import annotations

import importlib
import os
from functools import cache
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tiktoken import Encoding

_WHERE = "TIKTOKEN_CACHE_DIR"
_CL100K = "9b5ad71b2ce5302211f9c61530b329a4922fc6a4"  # the file's name: of its address, as tiktoken keeps it


@cache
def encoding() -> Encoding:
    """The tokenizer.

    Raises:
        FileNotFoundError: litellm ships it no longer, and tiktoken would ask a server for it.
    """
    found = find_spec("litellm")
    places = (found.submodule_search_locations if found is not None else None) or ()
    folders = [Path(place) / "litellm_core_utils" / "tokenizers" for place in places]
    folder = next((folder for folder in folders if (folder / _CL100K).is_file()), None)
    if folder is None:
        raise FileNotFoundError(f"litellm has no {_CL100K} among its tokenizers")
    tiktoken: Any = importlib.import_module("tiktoken")
    published: Any = importlib.import_module("tiktoken_ext.openai_public")
    before = os.environ.get(_WHERE)
    os.environ[_WHERE] = str(folder)
    try:
        made: Encoding = tiktoken.Encoding(**published.cl100k_base())
    finally:
        if before is None:
            del os.environ[_WHERE]
        else:
            os.environ[_WHERE] = before
    return made


def tokens_in(text: str) -> list[int]:
    """A text's tokens; what looks like a special token is plain text."""
    return encoding().encode_ordinary(text)


def text_of(tokens: list[int]) -> str:
    """The text of tokens; those below 0, which stand for no text (see `window`), part words."""
    texts = (
        encoding().decode(list(run)) if is_text else " " for is_text, run in groupby(tokens, lambda each: each >= 0)
    )
    return "".join(texts)
