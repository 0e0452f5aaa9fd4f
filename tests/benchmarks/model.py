"""The stand-in model as a process of its own, whose tokens can tell when they were written.

`PLACEHOLDER` in an answer becomes the Unix time, in seconds, at which the stand-in hands it to its socket.
"""

from __future__ import annotations

import time

from tests.standin import answering, process

PLACEHOLDER = "@" * 17
_MARK = PLACEHOLDER.encode()


def _stamp(data: bytes) -> bytes:
    return data.replace(_MARK, b"%017.6f" % time.time()) if _MARK in data else data


def main() -> None:
    """Serve as `tests.standin` does."""
    as_chunk = answering._chunk
    answering._chunk = lambda data: as_chunk(_stamp(data))  # called once per token, at the moment of its write
    process.main()


if __name__ == "__main__":
    main()
