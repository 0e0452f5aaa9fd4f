"""How a request's events are shown: live on a terminal, as plain lines in a pipe, as JSON for a program."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from llm_routerd.cli.exits import Exit
from llm_routerd.cli.run_lines import RunLines
from llm_routerd.cli.terminal import Style, harmless, json_line, note, one_line, say
from llm_routerd.client import TurnEnded

if TYPE_CHECKING:
    from llm_routerd.client import ClientEvent


class View(Protocol):
    """Shows the events of one request, in their order."""

    def show(self, event: ClientEvent) -> None:
        """Show the next event, or pass over it."""
        ...

    def remark(self, text: str) -> None:
        """Tell the person something that is not an event."""
        ...


def exit_of(final: ClientEvent) -> Exit:
    """The exit code for how a request ended."""
    return Exit.OK if final.type == "result" else Exit.FAILED


def choose_view(*, as_json: bool, every_event: bool) -> View:
    """The view that suits where stdout goes; `as_json` prints the final event, or `every_event`."""
    if as_json:
        return JsonView(every_event=every_event)
    return LiveView(sys.stdout) if sys.stdout.isatty() else PlainView()


class JsonView:
    """One JSON line per event, in the form that PUBLISH has: `id` (of the event), `type`, `data`."""

    def __init__(self, *, every_event: bool) -> None:
        self._every_event = every_event

    def show(self, event: ClientEvent) -> None:
        """Print it, if it is wanted."""
        if self._every_event or event.is_final:
            say(json_line({"id": event.id, "type": event.type, "data": event.data}))

    def remark(self, text: str) -> None:
        """On stderr."""
        note(text)


class PlainView:
    """The answer on stdout and nothing else; what happened on the way there on stderr."""

    def __init__(self) -> None:
        self._lines = RunLines()

    def show(self, event: ClientEvent) -> None:
        """Print the end, mention a rejection and a run's steps; tokens may be taken back, so they are not printed."""
        match event.type:
            case "result":
                say(answer_text(event.data, indent=None))
            case "rejected":
                note(f"discarded: {_why(event.data)}")
            case "error" | "cancelled" if event.is_final:
                note(_ending(event))
            case _ if line := self._lines.of(event):
                note(line)
            case _:
                pass

    def remark(self, text: str) -> None:
        """On stderr."""
        note(text)


class LiveView:
    """Everything as it happens, on a terminal; text that is taken back is said to be."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._style = Style.of(stream)
        self._lines = RunLines()
        self._attempt = 0
        self._deployment = ""
        self._shown = ""  # the current attempt's text so far, as the model wrote it
        self._thinking = False
        self._open_line = False

    def show(self, event: ClientEvent) -> None:
        """Show it."""
        if event.attempt > self._attempt and not event.is_final:
            self._begin_attempt(event.attempt)
        match event.type:
            case "attempt":
                self._deployment = str(event.data.get("deployment", ""))
                self.remark(f"attempt {event.attempt}: {self._deployment} ({event.data.get('model', '')})")
            case "token":
                self._show_token(str(event.data.get("text", "")))
            case "reasoning":
                self._show_thought(str(event.data.get("text", "")))
            case "rejected":
                what = "discarded" if self._shown else "rejected"
                self._shown = ""
                self.remark(f"{what}: {_why(event.data, self._deployment)}")
            case "result":
                self._drop_other_than(event.answer_attempt)
                self._show_result(event.data)
            case _ if event.is_final:
                self._end_line()
                self._write_line(self._style.bad(_ending(event)))
            case _ if line := self._lines.of(event):
                if isinstance(event, TurnEnded):
                    self._end_turn(event.message.get("content"))
                self.remark(line)
            case _:
                pass

    def remark(self, text: str) -> None:
        """A dim line of its own."""
        self._end_line()
        self._write_line(self._style.dim(f"\u2014 {one_line(text)}"))

    def _begin_attempt(self, attempt: int) -> None:
        if self._shown:  # its worker died: nobody rejected it, and yet it will not be the answer
            self.remark(f"discarded: attempt {self._attempt} was superseded")
        self._attempt = attempt
        self._shown = ""

    def _drop_other_than(self, attempt: int | None) -> None:
        """Drop what is shown, if the answer is another attempt's: a worker thought dead was first in the end."""
        if self._shown and attempt is not None and attempt != self._attempt:
            self.remark(f"discarded: the answer is attempt {attempt}'s")
            self._shown = ""

    def _end_turn(self, content: Any) -> None:
        """Its text stands, and no later attempt's takes its place; what has not been shown of it is."""
        if isinstance(content, str) and content.startswith(self._shown):
            self._show_token(content.removeprefix(self._shown))
        self._shown = ""

    def _show_token(self, text: str) -> None:
        if self._thinking:
            self._end_line()
        self._shown += text
        self._write(harmless(text), text)

    def _show_thought(self, text: str) -> None:
        if not self._thinking:
            self._end_line()
            self._thinking = True
            if not self._style.enabled:
                self._write("[thinking] ", " ")
        self._write(self._style.dim(harmless(text)), text)

    def _show_result(self, data: dict[str, Any]) -> None:
        answer = answer_text(data, indent=2)
        raw_text = str(data.get("raw_text") or "")
        if self._shown and self._shown == raw_text:
            answer = ""
        elif self._shown and raw_text.startswith(self._shown):
            answer = raw_text[len(self._shown) :]
        elif self._shown:
            self.remark("the answer is:")
        if self._thinking:
            self._end_line()
        self._write(harmless(answer), answer)
        self.remark(_account(data))

    def _write(self, text: str, unstyled: str) -> None:
        if text:
            self._stream.write(text)
            self._stream.flush()
            self._open_line = not unstyled.endswith("\n")

    def _write_line(self, text: str) -> None:
        self._write(f"{text}\n", "\n")

    def _end_line(self) -> None:
        self._thinking = False
        if self._open_line:
            self._write_line("")


def answer_text(data: dict[str, Any], *, indent: int | None) -> str:
    """The answer of a result as text: itself, or its JSON, then its tool calls, one JSON line each."""
    content = data.get("content")
    if content is None or isinstance(content, str):
        lines = [content] if content else []
    else:
        lines = [json.dumps(content, ensure_ascii=False, indent=indent)]
    lines += [json_line(call) for call in data.get("tool_calls") or ()]
    return "\n".join(lines)


def _why(data: dict[str, Any], deployment: str = "") -> str:
    return ": ".join(
        str(part) for part in (data.get("deployment") or deployment, data.get("code"), data.get("reason")) if part
    )


def _ending(final: ClientEvent) -> str:
    """Why there is no answer, on one line."""
    parts = (final.type, final.data.get("code"), final.data.get("message"), final.data.get("reason"))
    return one_line(": ".join(str(part) for part in parts if part))


def _account(data: dict[str, Any]) -> str:
    """Who answered, how soon, for how much."""
    tokens = (data.get("usage") or {}).get("completion_tokens")
    latency_ms, cost_usd = data.get("latency_ms"), data.get("cost_usd", 0)
    parts = [
        str(data.get("deployment") or data.get("model_used") or "answered"),
        f"{tokens} tokens" if tokens else "",
        f"{latency_ms / 1000:.1f} s" if isinstance(latency_ms, (int, float)) else "",
        "cost unknown" if cost_usd is None else f"${cost_usd:.4f}" if cost_usd else "",
    ]
    return ", ".join(part for part in parts if part)
