"""How tests call a backend and look at what came."""

from __future__ import annotations

import socket
from contextlib import ExitStack, aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from llm_routerd.backends.factory import Backends
from llm_routerd.config.tree import Deployment
from llm_routerd.protocol.call import Call, Delta, Finish

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from llm_routerd.protocol.backend import Backend

PROTOCOLS = ("ollama", "openai", "anthropic")
KEY = "sk-made-up-0123456789"


def deployment_of(protocol: str, url: str, **more: Any) -> Deployment:
    """A deployment of the stand-in's model at `url`, called directly."""
    settings = {"name": protocol, "model": f"{protocol}/stand-in", "api_base": url, "api_key": KEY, **more}
    return Deployment(**settings)


@asynccontextmanager
async def backend_for(protocol: str, url: str, **more: Any) -> AsyncIterator[Backend]:
    """The backend of such a deployment; its connections are closed at the end."""
    backends = Backends({protocol: deployment_of(protocol, url, **more)})
    try:
        yield backends.get(protocol)
    finally:
        await backends.aclose()


def call_to(deployment: Deployment, call: Call) -> Call:
    """The call with the deployment's own parameters, as a request's run makes it."""
    return replace(call, params=deployment.params_for(call.params))


def ask(text: str = "Hello", **more: Any) -> Call:
    """A call with one user message."""
    return Call(messages=({"role": "user", "content": text},), **more)


@dataclass(frozen=True, slots=True)
class Told:
    """A whole answer: the deltas, and the finish; `text` and `reasoning` are joined over both."""

    deltas: list[Delta]
    finish: Finish

    @property
    def text(self) -> str:
        """All text."""
        return "".join(delta.text for delta in self.deltas) + self.finish.text

    @property
    def reasoning(self) -> str:
        """All thinking."""
        return "".join(delta.reasoning for delta in self.deltas) + self.finish.reasoning


async def tell(backend: Backend, call: Call) -> Told:
    """Read a stream to its end; there is exactly one `Finish`, and it is last."""
    deltas: list[Delta] = []
    finish: Finish | None = None
    async with aclosing(backend.stream(call)) as stream:
        async for item in stream:
            assert finish is None, "something came after the finish"
            if isinstance(item, Finish):
                finish = item
            else:
                deltas.append(item)
    assert finish is not None, "a stream ended without finish or error"
    return Told(deltas, finish)


@contextmanager
def full_server() -> Iterator[str]:
    """The address of a server that accepts nobody: connections to it never come to stand."""
    with ExitStack() as stack:
        listening = stack.enter_context(socket.socket())
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        for _ in range(3):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(listening.getsockname())
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
