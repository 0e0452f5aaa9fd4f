"""Models that do as they are told, without HTTP."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from llm_routerd.protocol.call import BackendError, Call, Delta, Finish, ProbeReport, Window
from llm_routerd.protocol.outcome import Usage

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping

    from llm_routerd.protocol.codes import AttemptCode, Lack

    Script = Callable[["FakeBackend", Call], AsyncGenerator[Delta | Finish, None]]

USAGE = Usage(prompt_tokens=10, completion_tokens=5)


class FakeBackend:
    """Answers each call with the next of its scripts, and for ever with the last one."""

    def __init__(self, *scripts: Script) -> None:
        self.scripts = list(scripts)
        self.calls: list[Call] = []
        self.running = 0
        self.closed = 0
        self.loaded: bool | None = True
        self.has_window: Window | None = None
        self.has_resident: Mapping[str, int] | None = None
        self.asked_for_window = 0
        self.has_loaded: int | None = 0
        self.looked_at = 0
        self.warmed_for: list[int | None] = []
        self.on_warm: Callable[[], Awaitable[None]] | None = None

    async def stream(self, call: Call) -> AsyncGenerator[Delta | Finish, None]:
        """Play the script; `running` tells whether the model still works for somebody."""
        self.calls.append(call)
        script = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]
        self.running += 1
        try:
            async for item in script(self, call):
                yield item
        finally:
            self.running -= 1
            self.closed += 1

    async def probe(self) -> ProbeReport:
        """As told."""
        return ProbeReport(ok=True, detail="fake", loaded=self.loaded)

    async def window(self) -> Window | None:
        """As told."""
        self.asked_for_window += 1
        return self.has_window

    async def loaded_window(self) -> int | None:
        """As told."""
        self.looked_at += 1
        return self.has_loaded

    async def resident(self) -> Mapping[str, int] | None:
        """As told."""
        return self.has_resident

    async def warm(self, *, num_ctx: int | None = None) -> None:
        """As told."""
        self.warmed_for.append(num_ctx)
        if self.on_warm is not None:
            await self.on_warm()
        self.loaded = True


class FakeBackends:
    """A backend by deployment name."""

    def __init__(self, backends: Mapping[str, FakeBackend]) -> None:
        self.backends = backends
        self.closed = False

    def get(self, name: str) -> FakeBackend:
        """The one of this name."""
        return self.backends[name]

    async def preload(self) -> Mapping[str, str]:
        """Nothing is slow here, and nothing unusable."""
        return {}

    async def aclose(self) -> None:
        """Note it."""
        self.closed = True


def says(*texts: str, finish_reason: str = "stop", delay: float = 0.0) -> Script:
    """Each text as a delta, then the end."""

    async def script(_backend: FakeBackend, _call: Call) -> AsyncGenerator[Delta | Finish, None]:
        for text in texts:
            await asyncio.sleep(delay)
            yield Delta(text)
        yield Finish(finish_reason=finish_reason, usage=USAGE)

    return script


def fails(
    code: AttemptCode, *, after: tuple[str, ...] = (), retryable: bool = False, lack: Lack | None = None
) -> Script:
    """Some text, then a failure."""

    async def script(_backend: FakeBackend, _call: Call) -> AsyncGenerator[Delta | Finish, None]:
        for text in after:
            yield Delta(text)
        raise BackendError(code, "scripted", retryable=retryable, lack=lack)

    return script


def breaks() -> Script:
    """What nobody foresaw."""

    async def script(_backend: FakeBackend, _call: Call) -> AsyncGenerator[Delta | Finish, None]:
        yield Delta("a")
        raise KeyError("1")

    return script


def hangs(*texts: str) -> Script:
    """Some text, and then silence."""

    async def script(_backend: FakeBackend, _call: Call) -> AsyncGenerator[Delta | Finish, None]:
        for text in texts:
            yield Delta(text)
        await asyncio.Event().wait()

    return script


def babbles(text: str = "word ", pause: float = 0.0) -> Script:
    """Text without end."""

    async def script(_backend: FakeBackend, _call: Call) -> AsyncGenerator[Delta | Finish, None]:
        while True:
            yield Delta(text)
            await asyncio.sleep(pause)

    return script


def waits_for(gate: asyncio.Event, text: str = "done") -> Script:
    """Nothing until the gate opens, then an answer."""

    async def script(_backend: FakeBackend, _call: Call) -> AsyncGenerator[Delta | Finish, None]:
        await gate.wait()
        yield Finish(finish_reason="stop", usage=USAGE, text=text)

    return script
