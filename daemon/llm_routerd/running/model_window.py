"""What is known of one model's window at one server, and which window its calls ask for.  Pure: it takes `now`.

Ollama loads a model anew for each call that asks for another window than it has.  Several workers, and several
deployments, may share a server; each asks for the larger of what its own prompts need and what the model is loaded
with, as was seen a moment ago.  So they come to the same window, the largest that somebody needs.

A window that only few prompts needed is given up `LARGE_SECONDS` after the last of them: whoever has needed it asks
for less, and the others, who see that, follow.  If one of them needs it still, it asks for it again, once.  Nobody
follows sooner: a smaller window that comes before that time is one that somebody asked for who had not looked yet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from llm_routerd.routing.prompt_size import Gauge
from llm_routerd.routing.window import FITS, LEAST_WINDOW, MOST_UNASKED, Fit

if TYPE_CHECKING:
    from llm_routerd.protocol.call import Window

LARGE_SECONDS: Final = 600.0
"""How long a window is asked for after the last prompt that needed it."""
_RENEWED_SECONDS: Final = 60.0  # so long a need counts as just told
_SHRINK_SECONDS: Final = 120.0  # so long may it take until a smaller window, which was asked for, is there
_LATE_SECONDS: Final = 10.0  # so long after that may others ask for the larger one who have not seen it
_FOLLOWED_SECONDS: Final = LARGE_SECONDS - 60.0  # so long nobody gives up a window that has been asked for
_RELOAD_SECONDS: Final = 5.0
_LEARN_SECONDS: Final = 1.0
_TIMES_UNHEEDED: Final = 2


class ModelWindow:
    """Of one model at one server.

    Args:
        most_followed: a larger window that others have had it loaded with is not asked for in their wake: it may be
            what the server loads by itself, or a count of all its slots together.

    Attributes:
        gauge: what its tokenizer makes of prompts.
        window: what its server tells; None: nothing.
        loaded: the window that it was last seen loaded with; None: it is not, or nobody tells.
        until: time at which the server is to be asked again what the model takes.
        looked: time at which it was seen what it is loaded with.
    """

    def __init__(self, *, most_followed: int = MOST_UNASKED) -> None:
        self._most_followed = most_followed
        self.gauge = Gauge()
        self.window: Window | None = None
        self.loaded: int | None = None
        self.until = float("-inf")
        self.looked = float("-inf")
        self._usual: int | None = None  # that its server takes by itself, or others have asked for
        self._needs: dict[int, float] = {}  # by window: until when it is asked for
        self._followed: dict[int, float] = {}  # likewise, of what others need
        self._seen_at = float("-inf")  # when it was loaded, as was last seen
        self._goes_until = float("-inf")  # until when it is not waited for where it is not loaded
        self._most: int | None = None  # more it could not be loaded with, or is not given
        self._most_until = float("-inf")
        self._shrinks_until = float("-inf")
        self._answered_with: int | None = None  # the window of a call that was answered since the last look
        self._unheeded = 0
        self._learnt = float("-inf")

    @property
    def in_force(self) -> int | None:
        """The window that calls ask for at least; None: as the server likes."""
        loaded = self.loaded if self.loaded is not None and self.loaded <= self._most_followed else 0
        return max((*self._needs, *self._followed, loaded), default=0) or None

    @property
    def as_before(self) -> Fit:
        """How a prompt fits that is short."""
        return FITS if self.in_force is None else Fit(num_ctx=self.in_force)

    def told(self, window: Window | None, now: float) -> None:
        """What the server tells of the model; None: it does not."""
        self.window = window
        if window is not None:
            self.seen(window.loaded, now)
            if not self._needs and window.now:
                self._usual = window.now
            self._correct()

    def untold(self, until: float) -> None:
        """The server did not answer, and is not asked again before that."""
        self.until, self.looked = max(self.until, until), max(self.looked, until)

    def seen(self, loaded: int | None, now: float) -> None:
        """What it is loaded with; 0: the server does not tell; None: it is not."""
        self.looked = now
        if loaded is not None:
            self._seen_at = now
        if loaded is not None and loaded < LEAST_WINDOW:
            loaded = None  # no model has so little
        if loaded is not None:
            if now < self._shrinks_until and loaded > (self.in_force or self._usual or 0):
                return  # the smaller one has not come yet
            if (
                self.loaded is not None
                and loaded < self.loaded
                and loaded == max((loaded, *self._needs, *self._followed))
            ):
                self._shrinks_until = now + _LATE_SECONDS  # given up by others
            if self._most_followed >= loaded > (self.in_force or loaded):
                self._followed = {loaded: now + _FOLLOWED_SECONDS}
            self._usual = min(self._usual or loaded, loaded)
            self._compare(loaded, now)
        self.loaded = loaded
        self._correct()

    def may_be_loading(self, now: float) -> bool:
        """Whether a model that is not loaded may be on its way there, with a window that will be told.

        It was loaded a moment ago, and nothing was said of it that its server lets models go at once.
        """
        return self._seen_at + _RELOAD_SECONDS > now >= self._goes_until

    def is_gone(self, now: float) -> None:
        """It was not loaded anew after all, though it was waited for."""
        self._goes_until = now + LARGE_SECONDS

    def needed(self, fit: Fit, now: float) -> None:
        """A call is made that fits so."""
        if fit.num_ctx is not None and fit.needs is not None:
            self._needs[fit.needs] = now + LARGE_SECONDS

    def is_just_needed(self, window: int, now: float) -> bool:
        """Whether it has been told a moment ago that prompts need this window."""
        return self._needs.get(window, float("-inf")) > now + LARGE_SECONDS - _RENEWED_SECONDS

    def may_learn(self, now: float) -> bool:
        """Whether a prompt may be measured for no other reason than to learn from it: one a second."""
        if now < self._learnt + _LEARN_SECONDS:
            return False
        self._learnt = now
        return True

    def answered(self, num_ctx: int | None, now: float) -> None:
        """A call was answered that has asked for this window."""
        self._shrinks_until = min(self._shrinks_until, now + _LATE_SECONDS)
        self._answered_with, self._seen_at = num_ctx, now
        if num_ctx is not None and self.loaded is not None and self.loaded != num_ctx:
            self.looked = float("-inf")  # see whether it was heeded

    def not_loaded(self, num_ctx: int, now: float) -> None:
        """The model could not be loaded with this window: for a while it is asked for less."""
        self._bound(num_ctx // 2, now)
        self.loaded, self.looked = None, float("-inf")

    def bound(self, context: int) -> int:
        """The most that is asked for, where the operator has set so much; 0: nothing bounds it."""
        return min((each for each in (context, self._most) if each), default=0)

    def forget(self, now: float) -> None:
        """What has had its time."""
        if now >= self._most_until:
            self._most = None
        if self._followed and min(self._followed.values()) <= now:
            self._followed = {}
        before = max(self._needs, default=0)
        if before and min(self._needs.values()) <= now:
            self._needs = {window: until for window, until in self._needs.items() if until > now}
            if (self.in_force or 0) <= before and max(self._needs, default=0) < before:
                self._followed = {}
                self._shrinks_until = now + _SHRINK_SECONDS
                self.loaded = None
                self._correct()

    def _compare(self, loaded: int, now: float) -> None:
        """Whether what was asked for is what there is; a server, or what stands before it, may pass over it."""
        asked, self._answered_with = self._answered_with, None
        if asked is not None:
            self._unheeded = self._unheeded + 1 if loaded < asked else 0
            if self._unheeded >= _TIMES_UNHEEDED:
                self._bound(loaded, now)

    def _bound(self, most: int, now: float) -> None:
        self._most, self._most_until = max(most, LEAST_WINDOW), now + LARGE_SECONDS
        self._needs = {window: until for window, until in self._needs.items() if window <= self._most}
        self._followed = {}

    def _correct(self) -> None:
        """Have `window` say what it has now; not loaded, what it had when nobody had asked for more."""
        if self.window is not None:
            now = self.loaded or (self.window.now if self.window.loaded is None else None) or self._usual
            self.window = replace(self.window, loaded=self.loaded, now=now)
