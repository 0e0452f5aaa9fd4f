"""Under what terms this is given."""

from __future__ import annotations

import tomllib
from pathlib import Path

_ROOT = Path(__file__).parents[1]


def test_package_names_its_licence_and_carries_its_text_and_notice() -> None:
    """In pyproject, in the source distribution, and in the files themselves."""
    pyproject = tomllib.loads((_ROOT / "pyproject.toml").read_text())
    assert pyproject["project"]["license"] == "Apache-2.0"
    assert pyproject["project"]["license-files"] == ["LICENSE", "NOTICE"]
    assert {"/LICENSE", "/NOTICE"} <= set(pyproject["tool"]["hatch"]["build"]["targets"]["sdist"]["include"])
    text = (_ROOT / "LICENSE").read_text()
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert (_ROOT / "NOTICE").read_text().startswith("llm-routerd\nCopyright ")
