"""The Lua scripts: whatever must happen at once or not at all."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources


@dataclass(frozen=True, slots=True)
class Script:
    """A script as the server caches it; `sha` is what EVALSHA takes."""

    name: str
    source: str
    sha: str


def _read(name: str) -> str:
    return resources.files("llm_routerd.queue").joinpath(f"lua/{name}.lua").read_text("utf-8")


_SHARED = _read("streams")


def _load(name: str) -> Script:
    source = _SHARED + _read(name)
    return Script(name, source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())


BEGIN = _load("begin")
COMMIT = _load("commit")
RENEW = _load("renew")
SEALED = _load("sealed")
WRITE = _load("write")
TAKE = _load("take")
CLAIM = _load("claim")
HAND_BACK = _load("hand_back")
ORPHANS = _load("orphans")
OWNED = _load("owned")
RETIRE = _load("retire")
LOOK_UP = _load("look_up")  # the client's; the daemon has no use for it

ALL = (BEGIN, COMMIT, RENEW, SEALED, WRITE, TAKE, CLAIM, HAND_BACK, ORPHANS, OWNED, RETIRE)
