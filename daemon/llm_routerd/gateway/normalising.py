"""Prompts that change at the front from one request to the next, and so make every local prompt cache begin anew.

What is known to change is taken out, or moved to the end of the last user message.  It is done by what stands in a
message and never by where the message stands: the same message comes out the same in the next request too, or the
cache would lose what it was to keep.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_routerd.config.gateway import GatewayConfig

Message = dict[str, Any]

_SYSTEM: Final = frozenset({"system", "developer"})
# What a model or a tool said is data, and not of the prompt's making.
_PROMPTS: Final = _SYSTEM | {"user"}
_BETWEEN: Final = "\n\n"
_USAGE: Final = (
    r"(?:Token usage: [0-9,]{1,15}/[0-9,]{1,15}; [0-9,]{1,15} remaining"
    r"|<total_tokens>[0-9,]{1,15} tokens left</total_tokens>)"
)


class Rule(Struct, frozen=True, kw_only=True):
    """One thing that changes.

    Attributes:
        name: what is told when it was found.
        pattern: of the text, within one message.
        moves: it goes to the end of the last user message; else it is taken out.
        roles: whose messages it is looked for in.
        marks: of which any text that matches has one: most texts have none, and are not gone through.
    """

    name: str
    pattern: re.Pattern[str]
    moves: bool = False
    roles: frozenset[str] = _PROMPTS
    marks: tuple[str, ...] = ("",)


# Whole lines, each in one pass.
KNOWN: Final = (
    # Claude Code's first system block: a hash of the request, for Anthropic's own accounting.
    Rule(
        name="billing-header",
        pattern=re.compile(r"^x-anthropic-billing-header:[^\n]*(?:\n|\Z)", re.MULTILINE),
        roles=_SYSTEM,
        marks=("x-anthropic-billing-header:",),
    ),
    # What is left of the context window of a model of Anthropic's, as agents tell it; of no other model's.
    Rule(
        name="token-usage",
        pattern=re.compile(
            rf"^(?:<system_warning>{_USAGE}</system_warning>|<system-reminder>\n?{_USAGE}\n?</system-reminder>|{_USAGE})"
            r"[ \t]{0,8}(?:\n|\Z)",
            re.MULTILINE,
        ),
        marks=("Token usage: ", "<total_tokens>"),
    ),
)


def rules_of(config: GatewayConfig) -> tuple[Rule, ...]:
    """What the configuration asks for: its own in their order, then the built-in ones."""
    own = tuple(
        Rule(name=f"normalise.{number}", pattern=re.compile(each.pattern), moves=each.action == "move")
        for number, each in enumerate(config.normalise)
    )
    return own + (KNOWN if config.normalise_known else ())


def normalised(messages: Sequence[Message], rules: Sequence[Rule]) -> tuple[Sequence[Message], tuple[str, ...]]:
    """The messages without what changes, and the names of the rules that found something.

    What was given is not altered; it is returned itself where nothing was found.  A message of the system's that holds
    nothing else goes; one of the user's stays as it is, for a turn must not be lost.
    """
    work = _Work(messages)
    done = tuple(rule.name for rule in rules if work.apply(rule))
    return (work.result(), done) if done else (messages, ())


class _Work:
    """Messages that are being changed; `None` where one is gone."""

    def __init__(self, messages: Sequence[Message]) -> None:
        self._messages: list[Message | None] = list(messages)
        self._left = len(messages)
        self._moved: list[str] = []
        users = [number for number, message in enumerate(messages) if message.get("role") == "user"]
        self._last_user = users[-1] if users else None

    def apply(self, rule: Rule) -> bool:
        """Whether it found something that could go."""
        if rule.moves and self._last_user is None:
            return False
        return sum(self._apply_to(number, rule) for number in range(len(self._messages))) > 0

    def _apply_to(self, number: int, rule: Rule) -> bool:
        message = self._messages[number]
        if message is None or message.get("role") not in rule.roles:
            return False
        found: list[str] = []
        content = _without(message.get("content"), rule, found)
        if not found:
            return False
        if content:
            self._messages[number] = {**message, "content": content}
        elif message["role"] in _SYSTEM and self._left > 1:
            self._messages[number] = None
            self._left -= 1
        else:
            return False
        if rule.moves:
            self._moved += found
        return True

    def result(self) -> list[Message]:
        """The messages, with what was moved at its place."""
        if self._moved and self._last_user is not None and (last := self._messages[self._last_user]) is not None:
            self._messages[self._last_user] = _with_end(last, _BETWEEN.join(text.strip("\n") for text in self._moved))
        return [message for message in self._messages if message is not None]


def _without(content: Any, rule: Rule, found: list[str]) -> Any:
    """The content without what matches, which is added to `found`; "" or no parts: nothing is left."""
    if isinstance(content, str):
        return _cut(content, rule, found)
    if not isinstance(content, list):
        return content
    parts = []
    for part in content:
        text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
        if not isinstance(text, str):
            parts.append(part)
            continue
        before = len(found)
        rest = _cut(text, rule, found)
        if len(found) == before:
            parts.append(part)
        elif rest:
            parts.append({**part, "text": rest})
    return parts


def _cut(text: str, rule: Rule, found: list[str]) -> str:
    if not any(mark in text for mark in rule.marks):
        return text
    kept, end = [], 0
    for match in rule.pattern.finditer(text):
        if match[0]:
            found.append(match[0])
            kept.append(text[end : match.start()])
            end = match.end()
    return "".join((*kept, text[end:]))


def _with_end(message: Message, text: str) -> Message:
    content = message.get("content")
    if isinstance(content, list):
        return {**message, "content": [*content, {"type": "text", "text": text}]}
    return {**message, "content": f"{content}{_BETWEEN}{text}" if content else text}
