"""Requests that are run on fake models, and what came of them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import orjson
from msgspec.structs import replace

from llm_routerd.jsonschema.compiled import SchemaCache
from llm_routerd.protocol.events import AttemptRejected
from llm_routerd.protocol.parsing import RequestParser
from llm_routerd.protocol.request import Request
from llm_routerd.routing.chains import resolve
from llm_routerd.running.ending import Answered, Unanswered, Withdrawn
from llm_routerd.running.run import Run
from tests.support.fakes import FakeBackend, says
from tests.support.workers import CLOUD, LOCAL, make_config, make_test_resources

if TYPE_CHECKING:
    from llm_routerd.config.tree import Config
    from llm_routerd.protocol.events import AttemptEvent, AttemptStarted, Queued
    from llm_routerd.running.attempt import EventSink
    from llm_routerd.running.resources import Resources

SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer"}},
    "required": ["n"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


class Sink:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, Any]] = []
        self.waits: list[Queued] = []
        self.open = asyncio.Event()
        self.open.set()
        self.is_ours = True

    async def begin(self, event: AttemptStarted) -> int:
        """As told."""
        self.seen.append(("attempt", event.deployment))
        return sum(kind == "attempt" for kind, _ in self.seen) if self.is_ours else 0

    def emit(self, event: AttemptEvent) -> None:
        """Keep it."""
        told = event.code.value if isinstance(event, AttemptRejected) else event.text
        self.seen.append((event.type, told))

    def queued(self, event: Queued) -> bool:
        """Keep it."""
        self.waits.append(event)
        return True

    @property
    def shown(self) -> str:
        """The text that stands: what was dropped is not."""
        last = max((at for at, (kind, _) in enumerate(self.seen) if kind == "rejected"), default=-1)
        return "".join(text for kind, text in self.seen[last + 1 :] if kind in {"token", "reasoning"})

    @property
    def has_room(self) -> bool:
        """As told."""
        return self.open.is_set()

    async def room(self) -> None:
        """Wait until told."""
        await self.open.wait()


def request(**properties: Any) -> Request:
    """A request, parsed as the daemon does it."""
    parser = RequestParser(max_request_bytes=4_000_000, schemas=SchemaCache())
    parsed = parser.parse("1-0", [b"data", orjson.dumps({"prompt": "hello", **properties})])
    assert isinstance(parsed, Request), parsed
    return parsed


def make_run(resources: Resources, asked: Request, sink: EventSink, *, seconds: float | None = None) -> Run:
    """It, on its way through the chain that it names."""
    chain = resolve(resources.config, asked.model)
    assert chain is not None
    deadline = None if seconds is None else asyncio.get_running_loop().time() + seconds
    return Run(resources, asked, chain, sink, deadline=deadline)


async def run(
    resources: Resources, asked: Request, sink: Sink | None = None, *, seconds: float | None = None
) -> Answered | Unanswered:
    """Run it to its end."""
    ending = await make_run(resources, asked, sink or Sink(), seconds=seconds).until_done()
    assert not isinstance(ending, Withdrawn)
    return ending


def codes(ending: Answered | Unanswered) -> list[str | None]:
    """The code of each attempt, None for the one that answered."""
    return [None if record.code is None else record.code.value for record in ending.spent.attempts]


def resources_of(
    *local: Any, cloud: Any = None, config: Config | None = None
) -> tuple[Resources, FakeBackend, FakeBackend]:
    """Resources whose local model plays these scripts, and the cloud one answers."""
    one, other = FakeBackend(*local), FakeBackend(cloud or says("from the cloud"))
    return make_test_resources(config or make_config(), {"local": one, "cloud": other}), one, other


def with_local(**changes: Any) -> Config:
    """The configuration, with another local deployment."""
    config = make_config()
    return replace(config, deployments={"local": replace(LOCAL, **changes), "cloud": CLOUD})
