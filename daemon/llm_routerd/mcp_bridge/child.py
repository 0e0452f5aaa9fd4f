"""An MCP server as a child process: JSON-RPC in lines over its stdin and stdout.

The SDK has such a transport, whose lines have no bound and whose children outlive a bridge that is killed; hence this.
The end of a child, as the specification has it: its stdin is closed, then SIGTERM, then SIGKILL, for its whole group.
"""

from __future__ import annotations

import asyncio
import os
import signal
from asyncio.subprocess import DEVNULL, PIPE
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING, Any

import anyio
import mcp_types
from mcp.client.stdio import get_default_environment
from mcp.shared.message import SessionMessage

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from types import TracebackType

    from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
    from mcp.client._transport import TransportStreams

    from llm_routerd.config.mcp import McpServer

MOST_MESSAGE_BYTES = 8 * 1024 * 1024  # twice the longest result that a daemon can be set to keep
_GRACE_SECONDS = 2.0
_POLL_SECONDS = 0.01
_NO_SUCH_COMMAND = (126, 127)  # what a shell says of it

# The shell becomes the server and leaves a watcher behind, which waits for the end of a pipe that nothing is written to
# (by its path, for shells know ten numbers): that is our closing it, or our death, SIGKILL included.  Then all that is
# left of the group is killed, the watcher last.  $$ cannot meanwhile be another's group: the watcher is in it.
_START = (
    'exec 3<"/dev/fd/$1"; shift; '
    '(trap "" HUP INT TERM; read -r _ <&3; kill -s KILL -- "-$$") </dev/null >/dev/null 2>&1 & '
    'exec 3<&-; exec "$@"'
)


class ChildTransport:
    """A transport of the SDK's kind.

    Args:
        server: what to start.
        stderr: let the child's stderr through to ours; it may say anything, secrets too.

    Attributes:
        ended: set once it can serve no longer.
        why: what has ended it; "" while nothing has.
    """

    def __init__(self, server: McpServer, *, stderr: bool) -> None:
        self._server = server
        self._stderr = None if stderr else DEVNULL
        self.ended = asyncio.Event()
        self.why = ""
        self._is_ending = False
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> TransportStreams:
        """Start it.

        Raises:
            OSError: it cannot be started.
        """
        process, life = await self._start()
        to_us, received = anyio.create_memory_object_stream[SessionMessage | Exception](0)
        sent, from_us = anyio.create_memory_object_stream[SessionMessage](0)
        async with AsyncExitStack() as stack:
            tasks = await stack.enter_async_context(anyio.create_task_group())
            stack.callback(tasks.cancel_scope.cancel)
            stack.push_async_callback(_end, process, life)
            for stream in (received, sent, to_us, from_us):
                stack.callback(stream.close)
            tasks.start_soon(self._read, process, to_us)
            tasks.start_soon(self._write, process, from_us)
            self._stack = stack.pop_all()
        return received, sent

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End it; takes some seconds where it will not."""
        self._is_ending = True
        await self._stack.__aexit__(kind, error, traceback)

    async def _start(self) -> tuple[Process, int]:
        reading, life = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                "/bin/sh",
                "-c",
                _START,
                "sh",
                str(reading),
                *self._server.command,
                env=get_default_environment() | dict(self._server.env),
                cwd=self._server.cwd,
                stdin=PIPE,
                stdout=PIPE,
                stderr=self._stderr,
                limit=MOST_MESSAGE_BYTES,
                pass_fds=(reading,),
                start_new_session=True,
            )
        except BaseException:
            os.close(life)
            raise
        finally:
            os.close(reading)
        return process, life

    async def _read(self, process: Process, to_us: MemoryObjectSendStream[SessionMessage | Exception]) -> None:
        with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):  # nobody listens any more
            async with to_us:
                while not self.ended.is_set():
                    try:
                        line = await _stdout_of(process).readline()
                    except ValueError:
                        self._end_with(f"it sent a message of more than {MOST_MESSAGE_BYTES} bytes")
                        continue
                    if not line:
                        self._end_with(await _ending_of(process))
                    elif (message := _message_in(line)) is not None:
                        await to_us.send(message)

    async def _write(self, process: Process, from_us: MemoryObjectReceiveStream[SessionMessage]) -> None:
        assert process.stdin is not None  # noqa: S101 - a pipe was asked for
        with suppress(ConnectionError, anyio.ClosedResourceError):
            async with from_us:
                async for each in from_us:
                    line = each.message.model_dump_json(by_alias=True, exclude_unset=True)
                    process.stdin.write(line.encode(errors="replace") + b"\n")
                    await process.stdin.drain()

    def _end_with(self, why: str) -> None:
        if not self._is_ending:  # by us
            self.why = why
        self.ended.set()


def _stdout_of(process: Process) -> asyncio.StreamReader:
    assert process.stdout is not None  # noqa: S101 - a pipe was asked for
    return process.stdout


def _message_in(line: bytes) -> SessionMessage | None:
    """The message in a line; None: it is none, as of servers that print there."""
    try:
        return SessionMessage(
            mcp_types.jsonrpc_message_adapter.validate_json(line.decode(errors="replace"), by_name=False)
        )
    except ValueError:
        return None


async def _ending_of(process: Process) -> str:
    """Why its stdout has come to its end."""
    if not await _has_ended(process):
        return "it has closed its stdout"
    code = process.returncode or 0
    if code in _NO_SUCH_COMMAND:
        return "its command cannot be started; is it installed, and in PATH?"
    return f"it has ended by signal {-code}" if code < 0 else f"it has ended with exit code {code}"


async def _end(process: Process, life: int) -> None:
    """Close its stdin, ask it to end, and kill what is left of its group."""
    with anyio.CancelScope(shield=True):
        if process.stdin is not None:
            process.stdin.close()
        if not await _has_ended(process):
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGTERM)
            await _has_ended(process)
        os.close(life)
        await _has_ended(process)
        transport: Any = getattr(process, "_transport", None)
        if transport is not None:
            transport.close()  # which nothing public does; what it still has to say is not read


async def _has_ended(process: Process) -> bool:
    """Whether it ends in good time; by its exit code, for `wait` waits for the pipes too."""
    for _ in range(round(_GRACE_SECONDS / _POLL_SECONDS)):
        if process.returncode is not None:
            return True
        await anyio.sleep(_POLL_SECONDS)
    return process.returncode is not None
