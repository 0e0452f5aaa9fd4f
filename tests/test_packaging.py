"""What is released: its version stands in one place, and both distributions hold what they need and nothing else.

That two builds are the same to the byte, and that the demo runs from the wheel, is shown by `make release`.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import version
from typing import TYPE_CHECKING

import pytest
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder

from tests.support.processes import ROOT

if TYPE_CHECKING:
    from pathlib import Path

_VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def _tracked() -> list[str]:
    """The files of the repository and those that are to be; skips where there is none."""
    command = ("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    names = [name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()]
    if listed.returncode != 0 or not names:
        pytest.skip("not in a git repository")
    return names


def test_version_is_that_of_pyproject_everywhere() -> None:
    """In what is installed and in what the command says; an installation that is older says so here."""
    said = subprocess.run(
        (sys.executable, "-m", "llm_routerd", "version"), capture_output=True, text=True, check=True, timeout=30
    )
    assert (version("llm-routerd"), said.stdout) == (_VERSION, f"llm-routerd {_VERSION}\n")


def test_version_stands_in_no_other_file_that_is_released() -> None:
    """Whoever releases changes one line, and the changelog."""
    places = [
        name
        for name in _tracked()
        if name.startswith(("daemon/", "schemas/", "systemd/")) and (ROOT / name).is_file()
        if f'"{_VERSION}"' in (ROOT / name).read_text() or f"-{_VERSION}" in (ROOT / name).read_text()
    ]
    assert places == []


def test_source_distribution_holds_every_file_of_the_repository(tmp_path: Path) -> None:
    """So that all that `make` can do, it can do from there too; and nothing that merely lies about."""
    tracked = {name for name in _tracked() if not (ROOT / name).is_symlink()}
    (path,) = SdistBuilder(str(ROOT)).build(directory=str(tmp_path))
    with tarfile.open(path) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    through_symlink = {name for name in held if name.startswith("daemon/llm_routerd/schemas/")}
    assert tracked - held == set()
    assert held - tracked - through_symlink <= {"PKG-INFO"}


def test_wheel_holds_the_package_alone(tmp_path: Path) -> None:
    """With its scripts, its schemas and the mark of its types; no test, no example."""
    (path,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(path) as wheel:
        held = set(wheel.namelist())
    information = f"llm_routerd-{_VERSION}.dist-info/"
    assert {name.partition("/")[0] for name in held} == {"llm_routerd", information.rstrip("/")}
    assert {f"{information}licenses/LICENSE", f"{information}licenses/NOTICE", f"{information}entry_points.txt"} <= held
    package = {name.removeprefix("daemon/") for name in _tracked() if name.startswith("daemon/llm_routerd/")}
    schemas = {f"llm_routerd/{name}" for name in _tracked() if name.startswith("schemas/")}
    assert {name for name in held if name.startswith("llm_routerd/")} == (package - {"llm_routerd/schemas"}) | schemas
