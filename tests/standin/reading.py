"""What a box has read of a prompt, and how servers tell of it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.standin.box import Kind

_NS, _MS = 10**9, 10**3


@dataclass(slots=True, kw_only=True)
class Reading:
    """A prompt that was read, of a call that has its place.

    Attributes:
        kind: of the server.
        tokens: as far as they were read, after a cut.
        cached: of these, how many stood in the slot's cache.
        counts_cached: whether these are part of the count that is told.
        seconds: that reading the others took.
        load_seconds: that the call waited for its model to be ready.
        room: tokens that the answer may have before the window is full; None: the window is shifted on.
        answer: what was said, to stand in the slot's cache; filled in by whoever says it.
    """

    kind: Kind
    tokens: list[int]
    cached: int
    counts_cached: bool = True
    seconds: float = 0.0
    load_seconds: float = 0.0
    room: int | None = None
    answer: str = ""
    began: float = field(default_factory=time.monotonic)

    @property
    def new(self) -> int:
        """Tokens that were read."""
        return len(self.tokens) - self.cached

    @property
    def counted(self) -> int:
        """The prompt's tokens, as the server counts them."""
        return len(self.tokens) if self.counts_cached else self.new

    def durations(self) -> dict[str, int]:
        """Ollama's, in nanoseconds."""
        read, load = int(self.seconds * _NS), int(self.load_seconds * _NS)
        total = int((time.monotonic() - self.began) * _NS) + load
        return {"total_duration": total, "load_duration": load, "prompt_eval_duration": read}

    def timings(self, tokens: int) -> dict[str, Any]:
        """llama.cpp's `timings`, in milliseconds; nothing of other servers."""
        if self.kind != "llama.cpp":
            return {}
        read, said = self.seconds * _MS, max(1e-3, (time.monotonic() - self.began - self.seconds) * _MS)
        times = {"cache_n": self.cached, "prompt_n": self.new, "prompt_ms": read}
        times |= {"prompt_per_token_ms": read / self.new, "prompt_per_second": self.new / max(1e-6, self.seconds)}
        times |= {"predicted_n": tokens, "predicted_ms": said}
        times |= {"predicted_per_token_ms": said / max(1, tokens), "predicted_per_second": tokens / said * _MS}
        return {"timings": times}

    def openai_details(self) -> dict[str, Any]:
        """What `usage` has beside the counts; Ollama has nothing."""
        return {} if self.kind == "ollama" else {"prompt_tokens_details": {"cached_tokens": self.cached}}

    def anthropic_details(self) -> dict[str, int]:
        """What stands in `usage` in place of counts, where what was cached is counted apart."""
        if self.kind != "llama.cpp":
            return {}
        return {"cache_read_input_tokens": self.cached, "input_tokens": self.new}
