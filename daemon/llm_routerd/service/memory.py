"""How much memory this process may count on: the machine's, or less where a control group bounds it."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

_OURS = Path("/proc/self/cgroup")
_GROUPS = Path("/sys/fs/cgroup")


def memory_bytes(ours: Path = _OURS, groups: Path = _GROUPS) -> int:
    """The memory of the machine, or the least bound of our control group and those above it.

    Args:
        ours: names our group, as Linux writes it (version 2: `0::/path`); need not exist.
        groups: where the groups' files are.
    """
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *_bounds(ours, groups)])


def _bounds(ours: Path, groups: Path) -> list[int]:
    try:
        lines = ours.read_text("utf-8", "replace").splitlines()
    except OSError:
        return []  # not Linux
    path = next((PurePosixPath(line[3:]) for line in lines if line.startswith("0::/")), None)
    if path is None:
        return []
    found = []
    for group in (path, *path.parents):
        try:
            bound = (groups / group.relative_to("/") / "memory.max").read_text("ascii").strip()
        except (OSError, UnicodeDecodeError):
            continue
        if bound.isdecimal():  # else `max`
            found.append(int(bound))
    return found
