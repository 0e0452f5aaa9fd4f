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


_STREAMS, _WORKERS = _read("streams"), _read("workers")


def _load(name: str, *, shared: str = _STREAMS) -> Script:
    source = shared + _read(name)
    return Script(name, source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())


BEGIN = _load("begin")
COMMIT = _load("commit")
RENEW = _load("renew", shared=_STREAMS + _WORKERS)
SEALED = _load("sealed")
WRITE = _load("write")
TAKE = _load("take")
CLAIM = _load("claim", shared=_STREAMS + _WORKERS)
HAND_BACK = _load("hand_back")
ORPHANS = _load("orphans", shared=_STREAMS + _WORKERS)
MEND = _load("mend")
OWNED = _load("owned")
PASS_ON = _load("pass_on", shared=_STREAMS + _WORKERS)
RETIRE = _load("retire")
LOOK_UP = _load("look_up")  # the client's; the daemon has no use for it

ALL = (BEGIN, COMMIT, RENEW, SEALED, WRITE, TAKE, CLAIM, HAND_BACK, ORPHANS, MEND, OWNED, PASS_ON, RETIRE)
