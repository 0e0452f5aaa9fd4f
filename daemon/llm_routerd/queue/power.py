"""What is known of a box that can be woken: that it answers, was woken, or was put to sleep; and who may do what next.

Two workers never both send the packet, nor both run the command: whoever is granted it is alone with it.

- **Awake** is a box for `AWAKE_SECONDS` after it answered, and no longer: of one that has been idle nobody knows.
- **Woken**: for twice the time that a boot takes nobody sends another packet.  Has it not answered by then, it is down,
  and woken again after a pause, which doubles each time up to `MOST_PAUSE_SECONDS`.  An answer forgets all that.
- **Put to sleep**: whoever was granted it runs the command, while no call begins on the box.  An answer before
  `settled_ms` says nothing, for a machine answers until it is off; a packet before is lost.

All times are ms of who keeps the picture, 0 where there is none.  `boxes_*.lua` keep the same rules in Redis.
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct
from msgspec.structs import replace

AWAKE_SECONDS: Final = 15.0  # AWAKE_MS in boxes.lua
MOST_PAUSE_SECONDS: Final = 900.0  # MOST_PAUSE_MS
MOST_BOOT_SECONDS: Final = 3_600.0
_MOST_DOUBLINGS: Final = 10


class Power(Struct, frozen=True, kw_only=True):
    """Of one box.

    Attributes:
        awake_ms: when it answered last, if it has not been silent since.
        woken_ms: when it was woken last, if it has not answered since; `woken_by` whom.
        boots_until_ms: so long it is expected to answer.
        wakings: how often it was woken without an answer.
        wake_after_ms: it is not woken before.
        boot_seconds: that a boot took, as was seen; 0: nobody has.
        asleep_ms: when it was put to sleep, if it has not answered since.
        settled_ms: until then an answer does not count.
        used_ms: when it was last seen to be used.
        rest_after_ms: it is not put to sleep before.
        token: of the grant that is under way.
    """

    awake_ms: int = 0
    woken_ms: int = 0
    woken_by: str = ""
    boots_until_ms: int = 0
    wakings: int = 0
    wake_after_ms: int = 0
    boot_seconds: float = 0.0
    asleep_ms: int = 0
    settled_ms: int = 0
    used_ms: int = 0
    rest_after_ms: int = 0
    token: str = ""

    def is_awake(self, now_ms: int) -> bool:
        """Whether it answered a moment ago, and nobody has put it to sleep since."""
        return self.awake_ms > now_ms - AWAKE_SECONDS * 1000 and not self.asleep_ms

    def answered(self, now_ms: int) -> Power:
        """It answers."""
        if now_ms < self.settled_ms:
            return self
        boot = self.boot_seconds
        if self.woken_ms and now_ms <= self.boots_until_ms:
            seen = min(max(1.0, (now_ms - self.woken_ms) / 1000), MOST_BOOT_SECONDS)
            boot = (boot + seen) / 2 if boot else seen
        slept = self.asleep_ms or self.woken_ms
        return Power(
            awake_ms=now_ms,
            boot_seconds=boot,
            used_ms=now_ms if slept else self.used_ms,
            rest_after_ms=self.rest_after_ms,
        )

    def silent(self) -> Power:
        """It does not."""
        return replace(self, awake_ms=0)

    def woken(self, token: str, worker: str, now_ms: int, boot_ms: int) -> Power | None:
        """This worker wakes it; None: nobody is to."""
        if self.token == token and self.woken_ms:
            return self
        if self.is_awake(now_ms) or now_ms < self.wake_after_ms:
            return None
        wakings = min(self.wakings + 1, _MOST_DOUBLINGS)
        pause_ms = min(boot_ms * 2 ** (wakings - 1), round(MOST_PAUSE_SECONDS * 1000))
        return Power(
            woken_ms=now_ms,
            woken_by=worker,
            boots_until_ms=now_ms + 2 * boot_ms,
            wakings=wakings,
            wake_after_ms=now_ms + 2 * boot_ms + pause_ms,
            boot_seconds=self.boot_seconds,
            used_ms=self.used_ms,
            token=token,
        )

    def used(self, now_ms: int, idle_ms: int, *, is_busy: bool) -> Power:
        """A worker has not used it for so long."""
        before = self.used_ms if 0 < self.used_ms <= now_ms else now_ms
        return replace(self, used_ms=now_ms if is_busy else max(before, now_ms - idle_ms))

    def rested(self, token: str, now_ms: int, after_ms: int, claim_ms: int) -> Power | None:
        """Whoever asks puts it to sleep, within so long; None: it is not idle, or sleeps."""
        if self.token == token and self.asleep_ms:
            return self
        is_idle = now_ms - self.used_ms >= after_ms and now_ms >= self.rest_after_ms
        if self.asleep_ms or self.woken_ms or not is_idle:
            return None
        until = now_ms + claim_ms
        return replace(self, awake_ms=0, asleep_ms=now_ms, settled_ms=until, wake_after_ms=until, token=token)

    def slept(self, token: str, now_ms: int, settle_ms: int) -> Power:
        """It has been put to sleep, and is off in so long."""
        if self.token != token or not self.asleep_ms:
            return self
        until = now_ms + settle_ms
        return replace(self, asleep_ms=now_ms, settled_ms=until, wake_after_ms=until, token="")

    def stayed(self, token: str, now_ms: int, retry_ms: int) -> Power:
        """It has not, and is not to be tried again for so long."""
        if self.token != token or not self.asleep_ms:
            return self
        return Power(boot_seconds=self.boot_seconds, used_ms=now_ms, rest_after_ms=now_ms + retry_ms)
