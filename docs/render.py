"""Writes the documentation of the public Python surface into a folder: `make docs`."""

from __future__ import annotations

import re
import sys
import warnings
from pathlib import Path

import pdoc

import llm_routerd

_SURFACE = ("llm_routerd", "llm_routerd.client", "llm_routerd.protocol.events", "llm_routerd.errors")
_GUIDE = Path(__file__).with_name("python.md")


def main(folder: str) -> None:
    """Render the guide, and below it what the docstrings say."""
    llm_routerd.__doc__ = re.sub(r"\[(.+?)\]\(\.\./.+?\)", r"\1", _GUIDE.read_text(encoding="utf-8"))
    # They are imported when they are asked for, and pdoc looks and does not ask.
    vars(llm_routerd).update({name: getattr(llm_routerd, name) for name in llm_routerd.__all__})
    # A TypedDict has no bases at run time: pdoc asks where inherited keys are from, and shows them all the same.
    warnings.filterwarnings("ignore", "Cannot determine where .*RequestFields", UserWarning)
    pdoc.render.configure(docformat="google", show_source=False, footer_text="llm-routerd")
    pdoc.pdoc(*_SURFACE, output_directory=Path(folder))


if __name__ == "__main__":
    main(sys.argv[1])
