"""Calls of a run that wait for a person: asked at the terminal, or told with the command that answers them."""

from __future__ import annotations

import asyncio
import json
from getpass import getuser
from typing import TYPE_CHECKING, Any, Never

from llm_routerd.cli.exits import UsageError
from llm_routerd.cli.run_lines import how_to_answer, until
from llm_routerd.cli.terminal import harmless, one_line
from llm_routerd.errors import BrokerError, NotAllowedError
from llm_routerd.protocol.consent import Calls, Word

if TYPE_CHECKING:
    from llm_routerd.cli.keyboard import Keyboard
    from llm_routerd.cli.views import View
    from llm_routerd.client import Client, ClientEvent, ToolCalled

QUIET_SECONDS = 0.2  # what has been answered long ago is read within this
_STANDING_SECONDS = 5.0
_PROMPT = "Allow it? y, n [reason], a (always): "


class Confirming:
    """A view of a request in front of another one, which asks as well.

    `run` beside what shows the events.  A question ends with the word of whoever answers first, here or elsewhere.

    Args:
        client: writes what is said.
        view: shows the events.
        request_id: whose they are.
        keyboard: where a person is asked; None: nowhere, and it is told how to answer.
    """

    def __init__(self, client: Client, view: View, request_id: str, keyboard: Keyboard | None) -> None:
        self._client = client
        self._view = view
        self._id = request_id
        self._keyboard = keyboard
        self._calls = Calls()
        self._done: set[str] = set()  # ids of calls that were asked about, or told of
        self._news = asyncio.Event()
        self._is_open = False  # the cursor stands behind a question

    def show(self, event: ClientEvent) -> None:
        """See `View.show`."""
        self._break_line()
        self._view.show(event)
        self._calls.see([event])
        self._news.set()

    def remark(self, text: str) -> None:
        """See `View.remark`."""
        self._break_line()
        self._view.remark(text)

    def _break_line(self) -> None:
        if self._is_open and self._keyboard is not None:
            self._keyboard.write("\n")
            self._is_open = False

    async def run(self) -> Never:
        """Ask, or tell, as often as a call waits."""
        while True:
            call = await self._next()
            self._done.add(call.call_id)
            if self._keyboard is None or not await self._ask(call, self._keyboard):
                self.remark(how_to_answer(self._id, call))

    async def _next(self) -> ToolCalled:
        while True:
            self._news.clear()
            if self._open_calls():
                await asyncio.sleep(QUIET_SECONDS)
                if still := self._open_calls():
                    return still[0]
            else:
                await self._news.wait()

    def _open_calls(self) -> list[ToolCalled]:
        return [call for call in self._calls.waiting() if call.call_id not in self._done]

    def _waits(self, call: ToolCalled) -> bool:
        return any(each.call_id == call.call_id for each in self._calls.waiting())

    async def _ask(self, call: ToolCalled, keyboard: Keyboard) -> bool:
        """Have it answered; whether it is, or nobody need answer it any more."""
        self._break_line()
        keyboard.forget()
        keyboard.write(shown(call))
        try:
            while self._waits(call):
                line = await self._line(call, keyboard)
                if line is None:
                    return self._leave(call)
                word = word_of(line, call)
                if word is not None and (is_said := await self._say(word, call)) is not None:
                    return is_said
        finally:
            self._break_line()
        return True

    def _leave(self, call: ToolCalled) -> bool:
        """Nothing more can be typed, unless the call has been answered elsewhere."""
        if self._waits(call):
            self._break_line()
            self._keyboard = None
        return not self._waits(call)

    async def _line(self, call: ToolCalled, keyboard: Keyboard) -> str | None:
        """What is typed; None: nothing more will be, or the call has been answered elsewhere."""
        typing = asyncio.create_task(keyboard.line(), name="keyboard")
        try:
            while self._waits(call) and not typing.done():
                if not self._is_open:
                    keyboard.write(_PROMPT)
                    self._is_open = True
                self._news.clear()
                news = asyncio.create_task(self._news.wait(), name="news")
                await asyncio.wait({typing, news}, return_when=asyncio.FIRST_COMPLETED)
                news.cancel()
            if not typing.done():
                return None
            line = typing.result()
            self._is_open = line is None  # who typed a line ended this one as well
            return line
        finally:
            typing.cancel()
            await asyncio.wait({typing})

    async def _say(self, word: Word, call: ToolCalled) -> bool | None:
        """Whether it has been said; None: it may be tried again.  Who may not say it is asked no more."""
        try:
            await speak(self._client, self._id, call.call_id, word, person())
            async with asyncio.timeout(_STANDING_SECONDS):
                while self._waits(call):
                    self._news.clear()
                    await self._news.wait()
        except NotAllowedError as error:
            self.remark(f"Redis does not allow that: {error}")
            self._keyboard = None
            return False
        except BrokerError as error:
            self.remark(f"it could not be said: {error}")
            return None
        except TimeoutError:
            self.remark("that was said, and no worker has heard it yet")
        return True


def person() -> str:
    """Who sits here: the login name.

    Raises:
        UsageError: this user has none.
    """
    try:
        return getuser()
    except (OSError, KeyError, ImportError):
        raise UsageError("this user has no login name; say who you are with --by") from None


def shown(call: ToolCalled) -> str:
    """A call with all that a person agrees to: lines, the last of them ended."""
    return f"{one_line(call.name)} asks for a yes{until(call)}, with\n{arguments_of(call.arguments)}\n"


def arguments_of(arguments: Any) -> str:
    """All arguments of a call, on lines."""
    return harmless(json.dumps(arguments, ensure_ascii=False, indent=2))


async def speak(client: Client, request_id: str, call_id: str, word: Word, by: str) -> None:
    """Say a word.

    Raises:
        BrokerError: it could not be said.
    """
    if word.agrees:
        await client.confirm(
            request_id,
            call_id,
            args_sha256=word.args_sha256,
            by=by,
            args=word.args,
            always=word.always,
            reason=word.reason,
        )
    else:
        await client.deny(request_id, call_id, by=by, reason=word.reason)


def word_of(line: str, call: ToolCalled) -> Word | None:
    """What a typed line says to a call; None: nothing that is understood."""
    said, _, reason = line.partition(" ")
    match said.lower():
        case "y" | "yes" if not reason:
            return Word(agrees=True, args_sha256=call.args_sha256)
        case "a" | "always" if not reason:
            return Word(agrees=True, args_sha256=call.args_sha256, always=True)
        case "n" | "no":
            return Word(agrees=False, reason=reason.strip())
        case _:
            return None
