"""A person's word to one call, from the command line: found, shown, asked for, said, and seen to stand."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from msgspec.structs import replace

from llm_routerd.agents.registration import Unsound, read_tool
from llm_routerd.cli.confirming import arguments_of, person, speak
from llm_routerd.cli.exits import Exit, UsageError
from llm_routerd.cli.run_lines import changes_of, until, waiting_line
from llm_routerd.cli.settings import open_client, redis_of
from llm_routerd.cli.terminal import complain, json_line, note, one_line, say
from llm_routerd.cli.unknown import unknown
from llm_routerd.client import CallConfirmed, check_id
from llm_routerd.errors import NotAllowedError
from llm_routerd.jsonschema.compiled import SchemaCache
from llm_routerd.protocol.consent import Calls, Discounted, WhyNot, Word

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from llm_routerd.cli.keyboard import Keyboard
    from llm_routerd.client import Client, ToolCalled

_STANDING_SECONDS = 5.0  # a worker that is there hears it within one
_EVENTS_PER_READ = 500
_MOST_BY_BYTES = 200  # which a worker keeps of it
_NO_EVENTS = "0-0"
_EXITS = {WhyNot.NOT_FOUND: Exit.UNKNOWN, WhyNot.EXPIRED: Exit.TIMED_OUT}


class Saying:
    """One word, said once.

    Args:
        arguments: `id`, `call` (None: the only one that waits), `by` (None: the login name), `json`.
        word: what is said; the hash of the arguments is put in when they have been seen.
        keyboard: where a person sees the call, and is asked whether that is to be said; None: nowhere, and it is.

    Raises:
        UsageError: the arguments are none that can be used.
    """

    def __init__(self, arguments: argparse.Namespace, word: Word, keyboard: Keyboard | None = None) -> None:
        try:
            check_id(arguments.id)
        except ValueError as error:
            raise UsageError(str(error)) from error
        self._arguments = arguments
        self._id: str = arguments.id
        self._by: str = person() if arguments.by is None else arguments.by
        if not (self._by.strip() and self._by.isprintable() and len(self._by.encode()) <= _MOST_BY_BYTES):
            raise UsageError(f"--by: expected a name, of at most {_MOST_BY_BYTES} bytes")
        self._word = word
        self._keyboard = keyboard
        self._calls = Calls()
        self._position = _NO_EVENTS

    async def run(self) -> Exit:
        """Say it; the exit code."""
        async with await open_client(redis_of(self._arguments), self._id) as client:
            await self._look(client)
            if self._position == _NO_EVENTS:
                return await self._unknown(client)
            waiting = self._calls.waiting()
            if self._arguments.call is None and len(waiting) > 1:
                return self._several(waiting, await self._now_ms(client))
            call = self._find(waiting)
            if isinstance(call, Discounted):
                return self._refuse(call)
            return await self._say(client, call)

    async def _say(self, client: Client, call: ToolCalled) -> Exit:
        """Show it, ask, say it of the arguments that were shown, and see what becomes of it."""
        self._show(call)
        if (told := await self._discount(client, call)) is not None:
            return self._refuse(told, call)
        if problem := await self._unfit(client, call):
            raise UsageError(f"--args: {call.name} does not take these: {problem}")
        if self._keyboard is not None:
            if not await _is_wanted(self._keyboard, call):
                note(f"nothing was said; llm-routerd deny {self._id} {call.call_id} refuses it")
                return Exit.FAILED
            await self._look(client)
            if (told := await self._discount(client, call)) is not None:  # meanwhile others may have answered
                return self._refuse(told, call)
        await speak(client, self._id, call.call_id, replace(self._word, args_sha256=call.args_sha256), self._by)
        try:
            async with asyncio.timeout(_STANDING_SECONDS):
                return await self._stands(client, call)
        except TimeoutError:
            return self._unheard(call)

    async def _look(self, client: Client) -> None:
        """See what has happened since."""
        while events := await client.events_after(self._id, self._position, _EVENTS_PER_READ):
            self._calls.see(events)
            self._position = events[-1].stream_id

    async def _unknown(self, client: Client) -> Exit:
        """There are no events."""
        sighting = await client.look_up(self._id)
        if sighting.is_known:
            return self._refuse(Discounted(WhyNot.NOT_FOUND, f"{self._id} is queued: it has called no tool yet"))
        told = await unknown(client, self._id, sighting.others)
        return self._refuse(Discounted(WhyNot.NOT_FOUND, f"{told}; {sighting.why_unsure}".removesuffix("; ")))

    def _find(self, waiting: Sequence[ToolCalled]) -> ToolCalled | Discounted:
        """The call that is meant; at most one waits, or it is named."""
        if self._arguments.call is not None:
            call = self._calls.get(self._arguments.call)
            hint = f"; there waits {_names(waiting)}" if waiting else ""
            return call or Discounted(WhyNot.NOT_FOUND, f"{self._id} has no tool call {self._arguments.call}{hint}")
        if waiting:
            return waiting[0]
        told = self._calls.why_none()
        return Discounted(told.why, f"no tool call of {self._id} waits for a person: {told.message}")

    def _several(self, waiting: Sequence[ToolCalled], now_ms: int) -> Exit:
        """One has to be named."""
        told = f"several calls wait: name one of {_names(waiting)}"
        if self._arguments.json:
            calls = [
                {name: getattr(each, name) for name in ("call_id", "name", "arguments", "args_sha256", "expires_at_ms")}
                for each in waiting
            ]
            self._tell(None, WhyNot.NOT_FOUND, told, calls=calls)
        else:
            for each in waiting:
                say(waiting_line(each.call_id, each.name, each.arguments, each.expires_at_ms, now_ms))
            complain(told)
        return Exit.UNKNOWN

    def _show(self, call: ToolCalled) -> None:
        """All that a person agrees to; where one is asked, there, wherever stdout goes."""
        if self._arguments.json:
            return
        lines = [one_line(f"{call.name} ({call.call_id}, turn {call.turn}), with"), arguments_of(call.arguments)]
        if self._word.args is not None:
            lines += ["changed; it is called with", arguments_of(self._word.args)]
        if self._keyboard is not None:
            self._keyboard.write("".join(f"{line}\n" for line in lines))
        else:
            say("\n".join(lines))

    async def _discount(self, client: Client, call: ToolCalled) -> Discounted | None:
        """Why it does not count, as far as is known by now; None: it does."""
        return self._calls.why_not(call.call_id, Word(agrees=True), await self._now_ms(client))

    async def _now_ms(self, client: Client) -> int:
        """By the server's clock; 0 where this user may not ask: then the worker says what is too late."""
        try:
            return await client.server_time_ms(self._id)
        except NotAllowedError:
            return 0

    async def _unfit(self, client: Client, call: ToolCalled) -> str:
        """Why the tool does not take the arguments given for its own; "": it does, or this user may not look at it."""
        if self._word.args is None:
            return ""
        try:
            registration = await client.shards.home(self._id).tool(call.name)
        except NotAllowedError:
            return ""
        if registration is None:
            return "it is not registered any more"
        tool = read_tool(call.name, registration, SchemaCache(1))
        return tool.why if isinstance(tool, Unsound) else tool.parameters.validate(self._word.args) or ""

    async def _stands(self, client: Client, call: ToolCalled) -> Exit:
        """Wait for what becomes of it."""
        async for event in client.follow(self._id, self._position):
            self._calls.see([event])
            said = self._calls.word(call.call_id)
            if said is not None and said.by == self._by and isinstance(said, CallConfirmed) is self._word.agrees:
                if self._arguments.json:
                    say(json_line({"id": said.id, "type": said.type, "data": said.data}))
                else:
                    say(one_line(f"{said.type} by {said.by}{changes_of(said)}"))
                return Exit.OK
            if (told := self._calls.why_not(call.call_id, self._word, 0)) is not None:
                return self._refuse(told, call)
        raise AssertionError("a stream ends with its final event")

    def _unheard(self, call: ToolCalled) -> Exit:
        """It has been written, and that is all."""
        may_be = "no worker has this run now"
        if self._word.args is not None:
            may_be = f"{call.name} does not take these arguments, or {may_be}"
        told = f"this was said, and nothing has come of it within {_STANDING_SECONDS:g} s: {may_be}"
        self._tell(call, "unheard", f"{told}; see llm-routerd follow {self._id}")
        return Exit.TIMED_OUT

    def _refuse(self, told: Discounted, call: ToolCalled | None = None) -> Exit:
        """It does not count, and why."""
        self._tell(call, told.why, told.message)
        return _EXITS.get(told.why, Exit.FAILED)

    def _tell(self, call: ToolCalled | None, why: str, message: str, **more: object) -> None:
        if self._arguments.json:
            call_id = self._arguments.call if call is None else call.call_id
            say(json_line({"request": self._id, "call_id": call_id, "why": why, "message": message, **more}))
        else:
            complain(message)


def _names(calls: Sequence[ToolCalled]) -> str:
    return ", ".join(f"{call.call_id} ({call.name})" for call in calls)


async def _is_wanted(keyboard: Keyboard, call: ToolCalled) -> bool:
    """Ask; whoever leaves (Ctrl-D) has not said yes."""
    keyboard.forget()  # what was typed before the call was shown is no answer
    while True:
        keyboard.write(f"Allow it{until(call)}? y, n: ")
        match await keyboard.line():
            case None:
                keyboard.write("\n")
                return False
            case line if line.lower() in {"y", "yes", "n", "no"}:
                return line.lower() in {"y", "yes"}
            case _:
                pass
