"""How much memory there is for us: the machine's, or what control groups leave of it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from llm_routerd.service.memory import memory_bytes

if TYPE_CHECKING:
    from pathlib import Path

MACHINE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.parametrize(
    ("ours", "bounds", "expected"),
    [
        ("0::/a/b\n", {"a/b": "1000000\n", "a": "max\n"}, 1_000_000),
        ("0::/a/b\n", {"a/b": "max\n", "a": "2000000\n"}, 2_000_000),
        ("0::/\n", {".": "3000000\n"}, 3_000_000),
        ("0::/a\n", {"a": f"{2 * MACHINE}\n"}, MACHINE),
        ("0::/a\n", {}, MACHINE),
        ("4:memory:/a\n", {"a": "1000000\n"}, MACHINE),
        ("", {}, MACHINE),
        (None, {}, MACHINE),
    ],
    ids=["its own", "the one above", "a container's", "more than there is", "none", "version 1", "empty", "no Linux"],
)
def test_least_bound_counts(tmp_path: Path, ours: str | None, bounds: dict[str, str], expected: int) -> None:
    """Of our group, of those above it, of the machine."""
    for group, bound in bounds.items():
        (tmp_path / "groups" / group).mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / group / "memory.max").write_text(bound)
    if ours is not None:
        (tmp_path / "ours").write_text(ours)
    assert memory_bytes(tmp_path / "ours", tmp_path / "groups") == expected
