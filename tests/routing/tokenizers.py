"""Tokenizers of real models, and text in many languages to be counted by them."""

from __future__ import annotations

import base64
import random
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import tiktoken
from tokenizers import Tokenizer

from tests.support.texts import SCRIPTS, TEXTS

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]
TOKENIZERS = ("cl100k", "o200k", "claude")
MORE = {
    "a module": (ROOT / "daemon/llm_routerd/running/caller.py").read_text(),
    "a JSON Schema": (ROOT / "schemas/config.schema.json").read_text()[:9_000],
    "Markdown": (ROOT / "README.md").read_text()[:9_000],
    "numbers": " ".join(str(number * 7_919) for number in range(300)),
    "base64": base64.b64encode(random.Random(1).randbytes(2_000)).decode(),
}
TEXT_OF = {name: text * -(-3_000 // len(text)) for name, text in {**TEXTS, **SCRIPTS, **MORE}.items()}


@cache
def counter(name: str) -> Callable[[str], int]:
    """Counts a text's tokens; litellm keeps the files that it needs without a network."""
    found = find_spec("litellm")
    assert found is not None
    assert found.origin is not None
    files = Path(found.origin).parent / "litellm_core_utils/tokenizers"
    if name == "claude":
        claude = Tokenizer.from_file(str(files / "anthropic_tokenizer.json"))
        return lambda text: len(claude.encode(text).ids)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(files))
        # Not by `get_encoding`: what calls litellm has put a lighter one in its place.
        public = import_module("tiktoken_ext.openai_public")
        encoding = tiktoken.Encoding(**getattr(public, f"{name}_base")())
    return lambda text: len(encoding.encode(text, disallowed_special=()))
