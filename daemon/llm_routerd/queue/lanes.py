"""Which lanes can be served: a key of another type is no lane, and stands in no other's way.

A newcomer writes `LPUSH llm:requests …`, and Redis refuses every command of ours that names the key, a read over all
three lanes too.  So what was found of each lane is kept here, by whoever finds it, and only sound ones are read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llm_routerd.protocol.keys import GROUP, LANES, Lane
from llm_routerd.queue.connection import ResponseError, is_wrong_type

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from llm_routerd.protocol.keys import Keys


class LaneTypes:
    """What the lanes were when they were last looked at.

    Args:
        keys: of the queue.

    Attributes:
        others: type of its key, by lane that is no stream.
        on_change: told of each lane whose key has become another type, and of one (None) that has been mended.
    """

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self.others: dict[Lane, str] = {}
        self.on_change: Callable[[Lane, str | None], object] = lambda _lane, _type: None

    @property
    def sound(self) -> tuple[Lane, ...]:
        """Those that can be read, the most urgent first."""
        return tuple(lane for lane in LANES if lane not in self.others) if self.others else LANES

    async def make_group(self, ask: Callable[..., Awaitable[Any]], lane: Lane) -> None:
        """Create a lane's consumer group where it is missing, and note whether the lane is one.

        Args:
            ask: sends one command, and gives its reply.
            lane: whose group it is.

        Raises:
            ResponseError: Redis refuses that for another reason.
        """
        self._found(lane, await _make_group(ask, self._keys.requests(lane)))

    def _found(self, lane: Lane, other: str | None) -> None:
        """A lane is a stream (None), or a key of another type."""
        if other == self.others.get(lane):
            return
        if other is None:
            del self.others[lane]
        else:
            self.others[lane] = other
        self.on_change(lane, other)


async def _make_group(ask: Callable[..., Awaitable[Any]], key: str) -> str | None:
    """At `0`: what was added before is answered too.  Returns None; or the type of the key, where it is no stream."""
    try:
        if await _has_group(ask, key):
            return None
        await ask("XGROUP", "CREATE", key, GROUP, "0", "MKSTREAM")
    except ResponseError as error:
        if is_wrong_type(error):
            return await _type_of(ask, key)
        if "BUSYGROUP" not in str(error):
            raise
    return None


async def _has_group(ask: Callable[..., Awaitable[Any]], key: str) -> bool:
    """Whether it stands already: out of memory, XGROUP CREATE is refused for such a group too."""
    try:
        groups = await ask("XINFO", "GROUPS", key)
    except ResponseError as error:
        if is_wrong_type(error):
            raise
        return False  # no such key; or an ACL refuses the look
    return any(GROUP.encode() in group for group in groups)


async def _type_of(ask: Callable[..., Awaitable[Any]], key: str) -> str:
    try:
        kind = await ask("TYPE", key)
    except ResponseError:  # an ACL may refuse it
        return "key of another type"
    return bytes(kind).decode("ascii", "replace")
