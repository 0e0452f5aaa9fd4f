"""How many files this process may have open, of which each call to a model is one."""

from __future__ import annotations

import resource
from contextlib import suppress
from typing import TYPE_CHECKING

from msgspec.structs import replace

from llm_routerd.logs import get_logger

if TYPE_CHECKING:
    from llm_routerd.config.tree import Config

log = get_logger()

# Redis, health, logs, what the interpreter has open, a second set of connections while a new configuration comes in.
_BESIDE_THE_CALLS = 96
_FEWEST_CLIENTS = 8


def shortage_of_files(config: Config) -> str | None:
    """Why the calls that the configuration allows cannot all have a connection, for a person; None: they can."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = config.daemon.concurrency + _BESIDE_THE_CALLS
    if hard == resource.RLIM_INFINITY or needed <= hard:
        return None
    return f"{hard} files may be open, and daemon.concurrency = {config.daemon.concurrency} needs some {needed}"


def make_room(config: Config) -> None:
    """Raise the soft limit to the hard one, which systemd sets far apart; log it where that is too little."""
    _raise_limit()
    shortage = shortage_of_files(config)
    if shortage is not None:
        log.warning("too_few_files", why=shortage)


def make_room_for_clients(config: Config, *, calls: int = 0) -> Config:
    """Raise the soft limit; what is returned lets in no more clients than there may be beside so many calls."""
    hard = _raise_limit()
    wanted, room = config.gateway.max_connections, hard - calls - _BESIDE_THE_CALLS
    if hard == resource.RLIM_INFINITY or wanted <= room:
        return config
    log.warning("too_few_files", why=f"{hard} files may be open, and gateway.max_connections = {wanted} needs more")
    return replace(config, gateway=replace(config.gateway, max_connections=max(_FEWEST_CLIENTS, room)))


def _raise_limit() -> int:
    """Returns the hard limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # macOS has a bound of its own below an infinite one
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
