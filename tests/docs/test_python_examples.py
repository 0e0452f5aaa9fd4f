"""The Python in the documents does what they say, on a daemon and a stand-in model.

A block may await at its top, which neither doctest nor its relatives let it do; a `text` block is what it prints.
"""

from __future__ import annotations

import ast
import inspect
import io
import re
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any

import pytest

from tests.standin.server import StandIn
from tests.support.daemons import running_daemon, write_config
from tests.support.processes import ROOT
from tests.support.servers import running_valkey

if TYPE_CHECKING:
    from pathlib import Path

_BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)
_URL = "redis://127.0.0.1:6379/0"
# The documents ask as a reader would; the stand-in has to be told what a model knows.
_TOLD = {
    "Why is the sky blue?": "Why is the sky blue? [[answer='Air scatters blue light more than red.']]",
    "How warm is it in Oslo?": r"""How warm? [[turn1='measure {\"city\": \"Oslo\"}' answer='It is 4.5 degrees.']]""",
    "Let me in, it is cold.": r"""Let me in. [[call=unlock args='{\"door\": \"front\"}' answer='Come in.']]""",
    "Tell me a long story.": "Tell me a long story. [[tokens=500 delay_ms=50]]",
}


def _blocks(document: str) -> list[tuple[int, str, str]]:
    """Line, source and output of each block."""
    text = (ROOT / document).read_text()
    return [(text.count("\n", 0, block.start(1)), block[1], block[2] or "") for block in _BLOCK.finditer(text)]


async def _printed(document: str, line: int, source: str, names: dict[str, Any]) -> str:
    """Carry out a block; a traceback names its place in the document."""
    code = compile("\n" * line + source, document, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    with redirect_stdout(io.StringIO()) as output:
        running = eval(code, names)  # noqa: S307 - it is ours
        if inspect.isawaitable(running):
            await running
    return output.getvalue()


@pytest.mark.parametrize("document", ["docs/python.md", "README.md"])
async def test_python_of_a_document_does_what_it_says(
    document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Block after block, with the names of those before."""
    for name in ("ANTHROPIC_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    names: dict[str, Any] = {}
    with running_valkey(tcp=True) as valkey:
        async with (
            StandIn({"tiny": "", "big": ""}) as models,
            running_daemon(write_config(tmp_path, valkey.url, models.url)),
        ):
            monkeypatch.setenv("OLLAMA_API_BASE", models.url)
            monkeypatch.setenv("OLLAMA_MODEL", "tiny")
            blocks = _blocks(document)
            assert blocks
            for line, block, expected in blocks:
                source = block.replace(_URL, valkey.tcp_url)
                for asked, told in _TOLD.items():
                    source = source.replace(asked, told)
                printed = await _printed(document, line, source, names)
                assert not expected or printed == expected, f"{document}, line {line + 1}"
