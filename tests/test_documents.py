"""What the documents point to is there."""

from __future__ import annotations

import re

import pytest

from llm_routerd.protocol.codes import AttemptCode, ErrorCode
from tests.support.processes import ROOT

_LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")
_DOCUMENTS = sorted(
    str(path.relative_to(ROOT))
    for folder in (".", "docs", "examples", "systemd")
    for path in (ROOT / folder).glob("*.md")
)


def _anchors(text: str) -> set[str]:
    """The headings of a document, as one links to them."""
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", _DOCUMENTS)
def test_links_lead_to_files_and_headings(document: str) -> None:
    """Those within the repository; nobody is asked about the others."""
    here = ROOT / document
    for path, anchor in _LINK.findall(here.read_text()):
        target = here.parent / path if path else here
        assert target.exists(), path
        assert not anchor or anchor in _anchors(target.read_text()), f"{path}#{anchor}"


@pytest.mark.parametrize(
    ("begins", "codes"), [("Error codes: ", ErrorCode), ("Codes of a rejected attempt: ", AttemptCode)]
)
def test_readme_lists_every_code(begins: str, codes: type[ErrorCode | AttemptCode]) -> None:
    """In the order in which they are declared."""
    (line,) = (line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith(begins))
    listed = re.findall(r"`([a-z_]+)`", line)
    assert sorted(listed) == sorted(code.value for code in codes)


def test_every_target_that_help_names_is_one() -> None:
    """And those that a user may call are named."""
    makefile = (ROOT / "Makefile").read_text()
    named = set(re.findall(r'@echo "make ([\w-]+) ', makefile))
    targets = {name for line in re.findall(r"^\.PHONY: (.+)$", makefile, flags=re.MULTILINE) for name in line.split()}
    inner = {"help", "lock", "clean", "lint-ruff", "lint-types", "lint-imports"}
    assert named == targets - inner - {"install-venv", "compile-venv", "install-units"}


def test_commit_hooks_are_the_parts_of_lint() -> None:
    """So that a commit that they let through is one that CI lets through."""
    hooks = re.findall(r"make --no-print-directory ([\w-]+)", (ROOT / ".pre-commit-config.yaml").read_text())
    parts = re.search(r"^lint: (.+)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert parts is not None
    assert hooks == parts[1].split()
